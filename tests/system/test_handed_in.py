"""What an agent is started with: it has that as it was handed over, and no more."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading

import pytest

from tests.system.conftest import Person, options_here

#: What each agent begins with.
BEGIN = """
import ctypes, json, os, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
def place(path):
    # openat2(2), which is the supervisor's for O_PATH, too: it hands over O_RDONLY
    fd = libc.syscall(437, -100, path.encode(), struct.pack("QQQ", os.O_PATH, 0, 0), 24)
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd
def attempt(work):
    try:
        return work()
    except OSError as problem:
        return problem.strerror
"""
AGENT = """
print(json.dumps({
    "read": attempt(lambda: os.read(os.open("/proc/self/fd/0", os.O_RDONLY), 100).decode()),
    "mode": attempt(lambda: os.fchmod(0, 0o666)),
    "write": attempt(lambda: os.write(os.open("/proc/self/fd/0", os.O_RDWR | os.O_TRUNC), b"x")),
    "log": attempt(lambda: os.read(os.open("/proc/self/fd/2", os.O_RDONLY), 100).decode()),
    "place": attempt(lambda: os.read(place("/proc/self/fd/2"), 100).decode()),
}))
"""
#: What is told of a place that is only looked at, below a directory that somebody hands over.
LOOKER = """
door = socket.socket(socket.AF_UNIX)
door.connect("door")
directory = socket.recv_fds(door, 1, 1)[1][0]
fd = os.open("kept", os.O_PATH, dir_fd=directory)
key = os.open("kept/key", os.O_PATH, dir_fd=directory)
here = f"/proc/self/fd/{fd}"
def watch():
    if libc.inotify_add_watch(libc.inotify_init(), here.encode(), 0x100) < 0:
        raise PermissionError(13, os.strerror(ctypes.get_errno()))
    return "told"
