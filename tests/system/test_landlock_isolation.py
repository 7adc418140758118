"""Isolation without namespaces: what holds in their place, on a host that has none.

Every attack of tests/escape is mounted in this isolation as well; here is what only it has:
the end of a session without a PID namespace, names without a network of its own, and what
its first record says is missing.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from tests.system.conftest import Person, fields
from tests.system.outside import TRY, Outside, outside, run
from tests.system.outside_world import EVIL, GOOD
from tests.system.test_doctor import NO_NAMESPACES, behind
from tests.system.work import at_work, broker_of, gone, recorded, supervisor_killed, whole

__all__ = ["outside"]

LANDLOCK = ("--isolation", "landlock")
EVERYTHING = """\
version: "1.0"
rules:
  - {action: [file.read, file.write], path: "/**", effect: allow}
  - {action: shell.execute, effect: allow}
"""


def everything(person: Person, agent: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a Python agent that may do all with files."""
    chosen = person.write("policy.yaml", EVERYTHING)
    person.write("agent.py", agent)
    return person.safeclaw(
        "run", *LANDLOCK, "--policy", str(chosen), *options, "--", "/usr/bin/python3", "agent.py"
    )


def test_it_runs_where_no_namespace_can_be_made_and_says_what_is_missing(person: Person) -> None:
    ran = behind(person, NO_NAMESPACES, "run", *LANDLOCK, "-v", "--", "sh", "-c", "echo here > it")
    assert ran.returncode == 0, ran.stderr
    assert (person.workspace / "it").read_text() == "here\n"
    (start,) = person.records("--type", "session_start")
    walls = fields(fields(start["detail"])["walls"])
    assert walls["isolation"] == "landlock"
    missing = walls["missing"]
    assert isinstance(missing, list)
    for layer in ("mount", "pid", "net", "ipc"):
        assert any(str(entry).startswith(f"{layer} namespace: ") for entry in missing)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    assert all(str(entry) in ran.stderr for entry in missing)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def test_full_isolation_is_refused_where_no_namespace_can_be_made(person: Person) -> None:
    ran = behind(person, NO_NAMESPACES, "run", "--", "touch", "made")
    assert ran.returncode == 125
    assert "no user namespace can be made here" in ran.stderr
    assert "--isolation landlock" in ran.stderr.partition("hint: ")[2]
    assert not (person.workspace / "made").exists()


def test_no_terminal_of_the_host_is_made(person: Person) -> None:
    """As docs/compatibility.md says: there is no instance of devpts that is the session's own."""
    script = (
        "import os\ntry:\n    os.openpty()\nexcept OSError as problem:\n    print(problem.errno)\n"
    )
    assert everything(person, script).stdout == "2\n"


def test_full_isolation_is_missing_nothing(person: Person) -> None:
    assert person.safeclaw("run", "--", "true").returncode == 0
    (start,) = person.records("--type", "session_start")
    walls = fields(fields(start["detail"])["walls"])
    assert (walls["isolation"], walls["missing"]) == ("full", [])


# --- the end of a session


def test_a_killed_supervisor_takes_every_process_along(person: Person) -> None:
    supervisor_killed(person, *LANDLOCK)


def test_a_killed_broker_stops_every_process(person: Person) -> None:
    with at_work(person, *LANDLOCK) as work, broker_of(person) as broker:
        signal.pidfd_send_signal(broker, signal.SIGKILL)
        ended = work.ended()
        work.over()
    assert ended.returncode == 128 + signal.SIGKILL
    assert work.made() <= recorded(person)
    whole(person)


def test_a_killed_keeper_takes_every_process_along_and_not_the_broker(person: Person) -> None:
    with at_work(person, *LANDLOCK) as work, broker_of(person) as broker:
        (keeper,) = (
            pid
            for pid in Path(f"/proc/{work.process.pid}/task/{work.process.pid}/children")
            .read_text()
            .split()
            # the other one with a child has left the group: see sandbox/group.py
            if Path(f"/proc/{pid}/task/{pid}/children").read_text()
            and os.getpgid(int(pid)) == os.getpgid(work.process.pid)
        )
        os.kill(int(keeper), signal.SIGKILL)
        ended = work.ended()
        work.over()
        gone(broker)
    assert ended.returncode == 128 + signal.SIGKILL
    (end,) = person.records("--type", "session_end")
    assert end["reason"] == "the agent has ended"
    whole(person)


