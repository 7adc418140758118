"""What the journal counts is what the agent did, as strace counts it outside the walls.

The same program runs on two copies of one workspace.  Which line of strace is
which action:

* ``openat`` with O_CREAT is ``file.write.create`` (this agent uses it for new names and
  with O_EXCL only), else O_WRONLY, O_RDWR or O_TRUNC is ``file.write.modify``, and each without
  O_WRONLY is ``file.read`` as well; else it is ``file.read``; ``truncate`` is
  ``file.write.modify``;
* ``mkdir``, ``mknod``, ``symlink`` are ``file.write.create``; ``link``, ``rename``,
  ``unlink`` and ``rmdir``, ``chmod`` are ``file.write.link``, ``.rename``, ``.delete``,
  ``.metadata``; each with its ``…at`` forms;
* the first ``execve`` is ``session.start``, each other one ``shell.execute``, whether
  or not the program is there; what ``/usr/bin/id`` does after its own is left out, for
  inside the walls it never runs;
* ``connect`` is ``network.connect``.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.system.conftest import Person, fields

POLICY = """\
version: "1.0"
description: "sources, two programs and one port"
rules:
  - {action: [file.read, file.write], path: "src/**", effect: allow, reason: "sources"}
  - {action: [file.read, file.write], path: "secrets/**", effect: deny, reason: "no secrets"}
  - {action: file.read, path: "bin/**", effect: allow, reason: "scripts"}
  - {action: shell.execute, command: ["/usr/bin/true *", "bin/tool"], effect: allow}
  - {action: shell.execute, command: "id *", effect: deny, reason: "no names"}
  - {action: network.connect, host: "192.0.2.1", port: 10, effect: allow, reason: "one port"}
  - {action: "*", effect: deny, reason: "everything else"}
"""
ACTIONS = {
    "truncate": "file.write.modify",
    "mkdir": "file.write.create",
    "mknod": "file.write.create",
    "symlink": "file.write.create",
    "link": "file.write.link",
    "rename": "file.write.rename",
    "renameat2": "file.write.rename",
    "unlink": "file.write.delete",
    "rmdir": "file.write.delete",
    "chmod": "file.write.metadata",
    "fchmodat2": "file.write.metadata",
    "execve": "shell.execute",
    "connect": "network.connect",
}
CALL = re.compile(r"(\w+)\((.*)\)\s+= ")


def action(name: str, arguments: str) -> str:
    """Return the action that a line of strace is."""
    if name in ("open", "openat", "openat2", "creat"):
        if "O_CREAT" in arguments or name == "creat":
            return "file.write.create"
        writes = re.search(r"\bO_(WRONLY|RDWR|TRUNC)\b", arguments)
        return "file.write.modify" if writes else "file.read"
    return ACTIONS[name if name in ACTIONS else name.removesuffix("at")]


PYTHON_POLICY = """\
version: "1.0"
description: "what a Python agent and its shell need"
rules:
  - {action: [file.read, file.write], path: "secrets/**", effect: deny, reason: "no secrets"}
  - {action: file.read, path: "**", effect: allow, reason: "the workspace"}
  - {action: file.write, path: "src/**", effect: allow, reason: "sources"}
  - {action: shell.execute, command: ["cat *", "ls *"], effect: allow}
  - {action: "*", effect: deny, reason: "everything else"}
"""
PYTHON_AGENT = """\
import asyncio, json, os, pathlib, subprocess, sys

for number in range(25):
    pathlib.Path(f"src/{number}").open("x").close()
for refused in ("secrets/key", "/etc/shadow", "src/../secrets/key"):
    try:
        open(refused).close()
    except OSError:
        pass
