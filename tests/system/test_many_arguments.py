"""Execs with megabytes of arguments have their turns, and neither memory nor anybody else's time.

Nothing here is timed: the first of them waits for a person, who is the test, and all the others
for the first, until the test says so.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.system.conftest import Person
from tests.system.test_stall import approval, line, waiting

COUNT, WORDS, LENGTH = 24, 45, 130_000
POLICY = """\
version: "1.0"
rules:
  - {action: file.read, path: "**", effect: allow}
  - {action: shell.execute, command: "true *", effect: ask, reason: "the test says when"}
  - {action: shell.execute, command: "python3 *", effect: allow}
"""
#: Does what it is told by lines.  Its children execute with all that a kernel takes.
AGENT = f"""\
import os, resource, signal, sys

resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY,) * 2)
much = {{f"V{{number}}": "x" * {LENGTH} for number in range({WORDS})}}
heard, says = os.pipe()
os.set_blocking(says, False)
# children have it from their first moment: what is written is written by the handler itself
signal.set_wakeup_fd(says, warn_on_full_buffer=False)
signal.signal(signal.SIGUSR1, lambda *_: None)

def child(number):
    if pid := os.fork():
        return pid
    while True:
        try:
            os.execve("/usr/bin/true", ["true", str(number)], much)
        except InterruptedError:
            pass  # the signal came before the supervisor had heard of the call (seccomp(2))
        except OSError as problem:
            os._exit(problem.errno)

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

children = []
for command in sys.stdin:
    if command == "start\\n":
        children += [child(len(children))]
    elif command == "others\\n":
        children += [child(number) for number in range(1, {COUNT})]
        print("started", flush=True)
    elif command == "open\\n":
        os.close(os.open("data", os.O_RDONLY))
        print("opened", flush=True)
    elif command == "signal\\n":
        os.kill(children[1], signal.SIGUSR1)
        print("signalled", os.read(heard, 1) == bytes([signal.SIGUSR1]), flush=True)
    elif command == "kill\\n":
        for pid in children[2:]:
            os.kill(pid, signal.SIGKILL)
        print("killed", {{ended(pid) for pid in children[2:]}}, flush=True)
    elif command == "end\\n":
        print("ended", [ended(pid) for pid in children[:2]], flush=True)
        children = []
for pid in children:
    os.kill(pid, signal.SIGKILL)
"""


def _tell(running: subprocess.Popen[str], command: str) -> None:
    assert running.stdin is not None
    running.stdin.write(command + "\n")
    running.stdin.flush()


def peak(pid: int) -> int:
    """Return the most memory that a process has had so far, in MiB (proc_pid_status(5))."""
    found = re.search(r"^VmHWM:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) // 1024


def test_execs_with_full_argument_lists_wait_their_turn_and_hold_up_nobody_else(
    person: Person,
) -> None:
    person.stdin = subprocess.PIPE
    person.write("data", "data")
    person.write("agent.py", AGENT)
    (person.base / "policy.yaml").write_text(POLICY)
    person.own()
    policy = str(person.base / "policy.yaml")
    with person.popen("run", "--policy", policy, "--", "/usr/bin/python3", "agent.py") as running:
        before = peak(running.pid)
        _tell(running, "start")
        first = approval(running)
        _tell(running, "others")
        assert line(running) == "started"
        _tell(running, "open")
        assert line(running) == "opened"
        # who waits for its turn has its signals seen to, and goes on waiting
        _tell(running, "signal")
        assert line(running) == "signalled True"
        assert waiting(person) == [first]
        # who is killed while it waits is in nobody's way
        _tell(running, "kill")
        assert line(running) == "killed {-9}"
        assert person.safeclaw("approvals", "approve", first).returncode == 0
        second = approval(running)
        assert person.safeclaw("approvals", "approve", second).returncode == 0
        _tell(running, "end")
        assert line(running) == "ended [0, 0]"
        # all of them are 134 MiB
        assert peak(running.pid) - before < 64
        assert running.stdin is not None
        running.stdin.close()
        assert running.wait() == 0
    assert person.safeclaw("audit", "verify").returncode == 0