def test_what_the_agent_leaves_behind_ends_with_it(person: Person) -> None:
    os.mkfifo(person.workspace / "fifo")
    person.own()
    reader = os.open(person.workspace / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    # a daemon that left its session and its parent, and one that forks faster than it dies
    done = everything(
        person,
        "import os, signal\n"
        "held = os.open('fifo', os.O_WRONLY)\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        signal.pause()\n"
        "    os._exit(0)\n"
        "for _ in range(20):\n"
        "    if os.fork() == 0:\n"
        "        while True:\n"
        "            try:\n"
        "                os._exit(0) if os.fork() else None\n"
        "            except OSError:\n"
        "                pass\n"
        "os._exit(5)\n",
    )
    assert done.returncode == 5, done.stderr
    assert os.read(reader, 1) == b""  # nobody holds it any more
    os.close(reader)


# --- what belongs to others


def test_only_the_sessions_own_processes_exist(person: Person) -> None:
    done = everything(
        person,
        "import json, os, subprocess, time\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os.setsid()\n"
        "    time.sleep(1000)\n"
        "def can(path):\n"
        "    try:\n"
        "        return bool(open(path, 'rb').read())\n"
        "    except OSError:\n"
        "        return False\n"
        "print(json.dumps([can(f'/proc/{who}/{what}')\n"
        "    for what in ('status', 'cmdline', 'environ')\n"
        "    for who in ('self', child, 1, os.getppid())]))\n",
    )
    found = json.loads(done.stdout)
    assert found[:8] == [True, True, False, False] * 2, done.stderr
    assert found[8:] == [True, True, False, False]


#: The leader of a terminal's session, with a job in the background and one in front of it.
JOBS = """\
import os, signal, sys

def front():
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)

# the victim has it from its first moment: so that what it is sent can be seen to wait
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTIN})
victim = os.fork()
if not victim:
    os.setpgid(0, 0)
    os.execvp("sleep", ["sleep", "1000"])
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTTIN})
try:
    os.setpgid(victim, victim)
except PermissionError:
    pass  # it has done so, and is another program by now
job = os.fork()
if not job:
    front()
    os.execvp(sys.argv[1], [*sys.argv[1:], str(victim)])
os.waitpid(job, 0)
fields = dict(line.split(":", 1) for line in open(f"/proc/{victim}/status"))
print("to stop" if int(fields["ShdPnd"], 16) >> signal.SIGTTIN - 1 & 1 else "as it was")
os.kill(victim, signal.SIGKILL)
"""
#: Has the kernel stop all of a group, whose member reads the terminal in the background.
STOP = """\
import os, sys
child = os.fork()
if not child:
    try:
        os.setpgid(0, int(sys.argv[1]))
    except OSError as problem:
        print(problem.strerror, flush=True)
        os._exit(0)
    os.read(0, 1)
os.waitpid(child, os.WUNTRACED)
os.setpgid(0, 0)
"""


def test_no_other_job_of_the_terminal_is_stopped(person: Person) -> None:
    person.write("jobs.py", JOBS)
    person.write("stop.py", STOP)
    chosen = str(person.write("policy.yaml", EVERYTHING))
    stop = ("/usr/bin/python3", "stop.py")

    def said(*job: str) -> list[str]:
        master, slave = pty.openpty()
        person.stdin = slave
        leader = ["setsid", "--ctty", "--wait", "/usr/bin/python3", "jobs.py"]
        try:
            return person.finish(person.start([*leader, *job], person.workspace)).stdout.split("\n")
        finally:
            os.close(master)
            os.close(slave)

    assert said(*stop) == ["to stop", ""]
    inside = person.command("run", *LANDLOCK, "--no-prompt", "--policy", chosen, "--", *stop)
    assert said(*inside) == ["Operation not permitted", "as it was", ""]


def test_a_shell_has_jobs_of_its_own(person: Person) -> None:
    done = everything(
        person,
        "import errno, os, subprocess\n"
        "for wrong in (-1, -os.getpid()):\n"
        "    try:\n"
        "        os.setpgid(0, wrong)\n"
        "    except OSError as problem:\n"
        "        print(errno.errorcode[problem.errno])\n"
        "script = 'set -m; true | true | cat; (exit 3) | (exit 4)'\n"
        "raise SystemExit(subprocess.call(['bash', '-c', script]))\n",
    )
    assert (done.returncode, done.stdout, done.stderr) == (4, "EINVAL\nEINVAL\n", "")


def test_the_rest_of_tmp_is_not_the_sessions(person: Person) -> None:
    theirs = Path("/tmp") / f"safeclaw-theirs-{os.getpid()}"
    theirs.write_text("theirs")
    theirs.chmod(0o666)
    try:
        done = everything(
            person,
            "import json, multiprocessing, os, sys, tempfile\n"
            "def attempt(call, *words):\n"
            "    try:\n"
            "        return bool(call(*words))\n"
            "    except OSError:\n"
            "        return False\n"
            f"print(json.dumps([attempt(open, {str(theirs)!r}),\n"
            f"    attempt(open, {str(theirs)!r}, 'w'),\n"
            f"    attempt(open, {str(theirs) + '-new'!r}, 'w'),\n"
            f"    attempt(os.link, {str(theirs)!r}, 'linked'),\n"
            "    attempt(tempfile.NamedTemporaryFile), attempt(multiprocessing.Lock),\n"
            "    os.environ['TMPDIR']]))\n",
        )
        found = json.loads(done.stdout)
        assert found[:6] == [False, False, False, False, True, True], done.stderr
        assert theirs.read_text() == "theirs"
        assert not Path(found[6]).exists()  # it has gone with the session
        # each refusal is one in the record, whatever the policy says; what is not there is no news
        denied = person.records("--decision", "deny", "--action", "file.write.create")
        assert [one["target"] for one in denied] == [
            {"path": f"{theirs}{end}"} for end in ("", "-new")
        ]
        assert {one["rule"] for one in denied} == {"protected"}
        assert f"denied file.write.create {theirs}-new [protected]" in done.stderr
    finally:
        theirs.unlink()


#: The supervisor as on a host whose /tmp is a link to another directory.
LINKED = """
import sys
from safeclaw.daemon.cli.main import main
from safeclaw.sandbox import confine
confine.PRIVATE = ({},)
sys.exit(main())
"""


def test_where_tmp_is_a_link_what_it_leads_to_is_held_back(person: Person) -> None:
    (person.base / "real").mkdir()
    (person.base / "real/theirs").write_text("theirs")
    (person.base / "link").symlink_to("real")
    driver = person.base / "driver.py"
    person.program[1:] = [str(driver)]
    agent = f"import os; print(os.listdir({str(person.base / 'real')!r}))"
    for private, read in (("'/nowhere'", True), (repr(str(person.base / "link")), False)):
        driver.write_text(LINKED.format(private))
        ran = everything(person, agent)
        assert (ran.returncode == 0, "theirs" in ran.stdout) == (read, read), ran.stderr


TAKE = """\
import json, os, sys
for name in sys.argv[1:]:
    for flags in (os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_CREAT):
        try:
            print(json.dumps(os.readlink(f"/proc/self/fd/{os.open(name, flags)}")))
        except OSError:
            pass
"""


def test_what_is_held_back_is_not_opened_by_making_it(person: Person) -> None:
    person.write("take.py", TAKE)
    victim = person.start(["sleep", "1000"], person.workspace)
    try:
        held_back = (f"/proc/{victim.pid}/mem", "/dev/ptmx")
        take = ("/usr/bin/python3", "take.py", *held_back)
        outside = person.finish(person.start([*take], person.workspace))
        assert {json.loads(line) for line in outside.stdout.splitlines()} == {*held_back}
        chosen = str(person.write("policy.yaml", EVERYTHING))
        inside = person.safeclaw("run", *LANDLOCK, "--policy", chosen, "--", *take)
        assert inside.returncode == 0, inside.stderr
        assert inside.stdout == ""
    finally:
        victim.kill()
        victim.communicate()


def test_the_sessions_directories_go_with_it_whatever_ends_it(person: Person) -> None:
    """A directory that nobody may write in, and a supervisor that is killed."""
    agent = (
        "import os, time\n"
        "for place in (os.environ['TMPDIR'], '/dev/shm'):\n"
        "    os.makedirs(place + '/kept/deep')\n"
        "    open(place + '/kept/deep/file', 'w').close()\n"
        "    os.symlink(os.getcwd(), place + '/kept/deep/link')\n"
        "    for name in ('/kept/deep', '/kept'):\n"
        "        os.chmod(place + name, 0o500)\n"
        "    held = os.open(place + '/kept', os.O_RDONLY)\n"
        "    print(os.readlink(f'/proc/self/fd/{held}'), flush=True)\n"
        "if os.path.exists('stay'):\n"
        "    time.sleep(1000)\n"
    )
    done = everything(person, agent)
    assert done.returncode == 0, done.stderr
    first = places(done.stdout)
    person.write("stay", "")
    with person.popen(
        "run", *LANDLOCK, "--policy", "policy.yaml", "--", "/usr/bin/python3", "agent.py"
    ) as running:
        assert running.stdout is not None
        second = places(running.stdout.readline() + running.stdout.readline())
        assert all(place.is_dir() for place in second)
        running.kill()
        assert running.stdout.read() == ""  # the last process that had it has gone
    assert not any(place.exists() for place in (*first, *second))
    assert person.workspace.stat().st_mode & 0o777 == 0o755  # no link was followed


def test_a_directory_deeper_than_any_stack_goes_with_the_session(person: Person) -> None:
    agent = (
        "import os\n"
        "place = os.environ['TMPDIR']\n"
        "os.chdir(place)\n"
        "for _ in range(1900):\n"
        "    os.mkdir('d')\n"
        "    os.chdir('d')\n"
        "open('file', 'w').close()\n"
        "print(place)\n"
        "raise SystemExit(7)\n"
    )
    done = everything(person, agent)
    assert (done.returncode, done.stderr) == (7, "")
    assert not Path(done.stdout.strip()).exists()
    (end,) = person.records("--type", "session_end")
    assert fields(end["detail"])["status"] == 7


def places(said: str) -> list[Path]:
    """Return the session's two directories, as the agent has printed them."""
    return [Path(line).parent for line in said.splitlines()]


# --- names and addresses


def test_a_name_that_a_rule_spells_out_is_reached_and_nothing_else(
    person: Person, outside: Outside
) -> None:
    agent = f"""
print(json.dumps([fetch("{GOOD}", 8443), fetch("api.good.test", 8443), fetch("{GOOD}", 8443),
    fetch("evil.test"), fetch("{EVIL}"), fetch("loop.good.test", 7777), fetch("127.0.0.1", 7777),
    fetch("six.good.test")]))
"""
    rule = "action: network, host: [api.good.test, loop.good.test, '*.good.test'], effect: allow"
    done = run(person, (rule,), TRY + agent, *LANDLOCK)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert f"hello from tcp {GOOD}:8443\n" in found[1:3], done.stderr
    assert found[1] == found[2]
    assert all("hello" not in answer for answer in (found[0], *found[3:]))
    seen = outside.seen()
    assert set(seen) == {"dns", f"tcp {GOOD}:8443"}
    # six.good.test is known by a wildcard only: nobody asks for it
    assert set(seen["dns"]) == {"api.good.test", "loop.good.test"}
    resolved = person.records("--action", "network.resolve")
    assert {str(fields(record["target"])["name"]) for record in resolved} == set(seen["dns"])


@pytest.mark.parametrize("words", [("--isolation", "paper"), ("--allow-degraded", "paper")])
def test_an_unknown_isolation_or_layer_is_a_usage_error(
    person: Person, words: tuple[str, str]
) -> None:
    done = person.safeclaw("run", *words, "--", "sh", "-c", "echo ran > ran")
    assert done.returncode == 2
    assert "hint: th" in done.stderr
    assert not (person.workspace / "ran").exists()
