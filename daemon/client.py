"""The supervisor's way to a broker: find one, or start one, and open a session.

The state directory is the user's own, mode 0700.  Whoever wants a broker takes
``start.lock`` in it, tries the socket, and forks a broker if nobody listens;
the broker takes the same lock before it goes.  So there is never a moment with
two brokers, nor one in which a session is promised to a broker that is leaving.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import signal
import socket
import stat
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from safeclaw.daemon import control, places, protocol
from safeclaw.daemon.channel import Channel, connect, listen, peer_credentials
from safeclaw.errors import BrokerError, BrokerGoneError, ProtocolError

if TYPE_CHECKING:
    from safeclaw.daemon.service import Service

SYSTEM_SOCKET = Path("/run/safeclaw/broker.sock")
SYSTEM_STATE = Path("/var/lib/safeclaw")
#: What belongs to the system's broker: out of every agent's reach, whoever decides for it.
SYSTEM_PLACES = ("/run/safeclaw", "/var/lib/safeclaw", "/etc/safeclaw", "/run/credentials")
SOCKET_NAME = "broker.sock"
LOCK_NAME = "start.lock"
#: How long to wait for a broker that has accepted a session.
ANSWER = 5.0
#: How long for one that may have just been started, too: it has a journal to look through, on a
#: machine that may be busy; nothing runs yet that it could let down.
START = 30.0


def state_directory(environment: dict[str, str]) -> Path:
    """Return where the user's broker keeps its state."""
    return places.state(environment) / "safeclaw"


