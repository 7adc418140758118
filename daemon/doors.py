"""The broker's sockets: who is let in, who is listened to, and what they are sent.

It belongs to the broker's main thread and lives as long as the broker.
"""

from __future__ import annotations

import os
import selectors
import socket

from safeclaw.daemon import control
from safeclaw.daemon.channel import Channel
from safeclaw.daemon.peer import Access, Peer, Role, peer_of
from safeclaw.daemon.sessions import Session

#: How many connections one user may have at once.
_CONNECTIONS_MAX = 512
#: How many connections those may have, all together, who have no role at all.
_STRANGERS_MAX = 64
#: The longest message: a policy with all that it extends, or a program with all the arguments
#: that Linux allows.
_LONGEST = 24 * 1024 * 1024
#: What one session, and one user's together, may have kept for them, in bytes: what of it is
#: beyond the first is refused while there is more than the second.  The first times the
#: connections of a user is as much again, at most.
_SHARE = 64 * 1024
_USERS_SHARE = 64 * 1024 * 1024
#: A peer that does not read what it is told is not listened to beyond so many packets.
_UNREAD_MAX = 256
#: While no descriptor is left for who connects, one is looked for this often, in seconds.
_AGAIN = 0.1


class Doors:
    """See the module."""

    def __init__(self, listener: socket.socket, access: Access) -> None:
        self.listener = listener
        self._access = access
        self._selector = selectors.EpollSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._sessions: dict[int, Session] = {}
        #: Whether the listener is left alone, for want of descriptors.
        self._full = False
        #: Whether anybody was ever let in.
        self.served = False

    def watch(self, descriptor: int) -> None:
        """Have :meth:`select` tell of another descriptor, too."""
        self._selector.register(descriptor, selectors.EVENT_READ)

    def select(self, timeout: float | None) -> list[tuple[int, int]]:
        """Wait; return descriptors and what they are ready for (selectors.EVENT_*)."""
        if self._full:
            timeout = _AGAIN if timeout is None else min(timeout, _AGAIN)
        found = [(key.fd, events) for key, events in self._selector.select(timeout)]
        if self._full:
            self._full = False
            self._selector.register(self.listener, selectors.EVENT_READ)
        return found

    # ---- who is there

    def session(self, descriptor: int) -> Session | None:
        """Return whose descriptor it is."""
        return self._sessions.get(descriptor)

    def connected(self) -> list[Session]:
        """Return everybody, whether a session was opened or not."""
        return list(self._sessions.values())

    def running(self) -> list[Session]:
        """Return the sessions that run."""
        return [one for one in self._sessions.values() if one.id is not None and not one.concluded]

    def live(self) -> bool:
        """Whether a session goes on."""
        return any(not one.concluded for one in self._sessions.values())

    # ---- coming and going

    def accept(self) -> None:
        """Let in whoever has connected."""
        while True:
            try:
                sock, _ = self.listener.accept()
            except BlockingIOError:
                return
            except OSError:
                # Out of descriptors: the others go on, and this one waits.  The listener stays
                # ready all the while: to listen to it would be to spin.
                if not self._full:
                    self._full = True
                    self._selector.unregister(self.listener)
                return
            peer = peer_of(sock)
            if self._crowded(peer):
                sock.close()
                continue
            self.served = True
            sock.setblocking(True)
            # Who can open no session has nothing long to say.
            opens = Role.RUN in self._access.roles(peer)
            longest = _LONGEST if opens else control.MESSAGE_MAX
            try:
                session = Session(Channel(sock, message_max=longest), peer)
            except OSError:
                # SAFETY: no descriptor was left for its process: it could not be killed.
                sock.close()
                continue
            self._sessions[sock.fileno()] = session
            self._selector.register(sock, selectors.EVENT_READ, session)

    def _crowded(self, peer: Peer) -> bool:
        crowd = sum(one.uid == peer.uid for one in self._sessions.values())
        if self._access.roles(peer):
            return crowd >= _CONNECTIONS_MAX
        # SAFETY: one person may have many uids (subuid(5)); together they get a few.
        strangers = sum(
            not self._access.roles(one.peer) for one in self._sessions.values() if one.id is None
        )
        return not self._access.system or strangers >= _STRANGERS_MAX

    def deafen(self, session: Session) -> None:
        """Read no more from a session, but keep its channel."""
        self._selector.unregister(session.channel.sock)
        session.deaf = True

    def hear(self, session: Session) -> None:
        """Read from a session again."""
        if session.deaf:
            self._selector.register(session.channel.sock, selectors.EVENT_READ, session)
            session.deaf = False
            self.listen(session)  # for room, too, if it was told anything

    def close(self, session: Session) -> None:
        """Let go of a session's channel and process."""
        del self._sessions[session.channel.fileno()]
        if not session.deaf:
            self._selector.unregister(session.channel.sock)
        session.channel.close()
        if session.process is not None:
            os.close(session.process)
            session.process = None

    # ---- what they are sent

    def send(self, session: Session, message: bytes) -> None:
        """Send a message now, as far as there is room; the rest when there is."""
        try:
            if session.channel.fileno() >= 0 and not session.channel.post(message):
                self.listen(session)
        except OSError:
            pass  # its end of file is on the way

    def full(self, session: Session) -> bool:
        """Whether a session has too much left to read to be listened to; it is not, then."""
        if session.channel.posted <= _UNREAD_MAX:
            return False
        self.listen(session)
        return True

    def heavy(self, session: Session, more: int = 0) -> bool:
        """Whether a session would hold too much, together with its user's others."""
        if session.holds + more <= _SHARE:
            return False  # what each may have, however many there are
        users = (one.holds for one in self._sessions.values() if one.uid == session.uid)
        return sum(users) + more > _USERS_SHARE

    def push(self, session: Session) -> None:
        """Send what there is room for now.  OSError."""
        session.channel.push()
        self.listen(session)

    def listen(self, session: Session) -> None:
        """Wait for what a session says, and for room for what it is sent."""
        if session.deaf:
            return
        posted = session.channel.posted
        events = selectors.EVENT_READ if posted <= _UNREAD_MAX else 0
        if posted:
            events |= selectors.EVENT_WRITE
        self._selector.modify(session.channel.sock, events, session)