print(len(os.listdir("src")))
subprocess.run("cat src/app.txt; cat secrets/key; ls -l src; no-such-program", shell=True)
subprocess.run(["cat", "src/1"])
sys.exit(7)
"""


def traced(person: Person, where: Path, command: list[str], **more: str) -> Counter[str]:
    """Run a command under strace, outside the walls; return its attempts by action."""
    out = person.base / "strace"
    out.mkdir()
    person.own()
    calls = "open,openat,openat2,creat,truncate,mkdir,mkdirat,mknod,mknodat,symlink,symlinkat,"
    calls += "link,linkat,unlink,unlinkat,rmdir,rename,renameat,renameat2,chmod,fchmodat,"
    calls += "fchmodat2,chown,lchown,fchownat,fchmod,fchown,utimensat,setxattr,removexattr,"
    calls += "execve,execveat,connect,bind,sendto,sendmsg,sendmmsg"
    strace = ["strace", "-ff", "-e", f"trace=?{calls.replace(',', ',?')}", "-e", "signal=none"]
    # What safeclaw itself needs of PYTHONPATH does not reach the agent inside, either.
    more = {"PYTHONPATH": "", **more}
    ended = person.finish(person.start([*strace, "-o", f"{out}/pid", *command], where, **more))
    assert ended.returncode == 7, ended.stderr
    found: Counter[str] = Counter()
    for trace in out.iterdir():
        for line in trace.read_text().splitlines():
            if line.startswith("+++"):
                continue
            call = CALL.match(line)
            assert call is not None, line
            name, arguments = call.groups()
            found[action(name, arguments)] += 1
            if re.search(r"O_(CREAT|RDWR|TRUNC)", arguments) and "O_WRONLY" not in arguments:
                found["file.read"] += 1
            if name == "execve" and arguments.startswith('"/usr/bin/id"'):
                break
    found["shell.execute"] -= 1
    found["session.start"] += 1
    return found


@pytest.fixture(name="agent", scope="module")
def _agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("agent") / "agent"
    source = Path(__file__).parent / "mixed_agent.c"
    subprocess.run(
        ["gcc", "-O1", "-pthread", "-Wno-unused-result", "-o", program, source], check=True
    )
    return program


def test_the_journal_counts_what_strace_counts_and_each_refusal_once(
    person: Person, agent: Path
) -> None:
    shutil.copy(agent, person.workspace / "agent")
    person.write("src/app.txt", "application\n")
    person.write("secrets/key", "hunter2\n")
    (person.workspace / "src/to-secret").symlink_to("../secrets/key")
    person.write("bin/tool", "#!/bin/sh\necho tool\n", 0o755)
    outside = person.base / "outside"
    shutil.copytree(person.workspace, outside, symlinks=True)
    workspace = person.workspace
    policy = person.base / "counted.yaml"
    policy.write_text(POLICY)
    person.own()
    counted = traced(person, outside, ["./agent"])
    ended = person.safeclaw("run", "--policy", str(policy), "--", "./agent")

    assert ended.returncode == 7, ended.stderr
    decisions = person.records("--type", "decision")
    assert len({record["session"] for record in decisions}) == 1
    assert Counter(record["action"] for record in decisions) == counted
    numbers = [record["attempt"] for record in decisions]
    assert len(set(numbers)) == len(numbers)

    # On disk: what was allowed is done, what was refused is not.
    assert (workspace / "secrets/key").read_text() == "hunter2\n"
    assert (workspace / "src/app.txt").read_text() == "a"
    assert not (workspace / "secrets/new").exists()
    assert not (workspace / "elsewhere").exists()
    assert sorted(os.listdir(workspace / "secrets")) == ["key"]
    assert len(list((workspace / "src").glob("child*"))) == 30

    secret = str(workspace / "secrets/key")
    assert Counter(
        (record["action"], *shown(record["target"]), record["rule"], record["reason"])
        for record in decisions
        if record["decision"] == "deny"
    ) == Counter(
        {
            ("file.read", secret, "counted:2", "no secrets"): 3,
            ("file.write.modify", secret, "counted:2", "no secrets"): 1,
            ("file.write.metadata", secret, "counted:2", "no secrets"): 1,
            ("file.write.delete", secret, "counted:2", "no secrets"): 1,
            ("file.write.create", f"{workspace}/secrets/new", "counted:2", "no secrets"): 1,
            (
                "file.write.rename",
                f"{workspace}/src/new10",
                f"{workspace}/secrets/taken",
                "counted:2",
                "no secrets",
            ): 1,
            ("file.read", "/etc/shadow", "counted:7", "everything else"): 1,
            ("file.write.create", f"{workspace}/elsewhere", "counted:7", "everything else"): 1,
            ("shell.execute", f"{workspace}/bin/absent", "counted:7", "everything else"): 1,
            ("shell.execute", "/usr/bin/id", "counted:5", "no names"): 2,
            ("network.connect", "192.0.2.1:9", "counted:7", "everything else"): 1,
            ("network.connect", f"{workspace}/src/socket", "counted:7", "everything else"): 1,
        }
    )
    digest = hashlib.sha256(policy.read_bytes()).hexdigest()
    assert {fields(record["policy"])["sha256"] for record in decisions} == {digest}


def test_the_journal_counts_what_a_python_agent_and_its_shells_did(person: Person) -> None:
    python = shutil.which("python3", path="/usr/bin")
    assert python is not None
    person.write("agent.py", PYTHON_AGENT)
    person.write("src/app.txt", "application\n")
    person.write("secrets/key", "hunter2\n")
    outside = person.base / "outside"
    shutil.copytree(person.workspace, outside)
    policy = person.base / "python.yaml"
    policy.write_text(PYTHON_POLICY)
    person.own()

    # A refused program must not look for translations of what it has to say about that.
    counted = traced(person, outside, [python, "agent.py"], LC_ALL="C")
    ended = person.safeclaw("run", "--policy", str(policy), "--", python, "agent.py", LC_ALL="C")

    assert ended.returncode == 7, ended.stderr
    assert "hunter2" not in ended.stdout
    decisions = person.records("--type", "decision")
    assert Counter(record["action"] for record in decisions) == counted


def shown(target: object) -> tuple[str, ...]:
    """Return the names in a recorded target."""
    words = {key: str(value) for key, value in fields(target).items()}
    if "address" in words:
        return (f"{words['address']}:{words['port']}",)
    if "program" in words:
        return (words["program"],)
    return tuple(words.values())
