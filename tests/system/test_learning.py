"""Learning: a run that is only observed, and the policy that is suggested from it."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.conftest import Person, options_here
from tests.system.test_examples import prepare

NOTHING = """\
version: "1.0"
rules:
  - action: "*"
    effect: deny
"""

AGENT = """\
import os, subprocess, sys, tempfile

open("out/result.txt", "w").write(open("data/in.txt").read().upper())
handle, name = tempfile.mkstemp(dir="out")
os.close(handle)
os.rename(name, "out/renamed")
os.mkdir("made")
for name in ("a", "b", "c"):
    open(f"made/{name}", "w").close()
print(subprocess.run(["ls", "data"], capture_output=True, text=True, check=True).stdout)
print(open(os.environ["OUTSIDE"]).read())
if "more" in sys.argv:
    for path in ("other.txt", "data/key.pem", os.path.dirname(os.environ["OUTSIDE"]) + "/second"):
        try:
            print("got", open(path).read())
        except PermissionError:
            print("refused", path)
        except FileNotFoundError:
            print("hidden", path)
    try:
        os.unlink("data/in.txt")
    except PermissionError:
        print("refused deletion")
    try:
        subprocess.run(["id"], check=True)
    except PermissionError:
        print("refused id")
"""


@pytest.fixture
def outside(person: Person) -> Iterator[Path]:
    """A directory outside the workspace: not in /tmp, which each session has of its own."""
    entry = pwd.getpwnam(person.name)
    directory = Path(tempfile.mkdtemp(prefix="safeclaw-outside-", dir=entry.pw_dir))
    (directory / "file").write_text("from outside\n")
    (directory / "second").write_text("second\n")
    if os.geteuid() == 0:
        for path in (directory, *directory.iterdir()):
            os.chown(path, entry.pw_uid, entry.pw_gid)
    yield directory
    shutil.rmtree(directory)


def set_up(person: Person) -> None:
    """Make the workspace."""
    person.write("agent.py", AGENT)
    person.write("data/in.txt", "data\n")
    person.write("data/key.pem", "a private key\n")
    person.write("other.txt", "other\n")
    (person.workspace / "out").mkdir()
    person.own()


def run(person: Person, *words: str, outside: Path) -> subprocess.CompletedProcess[str]:
    """Run the agent; it is told of the file outside by a variable."""
    return person.safeclaw("run", *words, OUTSIDE=str(outside / "file"))


def tidy(person: Person) -> None:
    """Make the workspace what it was before the agent ran."""
    for path in (*person.workspace.glob("out/*"), *person.workspace.glob("made/*")):
        path.unlink()
    (person.workspace / "made").rmdir()


def with_variable(policy: str) -> str:
    """Let the agent have its variable."""
    return policy + 'environment: {pass: ["OUTSIDE"]}\n'


def test_an_observed_run_is_let_through_and_its_suggestion_fits_it(
    person: Person, outside: Path
) -> None:
    set_up(person)
    policy = str(person.write("nothing.yaml", with_variable(NOTHING)))
    agent = ("--", "python3", "agent.py")

    refused = run(person, "--policy", policy, *agent, outside=outside)
    assert refused.returncode != 0
    assert not (person.workspace / "out/result.txt").exists()

    observed = run(person, "--observe", "--policy", policy, *agent, outside=outside)
    assert observed.returncode == 0, observed.stderr
    assert "from outside" in observed.stdout
    assert (person.workspace / "out/result.txt").read_text() == "DATA\n"
    assert "would deny file.write.create" in observed.stderr
    assert "safeclaw: denied" not in observed.stderr
    would = [r for r in person.records("--decision", "deny") if r["enforced_by"] == "observe"]
    assert {r["action"] for r in would} >= {"file.read", "file.write.create", "shell.execute"}

    suggested = person.safeclaw("policy", "suggest")
    assert suggested.returncode == 0, suggested.stderr
    fitting = str(person.write("fitting.yaml", with_variable(suggested.stdout)))
    tidy(person)
    again = run(person, "--policy", fitting, *agent, outside=outside)
    assert again.returncode == 0, again.stderr + suggested.stdout
    assert again.stdout == observed.stdout
    assert "denied" not in again.stderr
    assert (person.workspace / "out/result.txt").read_text() == "DATA\n"

    tidy(person)
    more = run(person, "--policy", fitting, *agent, "more", outside=outside)
    assert "got" not in more.stdout
    assert "refused other.txt" in more.stdout
    assert "refused data/key.pem" in more.stdout
    assert "refused deletion" in more.stdout
    assert "refused id" in more.stdout
    assert (person.workspace / "data/in.txt").read_text() == "data\n"


#: What asks for more than its name says, or for names that nobody chose.
MUCH = """
import ctypes, fcntl, multiprocessing, os, shutil, socket, sqlite3, subprocess, tempfile

