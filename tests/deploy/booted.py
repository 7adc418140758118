"""A real Debian, booted with its own systemd in systemd-nspawn(1).

The file system is an overlay over a tree that debootstrap(8) made once and that
is kept in a cache; what a test changes is gone with it.  Whoever waits, waits
for systemd's own word: readiness, a unit's state, an entry in the journal.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, cast

SUITE = "bookworm"
#: What is in the tree beyond debootstrap's minbase.
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "python3",
    "libseccomp2",
    "procps",
    "debconf",
    "adduser",
    "bsdutils",
    "git",
    # The shells that the package brings completion for.
    "bash-completion",
    "zsh",
    "fish",
)
_READY = 60.0


def cache() -> Path:
    """Return where trees are kept between runs."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home, "safeclaw-test")


def _mirror() -> list[str]:
    """Return where this machine's own Debian comes from, in debootstrap's terms."""
    format_ = "$(SITE)|$(RELEASE)|$(COMPONENT)"
    command = ["apt-get", "indextargets", "--format", format_, "Created-By: Packages"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    for line in said.splitlines():
        site, _, rest = line.partition("|")
        if rest == f"{SUITE}|main" and "security" not in site:
            return [site]
    return []


def base_tree(*more: str, architecture: str = "") -> Path:
    """Return a Debian tree, made with debootstrap the first time; one maker at a time.

    ``more`` are further packages.  A tree of another ``architecture`` than this machine's is made
    by programs of its own, which needs binfmt_misc with qemu-user-static.
    """
    packages = (*PACKAGES, *more)
    key = "-".join((SUITE, *sorted(packages), *([architecture] if architecture else ())))
    import hashlib

    place = cache() / f"{SUITE}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if place.is_dir():
        return place  # whoever makes another one is not waited for
    cache().mkdir(parents=True, exist_ok=True)
    with open(cache() / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            new = Path(tempfile.mkdtemp(dir=cache(), prefix="new."))
            command = [
                "debootstrap",
                "--variant=minbase",
                *([f"--arch={architecture}"] if architecture else ()),
                f"--include={','.join(packages)}",
                SUITE,
                str(new),
                *_mirror(),
            ]
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            assert made.returncode == 0, made.stdout[-4000:] + made.stderr
            shutil.rmtree(new / "var/cache/apt", ignore_errors=True)
            shutil.rmtree(new / "var/lib/apt/lists", ignore_errors=True)
            (new / "etc/machine-id").write_text("")
            # Else every package's coming and going has all manual pages indexed anew.
            (new / "var/lib/man-db/auto-update").unlink(missing_ok=True)
            os.chmod(new, 0o755)
            new.rename(place)
    return place


@contextlib.contextmanager
def overlay(lower: Path, where: Path) -> Generator[Path]:
    """Mount a writable tree over ``lower``; unmount it, and forget it, at the end."""
    root, upper, work = where / "root", where / "upper", where / "work"
    for each in (root, upper, work):
        each.mkdir(parents=True)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(root)], check=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", str(root)], check=True)
        shutil.rmtree(where)


def _cgroup() -> Path:
    """Return this process's cgroup in the unified hierarchy (cgroups(7))."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    mounted = next(words[1] for words in mounts if words[2] == "cgroup2")
    own = Path("/proc/self/cgroup").read_text().splitlines()
    return Path(mounted + next(line[3:] for line in own if line.startswith("0::")))


def _matches(entry: dict[str, Any], matches: Sequence[str]) -> bool:
    """Whether an entry matches, as journalctl(1) has it: any value of each field that is named."""
    wanted: dict[str, set[str]] = {}
    for match in matches:
        name, _, value = match.partition("=")
        wanted.setdefault(name, set()).add(value)
    return all(entry.get(name) in values for name, values in wanted.items())


class Booted:
    """A booted Debian.  ``leader`` is its systemd, seen from here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.leader = 0
        self._console = open(root.parent / "console", "wb")  # noqa: SIM115
        self._address = root.parent / "notify"
        # One of its own: else machines that run at once find each other's processes in their units.
        self._cgroup = Path(tempfile.mkdtemp(dir=_cgroup(), prefix="safeclaw-machine."))
        self._boot()

    def _boot(self) -> None:
        """Switch it on, and wait until it is up."""
        # Only until then: what systemd says later is for nobody here, and once it filled the queue,
        # systemd would wait for a reader.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            self._address.unlink(missing_ok=True)
            notify.bind(str(self._address))
            notify.settimeout(_READY)
            self._start()
            self._wait_ready(notify)
        self.run("systemctl", "is-system-running", "--wait", check=False)

    def _start(self) -> None:
        self._nspawn = subprocess.Popen(
            [
                *("sh", "-euc", 'echo $$ >"$0" && exec "$@"', f"{self._cgroup}/cgroup.procs"),
                "systemd-nspawn",
                f"--directory={self.root}",
                "--boot",
                "--quiet",
                "--register=no",
                "--keep-unit",
                "--private-network",
                "--resolv-conf=off",
                "--timezone=off",
                "--link-journal=no",
                "--notify-ready=yes",
                "--console=pipe",
                f"--machine=safeclaw-{os.getpid()}",
                "systemd.log_target=journal",
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=self._console,
            env={
                **os.environ,
                "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
                # A machine has no filter over its systemd; safeclaw's own are what is tested.
                "SYSTEMD_SECCOMP": "0",
                "NOTIFY_SOCKET": str(self._address),
            },
        )

    def _wait_ready(self, notify: socket.socket) -> None:
        """Wait until a system is up: systemd says so to nspawn, and nspawn to us."""
        leader = 0
        try:
            while True:
                for line in notify.recv(4096).decode().splitlines():
                    name, _, value = line.partition("=")
                    if name == "X_NSPAWN_LEADER_PID":
                        leader = int(value)
                    elif name == "READY" and leader:
                        self.leader = leader
                        return
        except TimeoutError:
            self._nspawn.kill()
            raise AssertionError("it does not boot:\n" + self.console()) from None

    def console(self) -> str:
        """Return what the machine printed."""
        return (self.root.parent / "console").read_text(errors="replace")[-4000:]

    # ---- commands

    def command(self, words: Sequence[str], user: str | None = None) -> list[str]:
        """Return the command that runs ``words`` in there, as ``user`` (else as root)."""
        inside = list(words)
        if user is not None:
            inside = ["runuser", "-u", user, "--", "env", f"HOME=/home/{user}", *inside]
        enter = ["nsenter", f"--target={self.leader}", "--all", "--wdns=/", "--"]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return [*enter, "env", "-i", path, "LANG=C.UTF-8", *inside]

    def run(
        self, *words: str, user: str | None = None, check: bool = True, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in there to its end."""
        done = subprocess.run(
            self.command(words, user), input=stdin, capture_output=True, text=True, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{words}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def sh(self, script: str, user: str | None = None, check: bool = True) -> str:
        """Run a shell script in there; return what it printed."""
        return self.run("sh", "-euc", script, user=user, check=check).stdout

    def popen(self, *words: str, user: str | None = None) -> subprocess.Popen[str]:
        """Start a command in there, with pipes to its standard streams."""
        return subprocess.Popen(
            self.command(words, user),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    # ---- files

    def write(self, path: str, text: str, mode: int = 0o644, owner: str | None = None) -> None:
        """Write a file, by rename."""
        assert path.startswith("/")
        self.run("mkdir", "-p", os.path.dirname(path))
        script = 'cat >"$1.new" && chmod "$2" "$1.new" && chown "$3" "$1.new" && mv "$1.new" "$1"'
        who = owner or "root:root"
        self.run("sh", "-euc", script, "sh", path, f"{mode:o}", who, stdin=text)

    def read(self, path: str) -> str:
        """Return a file's text."""
        return self.run("cat", path).stdout

    # ---- systemd

    def systemctl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run systemctl; it returns when its job is done."""
        return self.run("systemctl", *words, check=check)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Return properties of a unit."""
        said = self.run("systemctl", "show", f"--property={','.join(properties)}", unit).stdout
        return dict(line.split("=", 1) for line in said.splitlines())

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """Return journald's entries that match, oldest first."""
        self.run("journalctl", "--sync")
        said = self.run("journalctl", "--output=json", "--no-pager", *matches, check=False).stdout
        return [cast("dict[str, Any]", json.loads(line)) for line in said.splitlines()]

    def next(self, *matches: str, count: int = 1) -> None:
        """Wait until ``count`` entries that match have come from now on."""
        with self.watch(*matches) as seen:
            for _ in range(count):
                seen()

    def wait_for(self, *matches: str) -> dict[str, Any]:
        """Return the first entry that matches, once journald has it."""
        with self.watch(*matches, past=True) as seen:
            return seen()

    @contextlib.contextmanager
    def watch(self, *matches: str, past: bool = False) -> Generator[Callable[[], dict[str, Any]]]:
        """Yield a function that waits for the next entry that matches, from now on.

        ``past`` begins with what journald has already.
        """
        # With --follow, systemd 252 loses the first match after a cursor that matches nothing: what
        # comes after one is told apart here.
        which = matches if past else [f"--after-cursor={self._cursor()}"]
        follow = ["journalctl", "--output=json", "--all", "--no-tail", "--follow", *which]
        # It ends with its standard input, and all of it in there: who waits for a file needs a
        # /proc/self, and a process whose parent was killed outside stays a zombie inside.
        script = '"$@" & read -r _; kill "$!"; wait "$!"'
        with self.popen("sh", "-c", script, "sh", *follow) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            end, out = process.stdin.close, process.stdout

            def seen() -> dict[str, Any]:
                # What does not come would hold up all the others.
                patience = threading.Timer(_READY, end)
                patience.start()
                for line in out:
                    entry = cast("dict[str, Any]", json.loads(line))
                    if past or _matches(entry, matches):
                        patience.cancel()
                        return entry
                raise AssertionError(f"nothing came in {_READY:g} s: {matches}")

            yield seen

    def _cursor(self) -> str:
        """Return journald's newest entry."""
        said = self.run("journalctl", "--show-cursor", "--lines=0").stdout
        return said.rpartition("cursor: ")[2].strip()

    def user(self, name: str, *groups: str) -> str:
        """Make an ordinary user, with a home; return the name."""
        command = ["useradd", "--create-home", "--shell", "/bin/sh"]
        more = [f"--groups={','.join(groups)}"] if groups else []
        self.run(*command, *more, name)
        return name

    # ---- its life

    def reboot(self) -> None:
        """Shut it down in order, and boot the same tree again.

        The kernel stays the host's, and with it /proc/sys/kernel/random/boot_id.
        """
        self.run("systemctl", "reboot", "--no-block", check=False)
        self._nspawn.wait(timeout=_READY)
        self._boot()

    def cut_power(self) -> None:
        """Kill every process in there at once, and boot what is on disk."""
        # With the first of a PID namespace all others go (pid_namespaces(7)).
        os.kill(self.leader, signal.SIGKILL)
        self._nspawn.wait(timeout=_READY)
        self._boot()

    def close(self) -> None:
        """Switch it off."""
        if self._nspawn.poll() is None:
            self._nspawn.terminate()
            try:
                self._nspawn.wait(timeout=_READY)
            except subprocess.TimeoutExpired:
                os.kill(self.leader, signal.SIGKILL)
                self._nspawn.wait()
        self._console.close()
        self._address.unlink(missing_ok=True)
        for place, _, _ in os.walk(self._cgroup, topdown=False):
            os.rmdir(place)
