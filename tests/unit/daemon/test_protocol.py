"""The messages and the channel, on real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeclaw.daemon import protocol
from safeclaw.daemon.channel import PACKET_MAX, Channel, packets
from safeclaw.errors import BrokerError
from safeclaw.policies.model import (
    Attempt,
    Decision,
    FileTarget,
    ProgramTarget,
    Verdict,
    fingerprint,
    target_fields,
)

ALLOW = Verdict(Decision.ALLOW, "test:1", "because")


@pytest.fixture(name="pair")
def _pair() -> Iterator[tuple[Channel, Channel]]:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ends = Channel(one, message_max=1 << 22), Channel(two, message_max=1 << 22)
    yield ends
    for end in ends:
        end.close()


@given(
    path=st.binary(min_size=1, max_size=60).map(lambda b: b.decode("utf-8", "surrogateescape")),
    number=st.integers(0, 2**63),
    pid=st.integers(0, 2**31),
    latency=st.integers(0, 2**52),
)
def test_a_decision_put_together_from_its_parts_is_what_the_decoder_reads(
    path: str, number: int, pid: int, latency: int
) -> None:
    attempt = Attempt("file.read", FileTarget(path))
    tail = protocol.decided_tail(attempt, ALLOW, exe="/bin/x", enforced_by="seccomp-notify")
    packet = protocol.decided_packet(tail, number, pid, latency)
    message = protocol.decode_to_broker(packet)
    assert message == protocol.Decided(
        number,
        pid,
        latency,
        "/bin/x",
        "file.read",
        target_fields(attempt.target),
        fingerprint(attempt),
        Decision.ALLOW,
        "test:1",
        "because",
        "seccomp-notify",
    )
    assert protocol.split_decided(packet) == (number, pid, latency, tail)


@given(data=st.binary(max_size=200))
def test_bytes_that_are_no_message_are_refused_with_our_own_error(data: bytes) -> None:
    for decode in (protocol.decode_to_broker, protocol.decode_to_supervisor):
        try:
            decode(data)
        except BrokerError:
            continue


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x9c\xa1d", msgspec.msgpack.encode(["other"])])
def test_what_is_not_a_message_is_refused(data: bytes) -> None:
    with pytest.raises(BrokerError):
        protocol.decode_to_broker(data)
    assert protocol.split_decided(data) is None


def test_a_supervisor_cannot_say_what_only_a_broker_says() -> None:
    with pytest.raises(BrokerError):
        protocol.decode_to_broker(protocol.encode(protocol.Granted(1)))


def test_a_message_of_any_length_arrives_whole(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    argv = ("program", "x" * (2 * 1024 * 1024))
    attempt = Attempt("shell.execute", ProgramTarget("/bin/program", argv))
    tail = protocol.decided_tail(attempt, ALLOW, exe="", enforced_by="exec-stop")
    packet = protocol.decided_packet(tail, 1, 2, 3)
    assert len(packets(packet)) > 60
    sender = threading.Thread(target=left.send, args=(packet, 10.0))
    sender.start()
    assert right.receive(60.0) == packet
    sender.join()
    left.send(b"\x90", 1.0)
    assert right.take() == b"\x90"
    assert right.take() is None


def test_posted_messages_wait_for_room_and_keep_their_order(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    messages = [bytes([0x90]) + bytes(PACKET_MAX - 1), b"\x91", b"\x92" * PACKET_MAX * 120]
    posted = [left.post(message) for message in messages]
    complete = all(posted)
    assert not complete, "more than the socket holds"
    received: list[bytes] = []
    while len(received) < len(messages):
        message = right.take()
        if message is None:
            left.push()
            continue
        received.append(message)
    assert received == messages
    assert left.posted == 0


def test_a_peer_that_does_not_read_is_a_timeout(pair: tuple[Channel, Channel]) -> None:
    left, _ = pair
    with pytest.raises(TimeoutError):
        left.send(bytes([0x90]) * (1 << 21), 0.05)


def test_a_message_that_is_too_long_is_refused(pair: tuple[Channel, Channel]) -> None:
    left, _ = pair
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    narrow = Channel(two, message_max=PACKET_MAX)
    wide = Channel(one, message_max=PACKET_MAX)
    wide.send(b"\x90" * (3 * PACKET_MAX), 1.0)
    with pytest.raises(BrokerError, match="too long"):
        narrow.take()
    narrow.close()
    wide.close()
    assert left.posted == 0


def test_a_message_that_is_broken_off_is_refused(pair: tuple[Channel, Channel]) -> None:
    left, right = pair
    left.send(packets(b"\x90" * (2 * PACKET_MAX))[0], 1.0)
    left.send(b"\x90", 1.0)
    with pytest.raises(BrokerError, match="broken off"):
        right.receive(1.0)


def test_the_end_of_the_other_side_is_told_apart_from_silence(
    pair: tuple[Channel, Channel],
) -> None:
    left, right = pair
    assert right.take() is None
    left.close()
    assert right.take() == b""
    assert right.receive(1.0) is None


class _ClosedMeanwhile(socket.socket):
    """A socket whose channel another thread closes when its second packet has been taken."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(fileno=sock.detach())
        self.channel = Channel(self, message_max=1 << 22)
        self._taken = 0

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        packet = super().recv(bufsize, flags)
        self._taken += 1
        if self._taken == 2:
            closer = threading.Thread(target=self.channel.close)
            closer.start()
            closer.join()
        return packet


def test_a_channel_that_is_closed_amid_a_long_message_gives_no_part_of_it() -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sender, receiver = Channel(one, message_max=1 << 22), _ClosedMeanwhile(two).channel
    message = b"x" * (PACKET_MAX + 1)
    assert len(packets(message)) == 2
    sender.send(message, 1.0)
    assert receiver.receive() is None
    sender.close()
