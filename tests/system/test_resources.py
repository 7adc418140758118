"""A policy's ``resources:``: what is over the limit does not happen, and the journal says so.

Limits of the whole session need a delegated cgroup.  Here is what needs none, and what is said
where there is none.
"""

from __future__ import annotations

import subprocess

import pytest

from tests.system.conftest import SLOWNESS, Person, fields, options_here

ISOLATIONS = ("full", "landlock")


def run(
    person: Person, isolation: str, resources: str, agent: str, *options: str
) -> subprocess.CompletedProcess[str]:
    """Run a Python agent that may do all with files and programs, within the limits."""
    chosen = person.write(
        "policy.yaml",
        f"""\
version: "1.0"
resources: {{{resources}}}
rules:
  - {{action: [file.read, file.write], path: ["**", "/usr/**", "/lib*/**", "/etc/**"],
     effect: allow}}
  - {{action: shell.execute, effect: allow}}
""",
    )
    person.write("agent.py", agent)
    return person.safeclaw(
        *("run", *options_here(isolation), "--policy", str(chosen), *options),
        *("--", "/usr/bin/python3", "agent.py"),
    )


def limits(person: Person) -> list[str]:
    """Return the names of the limits that the journal says were reached."""
    return [str(fields(one["detail"])["limit"]) for one in person.records("--type", "limit")]


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_file_grows_to_the_limit_and_no_further_by_no_call(
    person: Person, isolation: str
) -> None:
    done = run(
        person,
        isolation,
        "file_size: 64K",
        "import os, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "def attempt(call, *words):\n"
        "    try:\n"
        "        call(*words)\n"
        "    except OSError as problem:\n"
        "        print(problem.errno, flush=True)\n"
        "file = os.open('file', os.O_RDWR | os.O_CREAT)\n"
        "os.pwrite(file, b'x' * 65536, 0)\n"
        "attempt(os.pwrite, file, b'x', 65536)\n"
        "attempt(os.ftruncate, file, 65537)\n"
        "attempt(os.truncate, 'file', 65537)\n"
        "attempt(os.posix_fallocate, file, 65536, 1)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "os.pwrite(file, b'x', 65536)\n",
    )
    assert done.stdout.split() == ["27"] * 4, done.stderr  # EFBIG
    assert (person.workspace / "file").stat().st_size == 65536
    assert done.returncode == 128 + 25  # SIGXFSZ
    assert limits(person) == ["file_size"]


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_process_has_so_many_open_files_and_cannot_raise_it(
    person: Person, isolation: str
) -> None:
    done = run(
        person,
        isolation,
        "open_files: 64",
        "import os, resource\n"
        "try:\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (65, 65))\n"
        "except ValueError:\n"
        "    print('kept')\n"
        "held = []\n"
        "try:\n"
        "    while True:\n"
        "        held.append(os.open('agent.py', os.O_RDONLY))\n"
        "except OSError as problem:\n"
        "    print(problem.errno, max(held))\n",
    )
    assert done.stdout.split() == ["kept", "24", "63"], done.stderr  # EMFILE


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_the_clock_ends_a_session_and_all_of_it(person: Person, isolation: str) -> None:
    done = run(
        person,
        isolation,
        "wall_time: 1s",
        "import os, signal\n"
        "if not os.fork():\n"
        "    os.setsid()\n"
        "os.set_blocking(1, True)\n"
        "while True:\n"
        "    signal.pause()\n",
    )
    # the child held stdout: that its end was seen says that it has gone
    assert done.returncode == 128 + 9
    assert "wall_time" in done.stderr
    assert limits(person) == ["wall_time"]


def test_a_clock_that_runs_for_longer_than_any_call_waits_ends_nothing(person: Person) -> None:
    done = run(person, "full", "wall_time: 90d", "print('done')")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert person.records("--type", "violation") == []


def ended_by_the_clock(
    person: Person, command: list[str], said: str
) -> subprocess.CompletedProcess[str]:
    """Run a command under a policy.yaml whose clock ends it, once it has come to say this.

    On a busy machine that takes its time: then it is given more.
    """
    for number, seconds in enumerate((2, 10, 50), 1):
        limit = f"resources: {{wall_time: {seconds * SLOWNESS}s}}"
        person.write("policy.yaml", f'version: "1.0"\nextends: default\n{limit}\n')
        done = person.finish(person.start(command, person.workspace))
        assert done.returncode == 128 + 9, done.stderr
        assert limits(person) == ["wall_time"] * number, done.stderr
        if said in done.stdout:
            return done
    pytest.fail(f"it never said {said!r}")


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_the_clock_does_not_wait_for_a_terminal_that_the_agent_has_stopped(
    person: Person, isolation: str
) -> None:
    person.write(
        "agent.py",
        "import fcntl, os, termios\n"
        "print('terminal', os.isatty(1), flush=True)\n"
        "fcntl.ioctl(1, termios.TCXONC, termios.TCOOFF)\n"
        "os.execv('/bin/sleep', ['sleep', 'infinity'])\n",
    )
    command = person.command("run", *options_here(isolation), "--policy", "policy.yaml", "--")
    terminal = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    # without site: what a machine has its path made of may be denied, which would be said there
    agent = ["/usr/bin/python3", "-IS", "agent.py"]
    started = ["/usr/bin/python3", "-c", terminal, *command, *agent]
    done = ended_by_the_clock(person, started, "terminal True\n")
    assert done.stdout.split() == ["terminal", "True"]  # the line on the limit is lost