os.link("pre/a", "pre/linked")
assert ctypes.CDLL(None).renameat2(-100, b"pre/a", -100, b"pre/b", 2) == 0
os.close(os.open("pre/a", os.O_RDWR))
os.close(os.open("pre/b", os.O_RDONLY | os.O_TRUNC))
with tempfile.NamedTemporaryFile("w", dir=".", delete=False) as made:
    made.write("made")
os.rename(made.name, "final")
shutil.rmtree(tempfile.mkdtemp())
tempfile.TemporaryFile(dir="pre").close()
with open("lock", "w+") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX)
os.unlink("lock")
base = sqlite3.connect("base.db")
base.execute("pragma journal_mode=wal")
base.execute("create table t (a)")
base.commit()
base.close()
multiprocessing.Lock()
listening = socket.socket(socket.AF_UNIX)
listening.bind("pre/socket")
listening.listen()
socket.socket(socket.AF_UNIX).connect("pre/socket")
with socket.socket() as served:
    served.bind(("127.0.0.1", 0))
    served.listen()
    socket.create_connection(served.getsockname()).close()
script = "sort -o pre/linked pre/linked; sed -i s/a/b/ pre/linked; mv $(mktemp -p .) kept; ls"
subprocess.run(["sh", "-c", script], check=True, stdout=subprocess.DEVNULL)
print("all of it")
"""


def test_what_was_observed_under_a_policy_that_allows_it_is_suggested_whole(
    person: Person,
) -> None:
    def run_anew(*options: str) -> None:
        for name in os.listdir(person.workspace):
            if name not in ("agent.py", "suggested.yaml"):
                path = person.workspace / name
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in ("a", "b"):
            person.write(f"pre/{name}", name)
        person.own()
        done = person.safeclaw("run", *options, "--", "/usr/bin/python3", "agent.py")
        assert (done.returncode, done.stdout) == (0, "all of it\n"), done.stderr
        assert "denied" not in done.stderr

    person.write("agent.py", MUCH)
    run_anew("--observe")
    person.write("suggested.yaml", person.safeclaw("policy", "suggest").stdout)
    run_anew("--policy", "suggested.yaml")
    read = person.records("--action", "file.read", "--decision", "allow")
    # to lock a file it was made, and opened to be read as well
    assert sum("/lock" in str(record["target"]) for record in read) == 2


def test_what_is_protected_stays_so_under_observation(person: Person) -> None:
    in_force = person.write(".safeclaw/policy.yaml", NOTHING)
    state = person.state / "safeclaw"
    person.write(
        "agent.py",
        "import os, sys\n"
        "def attempt(what, call):\n"
        "    try:\n"
        "        call()\n"
        "        print('done', what)\n"
        "    except OSError as problem:\n"
        "        print('refused', what)\n"
        "attempt('append', lambda: open('.safeclaw/policy.yaml', 'a').write('# mine'))\n"
        "attempt('away', lambda: os.rename('.safeclaw', 'away'))\n"
        "open('mine', 'w').write('mine')\n"
        "attempt('over', lambda: os.rename('mine', '.safeclaw/policy.yaml'))\n"
        "attempt('link', lambda: os.link('mine', '.safeclaw/more.yaml'))\n"
        "attempt('up', lambda: os.rename(os.getcwd(), os.getcwd() + '-away'))\n"
        f"attempt('journal', lambda: os.listdir({str(state / 'journal')!r}))\n"
        "attempt('kernel', lambda: open('/proc/sys/kernel/core_pattern', 'r+').close())\n"
        "attempt('other', lambda: open('allowed', 'w').write('x'))\n",
    )
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    done = person.safeclaw("run", "--observe", "--", "python3", "agent.py")
    assert done.returncode == 0, done.stderr
    said = done.stdout.split("\n")
    assert [line for line in said if line.startswith("done")] == ["done other"]
    assert in_force.read_text() == NOTHING
    assert sorted(path.name for path in in_force.parent.iterdir()) == ["policy.yaml"]
    assert (person.workspace / "allowed").read_text() == "x"
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before
    denied = [r for r in person.records("--decision", "deny") if r["rule"] == "protected"]
    assert denied
    assert all(record["enforced_by"] != "observe" for record in denied)


def test_names_that_do_not_exist_are_recorded_but_not_shown(person: Person) -> None:
    person.write("nothing.yaml", NOTHING)
    done = person.safeclaw(
        "run", "--policy", "nothing.yaml", "--", "sh", "-c", "/nowhere/program; cat </nowhere/file"
    )
    assert "denied" not in done.stderr
    absent = [r for r in person.records("--decision", "deny") if r["enforced_by"] == "absent"]
    assert {"/nowhere/program", "/nowhere/file"} <= {
        r["target"]["path"]  # type: ignore[index]
        for r in absent
    }
    shown = person.safeclaw("audit", "show", "--decision", "deny").stdout
    assert "deny shell.execute /nowhere/program (not there) [nothing:1]" in shown


def test_a_secret_is_left_out_with_a_warning(person: Person) -> None:
    person.write("nothing.yaml", NOTHING)
    person.write(".env", "TOKEN=hunter2\n")
    person.write("plain", "plain\n")
    script = "read x < .env; read y < plain; echo $x $y"
    done = person.safeclaw("run", "--observe", "--policy", "nothing.yaml", "--", "sh", "-c", script)
    assert "hunter2 plain" in done.stdout, done.stderr
    suggested = person.safeclaw("policy", "suggest")
    assert "  # SECRET, left out" in suggested.stdout
    assert 'left out, look at it: - {action: file.read, path: ".env", effect: allow}' in (
        suggested.stderr
    )
    person.write("fitting.yaml", suggested.stdout)
    again = person.safeclaw("run", "--policy", "fitting.yaml", "--", "sh", "-c", script)
    assert "hunter2" not in again.stdout
    assert "plain" in again.stdout


@pytest.mark.parametrize("words", [("--session", "nobody"), ("--since", "soon"), ("--since", "1s")])
def test_a_suggestion_from_nothing_says_so(person: Person, words: tuple[str, ...]) -> None:
    person.write("nothing.yaml", NOTHING)
    person.safeclaw("run", "--policy", "nothing.yaml", "--", "true")
    if words == ("--since", "1s"):
        words = ("--since", "2999-01-01")
    done = person.safeclaw("policy", "suggest", *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("safeclaw: ")
    assert "hint: " in done.stderr


def test_a_suggestion_that_is_no_policy_for_its_length_says_so(person: Person) -> None:
    names = "for number in range(1500): open(str(number) + 'x' * 200, 'w').close()"
    person.write("nothing.yaml", NOTHING)
    done = person.safeclaw(
        "run", "--observe", "--policy", "nothing.yaml", "-q", "--", "/usr/bin/python3", "-c", names
    )
    assert done.returncode == 0, done.stderr
    done = person.safeclaw("policy", "suggest")
    assert (done.returncode, done.stdout) == (125, "")
    assert "what was done takes a policy of " in done.stderr
    assert "hint: for a session that did less: " in done.stderr


def test_the_suggestion_for_mini_swe_agent_is_short_and_passes_the_same_run(
    ordinary_user: str, tmp_path: Path
) -> None:
    base = tmp_path / "run"
    base.mkdir()
    name = "root" if os.geteuid() == 0 else ordinary_user
    person = Person(name, base, [sys.executable, "-m", "safeclaw.daemon.cli"], {})
    (person.base / "policies").mkdir()
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    prepare(person, "mini_swe")
    observed = person.safeclaw("run", "--observe", "--", "mini_swe.py", PATH=path)
    assert observed.returncode == 0, observed.stderr
    suggested = person.safeclaw("policy", "suggest", PATH=path)
    text = suggested.stdout
    assert len(text.splitlines()) < 40, text

    subprocess.run(["rm", "-rf", str(person.workspace), str(person.base / "outside")], check=True)
    person.workspace.mkdir()
    prepare(person, "mini_swe")
    policy = person.base / "policies" / "fitting.yaml"
    policy.write_text(text)
    again = person.safeclaw("run", "--policy", str(policy), "--", "mini_swe.py", PATH=path)
    assert again.returncode == 0, again.stderr + text
    assert "denied" not in again.stderr
    assert "Submitted" in again.stdout


@pytest.mark.parametrize("isolation", ["full", "landlock"])
def test_a_program_that_a_run_makes_runs_under_its_suggestion(
    person: Person, isolation: str
) -> None:
    script = (
        "for name in tool build/tool; do mkdir -p build; cp /usr/bin/true $name; ./$name; done; "
        "rm -r build tool; mkdir build; cp /usr/bin/true build/tool; build/tool && echo ran"
    )
    person.write("nothing.yaml", NOTHING)
    command = ("--", "sh", "-c", script)
    observed = person.safeclaw("run", "--observe", "--policy", "nothing.yaml", *command)
    assert observed.stdout == "ran\n", observed.stderr
    suggested = person.safeclaw("policy", "suggest").stdout
    person.write("fitting.yaml", suggested)
    shutil.rmtree(person.workspace / "build")
    again = person.safeclaw("run", "--policy", "fitting.yaml", *options_here(isolation), *command)
    assert (again.stdout, again.stderr) == ("ran\n", ""), suggested


def test_several_sessions_of_a_workspace_make_one_suggestion(person: Person) -> None:
    person.write("nothing.yaml", NOTHING)
    for name in ("one", "two"):
        person.write(name, f"{name}\n")
        ran = person.safeclaw(
            "run", "--observe", "--policy", "nothing.yaml", "--", "sh", "-c", f"read x < {name}"
        )
        assert ran.returncode == 0, ran.stderr
    newest = person.safeclaw("policy", "suggest").stdout
    assert '"two"' in newest
    assert '"one"' not in newest
    both = person.safeclaw("policy", "suggest", "--since", "1h").stdout
    assert '["one", "two"]' in both
    first = person.records("--type", "session_start")[0]["session"]
    chosen = person.safeclaw("policy", "suggest", "--json", "--session", str(first))
    assert '"one"' in json.loads(chosen.stdout)["text"]


def test_what_was_really_refused_is_not_suggested(person: Person) -> None:
    person.write("nothing.yaml", NOTHING)
    person.write("plain", "plain\n")
    person.safeclaw("run", "--policy", "nothing.yaml", "--", "sh", "-c", "read x < plain")
    suggested = person.safeclaw("policy", "suggest").stdout
    assert "plain" not in suggested
    assert "# Not in here: what it was really refused" in suggested