def prepare(state: Path) -> None:
    """Make the state directory, or check that it is the user's own; raises BrokerError."""
    try:
        os.makedirs(state, mode=0o700, exist_ok=True)
        found = os.stat(state)
    except OSError as problem:
        raise BrokerError(
            f"the state directory {state} cannot be used: {problem.strerror}",
            hint="set XDG_STATE_HOME to a directory you may write to",
        ) from problem
    if found.st_uid != os.geteuid():
        raise BrokerError(
            f"the state directory {state} belongs to another user",
            hint="set XDG_STATE_HOME to a directory of your own",
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise BrokerError(
            f"the state directory {state} is open to other users", hint=f"chmod 700 {state}"
        )


def check_system() -> None:
    """Raise BrokerGoneError where a system's broker has been, and its socket is not there.

    SAFETY: root's own broker would be asked otherwise, and find nobody to stop.
    """
    if os.geteuid() == 0 and SYSTEM_STATE.is_dir() and not SYSTEM_SOCKET.exists():
        raise BrokerGoneError(
            f"no broker answers at {SYSTEM_SOCKET}: it is not there",
            hint="systemctl start safeclawd.socket",
        )


class Client:
    """A channel to a broker.  Close it, or give it to a gate that outlives it."""

    def __init__(self, sock: socket.socket, state: Path, path: Path | None = None) -> None:
        #: Where a broker listens that others share; None for one's own.
        self.socket = path
        self.channel = Channel(sock, message_max=protocol.MESSAGE_MAX)
        self.state = state
        self.broker_pid = peer_credentials(sock)[0]

    @classmethod
    def choose(cls, broker: str, state: Path) -> Client:
        """Return a connection to the broker that ``--broker`` names.

        ``auto`` is the system's where there is one, else the user's own (``embedded``);
        anything with a slash is a socket.  Raises BrokerError.
        """
        if broker == "embedded" or (broker == "auto" and not SYSTEM_SOCKET.exists()):
            return cls.connect(state)
        return cls.at(SYSTEM_SOCKET if broker in ("auto", "system") else Path(broker))

    @classmethod
    def at(cls, path: Path) -> Client:
        """Connect to the broker that listens on a socket.  Raises BrokerError."""
        try:
            return cls._at(path)
        except OSError as problem:
            raise BrokerGoneError(
                f"no broker answers at {path}: {problem.strerror}",
                hint="systemctl status safeclawd.socket; or --broker embedded",
            ) from problem

    @classmethod
    def _at(cls, path: Path) -> Client:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.settimeout(ANSWER)
            sock.connect(str(path))
            sock.settimeout(None)
        except BaseException:
            sock.close()
            raise
        return cls(sock, path.parent, path)

    def again(self) -> Client:
        """Connect once more to the same broker, or the one that took its place; OSError."""
        return Client._at(self.socket) if self.socket is not None else Client.connect(self.state)

    @classmethod
    def connect(cls, state: Path) -> Client:
        """Connect to the broker of a state directory; start one if there is none.

        Forks, so no thread may run yet that holds a lock.  Raises BrokerError.
        """
        prepare(state)
        with contextlib.ExitStack() as stack:
            try:
                directory = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, directory)
                lock = os.open(
                    LOCK_NAME,
                    os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
                    0o600,
                    dir_fd=directory,
                )
                stack.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX)
                try:
                    sock = connect(directory, SOCKET_NAME)
                except (FileNotFoundError, ConnectionRefusedError):
                    _start(state, directory, lock)
                    sock = connect(directory, SOCKET_NAME)
            except OSError as problem:
                raise BrokerError(
                    f"no broker can be had in {state}: {problem.strerror}",
                    hint="set XDG_STATE_HOME to a directory you may write to",
                ) from problem
        if peer_credentials(sock)[1] != os.geteuid():
            sock.close()
            raise BrokerError(
                f"the broker in {state} is another user's",
                hint="set XDG_STATE_HOME to a directory of your own",
            )
        return cls(sock, state)

    def hello(self, hello: protocol.Hello) -> None:
        """Ask for a session; :meth:`lease` waits for the answer."""
        try:
            self.channel.send(protocol.encode(hello), ANSWER)
        except OSError as problem:
            raise self._silent() from problem

    def lease(self, timeout: float = ANSWER) -> protocol.Lease:
        """Return the lease.  Raises BrokerError with what the broker says against it."""
        try:
            data = self.channel.receive(timeout)
        except OSError as problem:
            raise self._silent() from problem
        if data is None:
            raise BrokerGoneError("the broker has gone", hint="start again")
        match protocol.decode_to_supervisor(data):
            case protocol.Lease() as lease:
                # A socket's peer is who listened: for one that systemd holds, systemd.
                self.broker_pid = lease.broker_pid
                return lease
            case protocol.Refused(message, hint):
                raise BrokerError(message, hint=hint)
            case _:
                raise ProtocolError("the broker answers something else")

    def ask(self, request: control.Request, timeout: float = ANSWER) -> Any:
        """Return the data of the reply to a request.  BrokerError with what is said against it."""
        try:
            self.channel.send(control.encode(request), timeout)
            return self._reply(self.channel.receive(timeout))
        except OSError as problem:
            raise self._silent() from problem

    def records(self, request: control.Records) -> Generator[bytes, None, dict[str, Any]]:
        """Yield the lines of the records that may be seen; return what is said at their end.

        BrokerError with what is said against it.
        """
        try:
            self.channel.send(control.encode(request), ANSWER)
            # However long the journal is; the broker tells when whoever reads it out is gone.
            while (data := self.channel.receive()) is not None and data.startswith(b"["):
                yield from map(bytes, control.decode_batch(data))
        except OSError as problem:
            raise self._silent() from problem
        end: dict[str, Any] = self._reply(data)
        return end

    def _reply(self, data: bytes | None) -> Any:
        if data is None:
            raise BrokerGoneError("the broker has gone", hint="try again")
        if not control.is_request(data):
            match protocol.decode_to_supervisor(data):
                case protocol.Refused(message, hint):
                    raise BrokerError(message, hint=hint)
                case _:
                    raise ProtocolError("the broker answers something else")
        reply = control.decode_reply(data)
        if reply.error is not None:
            raise BrokerError(reply.error, hint=reply.hint)
        return reply.data

    def _silent(self) -> BrokerError:
        if self.socket == SYSTEM_SOCKET:
            return BrokerGoneError(
                f"the broker at {self.socket} does not answer", hint="systemctl status safeclawd"
            )
        pid = self.broker_pid
        return BrokerGoneError(
            f"the broker (pid {pid}) does not answer",
            hint=f"if it is stopped, kill -CONT {pid}; if it hangs, kill -KILL {pid}",
        )

    def finish(self, timeout: float = ANSWER) -> None:
        """Say that nothing more comes, and wait until the broker has let go."""
        with contextlib.suppress(OSError, BrokerError):
            self.channel.sock.shutdown(socket.SHUT_WR)
            while self.channel.receive(timeout) is not None:
                pass
        self.channel.close()


