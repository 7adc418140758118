"""The kill switch: what it holds, and that only a whole file is believed."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from safeclaw.daemon import statefile
from safeclaw.daemon.killswitch import FILE_NAME, LOCK_NAME, KillSwitch, Switch
from safeclaw.errors import BrokerError


def order(uid: int | None = None, agent: str | None = None) -> Switch:
    return Switch("2026-01-01T00:00:00Z", 0, "drill", uid, agent)


@pytest.mark.parametrize(
    ("switch", "held"),
    [
        (order(), {(1, "a"), (1, "b"), (2, "a"), (2, "b")}),
        (order(uid=1), {(1, "a"), (1, "b")}),
        (order(agent="a"), {(1, "a"), (2, "a")}),
        (order(uid=1, agent="a"), {(1, "a")}),
    ],
)
def test_it_holds_whom_it_names(tmp_path: Path, switch: Switch, held: set[tuple[int, str]]) -> None:
    KillSwitch(tmp_path).add(switch)
    again = KillSwitch(tmp_path)  # as after a restart
    everybody = {(uid, agent) for uid in (1, 2) for agent in "ab"}
    assert {one for one in everybody if again.against(*one)} == held


def test_what_another_process_writes_holds_at_once(tmp_path: Path) -> None:
    broker, other = KillSwitch(tmp_path), KillSwitch(tmp_path)
    assert broker.against(1, "a") is None
    other.add(order())
    assert broker.against(1, "a") is not None
    other.remove(None, None)
    assert broker.against(1, "a") is None


def test_only_the_order_that_is_named_is_lifted(tmp_path: Path) -> None:
    switch = KillSwitch(tmp_path)
    switch.add(order())
    switch.add(order(agent="a"))
    assert switch.remove(None, "a") == (order(agent="a"),)
    assert switch.against(1, "a") == order()
    assert switch.remove(1, "a") == ()


def test_a_damaged_file_holds_everybody(tmp_path: Path) -> None:
    switch = KillSwitch(tmp_path)
    switch.add(order(agent="a"))
    whole = (tmp_path / FILE_NAME).read_bytes()
    for cut in (0, 1, len(whole) // 2):
        (tmp_path / FILE_NAME).write_bytes(whole[:cut])
        for one in (switch, KillSwitch(tmp_path)):
            with pytest.raises(BrokerError, match="damaged"):
                one.against(1, "b")


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("[]")
    (tmp_path / FILE_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BrokerError, match="cannot be read"):
        KillSwitch(tmp_path).against(1, "a")


def test_two_who_give_orders_at_once_lose_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, others = statefile.write, list[threading.Thread]()

    def meanwhile(path: Path, value: object) -> None:
        if not others:
            other = threading.Thread(target=KillSwitch(tmp_path).add, args=(order(agent="b"),))
            others.append(other)
            other.start()
            other.join(0.2)  # it has had its chance to come in between
        write(path, value)

    monkeypatch.setattr(statefile, "write", meanwhile)
    KillSwitch(tmp_path).add(order(agent="a"))
    others[0].join()
    assert set(KillSwitch(tmp_path).switches) == {order(agent="a"), order(agent="b")}


def test_a_broker_that_is_stopped_amid_a_change_keeps_no_order_off(tmp_path: Path) -> None:
    lock = os.open(tmp_path / LOCK_NAME, os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    KillSwitch(tmp_path).add(order())
    os.close(lock)
    assert KillSwitch(tmp_path).against(1, "a") == order()
