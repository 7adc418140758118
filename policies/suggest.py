"""A small policy out of what a session did, for a person to read.

It allows what was done, as far as :mod:`~safeclaw.policies.generalise` says wider,
and nothing else.  What looks like a secret, and writes that something outside the
walls would later run or obey, stand in it as comments with a warning: such a line
is a person's to take.

INVARIANT: what was done and is not set aside is allowed by the suggestion; that is
checked here by evaluating it, and what the summary missed gets a line of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from safeclaw.policies.compiled import CompiledPolicy, compile_policy
from safeclaw.policies.context import Context
from safeclaw.policies.document import Policy
from safeclaw.policies.explain import glob_text, quoted, shell_word, suggest_line
from safeclaw.policies.generalise import (
    STATED,
    Pattern,
    Place,
    command_patterns,
    patterns,
    temporary_names,
)
from safeclaw.policies.glob import PathGlob, path_globs
from safeclaw.policies.loader import KNOWN_ACTIONS, load
from safeclaw.policies.model import (
    AddressTarget,
    Attempt,
    Decision,
    FileTarget,
    NameTarget,
    OtherTarget,
    ProgramTarget,
    SocketTarget,
    printable,
)
from safeclaw.policies.network import OWN_LOOPBACK, is_name
from safeclaw.policies.observed import Observed
from safeclaw.policies.render import rule_lines

NAME = "suggested.yaml"

SECRETS = (
    "{.,~}/**/{.env,.env.*,.envrc,.netrc,.pgpass,.pypirc,.npmrc,.git-credentials,*_history}",
    "{.,~}/**/{secrets,.ssh,.gnupg,.aws,.azure,.kube,.docker,.password-store}/**",
    "{.,~}/**/{credentials,credentials.json,secrets.{json,yaml,yml},token,.config/{gh,gcloud}/**}",
    "{.,~}/**/{id_rsa,id_dsa,id_ecdsa,id_ed25519,*.pem,*.key,*.p12,*.pfx,*.jks,*.kdbx}",
)
_SECRET_ELSEWHERE = (
    "/etc/{shadow,gshadow,sudoers,sudoers.d/**,ssh/ssh_host_*_key,ssl/private/**}",
    "/{root,home/*}/{.ssh,.gnupg,.aws,.azure,.kube,.docker,.password-store}/**",
)
#: The workspace's before the home's: a rule on the home has the whole of it shown.
_NO_SECRETS = (
    "./**/{site-packages,dist-packages}/**/*.pem", "./**/.env.{example,sample}",
    "~/**/{site-packages,dist-packages}/**/*.pem", "~/**/.env.{example,sample}",
)  # fmt: skip
#: Written in the walls, run or obeyed outside: by git, by safeclaw, by a login shell.
GUARDED = (
    "{.git,.git/{config,config.worktree,commondir},.git/hooks/**,.safeclaw/**}",
    "~/{.gitconfig,.profile,.bashrc,.bash_profile,.zshrc,.zshenv,.config/{git,systemd}/**}",
)
_CREATE = "file.write.create"
_LOOK_UP = "looked up, and no rule can name it"
_WRITES = {action for action in KNOWN_ACTIONS if action.startswith("file.write.")}
_SECRET_ACTIONS = ("file.read", "file.write")


class Source(msgspec.Struct, frozen=True):
    """Where the attempts come from, for the suggestion's first lines."""

    what: str
    refused: int = 0
    """How many attempts were really refused: they are not suggested."""


class Suggestion(msgspec.Struct, frozen=True):
    """A policy's text, and what was set aside in it as comments."""

    text: str
    rules: int
    used: int
    set_aside: tuple[str, ...]


