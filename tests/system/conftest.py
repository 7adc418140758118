"""Real runs of the installed command, as root and as an ordinary user.

``person`` runs commands as one of the two; each test gets a workspace and a
state directory of that person's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import cast

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from safeclaw.sandbox import landlock, linux

#: How many times longer all takes on a machine that is emulated.
SLOWNESS = int(os.environ.get("SAFECLAW_SLOWNESS", "1"))
ORDINARY = "safeclaw-test"
_MS_PRIVATE = 1 << 18  # mount(2)
ROOT = Path(__file__).resolve().parents[2]


class Person:
    """Somebody who runs safeclaw in a workspace of their own."""

    def __init__(
        self, name: str, base: Path, program: list[str], environment: dict[str, str]
    ) -> None:
        self.name = name
        self.base = base
        self.workspace = base / "workspace"
        self.state = base / "state"
        self.program = program
        #: A command that runs its arguments somewhere else, as root: nsenter(1).
        self.within: tuple[str, ...] = ()
        #: What commands read: nothing, or subprocess.PIPE.
        self.stdin = subprocess.DEVNULL
        self._environment = environment
        self.workspace.mkdir()
        self.state.mkdir()
        self.own()

    def own(self) -> None:
        """Give everything below the base directory to this person."""
        if os.geteuid() == 0:
            entry = pwd.getpwnam(self.name)
            for path in (self.base, *self.base.rglob("*")):
                with contextlib.suppress(FileNotFoundError):  # a broker may still be at work there
                    owner = path.lstat()
                    # what is this person's already keeps its ctime, by which git knows it
                    if (owner.st_uid, owner.st_gid) != (entry.pw_uid, entry.pw_gid):
                        os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        """Write a file into the workspace."""
        path = self.workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        self.own()
        return path

    @property
    def uid(self) -> int:
        """The person's user id."""
        return pwd.getpwnam(self.name).pw_uid

    def command(self, *arguments: str) -> list[str]:
        """Return the whole command line of ``safeclaw ARGUMENTS…``.

        Nobody here wants to know how long a run waits for its broker, but for those who say so.
        """
        if arguments[:1] == ("run",) and not {"--grace", "--broker", "--help"} & {*arguments}:
            arguments = ("run", "--grace", str(60 * SLOWNESS), *arguments[1:])
        return [*self.program, *arguments]

    def popen(self, *arguments: str, redirect: str = "", **more: str) -> subprocess.Popen[str]:
        """Start ``safeclaw ARGUMENTS…`` in the workspace, with more environment variables.

        ``redirect`` is shell text for the command's end, such as ``>&-``.
        """
        command = self.command(*arguments)
        if redirect:
            command = ["sh", "-c", f'exec "$@" {redirect}', "sh", *command]
        return self.start(command, self.workspace, **more)

    def start(self, command: list[str], where: Path, **more: str) -> subprocess.Popen[str]:
        """Start any command as this person, in ``where``."""
        if self.within:
            # The namespace is entered as root, and left to the person by runuser.
            command = [*self.within, "runuser", "-u", self.name, "--", *command]
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": pwd.getpwnam(self.name).pw_dir,
            "LANG": "C.UTF-8",
            "XDG_STATE_HOME": str(self.state),
            **self._environment,
            **more,
        }
        entry = pwd.getpwnam(self.name)
        own = os.geteuid() == entry.pw_uid or bool(self.within)
        return subprocess.Popen(
            command,
            cwd=where,
            env=environment,
            stdin=self.stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            user=None if own else entry.pw_uid,
            group=None if own else entry.pw_gid,
            extra_groups=None if own else [],
        )

    def safeclaw(
        self, *arguments: str, redirect: str = "", **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run ``safeclaw ARGUMENTS…`` and return what it did."""
        return self.finish(self.popen(*arguments, redirect=redirect, **more))

    @staticmethod
    def finish(started: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        """Wait for the end of a command, as long as the test may; return what it did."""
        with started as process:
            try:
                out, err = process.communicate()
            except BaseException:
                process.kill()  # leaving the block waits for it
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def records(self, *filters: str) -> list[dict[str, object]]:
        """Return the records of the chain, as ``audit show --json`` prints them."""
        shown = self.safeclaw("audit", "show", "--json", *filters)
        assert shown.returncode == 0, shown.stderr
        return [json.loads(line) for line in shown.stdout.splitlines()]


def options_here(isolation: str = "full") -> tuple[str, ...]:
    """Return what ``safeclaw run`` needs on this machine: patience, leave for an old kernel."""
    options: tuple[str, ...] = ("--isolation", isolation, "--grace", str(5 * SLOWNESS))
    if isolation == "full" and landlock.lacking(linux.landlock_abi()):
        options += ("--allow-degraded", "landlock-abi")
    return options


def fields(value: object) -> dict[str, object]:
    """Return a JSON object of a record, such as its target."""
    assert isinstance(value, dict)
    return cast("dict[str, object]", value)


def _reachable(name: str) -> bool:
    entry = pwd.getpwnam(name)
    try:
        probe = subprocess.run(
            [sys.executable, "-c", "import safeclaw.errors"],
            user=entry.pw_uid,
            group=entry.pw_gid,
            extra_groups=[],
            capture_output=True,
            cwd="/",
            check=False,
        )
    except PermissionError:
        return False  # not even the interpreter: a checkout in root's home
    return probe.returncode == 0


@pytest.fixture(scope="session")
def ordinary_user() -> str:
    """The name of an ordinary user; made when root runs the tests."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    with open(__file__) as lock:  # one of pytest-xdist's processes makes them
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            pwd.getpwnam(ORDINARY)
        except KeyError:
            subprocess.run(["useradd", "-m", ORDINARY], check=True)
    return ORDINARY


def needed_to_run(name: str, found: dict[str, Distribution]) -> dict[str, Distribution]:
    """Add the distribution ``name`` and all that it needs at run time to ``found``."""
    if name in found:
        return found
    found[name] = distribution(name)
    for text in found[name].requires or ():
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            needed_to_run(canonicalize_name(needed.name), found)
    return found


def copy_package(package: Distribution, destination: Path) -> None:
    """Copy what a distribution installed, but for its scripts."""
    for file in package.files or ():
        source = Path(str(file.locate()))
        if ".." in file.parts or "__pycache__" in file.parts or not source.is_file():
            continue
        target = destination / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


@pytest.fixture(scope="session")
def shared_tree(
    ordinary_user: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path | None]:
    """A copy of sources and dependencies for a checkout the ordinary user cannot reach."""
    if os.geteuid() != 0 or _reachable(ordinary_user):
        yield None
        return
    tree = Path(tempfile.mkdtemp(prefix="safeclaw-tree-"))
    tree.chmod(0o755)
    for part in ("daemon", "sandbox", "policies"):
        shutil.copytree(ROOT / part, tree / "safeclaw" / part)
    for single in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / "src" / "safeclaw" / single, tree / "safeclaw" / single)
    for package in needed_to_run("safeclaw", {}).values():
        copy_package(package, tree / "site")
    subprocess.run(["chmod", "-R", "a+rX", str(tree)], check=True)
    yield tree
    shutil.rmtree(tree)