print(json.dumps([
    attempt(lambda: os.read(os.open(f"/proc/self/fd/{key}", os.O_RDONLY), 100).decode()),
    attempt(lambda: os.read(place(f"/proc/self/fd/{key}"), 100).decode()),
    attempt(lambda: os.getxattr(f"/proc/self/fd/{key}", "user.key").decode()),
    attempt(lambda: os.listdir(place(here))),
    attempt(watch),
]))
"""


def _driver(package: str, module: str, change: str) -> str:
    return (
        f"import sys\nfrom safeclaw.{package} import {module}\n{module}.{change}\n"
        "from safeclaw.daemon.cli.main import main\nsys.exit(main())\n"
    )


#: The supervisor with one defence off: a path is believed wherever it is one; whatever is open
#: counts as open for all; a rule may be about what is open.
BELIEVED = _driver("sandbox", "resolve", "Resolver._is_here = lambda *_: True")
HELD = _driver("sandbox", "opens", "_holds = lambda *_: True")
WRITABLE = _driver("policies", "compiled", "_OWN_DESCRIPTORS = 'nowhere'")


def _weaken(person: Person, text: str) -> None:
    driver = person.base / "driver.py"
    driver.write_text(text)
    person.program[1:] = [str(driver)]


def _command(isolation: str = "full", *more: str) -> list[str]:
    run = ["run", *options_here(isolation), "--no-prompt", *more]
    return [*run, "--", "/usr/bin/python3", "-IS", "agent.py"]


def _run(person: Person, isolation: str, redirect: str) -> dict[str, object]:
    person.own()
    person.write("agent.py", BEGIN + AGENT)
    done = person.finish(person.popen(*_command(isolation), redirect=redirect))
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("isolation", ["full", "landlock"])
def test_a_file_of_the_hosts_tmp_is_not_taken_for_one_of_the_sessions(
    person: Person, isolation: str
) -> None:
    given = person.base / "given"  # below /tmp, as a log or a document often is
    if not str(given).startswith("/tmp/"):
        pytest.skip("pytest's directories are not below /tmp")
    given.write_text("given to be read")
    given.chmod(0o600)
    log = person.base / "log"
    log.write_text("of somebody before")
    denied = os.strerror(13)
    found = _run(person, isolation, f"< {given} 2>> {log}")
    no = dict.fromkeys(("mode", "write", "log", "place"), denied)
    assert found == {"read": "given to be read", **no}
    assert (given.read_text(), given.stat().st_mode & 0o777) == ("given to be read", 0o600)
    refused = [one["target"] for one in person.records("--decision", "deny")]
    assert refused[-2:] == [{"path": "unheld:/proc/self/fd/2"}] * 2

    _weaken(person, BELIEVED)
    found = _run(person, isolation, f"< {given} 2>> {log}")
    assert (given.read_text(), given.stat().st_mode & 0o777) == ("x", 0o666)
    assert str(found["log"]).startswith("of somebody before")
    assert str(found["place"]).startswith("of somebody before")


@pytest.mark.parametrize("isolation", ["full", "landlock"])
def test_no_rule_has_it_changed_that_names_all_there_is(person: Person, isolation: str) -> None:
    given = person.base / "given"
    if not str(given).startswith("/tmp/"):
        pytest.skip("pytest's directories are not below /tmp")
    given.write_text("given to be read")
    given.chmod(0o600)
    person.own()
    person.write("agent.py", BEGIN + AGENT)
    person.write(
        "policy.yaml",
        'version: "1.0"\nrules:\n  - {action: shell.execute, effect: allow}\n'
        '  - {action: [file.read, file.write], path: "/**", effect: allow}\n',
    )
    for weak in (False, True):
        if weak:
            _weaken(person, WRITABLE)
        command = _command(isolation, "--policy", "policy.yaml")
        done = person.finish(person.popen(*command, redirect=f"< {given}"))
        assert done.returncode == 0, done.stderr
        changed = (given.read_text(), given.stat().st_mode & 0o777)
        assert changed == (("x", 0o666) if weak else ("given to be read", 0o600)), done.stdout


@pytest.mark.parametrize("isolation", ["full", "landlock"])
def test_a_file_of_another_mount_namespace_is_not_taken_for_the_one_here(
    person: Person, isolation: str
) -> None:
    theirs, place = person.base / "theirs", person.workspace / "place"
    for directory in (theirs, place):
        directory.mkdir()
    given = theirs / "given"
    given.write_text("given to be read")
    given.chmod(0o600)
    person.own()
    person.stdin = subprocess.PIPE
    there = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    there += ['mount --bind "$1" "$2" && echo there && exec cat', "sh", str(theirs), str(place)]
    with person.start(there, person.base) as keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "there\n"
        person.stdin = subprocess.DEVNULL
        redirect = f"< /proc/{keeper.pid}/root{place}/given"
        denied = os.strerror(13)
        found = _run(person, isolation, redirect)
        assert (found["read"], found["mode"], found["write"]) == (
            *("given to be read", denied, denied),
        )
        assert (given.read_text(), given.stat().st_mode & 0o777) == ("given to be read", 0o600)

        _weaken(person, BELIEVED)
        _run(person, isolation, redirect)
        assert (given.read_text(), given.stat().st_mode & 0o777) == ("x", 0o666)
        keeper.stdin.close()


@pytest.mark.parametrize("isolation", ["full", "landlock"])
def test_what_lies_by_a_directory_that_is_handed_over_is_not_read(
    person: Person, isolation: str
) -> None:
    kept = person.base / "kept"
    if not str(kept).startswith("/tmp/"):
        pytest.skip("pytest's directories are not below /tmp")
    kept.mkdir()
    (kept / "key").write_text("what is not the agent's")
    os.setxattr(kept / "key", "user.key", b"nor this")
    person.write("agent.py", BEGIN + LOOKER)
    person.write(
        "policy.yaml",
        'version: "1.0"\nextends: default\nrules:\n'
        '  - {action: network.connect, path: "door", effect: allow}\n',
    )
    directory = os.open(person.base, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(person.workspace / "door"))
        door.listen()
        person.own()

        def hand_over() -> None:
            for _ in range(2):
                with door.accept()[0] as connection:
                    socket.send_fds(connection, [b"x"], [directory])

        threading.Thread(target=hand_over, daemon=True).start()

        def told() -> list[object]:
            done = person.safeclaw(*_command(isolation, "--policy", "policy.yaml"))
            assert done.returncode == 0, done.stderr
            found: list[object] = json.loads(done.stdout)
            return found

        assert told() == [os.strerror(13)] * 5
        refused = person.records("--decision", "deny", "--action", "file.read")
        assert [one["rule"] for one in refused] == ["protected"] * 5
        _weaken(person, BELIEVED)
        assert told() == [*["what is not the agent's"] * 2, "nor this", ["key"], "told"]
    os.close(directory)


def test_a_link_of_the_agents_does_not_make_it_one(person: Person) -> None:
    given = person.base / "kept" / "given"
    if not str(given).startswith("/tmp/"):
        pytest.skip("pytest's directories are not below /tmp")
    given.parent.mkdir()
    given.write_text("given to be read")
    person.own()
    person.write("given", "of the workspace: the same device, under the same name by a link")
    person.write(
        "agent.py",
        "import os\n"
        f"os.symlink({str(person.workspace)!r}, {str(given.parent)!r})\n"
        f"print(os.path.exists({str(given)!r}), flush=True)\n"
        "try:\n"
        "    os.write(os.open('/proc/self/fd/0', os.O_RDWR | os.O_TRUNC), b'x')\n"
        "except PermissionError:\n"
        "    print('denied')\n",
    )
    command = ("run", *options_here(), "--no-prompt", "--", "/usr/bin/python3", "-IS", "agent.py")
    done = person.finish(person.popen(*command, redirect=f"< {given}"))
    assert done.stdout.split() == ["True", "denied"], done.stderr
    assert given.read_text() == "given to be read"


def test_the_other_end_of_a_pipe_is_not_had(person: Person) -> None:
    person.write(
        "agent.py",
        BEGIN + "for number, flags in ((0, os.O_WRONLY), (2, os.O_RDONLY), (0, os.O_RDWR)):\n"
        "    try:\n"
        "        os.open(f'/proc/self/fd/{number}', flags | os.O_NONBLOCK)\n"
        "        print('had')\n"
        "    except PermissionError:\n"
        "        print('denied')\n"
        "try:\n"
        "    print('had', place('/proc/self/fd/2') and '')\n"
        "except PermissionError:\n"
        "    print('denied')\n"
        "print(os.read(os.open('/dev/stdin', os.O_RDONLY), 100))\n"
        "os.write(os.open('/dev/stderr', os.O_WRONLY), b'said')\n",
    )
    command = ["sh", "-c", 'echo in | "$@" 2>&1 >out | cat', "sh"]

    def said() -> list[str]:
        run = person.command(*_command())
        done = person.finish(person.start([*command, *run], person.workspace))
        assert "said" in done.stdout, done.stdout
        return (person.workspace / "out").read_text().split()

    assert said() == [*["denied"] * 4, "b'in\\n'"]
    refused = [one["action"] for one in person.records("--decision", "deny")]
    assert refused == ["file.write.modify", "file.read", "file.write.modify", "file.read"]
    _weaken(person, HELD)
    assert said() == [*["had"] * 4, "b'in\\n'"]