def suggest(
    observed: Sequence[Observed],
    place: Place,
    source: Source,
    *,
    context: Callable[[Policy], Context],
    names: Callable[[str], str | None],
) -> Suggestion:
    """Return the policy that allows what was ``observed``, and little more.

    ``context`` says what a policy has to know about the session; ``names`` where
    a bare program name leads (its canonical path).
    """
    needed = _not_runtime(observed, context)
    aside: list[tuple[Observed, str]] = []
    taken: list[Observed] = []
    judge = _Judge(place)
    for item in needed:
        why = judge.sets_aside(item.attempt)
        if why is None:
            taken.append(item)
        else:
            aside.append((item, why))
    body = _body(taken, place, names)
    exact: list[str] = []
    text = _document(source, taken, aside, body, exact, place)
    for _ in range(2):
        # a name on top can hide what another line allowed, hence twice at most
        compiled = _compiled(text, context)
        missed = [item for item in taken if not _allows(compiled, item.attempt)]
        if not missed:
            break
        exact += [suggest_line(item.attempt, place.workspace) for item in missed]
        text = _document(source, taken, aside, body, exact, place)
    rules = len(load(text, name=NAME).rules)
    return Suggestion(
        text,
        rules,
        sum(item.count for item in taken),
        tuple(_line(item, place) for item, _ in aside),
    )


def _allows(compiled: CompiledPolicy, attempt: Attempt) -> bool:
    return compiled.evaluate(attempt).decision is Decision.ALLOW


def _compiled(text: str, context: Callable[[Policy], Context]) -> CompiledPolicy:
    policy = load(text, name=NAME)
    return compile_policy(policy, context(policy))


def _not_runtime(
    observed: Iterable[Observed], context: Callable[[Policy], Context]
) -> list[Observed]:
    """Return what the runtime preset does not allow already."""
    nothing = 'version: "1.0"\nrules:\n  - {action: "*", effect: deny}\n'
    compiled = _compiled(nothing, context)
    return [item for item in observed if not _allows(compiled, item.attempt)]


class _Judge:
    """Says which attempts are not to be suggested silently."""

    def __init__(self, place: Place) -> None:
        def globs(texts: Iterable[str]) -> list[PathGlob]:
            return [
                glob
                for text in texts
                for glob in path_globs(text, workspace=place.workspace, home=place.home)
            ]

        self._secrets = globs((*SECRETS, *_SECRET_ELSEWHERE))
        self._no_secrets = globs(_NO_SECRETS)
        self._guarded = globs(GUARDED)

    def sets_aside(self, attempt: Attempt) -> str | None:
        """Return the warning for an attempt, or None."""
        match attempt.target:
            case FileTarget(path, to):
                ends = [path] if to is None else [path, to]
            case SocketTarget(path):
                ends = [path]
            case OtherTarget() | ProgramTarget(argv=()):
                return "no rule can name it"
            case NameTarget(name) if not is_name(name):
                # SAFETY: as a host it would be an address, or this host's loopback, at every port
                return _LOOK_UP
            case _:
                return None
        if any(self._any(self._secrets, end) for end in ends) and not all(
            self._any(self._no_secrets, end) for end in ends
        ):
            return "SECRET"
        if attempt.action != "file.read" and any(self._any(self._guarded, end) for end in ends):
            return "RUNS OUTSIDE THE WALLS"
        return None

    def _any(self, globs: list[PathGlob], path: str) -> bool:
        return any(glob.match(path) for glob in globs)


def _line(item: Observed, place: Place) -> str:
    target = item.attempt.target
    if isinstance(target, NameTarget) and not is_name(target.name):
        return printable(target.name)
    return suggest_line(item.attempt, place.workspace)


# ---- the text


def _document(
    source: Source,
    taken: Sequence[Observed],
    aside: Sequence[tuple[Observed, str]],
    body: list[str],
    exact: Sequence[str],
    place: Place,
) -> str:
    used = sum(item.count for item in taken)
    lines = [f"# Suggested from {printable(source.what)}: {used} attempts that need a rule."]
    lines += [f"# {line}" for line in STATED]
    if source.refused:
        lines.append(f"# Not in here: what it was really refused ({_times(source.refused)}).")
    lines += ['version: "1.0"', "rules:"]
    for item, why in aside:
        said = f"  # {why}, left out ({_times(item.count)})"
        lines.append(said if why == _LOOK_UP else f"{said}: take the # away to allow it")
        lines.append(f"  # {_line(item, place)}")
    lines += _guards(taken, place)
    if exact:
        lines.append("  # what the lines below do not cover")
        lines += [f"  {line}" for line in dict.fromkeys(exact)]
    lines += body
    lines.append('  - {action: "*", effect: deny}')
    return "\n".join(lines) + "\n"