@pytest.fixture(params=["root", "ordinary"])
def person(
    request: pytest.FixtureRequest, ordinary_user: str, shared_tree: Path | None
) -> Iterator[Person]:
    """Each test runs as root and as an ordinary user."""
    name = "root" if request.param == "root" else ordinary_user
    if name == "root" and os.geteuid() != 0:
        pytest.skip("not root: the tests as root did not run")
    with somebody(name, shared_tree) as found:
        yield found


@pytest.fixture
def own_mounts() -> Iterator[None]:
    """Mount where nobody else sees it: sessions of tests that run meanwhile would be told of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    where = os.getcwd()
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    try:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", None, linux.MS_REC | _MS_PRIVATE)
        yield
        assert libc.setns(before, linux.CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
        os.chdir(where)
    finally:
        os.close(before)


@contextmanager
def somebody(name: str, tree: Path | None) -> Generator[Person]:
    """A person with a place of their own; ``tree`` is ``shared_tree``."""
    base = Path(tempfile.mkdtemp(prefix="safeclaw-"))
    base.chmod(0o755)
    program, environment = [sys.executable, "-m", "safeclaw.daemon.cli"], {}
    if tree is not None and name != "root":
        program = ["/usr/bin/python3", "-m", "safeclaw.daemon.cli"]
        environment = {"PYTHONPATH": f"{tree}:{tree}/site"}
    try:
        yield Person(name, base, program, environment)
    finally:
        shutil.rmtree(base, ignore_errors=True)
