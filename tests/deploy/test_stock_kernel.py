"""The kernel of Debian 12 as it is, under emulation: what this machine's kernel cannot show.

``./dev soak 1 tests/deploy/test_stock_kernel.py``: minutes, whatever the machine.
"""

from __future__ import annotations

import pytest

from tests.deploy import emulated, trial
from tests.deploy.trial import Trial

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(0),
    pytest.mark.skipif(
        bool(emulated.STOCK.missing),
        reason=f"not installed: {', '.join(emulated.STOCK.missing)}",
    ),
]


#: What Landlock stands behind, and what is done to other processes.
CHOSEN = (
    "(symlink|dotdot|hard_link|truncate|delete|policy_file|unix_door|inherited|magic_root"
    "|outside_read|broker_socket|abstract_socket|host_loopback|memfd|loader|kill_group"
    "|core_handler|core_unlimited|victim_kill|victim_pidfd|victim_sigio|victim_memory|race_exec_path)$"
)


#: Each thing once, as root or as an ordinary user: one that is emulated takes its time.  An agent
#: in landlock isolation would not start there.
WHICH = (
    "(test_cgroup and (scope-ordinary or service-root)) or test_old_kernel"
    " or (test_caseless and ordinary)"
    " or (test_resources and ordinary and not landlock) or (test_corpus and ordinary-full)"
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """What became of all that is run there, in one boot."""
    where = ("tests/guest", "tests/system/test_resources.py", "tests/escape")
    place = tmp_path_factory.mktemp("stock")
    return trial.run(emulated.STOCK, place, *where, "-k", WHICH, corpus=CHOSEN)


def test_the_sessions_own_cgroup_holds_its_limits(found: Trial) -> None:
    assert found.passed("tests/guest/test_cgroup.py")


def test_limits_hold_without_a_cgroup(found: Trial) -> None:
    assert found.passed("tests/system/test_resources.py")


def test_what_an_old_kernel_lacks_is_said_and_gone_without_by_name(found: Trial) -> None:
    assert found.passed("tests/guest/test_old_kernel.py")


def test_names_without_regard_to_case_are_found_in_the_kernels_own_file_systems(
    found: Trial,
) -> None:
    assert found.passed("tests/guest/test_caseless.py")


def test_attacks_fail_where_the_floor_is_an_old_one(found: Trial) -> None:
    assert found.passed("tests/escape")