def _guards(taken: Sequence[Observed], place: Place) -> list[str]:
    """Return the denials that keep ``DIR/**`` from reaching what was set aside, or could be."""
    files = [item.attempt for item in taken if isinstance(item.attempt.target, FileTarget)]
    if not files:
        return []
    lines = ["  # never by a DIR/** below: secrets, and what runs outside the walls"]
    exempt = _covered(files, place, _NO_SECRETS)
    if exempt:
        lines += _rule(_SECRET_ACTIONS, "path", exempt, "allow")
    lines += _rule(_SECRET_ACTIONS, "path", SECRETS, "deny")
    if any(attempt.action != "file.read" for attempt in files):
        lines += _rule(("file.write",), "path", GUARDED, "deny")
    return lines


def _covered(files: Iterable[Attempt], place: Place, texts: Iterable[str]) -> list[str]:
    """Return those of ``texts`` that some of ``files`` match, and none before them."""
    left = {attempt.target.path for attempt in files if isinstance(attempt.target, FileTarget)}
    found: list[str] = []
    for text in texts:
        globs = path_globs(text, workspace=place.workspace, home=place.home)
        matched = {path for path in left if any(glob.match(path) for glob in globs)}
        if matched:
            found.append(text)
            left -= matched
    return found


def _body(taken: Sequence[Observed], place: Place, names: Callable[[str], str | None]) -> list[str]:
    made: set[str] = set()
    gone: set[str] = set()
    reads: list[tuple[str, str, int]] = []
    writes: list[tuple[str, str, int]] = []
    for item in taken:
        action, target = item.attempt.action, item.attempt.target
        if not isinstance(target, FileTarget):
            continue
        ends = [target.path] if target.to is None else [target.path, target.to]
        if action == _CREATE:
            made.add(target.path)
        if action in ("file.write.delete", "file.write.rename"):
            gone.add(target.path)
        if action == "file.read" or target.to is not None:
            # what is renamed or linked must be readable, too
            reads.append(("file.read", target.path, item.count))
        if action != "file.read":
            writes += [(action, end, item.count) for end in ends]
    temporary = temporary_names(made, gone)
    lines: list[str] = []
    lines += _file_rules("read", patterns(reads, temporary, place))
    lines += _file_rules("changed", patterns(writes, temporary, place))
    lines += _command_rules(taken, place, names)
    lines += _network_rules(taken, place)
    return lines


def _file_rules(done: str, found: list[Pattern]) -> list[str]:
    """Return rules by place: reads of the workspace together, changes by top directory."""
    groups: dict[tuple[str, str], list[Pattern]] = {}
    for pattern in found:
        area = pattern.area if done == "changed" else ""
        groups.setdefault(("" if not pattern.base else "/", area), []).append(pattern)
    lines: list[str] = []
    for base, where in (("", "in the workspace"), ("/", "elsewhere")):
        here = [pattern for key in groups if key[0] == base for pattern in groups[key]]
        if not here:
            continue
        by_area: dict[str, int] = {}
        for pattern in here:
            name = pattern.area or pattern.text
            by_area[name] = by_area.get(name, 0) + pattern.count
        said = ", ".join(f"{printable(name)} {count}" for name, count in by_area.items())
        lines.append(f"  # {done} {where}, times: {_clip(said)}")
        lines += _group_rules([group for key, group in groups.items() if key[0] == base])
    return lines


