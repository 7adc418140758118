"""``safeclawd``: a broker that stays, for one state directory, in the foreground."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

from safeclaw.errors import BrokerError, SafeclawError, UsageError

USAGE = """\
usage: safeclawd [--state DIR]

Serves sessions of the user who runs it until SIGTERM.  DIR is by default
$XDG_STATE_HOME/safeclaw, where safeclaw run looks.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the broker; return its exit status."""
    from safeclaw.daemon.cli.main import complain, fill_standard_descriptors

    fill_standard_descriptors()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        return _serve(words)
    except SafeclawError as problem:
        complain(problem)
        return problem.exit_status


def _serve(words: list[str]) -> int:
    from safeclaw.daemon import channel, client
    from safeclaw.daemon.broker import Broker

    state = client.state_directory(dict(os.environ))
    match words:
        case []:
            pass
        case ["--state", given]:
            state = Path(given).absolute()
        case ["--help" | "-h"]:
            sys.stdout.write(USAGE)
            return 0
        case _:
            raise UsageError("safeclawd takes --state DIR only", hint="safeclawd --help")
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
            raise BrokerError(f"a broker serves {state} already")
        finally:
            os.close(lock)
            os.close(directory)
    except OSError as problem:
        raise BrokerError(f"cannot serve {state}: {problem.strerror}") from problem
    Broker(state, listener, stay=True).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
