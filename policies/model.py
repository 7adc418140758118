"""The vocabulary every part shares: attempts, targets and verdicts.

Pure values: frozen, without clocks, sockets or system calls.  Text that names
a file or a program is a ``str`` decoded with ``os.fsdecode`` (surrogateescape),
so that every byte sequence Linux allows survives; :func:`printable` turns it
into text that is safe to show and to record.
"""

from __future__ import annotations

import enum
import hashlib
import shlex

import msgspec


class Decision(enum.StrEnum):
    """What is to happen with an attempt."""

    ALLOW = "allow"
    DENY = "deny"


class FileTarget(msgspec.Struct, frozen=True, tag="file"):
    """A canonical absolute path; ``to`` is the second path of a rename or link."""

    path: str
    to: str | None = None


class ProgramTarget(msgspec.Struct, frozen=True, tag="program"):
    """A program's canonical path and the argv it is to get.

    ``interpreters`` are the canonical paths of the shebang chain, outermost last, and
    ``arguments`` what each one's line gives it before the script: "" for nothing.
    ``variables`` names those that it would start with otherwise than the policy says.
    """

    program: str
    argv: tuple[str, ...]
    interpreters: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()


class AddressTarget(msgspec.Struct, frozen=True, tag="address"):
    """An internet address: ``protocol`` is tcp or udp, ``address`` a literal.

    ``names`` are the host names that the session's resolver gave this address for;
    ``own`` says that it is on the loopback of the agent's own network namespace.
    """

    protocol: str
    address: str
    port: int
    names: tuple[str, ...] = ()
    own: bool = False


class NameTarget(msgspec.Struct, frozen=True, tag="name"):
    """A host name that is looked up, in lower case and without a last dot."""

    name: str


class SocketTarget(msgspec.Struct, frozen=True, tag="socket"):
    """A Unix socket's canonical path; ``@name`` is an abstract one of the agent's own."""

    path: str


class OtherTarget(msgspec.Struct, frozen=True, tag="other"):
    """Anything else, described in words (``session.start``, a refused call)."""

    what: str


Target = FileTarget | ProgramTarget | AddressTarget | NameTarget | SocketTarget | OtherTarget


class Attempt(msgspec.Struct, frozen=True):
    """One thing the agent tries to do: a dotted action and its target."""

    action: str
    target: Target


class Verdict(msgspec.Struct, frozen=True):
    """The answer to an attempt, and what it rests on."""

    decision: Decision
    rule: str
    reason: str


def printable(text: str) -> str:
    r"""Return ``text`` safe for a terminal and for a record, reversibly.

    A backslash becomes ``\\``; control characters, bytes outside UTF-8, and
    separators or marks that change how a line reads become ``\xNN`` per byte.
    """
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    out: list[str] = []
    for char in text:
        if char == "\\":
            out.append("\\\\")
        elif char.isprintable():
            out.append(char)
        else:
            out.extend(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
    return "".join(out)


def target_fields(target: Target) -> dict[str, object]:
    """Return the target as a record has it: printable text, plain containers."""
    match target:
        case FileTarget(path, None):
            return {"path": printable(path)}
        case FileTarget(path, to):
            return {"path": printable(path), "to": printable(to or "")}
        case ProgramTarget(program, argv, interpreters, arguments, variables):
            fields: dict[str, object] = {
                "argv": [printable(word) for word in argv],
                "program": printable(program),
            }
            if interpreters:
                fields["interpreters"] = [printable(path) for path in interpreters]
            if any(arguments):
                fields["arguments"] = [printable(word) for word in arguments]
            if variables:
                fields["variables"] = [printable(name) for name in variables]
            return fields
        case AddressTarget(protocol, address, port):
            where: dict[str, object] = {"address": address, "port": port, "protocol": protocol}
            if target.names:
                where["names"] = [printable(name) for name in target.names]
            if target.own:
                where["own"] = True
            return where
        case NameTarget(name):
            return {"name": printable(name)}
        case SocketTarget(path):
            return {"socket": printable(path)}
        case OtherTarget(what):
            return {"what": printable(what)}


def describe(target: Target) -> str:
    """Return the target as one line for a person."""
    match target:
        case FileTarget(path, None) | SocketTarget(path):
            return printable(path)
        case FileTarget(path, to):
            return f"{printable(path)} -> {printable(to or '')}"
        case ProgramTarget(program, argv):
            # as a shell would take them: a word with a space is not two
            words = [shlex.quote(printable(word)) for word in (program, *argv[1:])]
            return " ".join(words)
        case AddressTarget(protocol, address, port):
            literal = f"[{address}]" if ":" in address else address
            known = f" ({', '.join(printable(name) for name in target.names)})"
            return f"{protocol}:{literal}:{port}" + (known if target.names else "")
        case NameTarget(name):
            return printable(name)
        case OtherTarget(what):
            return printable(what)


def fingerprint(attempt: Attempt) -> str:
    """Return the SHA-256 (hex) over the attempt's canonical JSON (RFC 8785)."""
    value = {"action": attempt.action, "target": target_fields(attempt.target)}
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()
