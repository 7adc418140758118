"""The supervisor's line to the broker: numbered records, the lease, and what breaks it.

A line lives as long as its session and owns the thread that listens to the broker.
What it promises:

* records leave in the order of their numbers, and are kept until the broker says
  that they are on disk;
* the lease is over the moment the broker is silent, gone, or says so;
* a broker that has gone may come back where ``reconnect`` finds it: meanwhile
  nothing leaves, nothing is allowed, and what was not acknowledged is sent again;
* once the broker is lost, it is lost for ever, and ``on_lost`` is called once.
"""

from __future__ import annotations

import collections
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from safeclaw.daemon import protocol
from safeclaw.daemon.channel import Channel
from safeclaw.errors import BrokerError, BrokerGoneError

#: How long an attempt waits for a broker that does not answer, in seconds.
GRACE = 5.0
RENEW_NS = protocol.LEASE_NS // 2
#: How many records may be without acknowledgement before an attempt waits.
UNACKNOWLEDGED_MAX = 16384
#: How many bytes those that are long may be together: a program's words can be megabytes.
LONG = 4096
_LONG_BYTES_MAX = 32 << 20
#: How many denials after the loss are kept for the journal; the agent is being killed.
_KEPT_AFTER_LOSS_MAX = 4 * UNACKNOWLEDGED_MAX
#: While a broker is away, it is looked for at these intervals, in seconds.
_LOOK_AGAIN = 0.05
_ANSWER = 5.0


class Reconnect(Protocol):
    """Finds the broker again, and opens the session there with Hello(resume)."""

    def __call__(self) -> tuple[Channel, protocol.Lease]:
        """Return a channel with a lease.

        Raises OSError where nobody listens (yet), BrokerError where the broker refuses.
        """
        ...


class Question:
    """One attempt that waits for a person."""

    __slots__ = ("answer", "packet")

    def __init__(self, packet: bytes) -> None:
        self.packet = packet
        self.answer: protocol.Answer | None = None