def recover(
    lost: Client,
    hello: protocol.Hello,
    tail: list[bytes],
    *,
    reason: str,
    status: int | None,
    timeout: float = ANSWER,
) -> None:
    """Write what a lost broker may not have written, and the session's end.

    ``hello`` names the session in ``resume``; ``timeout`` is in seconds, for each
    answer.  Raises BrokerError.
    """
    try:
        client = lost.again()
    except OSError as problem:
        raise BrokerError(
            f"no broker is there any more: {problem.strerror}",
            hint="the next broker's start records what it did not hear; safeclaw status",
        ) from problem
    try:
        client.hello(hello)
        client.lease(timeout)
        for packet in tail:
            client.channel.send(packet, timeout)
        client.channel.send(protocol.encode(protocol.End(reason, status)), timeout)
        while True:
            data = client.channel.receive(timeout)
            if data is None:
                raise BrokerError(
                    "the broker has gone again", hint="safeclaw status; journalctl -u safeclawd"
                )
            match protocol.decode_to_supervisor(data):
                case protocol.Ended():
                    return
                case protocol.Fault(message) | protocol.Refused(message):
                    raise BrokerError(message, hint="safeclaw status says how the broker is")
                case _:
                    pass
    except OSError as problem:
        raise BrokerError(
            f"the broker does not answer: {problem}",
            hint="safeclaw status; journalctl -u safeclawd",
        ) from problem
    finally:
        client.finish(timeout)


def _start(state: Path, directory: int, lock: int) -> None:
    """Fork a broker and wait until it listens; the caller holds the start lock."""
    said_read, said_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(said_read)
        _embedded(state, directory, lock, said_write)
    os.close(said_write)
    with open(said_read, "rb") as said:
        answer = said.read()
    if answer != b"+":
        os.waitpid(pid, 0)
        text = answer.decode("utf-8", "replace") or "it died"
        raise BrokerError(
            f"no broker can be started in {state}: {text}",
            hint="set XDG_STATE_HOME to a directory you may write to",
        )


def own_service() -> Service:
    """Return how a user's own broker is run: with that user's settings."""
    from safeclaw.daemon.service import Service
    from safeclaw.daemon.settings import FILE_NAME, own_place, read

    place = own_place()
    return Service(configuration=place, settings=read(place / FILE_NAME))


def _embedded(state: Path, directory: int, lock: int, said: int) -> NoReturn:
    """Be the broker: a session of its own, nothing inherited, until the last supervisor ends."""
    status = 1
    try:
        # The lock stays with the parent: closing a copy of a descriptor does not release it.
        os.close(lock)
        os.setsid()
        os.umask(0o077)
        os.chdir("/")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        null = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        # SAFETY: what the parent had put in their place may write to a descriptor that is closed
        # here, and will be the journal's.
        sys.stdout = sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        listener = listen(directory, SOCKET_NAME)
        keep = sorted((said, listener.fileno()))
        os.closerange(3, keep[0])
        os.closerange(keep[0] + 1, keep[1])
        os.closerange(keep[1] + 1, os.sysconf("SC_OPEN_MAX"))
        os.write(said, b"+")
        os.close(said)
        # Imported here, while the parent does its own imports.
        from safeclaw.daemon.broker import Broker

        gc.freeze()
        gc.enable()
        Broker(state, listener, service=own_service()).run()
        status = 0
    except OSError as problem:
        with contextlib.suppress(OSError):
            os.write(said, (problem.strerror or str(problem)).encode())
    finally:
        os._exit(status)
