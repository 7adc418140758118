"""The seeds' policies, unchanged, hold a real agent; refusals are proven on disk."""

from __future__ import annotations

import json

from tests.seed_policies import CC61, ROLE
from tests.system.conftest import Person

AGENT = """\
import json, os, subprocess, sys

said = {}

def attempt(name, call):
    try:
        said[name] = ["done", str(call())]
    except (OSError, subprocess.SubprocessError) as problem:
        said[name] = ["refused", getattr(problem, "errno", None)]

attempt("read", lambda: open("src/app.py").read())
attempt("write", lambda: open("src/new.py", "w").write("made = 1\\n"))
attempt("secret", lambda: open("secrets/key").read())
attempt("symlink", lambda: (os.symlink("../secrets/key", "src/s"), open("src/s").read()))
attempt("hardlink", lambda: (os.link("secrets/key", "src/h"), open("src/h").read()))
attempt("rename", lambda: os.rename("secrets/key", "src/k"))
attempt("dotdot", lambda: open("src/../secrets/key").read())
attempt("root", lambda: open("/proc/self/root" + os.getcwd() + "/secrets/key").read())
attempt("cwd", lambda: open("/proc/self/cwd/secrets/key").read())
attempt("overwrite", lambda: open("secrets/key", "r+").write("gone"))
attempt("delete", lambda: os.unlink("secrets/key"))
attempt("subprocess", lambda: subprocess.check_output(["cat", "secrets/key"]))
attempt("shell", lambda: subprocess.check_output(["sh", "-c", "read x < secrets/key && echo $x"]))
attempt("sudo", lambda: subprocess.check_output(["sudo", "id"]))
attempt("outside", lambda: open("other", "w"))
print(json.dumps(said))
"""


def test_the_agent_reads_and_writes_src_and_nothing_else(person: Person) -> None:
    policy = person.write("cc61.yaml", CC61)
    person.write("src/app.py", "app = 1\n")
    secret = person.write("secrets/key", "hunter2\n")
    person.write("src/agent.py", AGENT)

    done = person.safeclaw("run", "--policy", str(policy), "--", "python3", "src/agent.py")

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said.pop("read") == ["done", "app = 1\n"]
    assert said.pop("write") == ["done", "9"]
    assert {name: result[0] for name, result in said.items()} == dict.fromkeys(said, "refused")
    assert "hunter2" not in done.stdout
    assert secret.read_text() == "hunter2\n"
    assert secret.stat().st_nlink == 1
    assert (person.workspace / "src/new.py").read_text() == "made = 1\n"
    assert not (person.workspace / "other").exists()
    assert not (person.workspace / "src/h").exists()

    denied = person.records("--decision", "deny")
    assert all(record["rule"] and record["reason"] and record["policy"] for record in denied)
    reads = [r for r in denied if r["target"] == {"path": str(secret)}]
    assert {r["action"] for r in reads} >= {"file.read"}
    verified = person.safeclaw("audit", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_the_role_applies_and_does_not_delete_even_behind_a_shell(person: Person) -> None:
    policy = person.write("role.yaml", ROLE)
    person.write("dist/app", "built\n")
    bin_dir = person.base / "bin"
    bin_dir.mkdir()
    kubectl = bin_dir / "kubectl"
    kubectl.write_text('#!/bin/sh\necho kubectl "$@"\n')
    kubectl.chmod(0o755)
    person.own()
    path = f"{bin_dir}:/usr/bin:/bin"

    done = person.safeclaw(
        "run", "--policy", str(policy), "--", "sh", "-c",
        "kubectl apply -f x; kubectl delete y; echo after $?",
        PATH=path,
    )  # fmt: skip

    assert "kubectl apply -f x" in done.stdout, done.stderr
    assert "kubectl delete y" not in done.stdout
    assert "after 126" in done.stdout
    assert "kubectl delete y" in done.stderr
