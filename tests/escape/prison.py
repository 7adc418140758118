"""Prepares a place for every attack, runs many in one session, and looks at what is left.

One session per person for what must hold, and one per person and defence for the
controls: starting a session costs more than most attacks.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import pty
import pwd
import re
import secrets
import select
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.escape.corpus import ATTACKS, POLICY, Attack
from tests.escape.stages import ROOT_STAGES, STAGES, Look
from tests.system.conftest import SLOWNESS, options_here

HERE = Path(__file__).parent
_RACE = re.compile(rb"WINS (\d+) TRIES (\d+)")
_RUNNER = """\
while read -r name goal tries word; do
    program=./attack
    if [ -f "$1/$name/attack.py" ]; then program="/usr/bin/python3 attack.py"; fi
    (
        cd "$1/$name" || exit 9
        exec timeout --foreground -k 1 "$3" $program "$2/$name" "$goal" "$tries" $word >out 2>err
    )
done <"$1/list"
"""


@dataclass(frozen=True)
class Outcome:
    """How often an attack won, in how many tries, and what it said."""

    wins: int
    tries: int
    said: str


class Prison:
    """Runs attacks as one person in one isolation, each run in a fresh directory."""

    def __init__(self, name: str, isolation: str, programs: Path, tree: Path | None) -> None:
        self.name = name
        self.isolation = isolation
        self._programs = programs
        self._python = sys.executable
        self._looks: dict[str, Look] = {}
        self._late = ""
        self._environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
        if tree is not None and name != "root":
            self._python = "/usr/bin/python3"
            self._environment["PYTHONPATH"] = f"{tree}:{tree}/site"

    @property
    def attacks(self) -> list[Attack]:
        """Those that can work for this person without the defence, and be made ready here."""
        return [
            one
            for one in ATTACKS
            if (self.name == "root" or not one.root_only)
            and (os.geteuid() == 0 or one.source not in ROOT_STAGES)
            and one.isolation in ("", self.isolation)
        ]

    @functools.cache  # noqa: B019 - one for the whole session
    def controls(self, defence: str, alone: str = "") -> dict[str, Outcome]:
        """Run all attacks on one defence with it off."""
        chosen = [
            one
            for one in self.attacks
            if one.defence == defence and (one.name == alone if one.alone else not alone)
        ]
        return self.mount(chosen, defence, {})

    @functools.cache  # noqa: B019
    def inside(self, alone: str = "") -> dict[str, Outcome]:
        """Run all attacks with everything on, the races as often as their controls took."""
        chosen = [one for one in self.attacks if (one.name == alone if one.alone else not alone)]
        tries = {one.name: max(1, self.control(one).tries) for one in chosen if one.goal > 1}
        return self.mount(chosen, None, tries)

    def control(self, attack: Attack) -> Outcome:
        """Return what became of one attack with its defence off."""
        return self.controls(attack.defence, attack.name if attack.alone else "")[attack.name]

    def attempt(self, attack: Attack) -> Outcome:
        """Return what became of one attack with everything on."""
        return self.inside(attack.name if attack.alone else "")[attack.name]

    def mount(
        self, attacks: list[Attack], defence: str | None, tries: dict[str, int]
    ) -> dict[str, Outcome]:
        """Run attacks in one session, with a defence off; races so often as ``tries`` says."""
        if self._late:
            pytest.fail(self._late)  # and not as slowly as the first time
        base = Path(tempfile.mkdtemp(prefix="safeclaw-escape-"))
        try:
            with contextlib.ExitStack() as stack:
                return self._in(base, stack, attacks, defence, tries)
        except subprocess.TimeoutExpired as late:
            self._late = f"a session did not end: {late}"
            raise
        finally:
            shutil.rmtree(base, ignore_errors=True)

    def _in(
        self,
        base: Path,
        stack: contextlib.ExitStack,
        attacks: list[Attack],
        defence: str | None,
        tries: dict[str, int],
    ) -> dict[str, Outcome]:
        base.chmod(0o755)
        workspace, outside = base / "workspace", base / "outside"
        for folder in (workspace, outside, base / "state", base / "home"):
            folder.mkdir()
        tokens = {one.name: self._place(one, workspace, outside, stack) for one in attacks}
        policy = base / "policy.yaml"
        if any(one.name == "policy_file" for one in attacks):
            policy = workspace / "policy_file" / "frozen-policy" / "policy.yaml"
            policy.parent.mkdir()
        policy.write_text(POLICY)
        (workspace / "list").write_text(
            "".join(
                f"{one.name} {0 if one.name in tries else one.goal} "
                f"{tries.get(one.name, 1000 * one.goal)} {one.word}\n"
                for one in attacks
            )
        )
        runner = workspace / "runner"
        runner.write_text(_RUNNER)
        self._own(base)
        held = os.open(outside / "key", os.O_RDONLY | os.O_CREAT, 0o600)
        stack.callback(os.close, held)
        (outside / "key").write_text(tokens.get("inherited", ""))
        before = {one.name: _state(workspace, outside, policy, one.name) for one in attacks}
        status = self._start(defence, base, policy, held, attacks[0].terminal)
        found: dict[str, Outcome] = {}
        for one in attacks:
            after = _state(workspace, outside, policy, one.name)
            changed = sorted(
                f"{name}: {before[one.name].get(name)} -> {after.get(name)}"
                for name in before[one.name].keys() | after.keys()
                if before[one.name].get(name) != after.get(name)
            )
            if one.name in self._looks:
                changed += self._looks[one.name]()
            found[one.name] = _outcome(one, workspace, tokens[one.name], changed, status)
        return found

    def _place(
        self, attack: Attack, workspace: Path, outside: Path, stack: contextlib.ExitStack
    ) -> str:
        """Make the directory of one attack; return the words it is to steal."""
        token = f"token-{secrets.token_hex(8)}"
        area = workspace / attack.name
        for folder in ("src", "secrets", "secretz", "frozen", "bin", "held/deep"):
            (area / folder).mkdir(parents=True)
        (outside / attack.name).mkdir()
        for secret in (area / "secrets/key", area / "held/deep/key", outside / attack.name / "key"):
            secret.write_text(token)
        (area / "secretz/key").write_text("nothing to see")
        (area / "frozen/f").write_text("frozen")
        for program in ("xa", "xd", "xd-dynamic", "audit.so", "preload.so"):
            shutil.copy(self._programs / program, area / "bin" / program)
        if attack.source.endswith(".py"):
            shutil.copy(HERE / "attacks" / attack.source, area / "attack.py")
        else:
            shutil.copy(self._programs / attack.source.removesuffix(".c"), area / "attack")
        sockets = [(area / "door-a", socket.SOCK_DGRAM), (area / "door-b", socket.SOCK_DGRAM)]
        sockets.append((outside / attack.name / "broker.sock", socket.SOCK_SEQPACKET))
        for path, kind in sockets:
            _listen(stack, path, kind)
        stage = STAGES.get(attack.source)
        if stage is not None:
            uid = pwd.getpwnam(self.name).pw_uid
            self._looks[attack.name] = stage(area, token, uid, stack)
        if attack.source == "other_session.c":
            self._looks[attack.name] = self._other_session(area, attack, stack)
        return token

    def _other_session(self, area: Path, attack: Attack, stack: contextlib.ExitStack) -> Look:
        """Start another session of this person's, without namespaces between the two."""
        base = Path(tempfile.mkdtemp(prefix="safeclaw-other-"))
        stack.callback(shutil.rmtree, base, ignore_errors=True)
        (base / "policy.yaml").write_text(POLICY)
        for folder in ("home", "state"):
            (base / folder).mkdir()
        self._own(base)
        user, group, groups = self._identity()
        process = subprocess.Popen(
            [
                *(self._python, "-m", "safeclaw.daemon.cli", "run", "--isolation", "landlock"),
                *("--policy", str(base / "policy.yaml"), "--"),
                *("/bin/sh", "-c", "echo $$; while :; do sleep 1000; done"),
            ],
            cwd=base / "home",
            env={
                **self._environment,
                "HOME": str(base / "home"),
                "XDG_STATE_HOME": str(base / "state"),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
            user=user,
            group=group,
            extra_groups=groups,
        )
        assert process.stdout is not None
        agent = int(process.stdout.readline())

        def end() -> None:
            process.terminate()  # in good order: a broker that is left alone still writes there
            process.communicate()

        stack.callback(end)
        pid = process.pid if attack.supervisor else agent
        start = "0"
        with contextlib.suppress(PermissionError), open(f"/proc/{pid}/maps") as maps:
            start = maps.readline().partition("-")[0]  # a supervisor's are root's alone to read
        (area / "pid").write_text(f"{pid} {start}")
        descriptor = os.pidfd_open(pid)
        stack.callback(os.close, descriptor)

        def look() -> list[str]:
            gone, _, _ = select.select([descriptor], [], [], 0)
            return ["the other session has ended"] if gone else []

        return look

    def _own(self, base: Path) -> None:
        if os.geteuid() == 0:
            entry = pwd.getpwnam(self.name)
            for path in (base, *base.rglob("*")):
                if path.lstat().st_mode & stat.S_ISUID:
                    continue
                os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)
        (base / "state").chmod(0o700)

    def _identity(self) -> tuple[int | None, int | None, list[str | int] | None]:
        """Return user, group and further groups with which subprocess runs as this person."""
        entry = pwd.getpwnam(self.name)
        if os.geteuid() == entry.pw_uid:
            return None, None, None
        return entry.pw_uid, entry.pw_gid, []

    def _start(
        self, defence: str | None, base: Path, policy: Path, held: int, terminal: bool
    ) -> int:
        workspace = base / "workspace"
        command = ["/bin/sh", str(workspace / "runner"), str(workspace), str(base / "outside")]
        command.append(str(250 * SLOWNESS))
        if defence != "outside":
            start = [self._python, "-m", "safeclaw.daemon.cli"]
            if defence is not None:
                shutil.copy(HERE / "weakened.py", base / "weakened.py")
                (base / "weakened.py").chmod(0o644)
                start = [self._python, str(base / "weakened.py"), defence]
            options = ["--policy", str(policy), *options_here(self.isolation)]
            command = [*start, "run", *options, "--", *command]
        stdin = subprocess.DEVNULL
        with contextlib.ExitStack() as stack:
            if terminal:
                master, stdin = pty.openpty()
                for fd in (master, stdin):
                    stack.callback(os.close, fd)
                command = ["setsid", "--ctty", "--wait", *command]
            if terminal:
                os.fchown(stdin, pwd.getpwnam(self.name).pw_uid, -1)
            user, group, groups = self._identity()
            # a session of its own: what kills its group must not reach the tests
            done = subprocess.run(
                command,
                cwd=workspace,
                env={
                    **self._environment,
                    "HOME": str(base / "home"),
                    "XDG_STATE_HOME": str(base / "state"),
                },
                stdin=stdin,
                capture_output=True,
                pass_fds=(held,),
                start_new_session=True,
                timeout=280 * SLOWNESS,
                check=False,
                user=user,
                group=group,
                extra_groups=groups,
            )
        if not any(workspace.glob("*/out")):
            raise AssertionError(done.stderr.decode(errors="replace"))
        return done.returncode


