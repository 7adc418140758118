"""What a broker's desk answers, and when."""

from __future__ import annotations

import threading
from pathlib import Path
from unittest.mock import Mock, create_autospec

from safeclaw.daemon.desk import Desk, House
from safeclaw.daemon.ledger import Position
from safeclaw.daemon.service import Service


def test_who_has_the_policies_read_again_is_answered_though_nothing_is_new(tmp_path: Path) -> None:
    turns = threading.Event()
    house = create_autospec(House, instance=True)
    house.fault, house.position = None, Position("c", 5, 5)
    house.wake = Mock(side_effect=turns.set)
    desk = Desk(tmp_path, Service(configuration=tmp_path), house)
    desk.lookout.look(Mock(owed=0, dropped=False))
    assert turns.wait(60)
    turns.clear()
    desk.tick()
    house.send.assert_not_called()
    assert turns.is_set(), "nothing has the loop turn"
    desk.settle(5)
    house.send.assert_called_once()
