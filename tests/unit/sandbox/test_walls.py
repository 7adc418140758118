"""The plan of a view is an allow list in an order that can be put up."""

from __future__ import annotations

import os
from pathlib import Path

from safeclaw.sandbox.walls import plan


def test_only_what_is_named_is_bound(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    paths = [step.path for step in plan((str(tmp_path / "in"),), (), ())]
    assert str(tmp_path / "in") in paths
    assert not any("out" in path for path in paths)


def test_a_path_is_read_only_unless_it_is_named_writable(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    steps = plan((str(tmp_path / "a"), str(tmp_path / "b")), (str(tmp_path / "b"),), ())
    assert {step.path: step.writable for step in steps if step.kind == "bind"} == {
        str(tmp_path / "a"): False,
        str(tmp_path / "b"): True,
    }


def test_a_symlink_on_the_way_is_made_again_and_its_end_is_bound(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    os.symlink("real", tmp_path / "link")
    steps = plan((str(tmp_path / "link"),), (), ())
    assert [(s.kind, s.source) for s in steps if s.path == str(tmp_path / "link")] == [
        ("link", "real")
    ]
    assert any(s.kind == "bind" and s.path == str(tmp_path / "real") for s in steps)


def test_masks_come_last(tmp_path: Path) -> None:
    steps = plan((str(tmp_path),), (str(tmp_path),), (str(tmp_path / "state"),))
    assert steps[-1].kind == "mask"
