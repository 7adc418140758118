"""YAML text to nodes that know their line and column, within bounds.

Nothing is constructed: only the node graph of the safe loader is used.  The
event stream is checked first, so that depth and count are bounded before any
recursion.  Refused: aliases (a bomb is made of them, and a policy should read
as it stands), merge keys, tags beyond plain YAML, several documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import msgspec
import yaml

from safeclaw.policies.document import MAX_BYTES

MAX_DEPTH = 32
MAX_NODES = 100_000

_PLAIN = "tag:yaml.org,2002:"
_KINDS = {"str", "int", "float", "bool", "null", "seq", "map", "timestamp", "binary"}
# The functions that take a loader have no types.
_YAML: Any = yaml
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Place(msgspec.Struct, frozen=True):
    """A line and a column, both from 1."""

    line: int
    column: int


class Scalar(msgspec.Struct, frozen=True):
    """A single value: its text as written, and what YAML takes it for."""

    place: Place
    text: str
    kind: str


class Sequence(msgspec.Struct, frozen=True):
    """A list."""

    place: Place
    items: tuple[Node, ...]


class Mapping(msgspec.Struct, frozen=True):
    """A mapping; the keys are unique texts."""

    place: Place
    entries: tuple[tuple[Scalar, Node], ...]


Node = Scalar | Sequence | Mapping


class Problems:
    """Every problem found in one text, in the order of the text."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._found: list[tuple[int, int, str]] = []

    def add(self, place: Place, message: str) -> None:
        """Note a problem at ``place``."""
        # What YAML writes as "\x1b" is a real escape by now; terminals must not obey it.
        visible = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in message)
        self._found.append((place.line, place.column, visible))

    def __bool__(self) -> bool:
        return bool(self._found)

    def lines(self) -> list[str]:
        """Return ``name:line:column: message`` for each problem."""
        return [f"{self.name}:{li}:{co}: {text}" for li, co, text in sorted(set(self._found))]


class _Mark(Protocol):
    line: int
    column: int


class _StopError(Exception):
    """Reading cannot go on; the problem is noted already."""


def parse(text: bytes | str, problems: Problems) -> Node | None:
    """Return the root node, or None after noting why there is none."""
    try:
        decoded = _decode(text, problems)
        _check_events(decoded, problems)
        root: yaml.Node | None = _YAML.compose(decoded, Loader=_LOADER)
    except _StopError:
        return None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = str(error.problem or error.context)
        # the scanner reads ahead, and has a bound of its own since PyYAML 6.0.4
        deep = "nesting depth" in said
        what = f"nested too deep: at most {MAX_DEPTH} levels" if deep else f"not valid YAML: {said}"
        problems.add(_place(mark), what)
        return None
    except yaml.YAMLError as error:
        problems.add(Place(1, 1), f"not valid YAML: {' '.join(str(error).split())}")
        return None
    if root is None:
        problems.add(Place(1, 1), "the policy is empty")
        return None
    return _convert(root, problems)


def _decode(text: bytes | str, problems: Problems) -> str:
    size = len(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        problems.add(Place(1, 1), f"too large: {size} bytes, at most {MAX_BYTES}")
        raise _StopError
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            before = error.object[: error.start]
            line = before.count(b"\n") + 1
            column = error.start - (before.rfind(b"\n") + 1) + 1
            problems.add(Place(line, column), f"not UTF-8: byte 0x{error.object[error.start]:02x}")
            raise _StopError from None
    line, column = 1, 1
    for char in text:
        if char == "\n":
            line, column = line + 1, 1
            continue
        # As YAML 1.1 has it: what a person cannot see must not be in a policy.
        code = ord(char)
        hidden = (code < 32 and char not in "\t\r") or 127 <= code < 160
        if (hidden and char != "\x85") or 0xD800 <= code < 0xE000:
            problems.add(Place(line, column), f"character U+{code:04X} is not allowed")
            raise _StopError
        column += 1
    return text


def _check_events(text: str, problems: Problems) -> None:
    depth = nodes = documents = 0
    events: Iterator[yaml.Event] = _YAML.parse(text, Loader=_LOADER)
    for event in events:
        place = _place(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            problems.add(
                place,
                f'an alias (*{event.anchor}) is not allowed; to mean a star, quote it: "*"',
            )
            raise _StopError
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                problems.add(place, "a second document begins; a policy is one document")
                raise _StopError
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                problems.add(place, f"nested too deep: at most {MAX_DEPTH} levels")
                raise _StopError
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
            if nodes > MAX_NODES:
                problems.add(place, f"too many values: at most {MAX_NODES}")
                raise _StopError


def _place(mark: _Mark | None) -> Place:
    return Place(1, 1) if mark is None else Place(mark.line + 1, mark.column + 1)


def _convert(node: yaml.Node, problems: Problems) -> Node:
    place = _place(node.start_mark)
    kind = node.tag.removeprefix(_PLAIN)
    if kind not in _KINDS and kind not in ("merge", "value"):
        problems.add(place, f"the tag {node.tag} is not allowed")
        kind = "str"
    if isinstance(node, yaml.SequenceNode):
        return Sequence(place, tuple(_convert(item, problems) for item in node.value))
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, place, problems)
    return Scalar(place, str(node.value), "str" if kind == "value" else kind)


def _mapping(node: yaml.MappingNode, place: Place, problems: Problems) -> Mapping:
    entries: list[tuple[Scalar, Node]] = []
    seen: dict[str, Place] = {}
    for key_node, value_node in node.value:
        key = _convert(key_node, problems)
        value = _convert(value_node, problems)
        if not isinstance(key, Scalar):
            problems.add(key.place, "a key must be a plain word")
        elif key.kind == "merge":
            problems.add(key.place, "merge keys (<<) are not allowed; write the keys out")
        elif key.text in seen:
            first = seen[key.text].line
            problems.add(key.place, f"the key '{key.text}' stands twice (first on line {first})")
        else:
            seen[key.text] = key.place
            entries.append((key, value))
    return Mapping(place, tuple(entries))
