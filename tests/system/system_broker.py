"""A real ``safeclawd --system`` with a state, a configuration and a socket of its own."""

from __future__ import annotations

import contextlib
import grp
import importlib
import json
import os
import pkgutil
import pwd
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, cast

import pytest

from safeclaw.daemon import cli as commands
from safeclaw.daemon import control
from safeclaw.daemon.client import Client
from safeclaw.errors import BrokerError
from safeclaw.policies import source
from tests.system.conftest import Person

#: How long an event that must come may take on a machine that does other things as well.
PATIENCE = 60.0
#: How a run ends that the kill switch stopped: with its agent's status, or killed itself, when it
#: did not stop in time on a busy machine.
KILLED = (128 + signal.SIGKILL, -signal.SIGKILL)
_CLI = (sys.executable, "-m", "safeclaw.daemon.cli")


class SystemBroker:
    """The daemon as root runs it; members of ``group`` may start sessions."""

    def __init__(self, group: str, **settings: object) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="safeclaw-daemon-"))
        self.base.chmod(0o755)
        self.state, self.config = self.base / "state", self.base / "config"
        self.socket = self.base / "run" / "broker.sock"
        for folder in (self.state, self.config, self.config / "policies", self.socket.parent):
            folder.mkdir()
            folder.chmod(0o755)
        self.state.chmod(0o750)
        self.settings: dict[str, object] = {
            "groups": {"run": group, "admin": "safeclaw-test-none", "audit": "safeclaw-test-none"},
            **settings,
        }
        self.process: subprocess.Popen[str] | None = None
        self.configure(self.settings)

    def configure(self, settings: dict[str, object]) -> None:
        """Write the settings, for the next start."""
        (self.config / "safeclawd.yaml").write_text(json.dumps(settings))

    def policy(self, name: str, text: str) -> None:
        """Put a policy in its place whole, as an editor does."""
        fresh = self.config / "policies" / f".{name}.new"
        fresh.write_text(text)
        fresh.rename(self.config / "policies" / f"{name}.yaml")

    def start(self) -> None:
        """Start the daemon and wait until it is ready, as systemd would."""
        notify = self.base / "notify"
        notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(notify))
            manager.settimeout(PATIENCE)
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "safeclaw.daemon.cli.safeclawd", "--system"),
                    *("--state", str(self.state), "--config", str(self.config)),
                    *("--socket", str(self.socket)),
                ],
                env={**os.environ, "NOTIFY_SOCKET": str(notify)},
                stderr=subprocess.PIPE,
                text=True,
            )
            while b"READY=1" not in manager.recv(4096):
                pass

    def stop(self, number: int = signal.SIGTERM) -> str:
        """End the daemon; return what it said."""
        assert self.process is not None
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=PATIENCE)
        self.process = None
        return said

    def close(self) -> None:
        """End everything."""
        if self.process is not None:
            self.process.kill()
            _, said = self.process.communicate()
            sys.stderr.write(said)  # pytest shows it of a test that fails
        shutil.rmtree(self.base, ignore_errors=True)

    # ---- what root does

    def safeclaw(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a verb that talks to this broker, as root."""
        return subprocess.run(
            [*_CLI, *arguments, "--broker", str(self.socket)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def ask(self, *arguments: str) -> Any:
        """Run a verb as root; return its JSON."""
        done = self.safeclaw(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def add(self, name: str, *more: str, policy: str = "demo") -> str:
        """Register an agent; return its key."""
        words = ("--policy", policy, "--owner", "olga", "--environment", "test", *more)
        return cast(str, self.ask("agent", "add", name, *words)["api_key"])

    def records(self, *filters: str) -> list[dict[str, Any]]:
        """Return the records of the chain, of all that the broker has done up to now."""
        if self.process is not None:
            # it answers when all that it has appended is on disk
            with contextlib.suppress(BrokerError, OSError):
                self.status()
        shown = subprocess.run(
            [*_CLI, "audit", "show", "--json", "--state", str(self.state), *filters],
            capture_output=True,
            text=True,
            check=True,
        )
        return [json.loads(line) for line in shown.stdout.splitlines()]

    def verify(self) -> subprocess.CompletedProcess[str]:
        """Verify the chain."""
        return subprocess.run(
            [*_CLI, "audit", "verify", "--state", str(self.state)],
            capture_output=True,
            text=True,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        """Return what the broker says of itself."""
        client = Client.at(self.socket)
        try:
            return cast("dict[str, Any]", client.ask(control.Status(), PATIENCE))
        finally:
            client.finish()

    def reload(self) -> dict[str, dict[str, str]]:
        """Have the policies read again; return what that has found."""
        client = Client.at(self.socket)
        try:
            return cast("dict[str, dict[str, str]]", client.ask(control.Reload(), PATIENCE))
        finally:
            client.finish()

    # ---- what a person does

    def run(
        self, person: Person, *words: str, key: str = "", redirect: str = ""
    ) -> subprocess.Popen[str]:
        """Start ``safeclaw run WORDS…`` as a person, with this broker; see ``Person.popen``."""
        more = {"SAFECLAW_API_KEY": key} if key else {}
        words = ("run", "--broker", str(self.socket), *words)
        return person.popen(*words, redirect=redirect, **more)


def until_line(process: subprocess.Popen[str], word: str) -> str:
    """Return the next line on standard error that has the word in it."""
    assert process.stderr is not None
    for line in process.stderr:
        if word in line:
            return line
    raise AssertionError(f"it ended without {word!r}")


class Pace:
    """A FIFO on which an agent says each step, and by whose end it is known to be gone."""

    def __init__(self, path: Path, owner: str) -> None:
        os.mkfifo(path)
        entry = pwd.getpwnam(owner)
        os.chown(path, entry.pw_uid, entry.pw_gid)
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN | select.POLLHUP)

    def steps(self, count: int) -> None:
        """Wait until so many more steps were made."""
        while count > 0:
            assert self._poll.poll(PATIENCE * 1000), "the agent makes no step"
            count -= len(os.read(self._fd, 65536)) or 0

    def drain(self) -> None:
        """Forget the steps that were made and not waited for."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, 65536):
                pass

    def gone(self) -> None:
        """Wait until every process that holds the other end is gone."""
        while True:
            assert self._poll.poll(PATIENCE * 1000), "the agent is neither at work nor gone"
            if not os.read(self._fd, 65536):
                return

    def close(self) -> None:
        """Let go of this end."""
        os.close(self._fd)


def group_of(name: str) -> str:
    """Return the name of a user's own group."""
    return grp.getgrgid(pwd.getpwnam(name).pw_gid).gr_name


def as_somebody(uid: int, groups: list[int], work: Callable[[], Any]) -> Any:
    """Do something in a process that is somebody else's; return what it returns."""
    # a checkout in root's home can be read before only
    for module in pkgutil.iter_modules(commands.__path__, f"{commands.__name__}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    source.runtime_rules()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            os.setgroups(groups)
            os.setresgid(65534, 65534, 65534)
            os.setresuid(uid, uid, uid)
            os.write(write, json.dumps(work()).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return json.loads(text)


Making = Callable[..., SystemBroker]


@contextlib.contextmanager
def brokers(group: str, policy: str) -> Generator[Making]:
    """Start brokers, each with a policy called demo, and end them all."""
    if os.geteuid() != 0:
        pytest.skip("not root: the system's broker was not started")
    with contextlib.ExitStack() as stack:

        def make(**settings: object) -> SystemBroker:
            broker = SystemBroker(group, **settings)
            stack.callback(broker.close)
            broker.policy("demo", policy)
            broker.start()
            return broker

        yield make
