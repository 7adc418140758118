"""The kernel of Debian 12 as it is, under emulation: what this machine's kernel cannot show.

``./dev soak 1 tests/deploy/test_stock_kernel.py``: minutes, whatever the machine.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.deploy import emulated, trial

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(0),
    pytest.mark.skipif(
        any(shutil.which(tool) is None for tool in emulated.TOOLS),
        reason=f"not installed: one of {', '.join(emulated.TOOLS)}",
    ),
]


#: What Landlock stands behind, and what is done to other processes.
CHOSEN = (
    "(symlink|dotdot|hard_link|truncate|delete|policy_file|unix_door|inherited|magic_root"
    "|outside_read|broker_socket|abstract_socket|host_loopback|memfd|loader|kill_group"
    "|victim_kill|victim_pidfd|victim_sigio|victim_memory|race_exec_path)$"
)


def passes(place: Path, *arguments: str, corpus: str = "") -> int:
    """Run tests of this checkout there; return how many passed, after saying which did not."""
    found, console = trial.run(place, *arguments, corpus=corpus)
    failed = [one for one in found if one.outcome != "passed"]
    text = "\n".join(f"{one.outcome}: {one.test}\n{one.text}" for one in failed)
    assert found, console[-4000:]
    assert not failed, f"{text}\n{console[-2000:]}"
    return len(found)


def test_the_sessions_own_cgroup_holds_its_limits(tmp_path: Path) -> None:
    assert passes(tmp_path, "tests/guest/test_cgroup.py")


def test_what_an_old_kernel_lacks_is_said_and_gone_without_by_name(tmp_path: Path) -> None:
    assert passes(tmp_path, "tests/guest/test_old_kernel.py")


def test_attacks_fail_where_the_floor_is_an_old_one(tmp_path: Path) -> None:
    # an agent in landlock isolation would not start there, as is shown above
    assert passes(tmp_path, "tests/escape", "-k", "full", corpus=CHOSEN)