def _group_rules(groups: Iterable[list[Pattern]]) -> list[str]:
    lines: list[str] = []
    for group in groups:
        actions = _widened({action for pattern in group for action in pattern.actions})
        lines += _rule(actions, "path", [pattern.text for pattern in group], "allow")
    return lines


def _widened(actions: set[str]) -> list[str]:
    """Return the actions of a rule: what may be made may be changed, as it will be there next."""
    if _CREATE in actions:
        actions |= {"file.write.modify", "file.write.metadata"}
    return ["file.write"] if actions >= _WRITES else sorted(actions)


def _command_rules(
    taken: Sequence[Observed], place: Place, names: Callable[[str], str | None]
) -> list[str]:
    # A bare word names what lies where programs are started: there, or in a directory of it.
    files = frozenset(
        name
        for item in taken
        if isinstance(item.attempt.target, FileTarget)
        for name in place.parts(item.attempt.target.path)[1][:2]
    )
    runs: list[tuple[str, tuple[str, ...], int]] = []
    actions: set[str] = set()
    for item in taken:
        target = item.attempt.target
        if isinstance(target, ProgramTarget):
            actions.add(item.attempt.action)
            runs.append((_program(target, place, names), target.argv[1:], item.count))
    if not runs:
        return []
    found = command_patterns(runs, files)
    said = ", ".join(f"{printable(text.split()[0])} {count}" for text, count in found)
    return [
        f"  # programs, times: {_clip(said)}",
        *_rule(sorted(actions), "command", [text for text, _ in found], "allow"),
    ]


def _program(target: ProgramTarget, place: Place, names: Callable[[str], str | None]) -> str:
    """Return the first token: the name it was called by where that leads to it, else its path."""
    called = target.argv[0] if target.argv else target.program
    for name in (called[called.rfind("/") + 1 :], target.program[target.program.rfind("/") + 1 :]):
        if name and names(name) == target.program and name == shell_word(glob_text(name)):
            return name
    base, parts = place.parts(target.program)
    if base == "":
        return shell_word(glob_text("./" + "/".join(parts)))
    return shell_word(glob_text(target.program))


def _network_rules(taken: Sequence[Observed], place: Place) -> list[str]:
    groups: dict[tuple[str, int], tuple[dict[str, int], set[str]]] = {}
    sockets: dict[str, tuple[int, set[str]]] = {}
    for item in taken:
        target = item.attempt.target
        if isinstance(target, AddressTarget):
            hosts, actions = groups.setdefault((target.protocol, target.port), ({}, set()))
            known = [name for name in target.names if is_name(name)]
            for name in known or (OWN_LOOPBACK if target.own else target.address,):
                hosts[name] = hosts.get(name, 0) + item.count
            actions.add(item.attempt.action)
        elif isinstance(target, SocketTarget):
            count, actions = sockets.get(target.path, (0, set[str]()))
            sockets[target.path] = (count + item.count, actions | {item.attempt.action})
    lines: list[str] = []
    for (protocol, port), (hosts, actions) in sorted(groups.items()):
        said = ", ".join(f"{host} {count}" for host, count in hosts.items())
        lines.append(f"  # {protocol} port {port}, times: {_clip(said)}")
        more = (("port", str(port)), ("protocol", protocol))
        lines += _rule(sorted(actions), "host", sorted(hosts), "allow", *more)
    for path, (count, actions) in sorted(sockets.items()):
        lines.append(f"  # a Unix socket, {_times(count)}: who listens there acts for the agent")
        text = patterns([("", path, count)], {}, place)[0].text
        lines += _rule(sorted(actions), "path", [text], "allow")
    return lines


def _rule(
    actions: Sequence[str], key: str, values: Sequence[str], effect: str, *more: tuple[str, str]
) -> list[str]:
    conditions = [(key, [quoted(value) for value in values])]
    return rule_lines(actions, [*conditions, *((name, [value]) for name, value in more)], effect)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _clip(text: str) -> str:
    return text if len(text) <= 70 else text[:69] + "…"
