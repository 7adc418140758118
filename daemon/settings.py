"""The daemon's settings: one optional YAML file, every value with a default.

The system daemon reads ``safeclawd.yaml`` in its configuration directory, a user's own
broker ``$XDG_CONFIG_HOME/safeclaw/safeclawd.yaml``.  What it does not know is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import msgspec

from safeclaw.daemon import places
from safeclaw.daemon.journal.keeping import Keeping
from safeclaw.daemon.peer import Groups
from safeclaw.errors import PolicyError, UsageError

FILE_NAME = "safeclawd.yaml"
#: Where the system's broker is configured.
SYSTEM_PLACE = Path("/etc/safeclaw")
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86400)]
Command = Annotated[tuple[str, ...], msgspec.Meta(max_length=64)]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that can be set.  Times are in seconds, days are days."""

    #: How long a question waits for a person; then it is a no.
    approval_timeout: Seconds = 300.0
    #: How long a supervisor looks for a broker that has gone, before it kills its agent.
    grace: Seconds = 30.0
    #: Started for each new question, with the question as JSON on its standard input.
    approval_hook: Command = ()
    #: Started for violations, faults and unusual denials, with the alert as JSON.
    alert_hook: Command = ()
    #: How many denials within a minute are an alert; 0 for never.
    alert_denials: Annotated[int, msgspec.Meta(ge=0)] = 0
    #: Where metrics are served besides the Unix socket: a port of 127.0.0.1; 0 for nowhere.
    metrics_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    #: How old a key gets before it is due for rotation, and how long it is good for.
    key_rotation_days: Annotated[int, msgspec.Meta(ge=1, le=3650)] = 90
    #: Whether two administrators have to say yes before a wider policy comes into force.
    require_approval: bool = False
    groups: Groups = Groups()
    journal: Keeping = Keeping()


def own_place() -> Path:
    """Return where a user's own broker is configured (XDG Base Directory Specification)."""
    return places.config() / "safeclaw"


def read(path: Path) -> Settings:
    """Return what a file says; the defaults when it is not there.  UsageError."""
    if not path.exists():
        return Settings()
    import yaml

    from safeclaw.policies import source

    hint = f"see safeclawd(8); without {path} the defaults hold"
    try:
        text = source.read(path)
        found: object = yaml.safe_load(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as problem:
        where = " ".join(str(problem).split())
        raise UsageError(f"{path}: not valid YAML: {where}", hint=hint) from problem
    except PolicyError as problem:
        raise UsageError(problem.message, hint=hint) from problem
    if found is None:
        return Settings()
    if not isinstance(found, dict) or not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{path}: has to be a mapping of settings", hint=hint)
    lines = {str(name.value): name.start_mark.line + 1 for name, _ in node.value}
    values = {str(name): value for name, value in cast("dict[object, object]", found).items()}
    problems: list[str] = []
    for name, value in values.items():
        try:
            msgspec.convert({name: value}, Settings)
        except msgspec.ValidationError as problem:
            problems.append(f"{path}:{lines.get(name, 1)}: {problem}")
    if problems:
        raise UsageError("\n".join(problems), hint=hint)
    return msgspec.convert(values, Settings)
