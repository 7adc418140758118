"""``safeclaw``: reads the first word, and imports only what that verb needs.

Errors are caught here and nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from safeclaw.errors import SafeclawError

USAGE = """\
usage: safeclaw COMMAND [OPTION…]

  run      run an agent in walls, under a policy, with a record
  policy   check and explain policies
  audit    show and verify the journal

safeclaw COMMAND --help says more.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit status."""
    fill_standard_descriptors()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        return _dispatch(words)
    except SafeclawError as problem:
        complain(problem)
        return problem.exit_status
    except BrokenPipeError:
        # Whoever read our output has had enough; nothing is wrong, and nothing can be said.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except KeyboardInterrupt:
        return 130


def fill_standard_descriptors() -> None:
    """Open /dev/null where 0, 1 or 2 is closed.

    SAFETY: otherwise the next socket or pipe becomes "stderr", and what is meant
    for a person is written to the broker.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def complain(problem: SafeclawError) -> None:
    """Show an error to the person, if there is anywhere to show it."""
    text = "\n".join(problem.diagnostics()) + "\n"
    with contextlib.suppress(OSError):
        os.write(2, text.encode("utf-8", "backslashreplace"))


def _dispatch(words: list[str]) -> int:
    verb = words[0] if words else ""
    match verb:
        case "run":
            from safeclaw.daemon.cli.run import run

            return run(words[1:])
        case "policy":
            from safeclaw.daemon.cli.policy import policy_group

            return _click(policy_group, words)
        case "audit":
            from safeclaw.daemon.cli.audit import audit_group

            return _click(audit_group, words)
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
            from safeclaw.errors import UsageError
            from safeclaw.policies.model import printable

            raise UsageError(
                f"{printable(verb)}: no such command", hint="safeclaw --help lists them"
            )


def _click(group: Callable[..., object], words: list[str]) -> int:
    import click

    try:
        result = group(args=words[1:], prog_name=f"safeclaw {words[0]}", standalone_mode=False)
    except click.exceptions.Abort:
        return 130
    except click.ClickException as problem:
        problem.show()
        return problem.exit_code
    sys.stdout.flush()
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
