"""Words about policies and verdicts, for a person."""

from __future__ import annotations

import json
import re

from safeclaw.errors import UsageError
from safeclaw.policies.compiled import CHANGES, ENVIRONMENT, PROTECTED, CompiledPolicy
from safeclaw.policies.document import Effect
from safeclaw.policies.model import (
    AddressTarget,
    Attempt,
    FileTarget,
    NameTarget,
    OtherTarget,
    ProgramTarget,
    SocketTarget,
    Target,
    Verdict,
    is_seen,
    printable,
)
from safeclaw.policies.network import OWN_LOOPBACK, address, is_name

#: Stands for whatever a name resolves to, where only the name is asked about (RFC 5737).
_SOMEWHERE = "198.51.100.1"
#: What refuses whatever a policy says.
_BEYOND = (PROTECTED, "broker-lost", "violation")
#: What the source of a rename or a link has to be allowed beside (``compiled``).
BESIDE = {
    "file.write.rename": ("file.read",),
    "file.write.link": ("file.read", *CHANGES),
}
_SPECIAL = re.compile(r"([\\*?\[\]{}])")


def suggest_line(attempt: Attempt, workspace: str | None = None) -> str:
    """Return the line of policy that would allow ``attempt``, and little more.

    Paths in ``workspace`` are written relative to it.  A byte that YAML cannot
    hold becomes ``?``.
    """
    action = attempt.action
    match attempt.target:
        case FileTarget(path) if action == "shell.execute":
            # a program that is not there, or not in the view: its words were not read
            condition = f"command: {quoted(shell_word(_relative(path, workspace)) + ' *')}"
        case FileTarget(path, to):
            if to is not None:
                # both ends, and what the source has to be allowed beside
                action = f"[{', '.join((action, *BESIDE.get(action, ())))}]"
            texts = [_path(item, workspace) for item in (path, to) if item is not None]
            condition = f"path: {texts[0] if len(texts) == 1 else '[' + ', '.join(texts) + ']'}"
        case SocketTarget(path) if path.startswith("@"):
            condition = f"host: {OWN_LOOPBACK}"
        case SocketTarget(path):
            condition = f"path: {_path(path, workspace)}"
        case ProgramTarget(program, argv, _):
            words = [_relative(program, workspace), *(glob_text(word) for word in argv[1:])]
            condition = f"command: {quoted(' '.join(shell_word(word) for word in words))}"
        case AddressTarget(protocol, literal, port, names, own):
            known = [name for name in names if is_name(name)]
            host = OWN_LOOPBACK if own else known[0] if known else literal
            condition = f"host: {quoted(host)}, port: {port}, protocol: {protocol}"
        case NameTarget(name):
            action, condition = "network.connect", f"host: {quoted(name)}"
        case OtherTarget():
            return f"- {{action: {attempt.action}, effect: allow}}"
    return f"- {{action: {action}, {condition}, effect: allow}}"


def glob_text(text: str) -> str:
    """Return the glob that matches ``text``; what YAML cannot hold becomes ``?``."""
    return "".join(_SPECIAL.sub(r"\\\1", char) if char.isprintable() else "?" for char in text)


def _relative(path: str, workspace: str | None) -> str:
    if workspace is not None and path.startswith(workspace.rstrip("/") + "/"):
        short = path[len(workspace.rstrip("/")) + 1 :]
        return f"./{glob_text(short)}" if "/" not in short or short[0] == "~" else glob_text(short)
    return glob_text(path)


def _path(path: str, workspace: str | None) -> str:
    text = "." if path == workspace else _relative(path, workspace).removeprefix("./")
    return quoted(f"./{text}" if text.startswith("~") else text)


def shell_word(word: str) -> str:
    """Return one token of a command pattern; a quote in a word that needs them becomes ``?``."""
    if word and not re.search(r"[\s'\"]", word):
        return word
    return "'" + word.replace("'", "?") + "'"