class Line:
    """See the module.  ``sending`` guards the order of numbers; the reader holds it to resume."""

    def __init__(
        self,
        channel: Channel,
        *,
        on_lost: Callable[[str], None],
        on_message: Callable[[protocol.ToSupervisor], None],
        grace: float = GRACE,
        reconnect: Reconnect | None = None,
    ) -> None:
        self.channel = channel
        self.sending = threading.Lock()
        self.number = 0
        # Both are 0 until the broker first answers: nothing is allowed before.
        self.lease_until = 0
        self.renew_at = 0
        self.unacknowledged: collections.deque[bytes] = collections.deque()
        #: The long ones of them: (number, bytes), as far as they have been looked through.
        self._long: collections.deque[tuple[int, int]] = collections.deque()
        self._long_bytes = 0
        self.lost: str | None = None
        #: Whether the broker was lost because it did not answer: it may be stopped.
        self.silent = False
        self.suspended = False
        self.ended = False
        #: Set by the kill switch: nothing is allowed, but all is still recorded.
        self.killed: str | None = None
        self._on_lost = on_lost
        self._on_message = on_message
        self._grace = grace
        self._reconnect = reconnect
        # Guards what the reader changes.
        self._answered = threading.Condition()
        self._acknowledged = 0
        #: When the newest answered request for more time was made.
        self._granted = 0
        self._questions: dict[int, Question] = {}
        self._tickets: Iterator[int] = itertools.count(1)
        self._reader: threading.Thread | None = None

    # ---- sending; ``sending`` is held

    def renew(self, now: int) -> bool:
        """Ask for more time; wait for it if the lease has lapsed.

        False: nothing may be allowed now; with ``suspended``, perhaps later.
        """
        if self.lost is not None or self.suspended or self.killed is not None:
            return False
        while self._send(protocol.encode(protocol.Renew(now))):
            if now < self.lease_until:
                self.renew_at = self.lease_until
                return True
            granted = self._await_grant(now)
            if granted is not None:
                return granted
            now = time.monotonic_ns()
        return False

    def _await_grant(self, asked: int) -> bool | None:
        """Wait for the answer to a request; None: it came, but the time it gave is over."""
        heard = self._wait(lambda: self._granted >= asked or self.killed is not None, self._grace)
        if self.killed is not None or self.lost is not None or self.suspended:
            return False
        if time.monotonic_ns() < self.lease_until:
            return True
        if heard:
            return None
        self.lose(f"the broker has not answered for {self._grace:g} s", silent=True)
        return False

    def hand_over(self, number: int, packet: bytes) -> bool:
        """Send the record of that number, the next one; keep it until it is on disk.

        False: it did not leave, and the number is free.
        """
        if self.lost is not None or self.suspended:
            return False
        if len(self.unacknowledged) >= UNACKNOWLEDGED_MAX:
            self.ask_durable()
            if not self._wait_durable(number - UNACKNOWLEDGED_MAX // 2):
                return False
        long = len(packet) > LONG
        if long and not self._room_for(len(packet)):
            return False
        # Kept before it is sent: what is sent and not kept could be lost with the broker.
        self.number = number
        self.unacknowledged.append(packet)
        if self._send(packet):
            if long:
                self._long.append((number, len(packet)))
                self._long_bytes += len(packet)
            return True
        # Nobody acts on it: whoever comes next takes its number.
        self.unacknowledged.pop()
        self.number = number - 1
        return False

    def await_room(self, size: int) -> None:
        """Wait for the room that a long record needs; ``sending`` is not held: others go on."""
        with self.sending:
            if self._has_room(size) or self.lost is not None or self.suspended:
                return
            self.ask_durable()
            number = self._long[-1][0]
        self._wait_durable(number)

    def _room_for(self, size: int) -> bool:
        """Wait for the long records on their way where with one more they are too many bytes.

        SAFETY: who writes them is the agent, and they are in this process's memory.
        """
        if not self._has_room(size):
            self.ask_durable()
            if not self._wait_durable(self._long[-1][0]):
                return False
        return self._has_room(size)

    def _has_room(self, size: int) -> bool:
        while self._long and self._long[0][0] <= self._acknowledged:
            self._long_bytes -= self._long.popleft()[1]
        return self._long_bytes + size <= _LONG_BYTES_MAX or not self._long

    def keep(self, packet: bytes) -> None:
        """Record what nobody waits for: send it, or keep it for the broker that comes."""
        number = self.number + 1
        if self.hand_over(number, packet):
            return
        if self.lost is None or len(self.unacknowledged) < _KEPT_AFTER_LOSS_MAX:
            self.number = number
            self.unacknowledged.append(packet)

    def ask_durable(self) -> None:
        """Ask for an acknowledgement of what was sent."""
        self._send(protocol.encode(protocol.Flush()))

    def _send(self, packet: bytes) -> bool:
        try:
            self.channel.send(packet, self._grace)
        except TimeoutError:
            self.lose(f"the broker has taken no record for {self._grace:g} s", silent=True)
            return False
        except OSError:
            self._break_off()
            return False
        return True

    # ---- waiting

    def await_durable(self, number: int) -> bool:
        """Wait until the record of that number is on disk; ask first.  Outlives a restart."""
        while not self._wait_durable(number):
            if not self.await_resumed():
                return False
        return True

    def _wait_durable(self, number: int) -> bool:
        if self._wait(lambda: self._acknowledged >= number, self._grace):
            return True
        if not self.suspended:
            self.lose(f"the broker has written nothing for {self._grace:g} s", silent=True)
        return False

    def await_resumed(self) -> bool:
        """Wait while the broker is away; False when it is lost.  ``sending`` is not held."""
        with self._answered:
            self._answered.wait_for(lambda: not self.suspended or self.lost is not None)
            return self.lost is None

    def ask(self, message: Callable[[int], protocol.Ask]) -> protocol.Answer | None:
        """Put a question and wait for its answer; None when nothing may be allowed any more."""
        ticket = next(self._tickets)
        question = Question(protocol.encode(message(ticket)))
        with self.sending:
            # Known before it is sent: should the broker restart, the reader sends it again.
            self._questions[ticket] = question
            if not self.suspended:
                self._send(question.packet)
        with self._answered:
            self._answered.wait_for(
                lambda: question.answer is not None or self.lost is not None or bool(self.killed)
            )
        self._questions.pop(ticket, None)
        return question.answer

    def _wait(self, until: Callable[[], bool], seconds: float) -> bool:
        """Wait for the reader; before it runs (no threads before fork), read here.

        Ends early, with False, when the broker is lost or away.
        """
        deadline = time.monotonic() + seconds
        if self._reader is None:
            while not until():
                left = deadline - time.monotonic()
                if left <= 0 or self.lost is not None:
                    return False
                try:
                    if not self._hear(self.channel.receive(left)):
                        if self.lost is None:
                            self.lose("the broker has gone")
                        return False
                except TimeoutError:
                    return False
            return True
        with self._answered:
            self._answered.wait_for(
                lambda: until() or self.lost is not None or self.suspended, seconds
            )
            return self.lost is None and until()

    # ---- what the broker says

    def listen(self) -> None:
        """Start to listen to the broker, in a thread of its own."""
        self._reader = threading.Thread(target=self._read, name="broker-reader", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            self._listen()
        except Exception as problem:
            # SAFETY: a kill, or another policy, would be heard by nobody.
            self.lose(f"a defect in safeclaw: {type(problem).__name__}: {problem}")

    def _listen(self) -> None:
        while True:
            reason = "the broker has gone"
            try:
                while self._hear(self.channel.receive()):
                    pass
            except (OSError, BrokerError) as problem:
                reason = f"the broker has gone ({problem})"
            if self.ended or self.lost is not None:
                return
            if self._reconnect is None:
                self.lose(reason)
                return
            self._break_off()
            if not self._resume(self._reconnect):
                return

    def _hear(self, data: bytes | None) -> bool:
        """Take in one message; False when it was the last."""
        if data is None:
            return False
        try:
            message = protocol.decode_to_supervisor(data)
        except BrokerError as problem:
            self.lose(problem.message)
            return False
        match message:
            case protocol.Granted(at):
                with self._answered:
                    # Counted from when it was asked: an answer that lay in the socket
                    # while this process was stopped gives no new time.
                    self._granted = at
                    # SAFETY: one that was on its way when all ended gives no time, either.
                    if self.killed is None and self.lost is None and not self.suspended:
                        self.lease_until = at + protocol.LEASE_NS
                        self.renew_at = at + RENEW_NS
                    self._answered.notify_all()
            case protocol.Ack(number):
                with self._answered:
                    while self._acknowledged < number and self.unacknowledged:
                        self.unacknowledged.popleft()
                        self._acknowledged += 1
                    self._answered.notify_all()
            case protocol.Answer(ticket):
                with self._answered:
                    question = self._questions.get(ticket)
                    if question is not None:
                        question.answer = message
                    self._answered.notify_all()
            case protocol.Kill(reason):
                with self._answered:
                    self.killed = reason
                    # SAFETY: the clock alone refuses every later attempt, as after a loss.
                    self.lease_until = 0
                    self.renew_at = 0
                    self._answered.notify_all()
                self._on_message(message)
            case protocol.Fault(reason):
                self.lose(f"the journal cannot be written: {reason}")
            case protocol.Refused(text):
                self.lose(f"the broker ends the session: {text}")
            case protocol.Ended():
                with self._answered:
                    self.ended = True
                    self._answered.notify_all()
            case protocol.Asked() | protocol.Replace():
                self._on_message(message)
            case protocol.Lease():
                self.lose("the broker sent a lease out of turn")
        return True

    # ---- a broker that has gone

    def _break_off(self) -> None:
        """Allow nothing until the broker is found again; where it cannot be, it is lost."""
        if self._reconnect is None:
            self.lose("the broker has gone")
            return
        with self._answered:
            if self.lost is None:
                self.suspended = True
            # SAFETY: as after a loss, nothing but the clock need be looked at.
            self.lease_until = 0
            self.renew_at = 0
            self._answered.notify_all()

    def _resume(self, reconnect: Reconnect) -> bool:
        """Find the broker again within the grace time, and send what it may not have."""
        deadline = time.monotonic() + self._grace
        while (found := self._find(reconnect, deadline)) is not None:
            channel, lease = found
            # INVARIANT: before anybody goes on, what the broker decides by now is in force here.
            self._on_message(lease)
            if self._catch_up(channel):
                return True
            channel.close()
            if time.monotonic() >= deadline:
                self._not_back()
        return False

    def _find(self, reconnect: Reconnect, deadline: float) -> tuple[Channel, protocol.Lease] | None:
        """Return a channel to a broker that goes on with the session; None when it is lost."""
        while self.lost is None:
            try:
                return reconnect()
            except (OSError, BrokerGoneError):
                if time.monotonic() >= deadline:
                    self._not_back()
                else:
                    time.sleep(_LOOK_AGAIN)  # nothing tells when somebody listens again
            except BrokerError as problem:
                self.lose(problem.message)
        return None

    def _not_back(self) -> None:
        self.lose(f"the broker has gone, and is not back after {self._grace:g} s")

    def _catch_up(self, channel: Channel) -> bool:
        """Send what the broker may not have, and go on; False when it has gone again."""
        # INVARIANT: whoever holds ``sending`` while the broker is away lets go of it at once.
        with self.sending:
            with self._answered:
                packets = list(self.unacknowledged)
            # A copy, at once: whoever was answered takes the question away at any moment.
            questions = list(self._questions.values())
            packets += [one.packet for one in questions if one.answer is None]
            try:
                for packet in packets:
                    channel.send(packet, self._grace)
                channel.send(protocol.encode(protocol.Flush()), self._grace)
            except OSError:
                return False
            self.channel.close()
            self.channel = channel
            with self._answered:
                self.suspended = False
                self._answered.notify_all()
        return True

    def lose(self, reason: str, *, silent: bool = False) -> None:
        """Allow nothing ever again."""
        with self._answered:
            if self.lost is not None:
                return
            self.lost = reason
            self.silent = silent
            # SAFETY: the clock alone refuses every later attempt, whatever thread makes it.
            self.lease_until = 0
            self.renew_at = 0
            self._answered.notify_all()
        self._on_lost(reason)

    # ---- the end

    def pending(self) -> list[bytes]:
        """Return the records that may not be on disk, in order."""
        with self._answered:
            return list(self.unacknowledged)

    def end(self, packet: bytes) -> bool:
        """Send the session's end and wait until all is on disk; False when that failed."""
        while self.await_resumed():
            with self.sending:
                if self.suspended:
                    continue
                if self._send(packet) and self._wait(lambda: self.ended, self._grace):
                    return True
            if self.lost is not None:
                return False
            if not self.suspended:
                self.lose("the broker did not confirm the end of the session", silent=True)
        return False

    def join(self, timeout: float) -> None:
        """Wait until the broker has closed the channel."""
        if self._reader is not None:
            self._reader.join(timeout)
