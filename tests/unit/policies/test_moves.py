"""Moves: the automaton says what reading every glob anew says, however it was come to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from safeclaw.policies.document import Effect, Rule
from safeclaw.policies.glob import Part, match_part, path_globs
from safeclaw.policies.moves import Moves

_NAMES = st.sampled_from(["a", "b", "ws", "x.pem", "*", "**", "*.pem", "a*", "[ab]", "?"])
_GLOBS = st.lists(_NAMES, min_size=1, max_size=5).map("/".join)
_PATHS = st.lists(
    st.sampled_from(["a", "b", "ws", "ab", "x.pem", "y.pem"]), min_size=1, max_size=6
).map(lambda names: "/" + "/".join(names))


def _rules(globs: list[str]) -> list[Rule]:
    return [
        Rule(id=f"p:{at}", line=at, actions=("file",), effect=Effect.DENY, paths=(text,))
        for at, text in enumerate(globs)
    ]


def _below(parts: tuple[Part, ...], names: list[str]) -> set[tuple[Part, ...]]:
    """Return what a glob still looks for below some names, each way tried."""
    found: set[tuple[Part, ...]] = set()
    if not names and parts:
        found.add(parts)
    if parts and parts[0] is None:
        found |= _below(parts[1:], names)
        if names:
            found |= _below(parts, names[1:])
    elif parts and names and match_part(parts[0], names[0]):
        found |= _below(parts[1:], names[1:])
    return found


def _remaining(globs: list[str], path: str) -> dict[int, set[tuple[Part, ...]]]:
    remaining: dict[int, set[tuple[Part, ...]]] = {}
    for at, text in enumerate(globs):
        for glob in path_globs(text, workspace="/ws", home="/home/u"):
            base = "" if glob.prefix == "/" else glob.prefix
            if path == glob.prefix or path.startswith(f"{base}/"):
                names = [name for name in path[len(base) :].split("/") if name]
                left = _below(glob.rest, names)
                if left:
                    remaining.setdefault(at, set()).update(left)
    return remaining


@given(st.lists(_GLOBS, max_size=6), st.lists(st.tuples(_PATHS, _PATHS), max_size=8))
def test_a_move_is_let_through_when_the_rules_look_for_the_same(
    globs: list[str], ends: list[tuple[str, str]]
) -> None:
    # one for all moves: what it remembers of one must not change the next
    moves = Moves(_rules(globs), (), workspace="/ws", home="/home/u", leads={})
    for path, to in ends:
        obstacle = moves.obstacle(path, to)
        before, after = _remaining(globs, path), _remaining(globs, to)
        held = [place for end in (path, to) for place in _places(globs) if _lies(place, end)]
        if held:
            assert obstacle is not None
            assert obstacle[0] in held
            assert obstacle[1] == _places(globs)[obstacle[0]]
        elif before == after:
            assert obstacle is None
        else:
            rules = before.keys() | after.keys()
            assert obstacle == (path, min(at for at in rules if before.get(at) != after.get(at)))


def _places(globs: list[str]) -> dict[str, int]:
    """Return the directory that each glob is about, and its first rule."""
    found: dict[str, int] = {}
    for at, text in enumerate(globs):
        for glob in path_globs(text, workspace="/ws", home="/home/u"):
            found.setdefault(glob.prefix, at)
    return found


def _lies(place: str, end: str) -> bool:
    return place == end or place.startswith(f"{end}/")


def test_many_directories_and_states_are_forgotten_in_time() -> None:
    moves = Moves(
        _rules(["**/.git/hooks/**", "**/*/k[0-4]/**"]),
        (),
        workspace="/ws",
        home="/home/u",
        leads={},
    )
    for number in range(3000):
        assert moves.obstacle(f"/ws/{number}/a", f"/ws/{number}/b") is None
        assert moves.obstacle(f"/ws/{number}/.git", f"/ws/{number}/b") == (f"/ws/{number}/.git", 0)


def test_no_link_comes_to_stand_on_the_way_to_what_a_rule_refuses() -> None:
    moves = Moves(
        _rules(["~/.config/git/**", "a/b/c", "**/hooks/run", "*/x/y"]),
        ("/home/u/.local/state/s",),
        workspace="/ws",
        home="/home/u",
        leads={},
    )
    for path, obstacle in {
        "/home/u/.config": ("/home/u/.config/git", 0),
        "/home/u/.config/git": ("/home/u/.config/git", 0),
        "/home/u/.local": ("/home/u/.local/state/s", None),
        "/ws/a": ("/ws/a/b/c", 1),
        "/ws/a/b": ("/ws/a/b/c", 1),
        "/ws/d/hooks": ("/ws/d/hooks", 2),
        "/ws/d/x": ("/ws/d/x", 3),
    }.items():
        assert moves.link_obstacle(path) == obstacle
    for path in ("/home/u/.cache", "/ws/d", "/ws/d/b", "/ws/d/e/x", "/ws/a/c", "/ws/hooks.d"):
        assert moves.link_obstacle(path) is None
