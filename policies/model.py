"""The vocabulary every part shares: attempts, targets and verdicts.

Pure values: frozen, without clocks, sockets or system calls.  Text that names
a file or a program is a ``str`` decoded with ``os.fsdecode`` (surrogateescape),
so that every byte sequence Linux allows survives; :func:`printable` turns it
into text that is safe to show and to record.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import shlex
from collections.abc import Sequence

import msgspec


class Decision(enum.StrEnum):
    """What is to happen with an attempt."""

    ALLOW = "allow"
    DENY = "deny"


class FileTarget(msgspec.Struct, frozen=True, tag="file"):
    """A canonical absolute path; ``to`` is the second path of a rename or link.

    ``link`` says that what gets the name is a symbolic link.
    """

    path: str
    to: str | None = None
    link: bool = False


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


#: Letters, marks and symbols that nobody sees: what Unicode 15 has as Default_Ignorable_Code_Point
#: (DerivedCoreProperties.txt) beside its controls, and some blanks.  Two names would look alike.
_UNSEEN = frozenset(
    chr(code)
    for first, last in (
        *((0x34F, 0x34F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x2800, 0x2800)),
        *((0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0x16FE4, 0x16FE4)),
        *((0x1D159, 0x1D159), (0xE0100, 0xE01EF)),
    )
    for code in range(first, last + 1)
)


def is_seen(char: str) -> bool:
    """Whether a character shows on a terminal, as itself and where it stands."""
    return char.isprintable() and char not in _UNSEEN


@functools.lru_cache(4096)  # the words of a program can be megabytes
def _written(char: str) -> str:
    if char == "\\":
        return "\\\\"
    if is_seen(char):
        return char
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))


def printable(text: str) -> str:
    r"""Return ``text`` safe for a terminal and for a record, reversibly.

    A backslash becomes ``\\``; control characters, bytes outside UTF-8, separators or
    marks that change how a line reads, and what is not seen become ``\xNN`` per byte.
    """
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_written, text))


def target_fields(target: Target) -> dict[str, object]:
    """Return the target as a record has it: printable text, plain containers."""
    match target:
        case FileTarget(path, to, link):
            named: dict[str, object] = {"path": printable(path)}
            if to is not None:
                named["to"] = printable(to)
            if link:
                named["link"] = True
            return named
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


def command_line(program: str, argv: Sequence[str]) -> str:
    """Return a program with its arguments as a shell would take them: a space makes no two words.

    And what it is called, where that is not its name: it may be many programs, by that.  No
    argument can say so: its parentheses are quoted.
    """
    words = [shlex.quote(word) for word in (program, *argv[1:])]
    if argv and argv[0] not in (program, program.rpartition("/")[2]):
        words.append(f"(as {shlex.quote(argv[0])})")
    return " ".join(words)


def describe(target: Target) -> str:
    """Return the target as one line for a person."""
    match target:
        case FileTarget(path, None) | SocketTarget(path):
            return shlex.quote(printable(path))
        case FileTarget(path, to):
            return f"{shlex.quote(printable(path))} -> {shlex.quote(printable(to or ''))}"
        case ProgramTarget(program, argv):
            return command_line(printable(program), [printable(word) for word in argv])
        case AddressTarget(protocol, address, port):
            literal = f"[{address}]" if ":" in address else address
            known = f" ({', '.join(printable(name) for name in target.names)})"
            return f"{protocol}:{literal}:{port}" + (known if target.names else "")
        case NameTarget(name):
            return printable(name)
        case OtherTarget(what):
            return printable(what)


def fingerprint(attempt: Attempt, fields: dict[str, object] | None = None) -> str:
    """Return the SHA-256 (hex) over the attempt's canonical JSON (RFC 8785).

    ``fields`` are those of its target, where they are known: a program's can be megabytes.
    """
    if fields is None:
        fields = target_fields(attempt.target)
    value = {"action": attempt.action, "target": fields}
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()
