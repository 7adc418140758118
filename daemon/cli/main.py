"""``safeclaw``: reads the first word, and imports only what that verb needs.

Errors are caught here and nowhere else.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Callable, Generator
from types import ModuleType
from typing import Final, cast

from safeclaw.errors import SafeclawError, UsageError

USAGE = """\
usage: safeclaw COMMAND [OPTION…]

  run        run an agent in walls, under a policy, with a record
  policy     check, explain, test, compare and change policies
  audit      show and verify the journal
  agent      register and review agents, give and take their keys
  approvals  answer what waits for a person
  kill       stop an agent, or all, at once; resume lets them run again
  resume     let an agent, or all, run again
  ps         list the sessions that run, and what they use
  status     say how the broker is
  doctor     say what this host offers, and what is missing

safeclaw COMMAND --help says more.
"""

#: The verbs that click reads, each imported only when it is used: its module and its command.
VERBS: Final = {
    "agent": "safeclaw.daemon.cli.agent:agent_group",
    "approvals": "safeclaw.daemon.cli.approvals:approvals_group",
    "audit": "safeclaw.daemon.cli.audit:audit_group",
    "doctor": "safeclaw.daemon.cli.doctor:doctor_command",
    "kill": "safeclaw.daemon.cli.kill:kill_command",
    "policy": "safeclaw.daemon.cli.policy:policy_group",
    "ps": "safeclaw.daemon.cli.ps:ps_command",
    "resume": "safeclaw.daemon.cli.kill:resume_command",
    "status": "safeclaw.daemon.cli.status:status_command",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit status.  Without arguments: be the process."""
    fill_standard_descriptors()
    words = sys.argv[1:] if arguments is None else arguments
    if arguments is None and "_SAFECLAW_COMPLETE" in os.environ:
        from safeclaw.daemon.cli.completion import complete

        return complete(os.environ["_SAFECLAW_COMPLETE"])
    status = _guarded(words)
    if arguments is None and words[:1] == ["run"]:
        # Everything is closed and written: what is left to Python is to take itself apart.
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(status)
    return status


def _guarded(words: list[str]) -> int:
    try:
        status = _dispatch(words)
        sys.stdout.flush()  # what cannot be written is to be known here, not at exit
        return status
    except SafeclawError as problem:
        complain(problem)
        return problem.exit_status
    except BrokenPipeError:
        # Whoever read our output has had enough; nothing is wrong, and nothing can be said.
        _discard_output()
        return 0
    except OSError as failure:
        # Mostly the output: a full disk, or a closed descriptor.
        from safeclaw.policies.model import printable

        _discard_output()
        what = os.fsdecode(failure.filename) if failure.filename else " ".join(words[:2])
        error = SafeclawError.of(failure, printable(what))
        complain(error)
        return error.exit_status
    except KeyboardInterrupt:
        return 130


def fill_standard_descriptors() -> None:
    """Open /dev/null where 0, 1 or 2 is closed, the wrong way round.

    SAFETY: otherwise the next socket or pipe becomes "stderr", and what is meant
    for a person is written to the broker.  Reading and writing still fail with
    EBADF, so that lost output is not taken for success; the agent finds them closed.
    """
    for number, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest free number; closed again at exec
    # Python has None for those; the rest of the house need not know.  Open until the end.
    if sys.__stdout__ is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.__stderr__ is None:  # what is for a person can only be lost
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _discard_output() -> None:
    """Send what is still buffered nowhere: the flush at exit must not fail again."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def complain(problem: SafeclawError) -> None:
    """Show an error to the person, if there is anywhere to show it."""
    text = "\n".join(problem.diagnostics()) + "\n"
    with contextlib.suppress(OSError):
        os.write(2, text.encode("utf-8", "backslashreplace"))


def _dispatch(words: list[str]) -> int:
    verb = words[0] if words else ""
    match verb:
        case "run":
            return _run(words[1:])
        case "kill" if (status := _kill(words[1:])) is not None:
            return status
        case _ if verb in VERBS:
            module, _, name = VERBS[verb].partition(":")
            command: Callable[..., object] = getattr(importlib.import_module(module), name)
            return _click(command, words)
        case "--version" | "-V":
            from importlib.metadata import version

            print(f"safeclaw {version('safeclaw')}")
            return 0
        case "--help" | "-h" | "help":
            sys.stdout.write(USAGE)
            return 0
        case "":
            sys.stderr.write(USAGE)
            return 2
        case _:
            from safeclaw.policies.model import printable

            raise UsageError(
                f"{printable(verb)}: no such command", hint="safeclaw --help lists them"
            )


@contextlib.contextmanager
def _lean() -> Generator[None]:
    """Import what the block imports, and nothing that it can do without."""
    # Start-up makes much and drops little; run and the broker switch it on again.
    gc.disable()
    # msgspec takes what it needs from there, or else from typing, which has it from 3.11 on;
    # importing typing_extensions would take as long as all our own modules for a run.
    absent = cast("dict[str, ModuleType | None]", sys.modules)
    hide = "typing_extensions" not in absent
    if hide:
        absent["typing_extensions"] = None
    try:
        yield
    finally:
        if hide:
            del absent["typing_extensions"]


def _run(words: list[str]) -> int:
    with _lean():
        from safeclaw.daemon.cli.run import run
    return run(words)


def _kill(words: list[str]) -> int | None:
    """Stop agents; None for words that click has to explain."""
    with _lean():
        from safeclaw.daemon.cli import stopping
    order = stopping.read(words)
    return None if order is None else stopping.stop(order)


def _command(words: list[str]) -> str:
    """Return the words of a command line that name the command."""
    deep = VERBS[words[0]].endswith("_group") and words[1:] and not words[1].startswith("-")
    return " ".join(words[: 2 if deep else 1])


def _click(group: Callable[..., object], words: list[str]) -> int:
    import click

    try:
        result = group(args=words[1:], prog_name=f"safeclaw {words[0]}", standalone_mode=False)
    except click.exceptions.Abort:
        return 130
    except click.UsageError as problem:
        if type(problem).__name__ == "NoArgsIsHelpError":  # click 8.2: what it shows is the help
            problem.show()
            return problem.exit_code
        from safeclaw.policies.model import printable

        place = problem.ctx.command_path if problem.ctx is not None else f"safeclaw {words[0]}"
        said = problem.format_message().rstrip(".")
        raise UsageError(printable(said), hint=f"{printable(place)} --help") from problem
    except UsageError as problem:
        problem.hint = problem.hint or f"safeclaw {_command(words)} --help"
        raise
    except click.ClickException as problem:
        problem.show()
        return problem.exit_code
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
