"""The package as it is built from this checkout, and a Debian that has it installed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.deploy.booted import Booted, base_tree, cache, overlay
from tests.deploy.deployed import DEMO, Deployed

ROOT = Path(__file__).resolve().parents[2]
_TOOLS = ("systemd-nspawn", "debootstrap", "dpkg-buildpackage", "dh", "scdoc", "lintian")
#: What of the checkout makes the package.
_SOURCES = ("daemon", "sandbox", "policies", "src", "packaging", "systemd", "docs", "examples")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs root or tools that are not there, and say so."""
    here = Path(__file__).parent
    missing = [tool for tool in _TOOLS if shutil.which(tool, path="/usr/sbin:/usr/bin") is None]
    reason = ""
    if os.geteuid() != 0:
        reason = "booting a Debian takes root"
    elif missing:
        reason = f"not installed: {', '.join(missing)}"
    for item in items:
        if here in item.path.parents:
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(600))
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


def _hash_of_sources() -> str:
    """Return a hash over all that goes into the package."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(
        [*command, "README.md", "SECURITY.md", "pyproject.toml", *_SOURCES],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    digest = hashlib.sha256()
    for name in sorted(set(listed.split(b"\0")) - {b""}):
        path = ROOT / os.fsdecode(name)
        content = os.fsencode(os.readlink(path)) if path.is_symlink() else b""
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
        digest.update(b"%d %s %d\0%s" % (len(name), name, len(content), content))
    return digest.hexdigest()[:24]


@contextlib.contextmanager
def _kept(name: str, make: Callable[[Path], None]) -> Generator[Path]:
    """Yield a directory of the cache, made if it is not there.

    Older ones of its kind go when it is made, but for those that another run has in use.
    """
    kind = name.partition("-")[0]
    place = cache() / name
    cache().mkdir(parents=True, exist_ok=True)
    with open(cache() / f"{kind}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            for old in cache().glob(f"{kind}-*"):
                with contextlib.suppress(BlockingIOError), _held(old, fcntl.LOCK_EX):
                    shutil.rmtree(old, ignore_errors=True)
            new = Path(tempfile.mkdtemp(dir=cache(), prefix=f"new.{kind}."))
            make(new)
            new.rename(place)
        stack = contextlib.ExitStack()
        stack.enter_context(_held(place, fcntl.LOCK_SH))
    with stack:
        yield place


@contextlib.contextmanager
def _held(place: Path, how: int) -> Generator[None]:
    """Lock a directory, or raise BlockingIOError."""
    number = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(number, how | fcntl.LOCK_NB)
        yield
    finally:
        os.close(number)


@pytest.fixture(scope="session")
def built() -> Generator[Path]:
    """The directory with what packaging/build made from this checkout; kept for the next run."""

    def make(new: Path) -> None:
        command = [str(ROOT / "packaging/build"), str(new)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    with _kept(f"package-{_hash_of_sources()}", make) as place:
        yield place


@pytest.fixture(scope="session")
def package(built: Path) -> Path:
    """The .deb."""
    (found,) = built.glob("safeclaw_*.deb")
    return found


@pytest.fixture(scope="session")
def installed(package: Path) -> Generator[Path]:
    """A tree with the package installed, not booted; kept for the next run."""

    def make(new: Path) -> None:
        subprocess.run(["cp", "--archive", "--reflink=auto", f"{base_tree()}/.", new], check=True)
        shutil.copy(package, new / "root/safeclaw.deb")
        command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe"]
        done = subprocess.run(
            [*command, f"--directory={new}", "dpkg", "--install", "/root/safeclaw.deb"],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    with _kept(f"installed-{package.parent.name.removeprefix('package-')}", make) as place:
        yield place


@pytest.fixture(scope="session")
def newer(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same package under a higher version, which the program itself tells, too."""
    place = tmp_path_factory.mktemp("newer")
    tree = place / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", str(package), str(tree)], check=True)
    control = tree / "DEBIAN/control"
    (version,) = [
        line.split()[1] for line in control.read_text().splitlines() if line.startswith("Version: ")
    ]
    control.write_text(control.read_text().replace(version, f"{version}+next", 1))
    (metadata,) = tree.glob("usr/lib/safeclaw/lib/python3*/site-packages/safeclaw-*/METADATA")
    before = hashlib.md5(metadata.read_bytes()).hexdigest()
    metadata.write_text(
        metadata.read_text().replace(f"\nVersion: {version}\n", f"\nVersion: {version}+next\n", 1)
    )
    sums = tree / "DEBIAN/md5sums"
    after = hashlib.md5(metadata.read_bytes()).hexdigest()
    assert before in sums.read_text() != after
    sums.write_text(sums.read_text().replace(before, after))
    made = place / "newer.deb"
    subprocess.run(["dpkg-deb", "-Zgzip", "-z1", "--build", str(tree), str(made)], check=True)
    return made


@pytest.fixture
def boot(tmp_path: Path) -> Generator[Boot]:
    """Boots a copy of a tree; all are switched off at the end of the test."""
    with Boot(tmp_path) as machines:
        yield machines


@pytest.fixture(scope="module")
def machine(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Booted]:
    """A booted Debian with the package installed, for the tests of one module."""
    with Boot(tmp_path_factory.mktemp("machine")) as boot:
        yield boot(installed)


@pytest.fixture(scope="module")
def deployed(machine: Booted) -> Deployed:
    """The same, with the policy ``demo`` in its place."""
    found = Deployed(machine)
    found.policy("demo", DEMO)
    return found


class Boot:
    """Makes machines, and switches them off."""

    def __init__(self, place: Path) -> None:
        from contextlib import ExitStack

        self._place = place
        self._stack = ExitStack()
        self._count = 0

    def __enter__(self) -> Boot:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, tree: Path) -> Booted:
        """Boot a copy of ``tree``."""
        self._count += 1
        root = self._stack.enter_context(overlay(tree, self._place / f"machine-{self._count}"))
        booted = Booted(root)
        self._stack.callback(booted.close)
        return booted
