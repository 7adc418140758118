"""What else is in the process group of ``safeclaw run``: the kernel signals it for nobody inside.

Each attack ends, or signals, the script that runs the agent; and does so with one defence off.
"""

from __future__ import annotations

import os
import pty
import subprocess

import pytest

from tests.system.conftest import Person, options_here

POLICY = """\
version: "1.0"
rules:
  - {action: [file.read, file.write], path: ["**", "/tmp/**"], effect: allow}
  - {action: shell.execute, effect: allow}
"""
#: Says what becomes of it, like a step of a job that goes on when its agent has ended.
#: The signal is one that the supervisor outlives, which ends its broker.
SCRIPT = """\
trap 'echo the script had SIGWINCH' WINCH
"$@"
echo the script goes on
"""
#: One stays behind whose parent has left the group; it ends, and another one there is stopped.
ORPHAN = """
import os, signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
parent = os.fork()
if not parent:
    go, goes = os.pipe()
    stopped = os.fork()
    if not stopped:
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(stopped, os.WUNTRACED)
    link = os.fork()
    if not link:
        os.read(go, 1)
        os._exit(0)
    os.setpgid(0, 0)
    os.write(goes, b"g")
    os.waitpid(link, 0)
    os._exit(0)
os.waitpid(parent, 0)
print("attacked")
"""
#: Have files signal the whole group: each way that there is to say so.
OWNER = """
import fcntl, os, signal, socket, struct
group = os.getpgrp()
signal.signal(signal.SIGWINCH, signal.SIG_IGN)

def arm(end, owner):
    try:
        owner(end)
        fcntl.fcntl(end, fcntl.F_SETSIG, signal.SIGWINCH)
    except OSError as problem:
        return print(problem.strerror, flush=True)
    for way in (
        lambda: fcntl.fcntl(end, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK),
        lambda: fcntl.ioctl(end, 0x5452, struct.pack("i", 1)),
    ):
        try:
            way()
        except OSError as problem:
            print(problem.strerror, flush=True)

# whoever was forked last is the first of its group
if not os.fork():
    for owner in (
        lambda end: fcntl.fcntl(end, fcntl.F_SETOWN, -group),
        lambda end: fcntl.fcntl(end, 15, struct.pack("ii", 2, group)),
        lambda end: fcntl.ioctl(end, 0x8901, struct.pack("i", -group)),
        lambda end: fcntl.ioctl(end, 0x8902, struct.pack("i", -group)),
    ):
        here, there = socket.socketpair()
        arm(here, owner)
        there.send(b"x")
    os._exit(0)
os.wait()
print("attacked")
"""
#: The same of the terminal, whose owner is the group before it, unless somebody says another.
TYPED = """
import fcntl, os, signal
signal.signal(signal.SIGWINCH, signal.SIG_IGN)
if not os.fork():
    fcntl.fcntl(0, fcntl.F_SETSIG, signal.SIGWINCH)
    try:
        fcntl.fcntl(0, fcntl.F_SETFL, os.O_RDWR | os.O_ASYNC)
    except OSError as problem:
        print(problem.strerror, flush=True)
    os._exit(0)
os.wait()
print("attacked", flush=True)
os.read(0, 1)
"""
WITHOUT = """
import os, sys
from safeclaw.daemon import kept
from safeclaw.daemon.cli.main import main
from safeclaw.sandbox import filters, group, linux, syscalls

def fresh(state, *, network, confined=False):
    return filters.build(network=network, confined=confined)

off = sys.argv.pop(1).split(",")
if "group" in off:
    group._has_terminal = lambda: True
if "scope" in off:  # as kernels before Linux 6.18.40 have it, here
    linux.landlock_restrict_self = lambda *_: None
if "owner" in off:
    syscalls._OWNER_IOCTLS, syscalls.os = (), type("Os", (), {**vars(os), "O_ASYNC": 1 << 31})
    syscalls.F_SETOWN = syscalls.F_SETOWN_EX = syscalls.F_SETFL = 4096
kept.filters = fresh
sys.exit(main())
"""


def attacking(
    person: Person, isolation: str, agent: str, off: str = "", *setsid: str
) -> subprocess.Popen[str]:
    """Run an agent from a script that leads a session, without a terminal, with defences off."""
    chosen = person.write("policy.yaml", POLICY)
    person.write("agent.py", agent)
    person.write("script", SCRIPT)
    if off:
        driver = person.base / "without.py"
        driver.write_text(WITHOUT)
        person.own()
        command = [*person.program[:1], str(driver), off]
    else:
        command = person.program
    options = ("--no-prompt", "--policy", str(chosen), *options_here(isolation))
    run = ("run", *options, "--", "/usr/bin/python3", "agent.py")
    leader = ("setsid", *setsid, "--wait", "sh", "script")
    return person.start([*leader, *command, *run], person.workspace)


def attacked(
    person: Person, isolation: str, agent: str, off: str = ""
) -> subprocess.CompletedProcess[str]:
    """Return what became of such a script."""
    return person.finish(attacking(person, isolation, agent, off))


@pytest.mark.parametrize("isolation", ["full", "landlock"])
def test_the_agent_does_not_orphan_the_group_that_it_is_started_in(
    person: Person, isolation: str
) -> None:
    done = attacked(person, isolation, ORPHAN, "group")
    assert "the script goes on" not in done.stdout, done.stderr

    done = attacked(person, isolation, ORPHAN)
    assert done.stdout == "attacked\nthe script goes on\n", done.stderr


def test_no_file_has_the_group_signalled_that_the_agent_is_started_in(person: Person) -> None:
    done = attacked(person, "landlock", OWNER, "scope,owner")
    assert "the script had SIGWINCH" in done.stdout, done.stderr

    # the scope alone is not asked by every kernel that has one
    done = attacked(person, "landlock", OWNER, "scope")
    refused = "Operation not permitted\n" * 4
    assert done.stdout == f"{refused}attacked\nthe script goes on\n", done.stderr


@pytest.mark.parametrize("isolation", ["full", "landlock"])
def test_nor_has_what_is_typed_it_signalled(person: Person, isolation: str) -> None:
    def typed(off: str) -> str:
        master, slave = pty.openpty()
        person.stdin = slave
        try:
            started = attacking(person, isolation, TYPED, off, "--ctty")
            assert started.stdout is not None
            said = started.stdout.readline()
            if said != "attacked\n":
                said += started.stdout.readline()
            os.write(master, b"\n")
            return said + person.finish(started).stdout
        finally:
            os.close(master)
            os.close(slave)

    had = "the script had SIGWINCH\n"
    assert typed("scope,owner") == f"attacked\n{had}the script goes on\n"
    assert typed("scope") == "Operation not permitted\nattacked\nthe script goes on\n"
