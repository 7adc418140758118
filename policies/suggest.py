"""A small policy out of what a session did, for a person to read.

It allows what was done, as far as :mod:`~safeclaw.policies.generalise` says wider,
and nothing else.  What looks like a secret, and writes that something outside the
walls would later run or obey, stand in it as comments with a warning: such a line
is a person's to take.

INVARIANT: what was done and is not set aside is allowed by the suggestion; that is
checked here by evaluating it, and what the summary missed gets a line of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from safeclaw.errors import PolicyError
from safeclaw.policies.compiled import CompiledPolicy, compile_policy
from safeclaw.policies.context import Context
from safeclaw.policies.document import MAX_BYTES, Policy
from safeclaw.policies.explain import BESIDE, glob_text, quoted, shell_word, suggest_line
from safeclaw.policies.generalise import (
    PRIVATE,
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
from safeclaw.policies.network import OWN_LOOPBACK, is_metadata, is_name
from safeclaw.policies.observed import Observed
from safeclaw.policies.render import rule_lines

NAME = "suggested.yaml"

#: What secrets are called, wherever they lie.
_NAMES = (
    "{.env,.env.*,.envrc,.netrc,.pgpass,.pypirc,.npmrc,.git-credentials,*_history}",
    "{secrets,.ssh,.gnupg,.aws,.azure,.kube,.docker,.password-store}/**",
    "{credentials,credentials.json,secrets.{json,yaml,yml},token,.config/{gh,gcloud}/**}",
    "{id_rsa,id_dsa,id_ecdsa,id_ed25519,*.pem,*.key,*.p12,*.pfx,*.jks,*.kdbx}",
)
SECRETS = tuple(f"{{.,~}}/**/{names}" for names in _NAMES)
_SECRET_ELSEWHERE = (
    *(f"/**/{names}" for names in _NAMES),
    "/etc/{shadow,shadow-,gshadow,gshadow-,sudoers,sudoers.d/**,*.keytab,ssl/private/**}",
    "/{etc/ssh/ssh_host_*_key,run/credentials/**}",
)
_NO_SECRETS = (
    "{.,~,/}/**/{site-packages,dist-packages}/**/*.pem", "{.,~,/}/**/.env.{example,sample}",
)  # fmt: skip
#: Neither in the workspace nor in the home: what is the session's own, or everybody's to read.
_NO_SECRETS_ELSEWHERE = (
    "/{tmp,var/tmp,dev,proc,sys,usr,lib,lib64,etc/{ca-certificates,pki/ca-trust,ssl/certs}}/**",
    "/**/{cacert,ca-bundle,ca-certificates}.pem",
)
_OF_A_LOGIN = (
    "{.profile,.bashrc,.bash_profile,.bash_login,.bash_logout,.bash_aliases,.gitconfig}",
    "{.zshrc,.zshenv,.zprofile,.zlogin,.zlogout,.xprofile,.xsession,.xsessionrc,.xinitrc}",
    "{.pam_environment,.vimrc,.tmux.conf,bin/**,.local/bin/**,.local/lib/**}",
    ".config/{git,systemd,autostart,fish,environment.d,nvim,zsh}/**",
)
#: Written in the walls, run or obeyed outside: by git, by safeclaw, by a login or an editor.
GUARDED = (
    "{.git,.git/{config,config.worktree,commondir},.git/hooks/**,.safeclaw/**}",
    *(f"~/{names}" for names in _OF_A_LOGIN),
)
_GUARDED_ELSEWHERE = (
    *(f"/{{root,home/*}}/{names}" for names in _OF_A_LOGIN),
    "/etc/{cron*/**,crontab,init.d/**,systemd/**,profile,profile.d/**,bash.bashrc,environment}",
    "/etc/{sudoers,sudoers.d/**,pam.d/**,udev/**,xdg/**,ld.so.preload,ld.so.conf.d/**,gitconfig}",
    "/{bin,sbin,usr/bin,usr/sbin,usr/local/bin,usr/local/sbin,var/spool/cron}/**",
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
    reads, writes = _file_patterns(taken, place)
    guards = _guards(taken, (*reads, *writes), judge, place)
    body = [
        *_file_rules("read", reads),
        *_file_rules("changed", writes),
        *_command_rules(taken, place, names),
        *_network_rules(taken, place),
    ]
    exact: list[str] = []
    text = _document(source, taken, aside, guards, body, exact, place)
    for _ in range(2):
        # a name on top can hide what another line allowed, hence twice at most
        compiled = _compiled(text, context)
        missed = [item for item in taken if not _allows(compiled, item.attempt)]
        if not missed:
            break
        exact += [suggest_line(item.attempt, place.workspace) for item in missed]
        text = _document(source, taken, aside, guards, body, exact, place)
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
    size = len(text.encode("utf-8"))
    if size > MAX_BYTES:
        raise PolicyError(
            f"what was done takes a policy of {size} bytes, and the most are {MAX_BYTES}",
            hint="for a session that did less: safeclaw policy suggest --session ID",
        )
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

        self._own = globs(("{.,~}/**",))
        self._secrets = globs((*SECRETS, *_SECRET_ELSEWHERE))
        self._no_secrets = globs(_NO_SECRETS)
        self._no_secrets_elsewhere = globs(_NO_SECRETS_ELSEWHERE)
        self._guarded = globs((*GUARDED, *_GUARDED_ELSEWHERE))

    def sets_aside(self, attempt: Attempt) -> str | None:
        """Return the warning for an attempt, or None."""
        match attempt.target:
            case FileTarget(path, to):
                ends = [path] if to is None else [path, to]
            case SocketTarget(path):
                ends = [path]
            case OtherTarget() | ProgramTarget(argv=()):
                return "no rule can name it"
            case AddressTarget(address=literal, own=False) if is_metadata(literal):
                return "SECRET"
            case NameTarget(name) if not is_name(name):
                # SAFETY: as a host it would be an address, or this host's loopback, at every port
                return _LOOK_UP
            case _:
                return None
        if any(self._is_secret(end) for end in ends):
            return "SECRET"
        if attempt.action != "file.read" and any(self._any(self._guarded, end) for end in ends):
            return "RUNS OUTSIDE THE WALLS"
        return None

    def _is_secret(self, path: str) -> bool:
        if not self.sounds_secret(path) or self._any(self._no_secrets, path):
            return False
        return not self.is_public(path)

    def sounds_secret(self, path: str) -> bool:
        """Whether a path is called as secrets are."""
        return self._any(self._secrets, path)

    def is_public(self, path: str) -> bool:
        """Whether nothing at a path is a secret, whatever it is called."""
        return not self.is_own(path) and self._any(self._no_secrets_elsewhere, path)

    def is_own(self, path: str) -> bool:
        """Whether a path lies in the workspace or in the home."""
        return self._any(self._own, path)

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
    guards: list[str],
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
    lines += guards
    if exact:
        lines.append("  # what the lines below do not cover")
        lines += [f"  {line}" for line in dict.fromkeys(exact)]
    lines += body
    lines.append('  - {action: "*", effect: deny}')
    return "\n".join(lines) + "\n"


def _uses(taken: Iterable[Observed]) -> Iterator[tuple[str, str, int]]:
    """Yield what was done to which file, and how often."""
    for item in taken:
        action, target = item.attempt.action, item.attempt.target
        if not isinstance(target, FileTarget):
            continue
        yield action, target.path, item.count
        if target.to is not None:
            yield action, target.to, item.count
            for beside in BESIDE.get(action, ()):
                # a change is counted by what was done
                yield beside, target.path, item.count if beside == "file.read" else 0


def _file_patterns(taken: Sequence[Observed], place: Place) -> tuple[list[Pattern], list[Pattern]]:
    """Return the patterns for what was read, and for what was changed."""
    uses = list(_uses(taken))
    temporary = temporary_names(
        {path for action, path, _ in uses if action == _CREATE},
        {
            item.attempt.target.path
            for item in taken
            if item.attempt.action in ("file.write.delete", "file.write.rename")
            and isinstance(item.attempt.target, FileTarget)
        },
    )
    reads = [use for use in uses if use[0] == "file.read"]
    writes = [use for use in uses if use[0] != "file.read"]
    return patterns(reads, temporary, place), patterns(writes, temporary, place)


def _guards(
    taken: Sequence[Observed], found: Sequence[Pattern], judge: _Judge, place: Place
) -> list[str]:
    """Return the denials that keep ``DIR/**`` from reaching what was set aside, or could be."""
    if not found:
        return []
    lines = ["  # never by a DIR/** below: secrets, and what runs outside the walls"]
    elsewhere = sorted(
        {
            pattern.text.removesuffix("/**")
            for pattern in found
            if pattern.base == "/" and pattern.text.endswith("/**")
        }
    )
    elsewhere = [one for one in elsewhere if not judge.is_public(f"{one}/x")]
    lines += _exempt(taken, judge, place)
    lines += _rule(_SECRET_ACTIONS, "path", SECRETS, "deny")
    inside = [f"{one}/**/{names}" for one in elsewhere for names in _NAMES]
    if inside:
        lines += _rule(_SECRET_ACTIONS, "path", inside, "deny")
    changed = [pattern for pattern in found if pattern.actions - {"file.read"}]
    if changed:
        home = place.parts(place.home)[0] == "" or any(pattern.base for pattern in changed)
        lines += _rule(("file.write",), "path", GUARDED if home else GUARDED[:1], "deny")
        if elsewhere:
            lines += _rule(("file.write",), "path", _GUARDED_ELSEWHERE, "deny")
    return lines


def _exempt(taken: Sequence[Observed], judge: _Judge, place: Place) -> list[str]:
    """Return the rules for what is called as secrets are, and is none: those files alone."""
    done: dict[str, set[str]] = {}
    for action, path, _ in _uses(taken):
        private = path.startswith(tuple(f"{own}/" for own in PRIVATE)) and not judge.is_own(path)
        if judge.sounds_secret(path) and not private:
            done.setdefault(path, set()).add(action)
    groups: dict[tuple[str, ...], list[str]] = {}
    for path, actions in sorted(done.items()):
        text = patterns([("", path, 1)], {}, place)[0].text
        groups.setdefault(tuple(_widened(actions)), []).append(text)
    lines: list[str] = []
    for widened, texts in groups.items():
        lines += _rule(widened, "path", texts, "allow")
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
