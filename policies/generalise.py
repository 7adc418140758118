"""From single names and commands to patterns: every way in which a suggestion is wider.

What is generalised, and nothing else (:data:`STATED` says it to a person):

* three or more names used in one directory stand for the directory and what is in it, but
  never for the workspace, a home, or a directory so high that it belongs to everybody;
* the part of a temporary name that looks random is ``?`` or ``*``, and so is the time of day
  in the name of a file that was made;
* a command keeps its program, its leading options and its first word, if that is a plain one and
  no name of a file; the rest is ``*``, and of more than six kinds all but the program is;
* (in ``suggest``) what may be made or linked may be changed, in one rule each action goes with
  each path, and a host that was only looked up may be reached at every port.

Pure: nothing here looks at the disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from safeclaw.policies.explain import glob_text, shell_word

STATED = (
    "Wider than what was seen only in this: DIR/** is three or more names in DIR (/tmp/**: one); a",
    "command keeps its program, options and first word (no file's name), of more than six kinds",
    "only its program; the random part of a temporary name, a time in the name of what was made, a",
    "number in /proc, what cannot be written are ? or *; what is made or linked may be changed; in",
    "one rule each action goes with each path; what was looked up may be reached at every port.",
)
_ENOUGH = 3
#: How deep a directory must lie to be summed up, in the home and elsewhere on the host.
_DEEP_IN_HOME, _DEEP = 2, 3
#: Each session has its own, empty at its start.
PRIVATE = ("/tmp", "/var/tmp", "/dev/shm")
_MOST_VARIANTS = 6

_OPTION = re.compile(r"--?[A-Za-z][A-Za-z-]{0,20}")
_WORD = re.compile(r"[a-z][a-z0-9_-]{0,30}")
_INTERPRETER = re.compile(r"(python|perl|ruby|node|nodejs|php|lua|java|deno|Rscript)[\d.]*")
#: A date with a time of day: 2026-11-26T22_58_39_081Z, 20261126-225839.
_TIME = re.compile(
    r"(?<!\d)20\d\d[-_.]?[01]\d[-_.]?[0-3]\d[-_.T ]?[0-2]\d[-_.:]?[0-5]\d[-_.:]?[0-5]\d"
    r"([-_.]?\d{3,9})?(?!\d)"
)
#: What sed(1), perl(1), compilers, git(1), mktemp(1) and Python call theirs, however it looks.
_TEMPLATE = re.compile(
    r"((?:sed|cc|XX|tmp_[a-z]+_)(?=\w{6}\b)|tmp\.(?=\w{10}\b)|tmp(?=[a-z0-9_]{8}\b))(\w+)((?:\..*)?)"
)
#: Letters of both cases, or with digits among them after a mark; so mkstemp(3).
_SIX = re.compile(
    r"(?=.{0,5}[A-Z])(?=.{0,5}[a-z0-9])[A-Za-z0-9]{6}$"
    r"|(?<=[-.])(?=.{0,5}\d)(?=.{0,5}[a-z])[a-z0-9]{6}$"
)
#: With digits among them, or after a mark what nobody could say; so Python's tempfile.
_EIGHT = re.compile(r"(?=.{0,7}\d)[a-z0-9_]{8}$|(?<=[-.])(?=.{0,7}_|.{0,4}[^aeiouy]{4})[a-z_]{8}$")
_RUNS_TEXT = ("-c", "-e", "-E", "--eval", "-m", "-jar")


class Place(msgspec.Struct, frozen=True):
    """The directories that patterns are written relative to; canonical paths."""

    workspace: str
    home: str

    def parts(self, path: str) -> tuple[str, tuple[str, ...]]:
        """Return the base (``""`` workspace, ``~`` or ``/``) and the names below it."""
        for base, root in (("", self.workspace), ("~", self.home)):
            if path == root or path.startswith(root.rstrip("/") + "/"):
                return base, tuple(name for name in path[len(root) :].split("/") if name)
        return "/", tuple(name for name in path.split("/") if name)

    def absolute(self, base: str, names: tuple[str, ...]) -> str:
        """Return the path that :meth:`parts` took apart."""
        root = {"": self.workspace, "~": self.home}.get(base, "")
        return "/".join((root.rstrip("/"), *names)) or "/"


class Pattern(msgspec.Struct, frozen=True):
    """A path glob, what was done to the names it stands for, and how often."""

    base: str
    text: str
    actions: frozenset[str]
    count: int

    @property
    def area(self) -> str:
        """The top directory of the workspace that it lies in; "" elsewhere."""
        first, slash, _ = self.text.partition("/")
        return first if not self.base and slash else ""


class _Node:
    """A name in the tree of what was used."""

    def __init__(self) -> None:
        self.below: dict[str, _Node] = {}
        self.actions: set[str] = set()
        self.count = 0

    def whole(self) -> tuple[set[str], int]:
        """Return the actions on, and the uses of, everything from here on."""
        actions, count = set(self.actions), self.count
        for node in self.below.values():
            more, uses = node.whole()
            actions |= more
            count += uses
        return actions, count


def patterns(
    uses: Iterable[tuple[str, str, int]], temporary: Mapping[str, str], place: Place
) -> list[Pattern]:
    """Return path globs for ``uses``: (action, canonical path, count)."""
    roots: dict[str, _Node] = {}
    for action, path, count in uses:
        base, names = place.parts(path)
        node = roots.setdefault(base, _Node())
        for depth, name in enumerate(names, 1):
            known = temporary.get(place.absolute(base, names[:depth]))
            text = glob_text(name) if known is None else known
            if base == "/" and depth == 2 and names[0] == "proc" and name.isdigit():
                text = "[0-9]*"  # another process the next time
            node = node.below.setdefault(text, _Node())
        node.actions.add(action)
        node.count += count
    found: list[Pattern] = []
    for base in ("", "~", "/"):
        if base in roots:
            _collect(roots[base], base, (), place, found)
    return found


def _collect(
    node: _Node, base: str, names: tuple[str, ...], place: Place, found: list[Pattern]
) -> None:
    if len(node.below) >= _enough(base, names, place):
        actions, count = node.whole()
        found.append(Pattern(base, _text(base, (*names, "**")), frozenset(actions), count))
        return
    if node.count:
        found.append(Pattern(base, _text(base, names), frozenset(node.actions), node.count))
    for name in sorted(node.below):
        _collect(node.below[name], base, (*names, name), place, found)


def _enough(base: str, names: tuple[str, ...], place: Place) -> float:
    """Return how many names in a directory stand for all of it."""
    never = float("inf")
    path = place.absolute(base, names)
    if any((own + "/").startswith(path.rstrip("/") + "/") for own in (place.workspace, place.home)):
        return never  # it is one of them, or holds it
    if base == "":
        return _ENOUGH
    if path in PRIVATE:
        return 1
    if base == "/" and (names[0] == "proc" or len(names) < _DEEP):
        return _ENOUGH if path.startswith(tuple(f"{own}/" for own in PRIVATE)) else never
    return never if base == "~" and len(names) < _DEEP_IN_HOME else _ENOUGH


def _text(base: str, names: tuple[str, ...]) -> str:
    if base:
        return "/".join((base.rstrip("/"), *names)) or "/"
    text = "/".join(names) or "."
    return f"./{text}" if text.startswith("~") else text


def temporary_names(made: Iterable[str], gone: Iterable[str]) -> dict[str, str]:
    """Return the globs for names that are others the next time.

    They were made and are gone again, or have the time of day in them (a log of npm's).
    """
    made, gone = set(made), set(gone)
    found: dict[str, str] = {}
    for path in made:
        place, _, name = path.rpartition("/")
        known = None
        if path in gone:
            # whatever it looks like, where all is the session's own: Python tries /tmp so
            known = "?" * len(name) if place in PRIVATE else _without_randomness(name)
        timed = _TIME.search(name)
        if known is None and timed is not None:
            marks = "".join("?" if char.isdigit() else glob_text(char) for char in timed[0])
            before, after = name[: timed.start()], name[timed.end() :]
            known = f"{glob_text(before)}{marks}{glob_text(after)}"
        if known is not None:
            found[path] = known
    return found


def _without_randomness(name: str) -> str | None:
    """Return the glob for a made-up name; None when nothing in it looks random.

    mkstemp(3) takes six letters of both cases and digits; Python's tempfile eight
    of a-z, 0-9 and _; others append a number.
    """
    template = _TEMPLATE.fullmatch(name)
    if template is not None:
        begin, chosen, end = template.groups()
        return f"{begin}{'?' * len(chosen)}{glob_text(end)}"
    number = re.search(r"\d{3,}$", name)
    if number is not None and not _drawn_with(name[: number.start()], len(number[0])):
        return f"{glob_text(name[: number.start()])}[0-9]*"
    stem = name if name.startswith(".") else name.partition(".")[0]
    for begin in (name, stem):
        if _SIX.search(begin):
            return f"{glob_text(begin[:-6])}??????{glob_text(name[len(begin) :])}"
    if _EIGHT.search(stem):
        return f"{glob_text(stem[:-8])}????????{glob_text(name[len(stem) :])}"
    return None


def _drawn_with(before: str, digits: int) -> bool:
    """Whether the last letters of ``before`` were drawn together with the digits after them."""
    six, eight = before[-(6 - digits) :], before[-(8 - digits) :]
    return (digits < 6 and six != six.lower() and six != six.upper()) or (
        digits < 8 and re.fullmatch(r"[a-z_]*\d[a-z0-9_]*", eight) is not None
    )


def command_patterns(
    runs: Iterable[tuple[str, tuple[str, ...], int]], files: frozenset[str]
) -> list[tuple[str, int]]:
    """Return command patterns with counts for ``runs``: (program, arguments, count).

    ``program`` is a token already; ``files`` are names of files in the workspace,
    which are arguments rather than what a program is asked to do.
    """
    plain: dict[str, dict[str, int]] = {}
    other: dict[str, dict[str, int]] = {}
    for program, arguments, count in runs:
        kept, open_ended = _kept(program, arguments, files)
        if len(kept) == 1 and open_ended and _WORD.fullmatch(kept[0]):
            words = plain.setdefault(program, {})
            words[kept[0]] = words.get(kept[0], 0) + count
            continue
        tokens = [program, *(shell_word(word) for word in kept), *("*" for _ in range(open_ended))]
        variants = other.setdefault(program, {})
        text = " ".join(tokens)
        variants[text] = variants.get(text, 0) + count
    found: list[tuple[str, int]] = []
    for program in sorted(plain.keys() | other.keys()):
        words, variants = plain.get(program, {}), other.get(program, {})
        if f"{program} *" in variants or len(variants) > _MOST_VARIANTS:
            found.append((f"{program} *", sum(words.values()) + sum(variants.values())))
            continue
        if words:
            names = sorted(words)
            token = names[0] if len(names) == 1 else "{" + ",".join(names) + "}"
            found.append((f"{program} {token} *", sum(words.values())))
        found += sorted(variants.items())
    return found


def _kept(
    program: str, arguments: tuple[str, ...], files: frozenset[str]
) -> tuple[tuple[str, ...], bool]:
    """Return the globs for the arguments that are kept, and whether more may follow."""
    kept: list[str] = []
    runs_file = _INTERPRETER.fullmatch(program[program.rfind("/") + 1 :]) is not None
    for word in arguments:
        if _OPTION.fullmatch(word):
            kept.append(glob_text(word))
            if runs_file and word in _RUNS_TEXT[:-2]:
                return tuple(kept), True
            continue
        if runs_file and kept[-1:] != ["-jar"] and not _WORD.fullmatch(word):
            # a script is what an interpreter is asked to do
            private = next((own for own in PRIVATE if word.startswith(f"{own}/")), None)
            kept.append(f"{private}/*" if private else glob_text(word))
            return tuple(kept), True
        if _WORD.fullmatch(word) and word not in files:
            kept.append(glob_text(word))
        return tuple(kept), True
    return tuple(kept), bool(kept)
