"""What mountinfo and a directory's names tell of whether names are told apart by case."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from safeclaw.sandbox import caseless
from safeclaw.sandbox.caseless import Look, Mount, ask, folding, mounts, tells_apart, within

LINE = "36 35 8:1 / {point} rw,noatime shared:1 master:2 - {kind} {source} rw,errors=continue\n"


def line(point: str, kind: str, source: str = "/dev/sda1") -> bytes:
    return LINE.format(point=point, kind=kind, source=source).encode()


def test_mountinfo_is_read_with_its_escapes_and_optional_fields() -> None:
    text = line("/mnt/a\\040b\\134\rc", "fuse.x") + b"1 0 0:5 / / rw - ext4 /dev/root rw\n"
    assert list(mounts(text)) == [
        Mount("/mnt/a b\\\rc", "fuse.x", (b"8:1", b"fuse.x", b"/dev/sda1")),
        Mount("/", "ext4", (b"0:5", b"ext4", b"/dev/root")),
    ]


@pytest.mark.parametrize("kind", ["vfat", "exfat", "cifs", "fuse.new", "never-heard-of"])
def test_what_comes_later_is_shut_unless_its_type_tells(tmp_path: Path, kind: str) -> None:
    look = Look(str(tmp_path))
    text = line("/", "ext4") + line("/tmp", "tmpfs") + line("/mnt", kind) + line("/m/2", kind)
    assert look.places(text) == ("/mnt", "/m/2")


def test_a_directory_is_asked_by_the_names_in_it(tmp_path: Path) -> None:
    assert tells_apart(str(tmp_path)) is None, "there is no name in it"
    (tmp_path / "123").touch()
    assert tells_apart(str(tmp_path)) is None, "nor one with a letter"
    for name in ("both", "BOTH"):
        (tmp_path / name).touch()
    assert tells_apart(str(tmp_path)) is None, "one that is there in either spelling says nothing"
    os.symlink("nowhere", tmp_path / "Link")
    assert tells_apart(str(tmp_path)) is True
    assert tells_apart(str(tmp_path / "not-there")) is None


def test_the_workspaces_file_system_has_more_time_to_answer_than_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "name").touch()
    (tmp_path / "empty").mkdir()
    near, far = (b"8:1", b"fuse.near", b"near"), (b"8:2", b"fuse.far", b"far")
    monkeypatch.setattr(caseless, "_PATIENCE", 60.0)  # enough for any machine
    for full in (near, far):
        places = {one: [str(tmp_path / ("" if one == full else "empty"))] for one in (near, far)}
        assert ask(places, near) == {full}
    monkeypatch.setattr(caseless, "_PATIENCE", 0.0)
    assert near in ask({far: [str(tmp_path)], near: [str(tmp_path)]}, near)


def test_who_asked_is_not_left_behind(tmp_path: Path) -> None:
    before = psutil.Process().children()
    ask({(b"", b"", b""): [str(tmp_path)]}, None)
    assert psutil.Process().children() == before


def test_what_cannot_be_asked_for_the_attribute_has_it_not(tmp_path: Path) -> None:
    ways = (str(tmp_path), str(tmp_path / "not/there"), "/proc/self", "/")
    assert folding(ways, ()) == ()


@pytest.mark.parametrize(
    ("path", "place", "lies"),
    [("/a/b", "/a", True), ("/a", "/a", True), ("/ab", "/a", False), ("/a", "/", True)],
)
def test_a_path_lies_in_a_place_by_whole_names(path: str, place: str, lies: bool) -> None:
    assert within(path, place) is lies