#: Has calls that wait hold every descriptor that the supervisor may have.
_HOARDS = """\
import array, os, socket, threading
ours, _theirs = socket.socketpair()
ours.setblocking(False)
try:
    while True:
        ours.send(b"-" * 4096)
except BlockingIOError:
    ours.setblocking(True)
null = os.open("/dev/null", os.O_RDONLY)
none_left = threading.Event()

def hold():
    count = 253
    while count:
        passed = array.array("i", [null] * count)
        try:
            ours.sendmsg([b"-"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
        except OSError:
            count //= 2
    none_left.set()

for _ in range(32):
    threading.Thread(target=hold, daemon=True).start()
none_left.wait()
print("none left", flush=True)
while True:
    try:
        os.close(os.open("/etc/passwd", os.O_RDONLY))
    except OSError:
        pass
"""


#: A supervisor that takes every call to be held up, as on a machine that is very slow.
_HURRIED = """\
import sys
from safeclaw.daemon.cli.main import main
from safeclaw.sandbox import relief
relief.PATIENCE = 0.0
sys.exit(main())
"""


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_the_clock_ends_a_session_whose_supervisor_has_no_descriptor_left(
    person: Person, isolation: str
) -> None:
    person.write("agent.py", _HOARDS)
    driver = person.base / "driver.py"
    driver.write_text(_HURRIED)
    plain, person.program = person.program, [person.program[0], str(driver)]
    command = person.command("run", *options_here(isolation), "--policy", "policy.yaml", "--")
    few = ["sh", "-c", 'ulimit -n 1024; exec "$@"', "sh"]
    agent = ["/usr/bin/python3", "-IS", "agent.py"]
    person.program = plain
    done = ended_by_the_clock(person, [*few, *command, *agent], "none left\n")
    assert done.stdout == "none left\n", done.stderr


def test_a_process_has_so_much_of_the_processor(person: Person) -> None:
    done = run(
        person,
        "full",
        "cpu_time: 1s",
        "while True:\n    pass\n",
        "--allow-degraded",
        "cgroup",
    )
    # SIGXCPU; where the session has a cgroup, it may be seen first that all of it has used so much
    assert done.returncode in (128 + 24, 128 + 9)
    assert limits(person) == ["cpu_time"]


def test_a_session_has_so_many_processes(person: Person) -> None:
    if person.name == "root":
        return  # RLIMIT_NPROC does not bind root: a cgroup does, see below
    done = run(
        person,
        "full",
        "processes: 5",
        "import os, signal\n"
        "made = []\n"
        "try:\n"
        "    while len(made) < 50:\n"
        "        child = os.fork()\n"
        "        if not child:\n"
        "            signal.pause()\n"
        "        made.append(child)\n"
        "except OSError as problem:\n"
        "    print(problem.errno, len(made))\n"
        "for child in made:\n"
        "    os.kill(child, 9)\n",
    )
    assert done.stdout.split() == ["11", "4"], done.stderr  # EAGAIN


EATS = "try:\n    held = bytearray(256 << 20)\nexcept MemoryError:\n    print('no more')\n"


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_memory_of_a_session_needs_a_cgroup_and_nothing_runs_without(
    person: Person, isolation: str
) -> None:
    done = run(person, isolation, "memory: 128M", "open('ran', 'w')\n" + EATS)
    assert done.returncode == 125, "this host delegates a cgroup"
    assert "cgroup" in done.stderr
    assert "hint: " in done.stderr
    assert "--allow-degraded cgroup" in done.stderr
    assert not (person.workspace / "ran").exists()


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_without_the_cgroup_memory_is_bound_by_process_and_the_record_says_so(
    person: Person, isolation: str
) -> None:
    done = run(person, isolation, "memory: 128M", EATS, "--allow-degraded", "cgroup")
    assert done.stdout == "no more\n", done.stderr
    (start,) = person.records("--type", "session_start")
    walls = fields(fields(start["detail"])["walls"])
    assert walls["resources"] == ["memory: 134217728 bytes of data in each process, RLIMIT_DATA"]
    assert "cgroup: limits hold each process" in str(walls["missing"])
