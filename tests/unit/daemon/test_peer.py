"""Who is at the other end: by the kernel's word, on kernels with and without SO_PEERPIDFD."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator

import pytest

from safeclaw.daemon import peer
from safeclaw.daemon.peer import Access, Groups, Peer, Role
from tests.descriptors import no_descriptor_left

#: No option of a socket: as SO_PEERPIDFD before Linux 6.5.
UNKNOWN = 9999


@pytest.fixture(name="pair")
def _pair() -> Iterator[socket.socket]:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, two:
        yield one


@pytest.mark.parametrize("old_kernel", [False, True])
def test_the_process_that_connected_is_held(
    pair: socket.socket, monkeypatch: pytest.MonkeyPatch, old_kernel: bool
) -> None:
    if old_kernel:
        monkeypatch.setattr(peer, "_SO_PEERPIDFD", UNKNOWN)
    process = peer.process_of(pair, peer.peer_of(pair))
    assert process is not None
    try:
        assert not select.select([process], [], [], 0)[0], "it is readable when that has ended"
        signal.pidfd_send_signal(process, 0)
        assert not os.get_inheritable(process)
    finally:
        os.close(process)


@pytest.mark.parametrize("old_kernel", [False, True])
def test_a_process_that_cannot_be_held_is_not_taken_for_gone(
    pair: socket.socket, monkeypatch: pytest.MonkeyPatch, old_kernel: bool
) -> None:
    if old_kernel:
        monkeypatch.setattr(peer, "_SO_PEERPIDFD", UNKNOWN)
    said = peer.peer_of(pair)
    with no_descriptor_left(), pytest.raises(OSError, match="Too many open files"):
        peer.process_of(pair, said)


def test_without_the_option_a_number_that_is_anothers_now_is_not_held(
    pair: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "_SO_PEERPIDFD", UNKNOWN)
    # As if a process of that user had left its number to this one.
    said = Peer(os.getpid(), os.getuid() + 1, os.getgid())
    assert peer.process_of(pair, said) is None
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    assert peer.process_of(pair, Peer(gone, os.getuid(), os.getgid())) is None


def test_roles_are_those_of_the_groups_and_of_root() -> None:
    access = Access(0, Groups(run="root", admin="daemon", audit="no-such-group"))
    assert access.roles(Peer(1, 0, 0)) == frozenset(Role)
    assert access.roles(Peer(1, 1000, 0)) == {Role.RUN}
    assert access.roles(Peer(1, 1000, 1000, frozenset({1}))) == frozenset(Role)
    assert access.roles(Peer(1, 1000, 1000)) == frozenset()


def test_ones_own_broker_is_ones_own_and_roots() -> None:
    access = Access(1000, None)
    assert access.roles(Peer(1, 1000, 1000)) == frozenset(Role)
    assert access.roles(Peer(1, 0, 0)) == frozenset(Role)
    assert access.roles(Peer(1, 1001, 1000)) == frozenset()