def _listen(stack: contextlib.ExitStack, path: Path, kind: int) -> None:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    sock = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
    sock.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)
    if kind != socket.SOCK_DGRAM:
        sock.listen()
    path.chmod(0o666)


def _flags(path: Path) -> int:
    """Return the inode flags (ioctl_iflags(2)), or 0 where there are none."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return int(struct.unpack("l", fcntl.ioctl(fd, 0x80086601, bytes(8)))[0])
    except OSError:
        return 0
    finally:
        os.close(fd)


def _state(workspace: Path, outside: Path, policy: Path, name: str) -> dict[str, object]:
    """Return all that must not change: names, contents, modes, times, attributes, flags."""
    found: dict[str, object] = {}
    if name == "policy_file":  # of the others that share its session, none has won with it
        found["policy"] = policy.read_bytes() if policy.exists() else None
    for top in (
        workspace / name / "secrets",
        workspace / name / "frozen",
        workspace / name / "held",
        outside / name,
    ):
        if not top.exists():
            continue
        for path in (top, *sorted(top.rglob("*"))):
            info = path.lstat()
            kept: tuple[int, ...] = (info.st_mode, info.st_uid)
            if path.is_file():
                kept += (info.st_nlink, info.st_mtime_ns, _flags(path))
                found[str(path)] = (*kept, path.read_bytes(), os.listxattr(path))
            else:
                found[str(path)] = kept
    return found


def _outcome(
    attack: Attack, workspace: Path, token: str, changed: list[str], status: int
) -> Outcome:
    area = workspace / attack.name
    said = (area / "out").read_bytes() if (area / "out").exists() else b""
    errors = (area / "err").read_bytes() if (area / "err").exists() else b""
    text = (said + errors).decode(errors="replace")
    if attack.goal > 1:
        match = _RACE.search(said)
        wins, tries = (int(match[1]), int(match[2])) if match else (0, 0)
        return Outcome(wins, tries, text)
    won = (
        token.encode() in said
        or b"WON" in said
        or b"a denied" in said
        or bool(changed)
        or (attack.name in ("kill_group", "supervisor_pidfd") and status == -9)
    )
    return Outcome(int(won), 1, "\n".join([text, *changed]))
