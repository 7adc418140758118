"""What all tests share: an ordinary user to run as, and no silent skips in CI.

Much of safeclaw has to hold for a user without privileges.  When the tests run
as root, :class:`Person` is the account ``nobody`` with a home of its own, and
``installed`` is a copy of safeclaw, of the working tree as it stands, in a place
that account can read: the checkout may lie in root's home.  When the tests run as
an ordinary user, both are that user's own.
"""

from __future__ import annotations

import importlib.metadata
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Installed:
    """A safeclaw that the ordinary user can run, and its interpreter."""

    safeclaw: Path
    python: Path


@dataclass(frozen=True)
class Person:
    """An ordinary user with a home of their own."""

    uid: int
    gid: int
    home: Path
    installed: Installed

    def environment(self) -> dict[str, str]:
        """Return the environment of a fresh login."""
        return {
            "HOME": str(self.home),
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "XDG_STATE_HOME": str(self.home / ".local" / "state"),
        }

    def popen(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> subprocess.Popen[str]:
        """Start a command as this person; its output is piped, as text."""
        root = os.geteuid() == 0
        return subprocess.Popen(
            [str(word) for word in command],
            cwd=cwd or self.home,
            env={**self.environment(), **(env or {})},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            user=self.uid if root else None,
            group=self.gid if root else None,
            extra_groups=[] if root else None,
        )

    def run(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as this person to its end; its status is for the caller to judge."""
        with self.popen(command, cwd=cwd, env=env) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def safeclaw(
        self, *arguments: str | Path, cwd: Path | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run ``safeclaw ARGUMENTS`` as this person."""
        return self.run([self.installed.safeclaw, *arguments], cwd=cwd, timeout=timeout)

    def own(self, path: Path) -> Path:
        """Give a file, or a directory with all that is in it, to this person; return it."""
        if os.geteuid() == 0:
            os.lchown(path, self.uid, self.gid)
            if path.is_dir() and not path.is_symlink():
                for child in path.iterdir():
                    self.own(child)
        return path


def _copy_distributions(names: list[str], destination: Path) -> None:
    """Copy the named distributions, and what they need in turn, out of this interpreter's own."""
    done: set[str] = set()
    while names:
        name = names.pop()
        if name in done:
            continue
        done.add(name)
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or ():
            if ".." in file.parts or "__pycache__" in file.parts:
                continue
            target = destination / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), target)
        names += _needed(distribution.requires or [])


def _needed(requirements: Sequence[str]) -> list[str]:
    """Return the names of the requirements that hold on this interpreter, without extras."""
    parsed = [Requirement(text) for text in requirements]
    return [one.name for one in parsed if one.marker is None or one.marker.evaluate({"extra": ""})]


def _install(place: Path) -> Installed:
    """Put a copy of safeclaw and of its dependencies into a new virtual environment."""
    subprocess.run(
        [str(Path(sys.executable).resolve()), "-m", "venv", "--without-pip", str(place / "venv")],
        check=True,
    )
    packages = next((place / "venv" / "lib").glob("python*")) / "site-packages"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    _copy_distributions(_needed(project["dependencies"]), packages)
    # The links in src/safeclaw become the folders they lead to.
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src" / "safeclaw", packages / "safeclaw", ignore=ignore)
    python = place / "venv" / "bin" / "python"
    for script, entry in project["scripts"].items():
        module, _, function = entry.partition(":")
        path = place / "venv" / "bin" / script
        path.write_text(
            f"#!{python}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
        )
        path.chmod(0o755)
    subprocess.run([str(python), "-m", "compileall", "-q", str(packages)], check=True)
    return Installed(place / "venv" / "bin" / "safeclaw", python)


@pytest.fixture(scope="session")
def installed() -> Generator[Installed]:
    """Yield a safeclaw that the ordinary user can run."""
    if os.geteuid() != 0:
        yield Installed(Path(sys.executable).with_name("safeclaw"), Path(sys.executable))
        return
    before = os.umask(0o022)
    place = Path(tempfile.mkdtemp(prefix="safeclaw-installed."))
    try:
        place.chmod(0o755)
        yield _install(place)
    finally:
        shutil.rmtree(place)
        os.umask(before)


@pytest.fixture
def person(installed: Installed) -> Generator[Person]:
    """Yield an ordinary user with a new, empty home."""
    home = Path(tempfile.mkdtemp(prefix="safeclaw-home."))
    account = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    one = Person(account.pw_uid, account.pw_gid, home, installed)
    try:
        one.own(home)
        yield one
    finally:
        shutil.rmtree(home)


_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember what was skipped."""
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI, a test that did not run is a failure: lost coverage must be seen."""
    if _skipped and os.environ.get("CI") and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what this machine could not test."""
    if _skipped:
        terminalreporter.section("not tested on this machine")
        for name in _skipped:
            terminalreporter.line(name)
        if os.environ.get("CI"):
            terminalreporter.line("CI is set: this is a failure")
