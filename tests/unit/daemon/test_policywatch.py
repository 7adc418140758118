"""What is noticed of the directories that policies lie in; on real ones."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from safeclaw.daemon.policywatch import PolicyWatch


@pytest.fixture(name="place")
def _place(tmp_path: Path) -> Path:
    place = tmp_path / "policies"
    place.mkdir()
    return place


@pytest.fixture(name="watch")
def _watch(place: Path) -> PolicyWatch:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pyinotify imports asyncore
        from safeclaw.daemon.policywatch import PolicyWatch
    return PolicyWatch({str(place)})


def noticed(watch: PolicyWatch) -> bool:
    """Whether anything was; what has happened is there to be read."""
    return bool(select.select([watch.fileno()], [], [], 0)[0]) and watch.changed()


def test_a_file_that_is_written_is_noticed(watch: PolicyWatch, place: Path) -> None:
    assert not noticed(watch)
    (place / "one.yaml").write_text("x")
    assert noticed(watch)
    assert not noticed(watch)


def test_a_directory_that_is_replaced_is_watched_in_its_new_form(
    watch: PolicyWatch, place: Path, tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    place.rename(tmp_path / "old")
    (tmp_path / "new").rename(place)
    assert noticed(watch)
    (place / "one.yaml").write_text("x")
    assert noticed(watch)
    (tmp_path / "old" / "one.yaml").write_text("x")
    assert not noticed(watch)


@pytest.mark.parametrize("seen", [False, True], ids=["at-once", "later"])
def test_a_directory_that_goes_and_comes_is_watched_again(
    watch: PolicyWatch, place: Path, tmp_path: Path, seen: bool
) -> None:
    shutil.rmtree(place)
    if seen:
        assert noticed(watch)
        (tmp_path / "other").mkdir()
        assert not noticed(watch), "that is not what is missed"
    place.mkdir()
    assert noticed(watch)
    (place / "one.yaml").write_text("x")
    assert noticed(watch)


def test_what_is_watched_no_more_is_not_noticed(
    watch: PolicyWatch, place: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert watch.update({str(other)})
    assert not watch.update({str(other)})
    noticed(watch)
    (place / "one.yaml").write_text("x")
    assert not noticed(watch)
    (other / "one.yaml").write_text("x")
    assert noticed(watch)


@pytest.mark.parametrize(
    "words", [("safeclawd",), ("__main__", "audit", "tail")], ids=["safeclawd", "tail"]
)
def test_where_nothing_more_can_be_watched_one_is_told_what_to_do(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    tmp_path.chmod(0o700)
    module, *rest = words
    command = [sys.executable, "-m", f"safeclaw.daemon.cli.{module}", *rest]
    none_left = 'echo 0 > /proc/sys/user/max_inotify_instances && exec "$@"'
    ended = subprocess.run(
        ["unshare", "--map-root-user", "sh", "-c", none_left, "sh", *command],
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 125
    assert "Traceback" not in ended.stderr
    assert "cannot be watched" in ended.stderr
    assert "hint: raise the sysctl fs.inotify.max_user_instances" in ended.stderr
