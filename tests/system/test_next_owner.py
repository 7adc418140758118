"""Whoever gets the number of a process that has ended gets nothing else of its calls."""

from __future__ import annotations

import ctypes
import mmap
import os
import pwd
import signal
import subprocess
from pathlib import Path

import pytest

from safeclaw.sandbox import linux
from tests.brokers_end import wait_until
from tests.system.conftest import Person
from tests.system.outside import policy

PLACE, SIZE = 0x2000_0000_0000, 4 << 20
SECRET = b"of another process "
MAP_FIXED = 0x10
LAST_NUMBER = "/proc/sys/kernel/ns_last_pid"
#: Its child's call waits in the supervisor with most of the data still to be read.
AGENT = f"""
import ctypes, mmap, os, socket, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
here, there = socket.socketpair()
child = os.fork()
if not child:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | {MAP_FIXED}
    assert libc.mmap({PLACE}, {SIZE}, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) == {PLACE}
    here.sendmsg([(ctypes.c_char * {SIZE}).from_address({PLACE})])
there.recv(1, socket.MSG_PEEK)
here.close()
print(child, flush=True)
os.waitpid(child, 0)
print("ended", flush=True)
sys.stdin.readline()
data = b""
while chunk := there.recv(1 << 20):
    data += chunk
print({SECRET!r} in data, flush=True)
"""
#: The supervisor with the defence off: nobody looks whether who called is still there.
UNCHECKED = """
import sys
from safeclaw.daemon.cli.main import main
from safeclaw.sandbox import mediator
mediator.Notification.check_alive = lambda self: None
sys.exit(main())
"""


def _outer(inner: int, workspace: Path) -> int:
    """Return the number here of the agent's process that is ``inner`` in its namespace."""
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.readlink(f"/proc/{entry}/cwd") == str(workspace):
                status = Path(f"/proc/{entry}/status").read_text()
                words = next(x for x in status.splitlines() if x.startswith("NSpid:")).split()
                if int(words[-1]) == inner:
                    return int(entry)
        except OSError:
            continue
    raise AssertionError("the agent has no such process")


def _become(number: int, uid: int) -> int:
    """Fork a process of a user, with that number and this one's memory, which a kill ends."""
    there, here = os.pipe()
    Path(LAST_NUMBER).write_text(str(number - 1))
    made = os.fork()
    if not made:
        try:
            group = pwd.getpwuid(uid).pw_gid
            os.setresgid(group, group, group)
            os.setresuid(uid, uid, uid)
            linux.prctl(linux.PR_SET_DUMPABLE, 1)  # as after an exec
            os.write(here, b"+")
            signal.pause()
        finally:
            os._exit(1)
    os.close(here)
    os.read(there, 1)
    os.close(there)
    return made


def _may_choose() -> bool:
    """Whether the next process's number is ours to say, which wants a capability."""
    number = Path(LAST_NUMBER)
    try:
        number.write_text(number.read_text())
    except OSError:
        return False
    return True


def _secret_arrives(person: Person) -> bool:
    for _ in range(20):
        arrived = _try(person)
        if arrived is not None:
            return arrived
    raise AssertionError("others are given the number each time")


def _try(person: Person) -> bool | None:
    """Return whether the secret came to the agent; None where the number went to somebody else."""
    person.stdin = subprocess.PIPE
    chosen = person.write("policy.yaml", policy())
    person.write("agent.py", AGENT)
    command = ("run", "--policy", str(chosen), "--", "/usr/bin/python3", "agent.py")
    with person.popen(*command) as started:
        assert started.stdin is not None
        assert started.stdout is not None
        caller = _outer(int(started.stdout.readline()), person.workspace)
        # what happens now, it sees at once
        os.kill(started.pid, signal.SIGSTOP)
        os.kill(caller, signal.SIGKILL)
        assert started.stdout.readline() == "ended\n"
        wait_until(lambda: not os.path.exists(f"/proc/{caller}"))
        other = _become(caller, person.uid)
        try:
            started.stdin.write("\n")
            started.stdin.flush()
            os.kill(started.pid, signal.SIGCONT)
            said = started.stdout.readline()
        finally:
            os.kill(other, signal.SIGKILL)
            os.waitpid(other, 0)
        assert said in ("True\n", "False\n"), started.communicate()
        return said == "True\n" if other == caller else None


def test_what_is_sent_is_not_read_from_the_next_process_of_that_number(person: Person) -> None:
    if os.geteuid() != 0 or not _may_choose():
        pytest.skip("not root: who gets a number next is not ours to say")
    if person.name == "root":
        return  # root's processes have rights that a supervisor has not: it cannot read them
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
    assert libc.mmap(PLACE, SIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) == PLACE
    try:
        ctypes.memmove(PLACE, SECRET * (SIZE // len(SECRET)), SIZE - SIZE % len(SECRET))
        assert not _secret_arrives(person)

        driver = person.base / "driver.py"
        driver.write_text(UNCHECKED)
        person.own()
        person.program[1:] = [str(driver)]
        assert _secret_arrives(person)
    finally:
        ctypes.CDLL(None).munmap(ctypes.c_void_p(PLACE), ctypes.c_size_t(SIZE))
