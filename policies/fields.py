"""Reading single fields of a policy's nodes: text, lists of text, sizes, times."""

from __future__ import annotations

import re
from collections.abc import Iterable

from safeclaw.policies.glob import GlobError
from safeclaw.policies.yamltext import Mapping, Node, Place, Problems, Scalar, Sequence

_KINDS = {
    "int": "a number",
    "float": "a number",
    "bool": "a yes/no",
    "null": "nothing",
    "timestamp": "a date",
}
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_TIMES = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_MOST = 2**53
VARIABLE = "[A-Za-z_][A-Za-z0-9_]*"


def kind(node: Node) -> str:
    """Return what a node is, in a person's words."""
    match node:
        case Mapping():
            return "a mapping"
        case Sequence():
            return "a list"
        case Scalar(kind=name):
            return _KINDS.get(name, "text")


def meant(text: str, known: Iterable[str]) -> str:
    """Return "; did you mean …?" or, without a guess, the known words."""
    import difflib  # only a mistake needs it

    names = list(known)
    near = difflib.get_close_matches(text.lower(), names, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(names)}"


def keys(node: Mapping, known: Iterable[str], what: str, problems: Problems) -> dict[str, Node]:
    """Return the entries of ``node`` by key, after noting the unknown ones."""
    names = list(known)
    found: dict[str, Node] = {}
    for key, value in node.entries:
        if key.text in names:
            found[key.text] = value
        else:
            problems.add(key.place, f"unknown key '{key.text}' in {what}{meant(key.text, names)}")
    return found


def mapping(
    node: Node | None, known: Iterable[str], what: str, problems: Problems
) -> dict[str, Node]:
    """Return the entries of an optional mapping by key."""
    if node is None:
        return {}
    if not isinstance(node, Mapping):
        problems.add(node.place, f"{what} must be a mapping, not {kind(node)}")
        return {}
    return keys(node, known, what, problems)


def text(node: Node | None, problems: Problems, *, multiline: bool = False) -> str:
    """Return an optional text, "" when it is absent or wrong."""
    if node is None:
        return ""
    if not isinstance(node, Scalar) or node.kind != "str":
        problems.add(node.place, f"must be text, not {kind(node)}{_quote(node)}")
        return ""
    if not multiline and "\n" in node.text:
        problems.add(node.place, "must be one line")
        return ""
    return node.text


def variables(found: dict[str, Node], key: str, problems: Problems) -> dict[str, tuple[Place, str]]:
    """Return an optional mapping of variables' names to where each stands, and its value."""
    node = found.get(key)
    if node is None:
        return {}
    if not isinstance(node, Mapping):
        problems.add(node.place, f"{key} must be a mapping, not {kind(node)}")
        return {}
    settings: dict[str, tuple[Place, str]] = {}
    for name, value in node.entries:
        if not re.fullmatch(VARIABLE, name.text):
            problems.add(name.place, f"'{name.text}' is no variable's name")
        said = text(value, problems)
        if "\0" in said:
            problems.add(value.place, "a variable cannot hold a NUL character")
        settings[name.text] = (name.place, said)
    return settings


def texts(
    node: Node | None, what: str, problems: Problems, *, numbers: bool = False
) -> list[tuple[Place, str]]:
    """Return an optional text or list of texts, each with its place.

    ``numbers`` takes whole numbers as well, as they are written.
    """
    if node is None:
        return []
    items = node.items if isinstance(node, Sequence) else (node,)
    if not items:
        problems.add(node.place, f"the list of '{what}' is empty; it would match nothing")
    found: list[tuple[Place, str]] = []
    for item in items:
        if isinstance(item, Scalar) and (
            item.kind == "str" or (numbers and item.kind in ("int", "timestamp"))
        ):
            found.append((item.place, item.text))
        else:
            problems.add(item.place, f"'{what}' must be text, not {kind(item)}{_quote(item)}")
    return found


def _quote(node: Node) -> str:
    if isinstance(node, Scalar) and node.kind not in ("null", "str"):
        return f'; quote it: "{node.text}"'
    return ""


def size(value: str) -> int:
    """Return bytes: ``512M``, ``2GiB``, ``1000``.  Raises GlobError."""
    found = re.fullmatch(r"(\d{1,16}) ?([kKmMgGtT]?)(?:i?[bB])?", value)
    if found is None:
        raise GlobError(f"'{value}' is no size; write 512M or 2G")
    return _bounded(int(found[1]) * _UNITS[found[2].lower()], value)


def duration(value: str) -> int:
    """Return seconds: ``90``, ``30s``, ``15m``, ``2h``.  Raises GlobError."""
    found = re.fullmatch(r"(\d{1,16}) ?([smhd]?)", value)
    if found is None:
        raise GlobError(f"'{value}' is no time; write 30s, 15m or 2h")
    return _bounded(int(found[1]) * _TIMES[found[2]], value)


def share(value: str) -> int:
    """Return hundredths of one processor: ``50%``, ``200%``.  Raises GlobError."""
    found = re.fullmatch(r"(\d{1,6})%", value)
    if found is None:
        raise GlobError(f"'{value}' is no share of a processor; write 50%, or 200% for two of them")
    return _bounded(int(found[1]), value)


def count(value: str) -> int:
    """Return a positive whole number.  Raises GlobError."""
    if not re.fullmatch(r"\d{1,16}", value):
        raise GlobError(f"'{value}' is no whole number")
    return _bounded(int(value), value)


def _bounded(number: int, value: str) -> int:
    if not 0 < number < _MOST:
        raise GlobError(f"'{value}' is out of range")
    return number