def quoted(text: str) -> str:
    r"""Return ``text`` as YAML quotes it, with what is not seen as ``\UNNNNNNNN``."""
    marked = json.dumps(text, ensure_ascii=False)
    return "".join(char if is_seen(char) else f"\\U{ord(char):08x}" for char in marked)


def parse_target(action: str, words: list[str], base: str) -> Target:
    """Return the target a person means: the inverse of how targets are shown.

    ``base`` is the directory relative paths stand in; program and argument
    words are taken as they are.  Raises UsageError with what was expected.
    """
    family = action.partition(".")[0]
    if family == "file":
        if len(words) not in (1, 2):
            raise UsageError("one path is expected, or two for a rename or link")
        paths = [_absolute(word, base) for word in words]
        return FileTarget(paths[0], paths[1] if len(paths) == 2 else None)
    if family == "shell":
        if not words:
            raise UsageError("a program and its arguments are expected")
        program = words[0] if words[0].startswith("/") else _absolute(words[0], base)
        return ProgramTarget(program, tuple(words))
    if family == "network":
        return _network(words, base)
    return OtherTarget(" ".join(words) or action)


def _absolute(path: str, base: str) -> str:
    parts: list[str] = []
    for part in (path if path.startswith("/") else f"{base}/{path}").split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def _network(words: list[str], base: str) -> Target:
    if len(words) != 1:
        raise UsageError("an address is expected: 192.0.2.1:443, tcp:[2001:db8::1]:443 or a path")
    (text,) = words
    if "/" in text:
        return SocketTarget(_absolute(text, base))
    found = re.fullmatch(r"(?:(tcp|udp):)?(?:\[([^\]]+)\]|([^\[\]:]+)):(\d{1,5})", text)
    if found is None:
        raise UsageError(f"'{text}' is no address; write 192.0.2.1:443 or [2001:db8::1]:443")
    host = found[2] or found[3]
    if address(host) is None:
        name = host.lower().removesuffix(".")
        return AddressTarget(found[1] or "tcp", _SOMEWHERE, int(found[4]), (name,))
    return AddressTarget(found[1] or "tcp", host, int(found[4]))


def remedy(attempt: Attempt, verdict: Verdict, workspace: str | None = None) -> str | None:
    """Return what in a policy would allow a denied attempt; None where nothing would."""
    if verdict.rule in _BEYOND:
        return None
    if verdict.rule == ENVIRONMENT:
        return "change 'forbid' or 'pin' under environment:"
    if isinstance(attempt.target, NameTarget) and not is_name(attempt.target.name):
        return None
    return suggest_line(attempt, workspace)


def place_of(compiled: CompiledPolicy, attempt: Attempt, source: str) -> str:
    """Return where what decides stands; ``source`` is the policy's own file."""
    rule = compiled.decisive_rule(attempt)
    if rule is None and compiled.evaluate(attempt).rule == ENVIRONMENT:
        return "environment: of the policy"
    if rule is None:
        return "no rule of the policy"
    if rule.id.startswith("runtime:"):
        return "the runtime preset" + (f", line {rule.line}" if rule.line else "")
    return f"{rule.file or source}:{rule.line}"


def explain(compiled: CompiledPolicy, attempt: Attempt, source: str) -> list[str]:
    """Return the lines that say what happens with ``attempt``, and why."""
    verdict: Verdict = compiled.evaluate(attempt)
    rule = compiled.decisive_rule(attempt)
    lines = [
        f"verdict: {compiled.outcome(attempt)}",
        f"rule: {verdict.rule}",
        f"line: {place_of(compiled, attempt, source)}",
        f"reason: {printable(verdict.reason)}",
    ]
    allowing = remedy(attempt, verdict, compiled.context.workspace)
    if compiled.outcome(attempt) is Effect.DENY and allowing is not None:
        lines.append(f"to allow: {allowing}")
        if rule is not None:
            lines.append(f"  (above line {rule.line}, since the first match decides)")
    return lines
