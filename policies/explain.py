"""Words about policies and verdicts, for a person."""

from __future__ import annotations

import json
import re

from safeclaw.errors import UsageError
from safeclaw.policies.compiled import CompiledPolicy
from safeclaw.policies.model import (
    AddressTarget,
    Attempt,
    Decision,
    FileTarget,
    OtherTarget,
    ProgramTarget,
    SocketTarget,
    Target,
    Verdict,
    printable,
)

_SPECIAL = re.compile(r"([\\*?\[\]{}])")


def suggest_line(attempt: Attempt, workspace: str | None = None) -> str:
    """Return the line of policy that would allow ``attempt``, and little more.

    Paths in ``workspace`` are written relative to it.  A byte that YAML cannot
    hold becomes ``?``.
    """
    action = attempt.action
    match attempt.target:
        case FileTarget(path, to):
            if to is not None:
                # Both ends, and what is moved must be readable too.
                action = f"[{action}, file.read]"
            texts = [_path(item, workspace) for item in (path, to) if item is not None]
            condition = f"path: {texts[0] if len(texts) == 1 else '[' + ', '.join(texts) + ']'}"
        case SocketTarget(path):
            condition = f"path: {_path(path, workspace)}"
        case ProgramTarget(program, argv, _):
            words = [_relative(program, workspace), *(_escape(word) for word in argv[1:])]
            condition = f"command: {_quote(' '.join(_shell(word) for word in words))}"
        case AddressTarget(protocol, address, port):
            condition = f"host: {_quote(address)}, port: {port}, protocol: {protocol}"
        case OtherTarget():
            return f"- {{action: {attempt.action}, effect: allow}}"
    return f"- {{action: {action}, {condition}, effect: allow}}"


def _escape(text: str) -> str:
    visible = "".join(char if char.isprintable() else "?" for char in text)
    return _SPECIAL.sub(r"\\\1", visible.replace("?", "\0")).replace("\0", "?")


def _relative(path: str, workspace: str | None) -> str:
    if workspace is not None and path.startswith(workspace.rstrip("/") + "/"):
        short = path[len(workspace.rstrip("/")) + 1 :]
        return f"./{_escape(short)}" if "/" not in short or short[0] == "~" else _escape(short)
    return _escape(path)


def _path(path: str, workspace: str | None) -> str:
    text = "." if path == workspace else _relative(path, workspace).removeprefix("./")
    return _quote(f"./{text}" if text.startswith("~") else text)


def _shell(word: str) -> str:
    if word and not re.search(r"[\s'\"]", word):
        return word
    return "'" + word.replace("'", "?") + "'"


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


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
    return AddressTarget(found[1] or "tcp", found[2] or found[3], int(found[4]))


def explain(compiled: CompiledPolicy, attempt: Attempt, source: str) -> list[str]:
    """Return the lines that say what happens with ``attempt``, and why."""
    verdict: Verdict = compiled.evaluate(attempt)
    rule = compiled.decisive_rule(attempt)
    where = "no rule of the policy"
    if rule is not None and rule.id.startswith("runtime:"):
        where = "the runtime preset" + (f", line {rule.line}" if rule.line else "")
    elif rule is not None:
        where = f"{source}:{rule.line}"
    lines = [
        f"verdict: {verdict.decision}",
        f"rule: {verdict.rule}",
        f"line: {where}",
        f"reason: {printable(verdict.reason)}",
    ]
    if verdict.decision is Decision.DENY and verdict.rule != "protected":
        lines.append(f"to allow: {suggest_line(attempt, compiled.context.workspace)}")
        if rule is not None:
            lines.append(f"  (above line {rule.line}, since the first match decides)")
    return lines
