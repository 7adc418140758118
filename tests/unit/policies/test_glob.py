"""Globs: what they match, what they refuse, and what they cost."""

from __future__ import annotations

import fnmatch
import re
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeclaw.policies import glob
from safeclaw.policies.glob import GlobError, path_globs


def matches(text: str, path: str) -> bool:
    return any(one.match(path) for one in path_globs(text, workspace="/ws", home="/home/u"))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("src/**", "/ws/src"),
        ("src/**", "/ws/src/a/b"),
        ("./src//x", "/ws/src/x"),
        ("**", "/ws"),
        (".", "/ws"),
        ("/**", "/"),
        ("/**", "/any/thing"),
        ("a/**/b", "/ws/a/b"),
        ("a/**/b", "/ws/a/x/y/b"),
        ("**/.env", "/ws/.env"),
        ("*.py", "/ws/.py"),
        ("a?c", "/ws/a\udcffc"),
        ("[!a]x", "/ws/bx"),
        ("[a-c]x", "/ws/bx"),
        ("[]]x", "/ws/]x"),
        ("{a,b{c,d}}/x", "/ws/bd/x"),
        ("{src,/abs}/x", "/abs/x"),
        ("~/x", "/home/u/x"),
        (r"\*\{", "/ws/*{"),
        ("a*b*c", "/ws/abbc"),
        ("**/a/**/b/*", "/ws/a/b/a/q/b/z"),
    ],
)
def test_matches(text: str, path: str) -> None:
    assert matches(text, path)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("src/**", "/ws/srcx"),
        ("src/*", "/ws/src/a/b"),
        ("src/*", "/ws/src"),
        ("*", "/ws"),
        ("*", "/ws/a/b"),
        ("a?c", "/ws/a/c"),
        ("a[!b]c", "/ws/a/c"),
        ("/**/x", "/xx"),
        ("a*a", "/ws/a"),
        ("SRC/**", "/ws/src/a"),
        ("~/x", "/ws/~/x"),
        (r"\*", "/ws/a"),
    ],
)
def test_does_not_match(text: str, path: str) -> None:
    assert not matches(text, path)


@pytest.mark.parametrize(
    "text",
    ["", "../x", "a/../b", "**.pem", "a**", "[a", "{a", "a}", "{a}", "~bob/x", "x\\", "a\0b",
     "[z-a]", "{a,b}" * 9],
)  # fmt: skip
def test_a_wrong_glob_is_refused(text: str) -> None:
    with pytest.raises(GlobError):
        path_globs(text, workspace="/ws", home="/h")


def test_wildcards_in_the_workspace_and_home_are_plain_characters() -> None:
    (one,) = path_globs("x", workspace="/w*[1]", home="/h{a,b}")
    assert one.match("/w*[1]/x")
    assert not one.match("/wab1/x")
    (one,) = path_globs("~/x", workspace="/w", home="/h{a,b}")
    assert one.match("/h{a,b}/x")


WORDS = st.text(alphabet="ab*?", max_size=8)


@given(WORDS, st.text(alphabet="ab", max_size=10))
def test_a_word_agrees_with_fnmatch(pattern: str, text: str) -> None:
    assert glob.word(pattern).match(text) == fnmatch.fnmatchcase(text, pattern)


PARTS = st.lists(st.sampled_from(["a", "b", "*", "**", "a*"]), min_size=1, max_size=5)
NAMES = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=0, max_size=6)


def as_regex(parts: list[str]) -> str:
    text = ""
    for part in parts:
        word = re.escape(part).replace(r"\*", "[^/]*") if part != "**" else ""
        text += "(?:/[^/]+)*" if part == "**" else f"/{word}"
    return text


@given(PARTS, NAMES)
def test_a_path_glob_agrees_with_a_regular_expression(parts: list[str], names: list[str]) -> None:
    path = "".join(f"/{name}" for name in names)
    expected = re.fullmatch(as_regex(parts), path) is not None
    (one,) = path_globs("/" + "/".join(parts), workspace="/", home="/")
    assert one.match(path or "/") == expected


@pytest.mark.parametrize(
    ("pattern", "name"),
    [("/" + "*a" * 30 + "b", "a"), ("/" + "*?a" * 20 + "b", "a"), ("/**/a" * 15 + "/b", "/a")],
)
def test_a_nasty_glob_takes_steps_in_proportion_to_the_path(
    pattern: str, name: str, steps: Callable[[Callable[[], object]], int]
) -> None:
    (one,) = path_globs(pattern, workspace="/", home="/")
    short, long = ("/" + (name * count).lstrip("/") for count in (400, 1600))
    assert not one.match(long)
    few, many = steps(lambda: one.match(short)), steps(lambda: one.match(long))
    assert many <= 6 * few + 100
    assert many < 200 * len(long)


def test_a_set_that_is_never_closed_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0
    pattern = glob._SET  # pyright: ignore[reportPrivateUsage]

    class Counted:
        """The pattern of a set, and how often it was tried."""

        def match(self, text: str, at: int) -> object:
            nonlocal looked
            looked += 1
            return pattern.match(text, at)

    monkeypatch.setattr(glob, "_SET", Counted())
    for text in ("[" * 500, "{a,b}" + "[" * 500, "[[a]" + "[\\]" * 500):
        looked = 0
        with pytest.raises(GlobError, match="never closed"):
            path_globs(text, workspace="/", home="/")
        assert looked < 12


def test_choices_that_are_too_many_are_not_made_first() -> None:
    text = "{" + "," * 4000 + "}" + "x" * 4000
    tracemalloc.start()
    try:
        with pytest.raises(GlobError, match="more than 256"):
            path_globs(text, workspace="/", home="/")
        assert tracemalloc.get_traced_memory()[1] < 100 * len(text)
    finally:
        tracemalloc.stop()
