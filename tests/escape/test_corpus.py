"""Every attack works with one defence off, and fails with all of them on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.escape import summary
from tests.escape.corpus import ATTACKS, Attack
from tests.escape.prison import Prison
from tests.escape.stages import ROOT_STAGES

#: Where this says 0, as distributions begin to have it, the kernel itself lets nobody type into a
#: terminal (Linux 6.2, CONFIG_LEGACY_TIOCSTI).
TYPING = Path("/proc/sys/dev/tty/legacy_tiocsti")


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_the_attack_works_without_its_defence_and_fails_with_it(
    prison: Prison, attack: Attack, record_property: summary.Property
) -> None:
    if os.geteuid() != 0 and attack.source in ROOT_STAGES:
        pytest.skip("not root: what it attacks with could not be made")
    if attack.name == "tiocsti" and TYPING.exists() and TYPING.read_text().strip() == "0":
        pytest.skip("dev.tty.legacy_tiocsti is 0: to see it held, as root: sysctl it to 1")
    if attack.isolation not in ("", prison.isolation):
        return  # what it attacks is not there
    if attack not in prison.attacks:
        assert prison.name != "root"  # it works for nobody but root, so there is nothing to hold
        return
    control = prison.control(attack)
    assert control.wins >= attack.goal, f"the control proves nothing: {control}"
    held = prison.attempt(attack)
    if attack.gap and prison.isolation == "landlock":
        assert held.wins, "it is held after all: take it off the list of differences"
        record_property(summary.GAP, f"{attack.name}: {attack.gap}")
        return
    assert held.wins == 0, held.said
    assert held.tries >= control.tries, held.said
    record_property(summary.HELD, attack.name)
    record_property(summary.WINS, control.wins)
