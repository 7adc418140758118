"""A session on another processor: Debian for aarch64 with Linux 6.12, under emulation.

``./dev soak 1 tests/deploy/test_aarch64.py``: the image takes a quarter of an hour to make, once.
"""

from __future__ import annotations

import pytest

from tests.deploy import emulated, trial
from tests.deploy.trial import Trial

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(0),
    pytest.mark.skipif(
        bool(emulated.AARCH64.missing),
        reason=f"not installed: {', '.join(emulated.AARCH64.missing)}",
    ),
]

#: Each thing once, as root or as an ordinary user: one that is emulated takes its time.  Pages are
#: compared with sources that are not there; ``chroot`` wants a tree that this Debian has not.
WHERE = (
    *(
        "tests/system/test_examples.py",
        "tests/guest/test_aarch64.py",
        "tests/escape/test_corpus.py",
    ),
    *("tests/guest/test_cgroup.py", "tests/system/test_resources.py"),
    *("tests/system/test_doctor.py", "tests/unit/sandbox"),
)
WHICH = (
    "day_at_work_is_held or test_aarch64 or (test_corpus and ordinary-full)"
    " or (test_cgroup and service-root) or (test_resources and ordinary and not full)"
    " or (test_doctor and healthy) or (unit and not test_documented and not x32)"
)
#: One race stands for all: thousands of tries take hours there.  With one processor there is none
#: to move a victim to.
CHOSEN = "(?!race_|victim_affinity)|race_exec_path$"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """What became of all that is run there, in one boot."""
    place = tmp_path_factory.mktemp("aarch64")
    return trial.run(emulated.AARCH64, place, *WHERE, "-k", WHICH, corpus=CHOSEN)


def test_layouts_and_tables_are_those_of_the_kernel(found: Trial) -> None:
    assert found.passed("tests/unit/sandbox")


def test_the_example_agent_does_its_work_and_nothing_else(found: Trial) -> None:
    assert found.passed("tests/system/test_examples.py")


def test_limits_hold_in_a_cgroup_and_without_one(found: Trial) -> None:
    assert found.passed("tests/guest/test_cgroup.py")
    assert found.passed("tests/system/test_resources.py")


def test_a_pointer_with_a_tag_is_read_as_the_kernel_reads_it(found: Trial) -> None:
    assert found.passed("tests/guest/test_aarch64.py")


def test_the_doctor_finds_every_layer(found: Trial) -> None:
    assert found.passed("tests/system/test_doctor.py")


def test_attacks_work_without_their_defence_and_fail_with_it(found: Trial) -> None:
    assert found.passed("tests/escape/test_corpus.py")
