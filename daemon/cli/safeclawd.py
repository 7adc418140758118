"""``safeclawd``: a broker that stays, in the foreground: one user's own, or the system's."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import sys
from pathlib import Path

import msgspec

from safeclaw.errors import BrokerError, SafeclawError, UsageError

USAGE = """\
usage: safeclawd [--state DIR]
       safeclawd --system [--state DIR] [--config DIR] [--socket PATH]

Decides for agents, and records what they do, until SIGTERM.  SIGHUP has it read the
policies again.

Without --system it serves the user who runs it; DIR is by default
$XDG_STATE_HOME/safeclaw, where safeclaw run looks.

  --system       serve every user that the groups safeclaw, safeclaw-admin and
                 safeclaw-audit let in; the socket is taken from systemd, else made
  --state DIR    the state; else $STATE_DIRECTORY, else /var/lib/safeclaw
  --config DIR   safeclawd.yaml and policies/; else /etc/safeclaw
  --socket PATH  where to listen without systemd; else /run/safeclaw/broker.sock;
                 metrics.sock beside it serves metrics
"""
_OPTIONS = ("--state", "--config", "--socket")


class _Options(msgspec.Struct, frozen=True):
    system: bool = False
    state: Path | None = None
    config: Path = Path("/etc/safeclaw")
    socket: Path = Path("/run/safeclaw/broker.sock")


def main(arguments: list[str] | None = None) -> int:
    """Run the broker; return its exit status."""
    from safeclaw.daemon.cli.main import complain, fill_standard_descriptors

    fill_standard_descriptors()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if words in (["--help"], ["-h"]):
            sys.stdout.write(USAGE)
            return 0
        options = _parse(words)
        return _serve_system(options) if options.system else _serve_own(options)
    except SafeclawError as problem:
        complain(problem)
        return problem.exit_status


def _parse(words: list[str]) -> _Options:
    values: dict[str, Path] = {}
    system = False
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word == "--system":
            system = True
        elif name in _OPTIONS and (equals or rest):
            values[name[2:]] = Path(value if equals else rest.pop(0)).absolute()
        else:
            raise UsageError(f"safeclawd: {word}: not understood", hint="safeclawd --help")
    if not system and values.keys() - {"state"}:
        raise UsageError("--config and --socket go with --system", hint="safeclawd --help")
    return msgspec.structs.replace(_Options(system=system), **values)


def _serve_own(options: _Options) -> int:
    from safeclaw.daemon import channel, client
    from safeclaw.daemon.broker import Broker

    state = options.state or client.state_directory(dict(os.environ))
    client.prepare(state)
    os.umask(0o077)
    try:
        directory = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        lock = os.open(state / client.LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            channel.connect(directory, client.SOCKET_NAME).close()
        except (FileNotFoundError, ConnectionRefusedError):
            listener = channel.listen(directory, client.SOCKET_NAME)
        else:
            raise BrokerError(
                f"a broker serves {state} already", hint="safeclaw status asks it how it is"
            )
        finally:
            os.close(lock)
            os.close(directory)
    except OSError as problem:
        raise BrokerError.of(problem, f"cannot serve {state}") from problem
    service = client.own_service()
    service.metrics = _metrics(state, service.settings.metrics_port)
    Broker(state, listener, stay=True, service=service).run()
    return 0


def _serve_system(options: _Options) -> int:
    from safeclaw.daemon import client, settings
    from safeclaw.daemon.broker import Broker
    from safeclaw.daemon.service import Service, inherited_listener

    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    state = options.state or Path(given or "/var/lib/safeclaw")
    read = settings.read(options.config / settings.FILE_NAME)
    # What the journal holds is for the audit group to read; all else has a mode of its own.
    os.umask(0o027)
    try:
        state.mkdir(mode=0o750, exist_ok=True)
        listener = inherited_listener() or _listen(options.socket)
    except OSError as problem:
        where = problem.filename or state
        raise BrokerError.of(problem, f"cannot serve {where}") from problem
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    service = Service(
        configuration=options.config,
        settings=read,
        groups=read.groups,
        protected=(*client.SYSTEM_PLACES, str(options.config), str(options.socket.parent)),
        metrics=_metrics(options.socket.parent, read.metrics_port),
    )
    Broker(state, listener, stay=True, service=service).run()
    return 0


def _metrics(directory: Path, port: int) -> tuple[socket.socket, ...]:
    """Listen for who reads metrics; a directory where that cannot be is said, and no end."""
    from safeclaw.daemon import metrics
    from safeclaw.daemon.cli.main import complain

    loopback = (metrics.listen_loopback(port),) if port else ()
    path = directory / metrics.SOCKET_NAME
    try:
        return (metrics.listen(path), *loopback)
    except OSError as problem:
        complain(SafeclawError(f"no metrics at {path}: {problem.strerror or problem}"))
        return loopback


def _listen(path: Path) -> socket.socket:
    """Listen for everybody: who may do what is decided by who they are."""
    from safeclaw.daemon import channel

    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener = channel.listen(directory, path.name)
        os.chmod(path, 0o666)
    finally:
        os.close(directory)
    return listener


if __name__ == "__main__":
    sys.exit(main())
