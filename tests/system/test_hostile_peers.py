"""Peers that do not speak as safeclaw does: forged, foreign, endless, against a real daemon.

What each says goes over a real socket, as a real user.  That the same daemon still serves
an honest peer afterwards, and that the same message in its honest form is taken, is the
positive control of each.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import signal
import socket
import subprocess
import termios
from pathlib import Path

import msgspec
import pytest

from safeclaw.daemon import control, protocol
from safeclaw.daemon.cli import lastresort
from safeclaw.daemon.gitcommit import commit_of
from safeclaw.daemon.killswitch import KillSwitch, Switch
from safeclaw.errors import BrokerError
from safeclaw.policies.model import Decision
from tests.system.peers import (
    GOOD,
    PATH,
    POLICY,
    Peer,
    asking,
    broker,
    decided,
    fingerprint_of,
    hello,
    honest,
)
from tests.system.system_broker import SystemBroker, group_of

__all__ = ["broker", "honest"]

_SO_SNDBUFFORCE = 32  # asm-generic/socket.h

BAD = {
    "keys of bytes": decided({"path": {b"\xff": 1}}),
    "an extension": decided({"path": msgspec.msgpack.Ext(5, b"x")}),
    "a fingerprint of something else": decided({"path": "/other"}),
    "a float to be asked about": protocol.encode(
        protocol.Ask(
            1, 1, "x", "file.write", {"x": 1.5}, fingerprint_of("file.write", {"x": 1.5}), "r", ""
        )
    ),
    "a question that shows something else": protocol.encode(
        protocol.Ask(1, 1, "x", "file.write", {"path": "/other"}, GOOD, "r", "")
    ),
    "a record of 9 MiB": protocol.encode(protocol.Limited(1, "memory", "x" * (9 << 20))),
}


@pytest.mark.parametrize("what", BAD)
def test_a_message_that_makes_no_sense_ends_its_own_session_only(
    what: str, broker: SystemBroker, honest: Peer, ordinary_user: str
) -> None:
    peer = Peer(broker, ordinary_user)
    ident = peer.open("hostile")
    peer.say(BAD[what])
    assert not isinstance(peer.hear(), protocol.Asked | protocol.Granted)
    (end,) = broker.records("--session", ident, "--type", "session_end")
    assert end["reason"].startswith("ended by the broker: ")


def test_a_time_beyond_every_clock_and_a_user_that_is_no_number_are_refused(
    broker: SystemBroker, honest: Peer, ordinary_user: str
) -> None:
    peer = Peer(broker, ordinary_user)
    peer.open()
    peer.say(protocol.Ask(1, 1, "x", "file.write", PATH, GOOD, "r", ""))
    asked = peer.hear()
    assert isinstance(asked, protocol.Asked)
    other = Peer(broker, ordinary_user)
    text = f'{{"type":"approve","id":"{asked.approval}","scope":"time","seconds":1{"0" * 400}}}'
    other.say(text.encode())
    reply = other.hear()
    assert isinstance(reply, control.Reply)
    assert reply.error is not None
    root = Peer(broker, "root")
    assert root.ask(control.AddAgent("n", "demo", "o", "test", 3600, "²")).error is not None
    assert other.ask(control.Approve(asked.approval, "time", 60)).error is None
    answer = peer.hear()
    assert isinstance(answer, protocol.Answer)
    assert answer.decision is Decision.ALLOW


def test_who_has_no_role_fills_neither_the_journal_nor_the_memory(
    broker: SystemBroker, honest: Peer
) -> None:
    with contextlib.suppress(ConnectionError):  # it may be cut off while it still sends
        long = Peer(broker, "nobody")
        long.say(hello("x", "A" * (9 << 20)))
        assert isinstance(long.hear(), protocol.Refused | None)
    stranger = Peer(broker, "nobody")
    stranger.say(hello("x" * 20000, "A" * 20000))
    assert isinstance(stranger.hear(), protocol.Refused)
    refused = [one for one in broker.records("--decision", "deny") if one["agent"][:1] == "x"]
    assert len(refused) == 1
    assert len(msgspec.json.encode(refused[0])) < 8192
    peers = [Peer(broker, "nobody") for _ in range(100)]
    with contextlib.suppress(ConnectionError):
        peers[-1].say(control.encode(control.Status()))
        assert peers[-1].hear() is None
    reply = peers[0].ask(control.Status())
    assert reply.error is not None
    assert "not permitted" in reply.error


def resident(broker: SystemBroker) -> int:
    """Return the most memory that the broker has ever had, in MiB (VmHWM, proc_pid_status(5))."""
    assert broker.process is not None
    status = Path(f"/proc/{broker.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


def unread(peer: Peer) -> int:
    """Return how much of what a peer has sent is still on the way (SIOCOUTQ, unix(7))."""
    return int.from_bytes(fcntl.ioctl(peer.channel.sock, termios.TIOCOUTQ, b"\0" * 4), "little")


def test_one_user_takes_a_share_of_the_brokers_memory_however_it_is_tried(
    broker: SystemBroker, ordinary_user: str
) -> None:
    before = resident(broker)
    # Half a gigabyte of messages that never end, each sent faster than the broker can read:
    # it has them whole in front of it when it looks (the buffers are larger than a user can
    # make them; socket(7)).
    assert broker.process is not None
    endless = [Peer(broker, ordinary_user) for _ in range(60)]
    broker.process.send_signal(signal.SIGSTOP)
    for peer in endless:
        sock = peer.channel.sock
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 1 << 24)
        for _ in range(256):
            sock.send(b"\x00" + b"x" * 32000, socket.MSG_DONTWAIT)
    broker.process.send_signal(signal.SIGCONT)
    while any(unread(peer) for peer in endless):
        assert broker.ask("status")["fault"] is None
    # beginnings that are kept, and long answers that are not read
    for _ in range(6):
        with contextlib.suppress(OSError):
            Peer(broker, ordinary_user).say(hello("long", "A" * (3 << 20)))
    asks = Peer(broker, ordinary_user)
    with contextlib.suppress(OSError):
        for _ in range(100):
            asks.say(control.encode(control.Sessions()))
    assert broker.ask("status")["fault"] is None
    # a user's share, and the copies of it while a message is put together
    assert resident(broker) - before < 128
    other = Peer(broker, "root")
    other.open()


def test_a_message_is_not_much_larger_in_memory_than_on_the_wire(
    broker: SystemBroker, honest: Peer, ordinary_user: str
) -> None:
    before = resident(broker)
    peer = Peer(broker, ordinary_user)
    plain = protocol.encode(hello("x"))
    word = msgspec.msgpack.encode(("true",))
    assert plain.count(word) == 1
    many = b"\xdd" + (20 << 20).to_bytes(4, "big") + b"\xa0" * (20 << 20)
    with contextlib.suppress(OSError):
        peer.say(plain.replace(word, many))
    assert isinstance(peer.hear(), protocol.Refused | None)
    assert resident(broker) - before < 80


def open_files(broker: SystemBroker) -> int:
    assert broker.process is not None
    return len(os.listdir(f"/proc/{broker.process.pid}/fd"))


@pytest.mark.parametrize("reads", [True, False])
def test_who_has_gone_is_let_go_of(
    reads: bool, broker: SystemBroker, honest: Peer, ordinary_user: str
) -> None:
    before = open_files(broker)
    for _ in range(20):
        peer = Peer(broker, ordinary_user)
        peer.open()
        if not reads:
            with contextlib.suppress(TimeoutError):
                while True:
                    peer.channel.send(protocol.encode(protocol.Renew(1)), 0.0)
        peer.channel.close()
    root = Peer(broker, "root")
    while len(root.ask(control.Sessions()).data) > 1:  # the honest one
        pass
    root.ask(control.Status())
    assert open_files(broker) - before < 10


def test_what_nobody_could_judge_is_not_asked(
    broker: SystemBroker, honest: Peer, ordinary_user: str
) -> None:
    peer = Peer(broker, ordinary_user)
    peer.open()
    peer.say(asking({"path": "/" + "x" * 15_000}, 1), asking({"path": "/" + "x" * 20_000}, 2))
    assert isinstance(peer.hear(), protocol.Asked)
    answer = peer.hear()
    assert isinstance(answer, protocol.Answer)
    assert (answer.ticket, answer.decision) == (2, Decision.DENY)
    assert "nobody is asked" in answer.reason


def test_so_many_wait_for_one_answer_and_no_more(
    broker: SystemBroker, honest: Peer, ordinary_user: str
) -> None:
    peer = Peer(broker, ordinary_user)
    peer.open()
    for ticket in range(1, 4097):
        peer.say(asking(PATH, ticket))
        assert isinstance(peer.hear(), protocol.Asked)
    peer.say(asking(PATH, 5000))
    answer = peer.hear()
    assert isinstance(answer, protocol.Answer)
    assert answer.decision is Decision.DENY
    (waits,) = broker.ask("approvals")
    assert waits["waiting"] == 4096


def test_one_users_questions_leave_room_for_anothers_hooks(ordinary_user: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("not root: the system's broker was not started")
    broker = SystemBroker(group_of(ordinary_user))
    fifo = broker.base / "fifo"
    os.mkfifo(fifo)
    broker.configure({**broker.settings, "approval_hook": ["/bin/cat", str(fifo)]})
    broker.start()
    try:
        greedy = Peer(broker, ordinary_user)
        mine = greedy.open("greedy")
        for number in range(40):
            greedy.say(asking({"path": f"/{number}"}, number))
            assert isinstance(greedy.hear(), protocol.Asked)
        other = Peer(broker, "root")
        theirs = other.open("other")
        other.say(asking(PATH, 1))
        assert isinstance(other.hear(), protocol.Asked)
        events = {
            ident: [one["detail"]["event"] for one in broker.records("--session", ident)
                    if one["type"] == "approval"]
            for ident in (mine, theirs)
        }  # fmt: skip
        assert events[mine].count("hook-failed") == 40 - 16
        assert events[theirs] == ["asked"]
    finally:
        os.close(os.open(fifo, os.O_RDWR | os.O_NONBLOCK))  # who waits to open it goes on
        broker.close()


# ---- root's and the broker's hands in others' directories


def test_the_last_resort_writes_with_no_more_power_than_the_state_has(
    tmp_path: Path, ordinary_user: str
) -> None:
    if os.geteuid() != 0:
        pytest.skip("not root: the last resort is root's")
    for place in (tmp_path, *tmp_path.parents):
        if place.name.startswith(("pytest-", "popen-")) or place == tmp_path:
            place.chmod(0o755)
    entry = pwd.getpwnam(ordinary_user)
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, entry.pw_uid, entry.pw_gid)
    order = Switch("2026-01-01T00:00:00Z", 0, "why", None, "demo")
    lastresort.leave(state, order)
    found = (state / "killed.json").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (*entry[2:4], 0o600)
    assert KillSwitch(state).against(1, "demo") == order
    # What its owner cannot write there root could: it must not.
    state.chmod(0o500)
    with pytest.raises(BrokerError):
        lastresort.leave(state, order)
    assert (os.geteuid(), os.getegid()) == (0, 0)
    KillSwitch(state).add(order)


def test_a_policys_repository_does_not_choose_what_the_broker_runs(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"

    def git(*words: str) -> None:
        who = ("-c", "user.name=x", "-c", "user.email=x@example.com")
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    git("init")
    policy.write_bytes(POLICY)
    git("add", "policy.yaml")
    git("commit", "-m", "first")
    commit = commit_of(str(policy))
    assert len(commit) == 40
    (tmp_path / ".git" / "info" / "attributes").write_text("* filter=x\n")
    git("config", "filter.x.clean", f"touch {tmp_path}/ran; cat")
    policy.write_bytes(POLICY + b"# changed\n")
    assert commit_of(str(policy)) == f"{commit}-dirty"
    assert not (tmp_path / "ran").exists()
    subprocess.run(["git", "-C", str(tmp_path), "diff", "--quiet", "HEAD"], check=False)
    assert (tmp_path / "ran").exists(), "a plain git diff runs it"
