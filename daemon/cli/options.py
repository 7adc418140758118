"""The options of ``safeclaw run``, read by hand: start-up is part of the product."""

from __future__ import annotations

from pathlib import Path

import msgspec

from safeclaw.errors import UsageError
from safeclaw.policies.model import printable

USAGE = """\
usage: safeclaw run [OPTION…] [--] COMMAND [ARG…]

Runs COMMAND in walls, under a policy, with a record of every attempt.

  --policy FILE|NAME       the policy; else .safeclaw/policy.yaml, else the shipped default
  --workspace DIR          where the agent works; else the current directory
  --agent NAME             the agent's name in the record; else the command's.  A registered
                           agent's key is taken from SAFECLAW_API_KEY or the unit's credentials
  --broker auto|system|embedded|SOCKET
                           who decides and records; auto: the system's, else one of your own
  --no-prompt              ask nothing on the terminal: approvals come from elsewhere
  --observe                record what would be denied, but allow it
  --isolation full|landlock
                           full: every layer; landlock: without namespaces, for hosts
                           that have none (containers). What it lacks is recorded
  --allow-degraded LAYER   go on without a layer that this host cannot put up:
                           landlock-abi (a floor older than Linux 6.12 has),
                           cgroup (limits hold single processes only)
  --grace SECONDS          how long to wait for a broker that does not answer; else 5,
                           or what the system's broker says
  -q, --quiet              show denials at the end only, as a number: for agents that draw on
                           the whole terminal. safeclaw audit tail shows them meanwhile
  -v, --verbose            print the walls
  -h, --help               print this

Ends with COMMAND's own status, 128+n for a signal; 125 when safeclaw failed,
126 or 127 when COMMAND cannot be run or is not there.
"""


#: The values of ``sandbox.spec``'s Isolation and Degraded, which this module need not import.
ISOLATIONS = ("full", "landlock")
LAYERS = ("landlock-abi", "cgroup")
_FLAGS = ("-q", "--quiet", "-v", "--verbose", "--observe", "--no-prompt", "-h", "--help")


class Options(msgspec.Struct, frozen=True):
    """What the person asked for; ``command`` is empty only when ``help`` is set."""

    command: tuple[str, ...]
    policy: str | None = None
    workspace: Path | None = None
    agent: str | None = None
    observe: bool = False
    isolation: str = "full"
    allow_degraded: tuple[str, ...] = ()
    grace: float | None = None
    broker: str = "auto"
    prompt: bool = True
    quiet: bool = False
    verbose: bool = False
    help: bool = False


def parse(words: list[str]) -> Options:
    """Return the options; the first word that is none begins the command.  UsageError."""
    values: dict[str, str] = {}
    flags: set[str] = set()
    degraded: list[str] = []
    rest = list(words)
    while rest:
        word = rest[0]
        if word == "--":
            rest.pop(0)
            break
        if not word.startswith("-") or word == "-":
            break
        rest.pop(0)
        name, equals, value = word.partition("=")
        if word in _FLAGS:
            flags.add(word)
            continue
        if name not in (
            "--policy",
            "--workspace",
            "--agent",
            "--isolation",
            "--allow-degraded",
            "--grace",
            "--broker",
        ):
            raise UsageError(
                f"{printable(word)}: no such option of safeclaw run",
                hint="safeclaw run --help; the command's own options come after --",
            )
        if not equals:
            if not rest:
                raise UsageError(f"{name} needs a value", hint="safeclaw run --help")
            value = rest.pop(0)
        if name == "--allow-degraded":
            degraded.append(value)
        else:
            values[name] = value
    if flags & {"-h", "--help"}:
        return Options(command=(), help=True)
    if not rest:
        raise UsageError("no command to run", hint="safeclaw run -- COMMAND [ARG…]")
    isolation = values.get("--isolation", "full")
    if isolation not in ISOLATIONS:
        raise UsageError(
            f"--isolation {printable(isolation)}: there is no such isolation",
            hint=f"there are {' and '.join(ISOLATIONS)}",
        )
    for layer in degraded:
        if layer not in LAYERS:
            raise UsageError(
                f"--allow-degraded {printable(layer)}: no layer of that name can be left out",
                hint=f"those that can are {' and '.join(LAYERS)}",
            )
    return Options(
        command=tuple(rest),
        policy=values.get("--policy"),
        workspace=Path(values["--workspace"]) if "--workspace" in values else None,
        agent=values.get("--agent"),
        observe="--observe" in flags,
        isolation=isolation,
        allow_degraded=tuple(dict.fromkeys(degraded)),
        grace=_seconds(values["--grace"]) if "--grace" in values else None,
        broker=broker_choice(values.get("--broker", "auto")),
        prompt="--no-prompt" not in flags,
        quiet=bool(flags & {"-q", "--quiet"}),
        verbose=bool(flags & {"-v", "--verbose"}),
    )


def broker_choice(text: str) -> str:
    """Return the value of ``--broker``; UsageError."""
    if text not in ("auto", "system", "embedded") and "/" not in text:
        raise UsageError(
            f"--broker {printable(text)}: there is no such broker",
            hint="write auto, system, embedded, or a socket's path with a slash in it",
        )
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise UsageError(
            f"--grace {printable(text)}: seconds from 0 to 3600", hint="such as --grace 5"
        )
    return seconds
