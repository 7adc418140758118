"""Opening again what was opened before: the short way judges and records as the long one."""

from __future__ import annotations

import json

from tests.system.conftest import Person

POLICY = """\
version: "1.0"
rules:
  - {action: file, path: "secrets/**", effect: deny}
  - {action: file, path: "**", effect: allow}
  - {action: shell.execute, command: ["python3 *", "true"], effect: allow}
"""

AGENT = """\
import json, os, subprocess, sys

said = {}

def read(name):
    fd = os.open(name, os.O_RDONLY)
    try:
        return os.read(fd, 100).decode(), os.get_blocking(fd), os.get_inheritable(fd)
    finally:
        os.close(fd)

def refused(call):
    try:
        return ["done", str(call())]
    except OSError as problem:
        return ["refused", problem.errno]

def often(name):
    return [list(read(name)) for _ in range(20)][-1]

here = os.getcwd()
said["plain"] = often(here + "/dir/plain")
said["relative"] = often("dir/plain")
directory = os.open("dir", os.O_RDONLY)
said["at"] = [os.close(os.open("plain", os.O_RDONLY, dir_fd=directory)) for _ in range(20)][-1]
said["link"] = often(here + "/link")

# the link, the directory and the file are put in another's place
os.unlink("link"); os.symlink("secrets/key", "link")
said["link swapped"] = refused(lambda: read(here + "/link"))
os.rename("dir", "old"); os.symlink("secrets", "dir")
said["directory swapped"] = refused(lambda: read(here + "/dir/plain"))
said["relative swapped"] = refused(lambda: read("dir/plain"))
os.unlink("dir"); os.rename("old", "dir")
said["back"] = often(here + "/dir/plain")
os.chdir("dir"); said["from there"] = often("plain"); os.chdir("..")
os.unlink("dir/plain")
said["deleted"] = refused(lambda: read(here + "/dir/plain"))
os.mkfifo("dir/plain")
other = os.fork()
if other == 0:
    try:
        read(here + "/dir/plain")  # waits for a writer, and nobody else for it
    finally:
        os._exit(0)
said["others go on"] = often(here + "/other")
os.kill(other, 9); os.waitpid(other, 0)

# another program in the same process, and a child that shares the memory until its exec
for _ in range(3):
    said["vfork"] = subprocess.run(["true"], close_fds=False).returncode
if len(sys.argv) == 1:
    sys.stdout.write(json.dumps(said) + "\\n"); sys.stdout.flush()
    os.unlink("dir/plain"); open("dir/plain", "w").write("plain"); os.unlink("link")
    os.symlink("dir/plain", "link")
    os.execv(sys.executable, ["python3", here + "/agent.py", "again"])
print(json.dumps(said))
"""


def test_what_was_opened_before_is_judged_by_where_it_leads_now(person: Person) -> None:
    person.write("agent.py", AGENT)
    person.write("dir/plain", "plain")
    person.write("other", "other")
    person.write("secrets/key", "secret")
    person.write("secrets/plain", "secret")
    (person.workspace / "link").symlink_to("dir/plain")
    person.own()
    policy = person.base / "policy.yaml"
    policy.write_text(POLICY)
    done = person.safeclaw("run", "--policy", str(policy), "--", "python3", "agent.py")
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert json.loads(line) == {
            "plain": ["plain", True, False],
            "relative": ["plain", True, False],
            "at": None,
            "link": ["plain", True, False],
            "link swapped": ["refused", 13],
            "directory swapped": ["refused", 13],
            "relative swapped": ["refused", 13],
            "back": ["plain", True, False],
            "from there": ["plain", True, False],
            "deleted": ["refused", 2],
            "others go on": ["other", True, False],
            "vfork": 0,
        }
    assert len(done.stdout.splitlines()) == 2
    workspace = str(person.workspace)
    opened = [
        (record["target"], record["decision"], record["subject"])
        for record in person.records()
        if record["type"] == "decision" and record["action"] == "file.read"
    ]

    def count(name: str, decision: str) -> int:
        target = {"path": f"{workspace}/{name}"}
        return sum(found == target and verdict == decision for found, verdict, _ in opened)

    # 20 each by its whole name, as a relative one, from the directory, through the link,
    # after the move back and from inside, and the FIFO once; twice over, by two programs
    assert count("dir/plain", "allow") >= 2 * 6 * 20
    assert count("dir/plain", "allow") <= 2 * (6 * 20 + 3)
    assert count("other", "allow") == 2 * 20
    assert count("secrets/key", "deny") == 2
    assert count("secrets/plain", "deny") == 4
    assert count("secrets/key", "allow") == count("secrets/plain", "allow") == 0


BECOMES_FIFO = """\
import os, signal

class Rings(Exception):
    pass

def ring(*_):
    raise Rings

def swap(name):
    open(name, "w").write("plain")
    for _ in range(20):
        os.close(os.open(name, os.O_RDONLY))
        os.close(os.open(name, os.O_RDONLY | os.O_SYNC))  # never the short way
    os.mkfifo("fifo")
    os.rename("fifo", name)

signal.signal(signal.SIGALRM, ring)
for flags in (os.O_RDONLY, os.O_RDONLY | os.O_SYNC):
    name = f"{os.getcwd()}/file-{flags}"
    swap(name)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        os.open(name, flags)  # nobody writes
    except Rings:
        print("waits")
    for _ in range(100):
        child = os.fork()
        if not child:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            writer = os.open(name, os.O_WRONLY)
            os.write(writer, b"words")
            os._exit(0)
        reader = os.open(name, flags)
        assert os.get_blocking(reader)
        assert os.read(reader, 10) == b"words"
        assert os.waitpid(child, 0)[1] == 0
        os.close(reader)
    swap(name + "-again")
    assert os.read(os.open(name + "-again", flags | os.O_NONBLOCK), 1) == b""
print("done")
"""


def test_a_remembered_name_that_becomes_a_fifo_is_opened_as_one(person: Person) -> None:
    person.write("agent.py", BECOMES_FIFO)
    policy = person.base / "policy.yaml"
    policy.write_text(POLICY)
    done = person.safeclaw("run", "--policy", str(policy), "--", "python3", "agent.py")
    assert done.stdout.split() == ["waits", "waits", "done"], done.stderr
