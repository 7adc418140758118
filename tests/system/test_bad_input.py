"""What a person can get wrong, and what a host can lack: a clear error, the right status.

Every command here also proves that the agent did not run, or that nothing of its
record was lost; none may end in a traceback.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

import pytest

from tests.system.conftest import Person

#: The agent that must not run: it would leave this file.
AGENT = ("sh", "-c", "echo ran > ran")


def clear(ended: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """Assert the status, the words, and that nobody sees the inside."""
    said = ended.stdout + ended.stderr
    assert ended.returncode == status, said
    assert "Traceback" not in said
    for word in words:
        assert word in ended.stderr, said


def refused(person: Person, status: int, *words: str, run: tuple[str, ...], **more: str) -> None:
    """Assert that ``safeclaw run`` refuses, says why, and starts nothing."""
    clear(person.safeclaw("run", *run, **more), status, "safeclaw: ", *words)
    assert not (person.workspace / "ran").exists()


# --- locales


def test_a_locale_in_which_names_are_not_read_as_policies_is_refused(person: Person) -> None:
    # without these two Python reads the C locale's names as UTF-8
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    hint = "LC_ALL=C.UTF-8"
    refused(person, 125, "names of files read as ascii", hint, run=("--", *AGENT), **locale)
    clear(person.safeclaw("run", "--", *AGENT, LC_ALL="C"), 0)


# --- policies


MISTAKES = """\
version: "3"
color: red
rules:
  - action: file.read
    path: 7
    effect: allow
    efect: allow
  - action: file.raed
    path: "src/**"
    effect: maybe
  - action: file.read
    action: file.write
    effect: deny
  - just words
  - path: []
    action: file.read
    effect: allow
  - action: shell.execute
    path: "src/**"
mode: strict
resources:
  memory: lots
environment: [PATH]
"""
FOUND = (
    "1:10: unknown version '3'",
    "2:1: unknown key 'color' in a policy",
    "5:11: 'path' must be text, not a number",
    "7:5: unknown key 'efect' in a rule; did you mean 'effect'?",
    "8:13: action: unknown action 'file.raed'; did you mean 'file.read'?",
    "10:13: unknown effect 'maybe'",
    "12:5: the key 'action' stands twice (first on line 11)",
    "14:5: a rule must be a mapping, not text",
    "15:11: the list of 'path' is empty",
    "18:5: the rule has no 'effect'",
    "19:5: 'path' says nothing about shell.execute",
    "20:7: unknown value 'strict'",
    "22:11: memory: 'lots' is no size",
    "23:14: environment must be a mapping, not a list",
)


def test_every_mistake_in_a_policy_is_named_with_its_place_at_once(person: Person) -> None:
    name = str(person.write("bad.yaml", MISTAKES))

    checked = person.safeclaw("policy", "check", name)

    assert checked.returncode == 1
    assert "Traceback" not in checked.stderr
    lines = checked.stdout.splitlines()
    assert [line for line in lines if not line.startswith(f"{name}:")] == []
    for found in FOUND:
        assert any(line.startswith(f"{name}:{found}") for line in lines), (found, checked.stdout)
    assert len(lines) == len(FOUND)
    # A run says the same, and starts nothing.
    refused(person, 125, *(f"{name}:{found}" for found in FOUND), run=("--policy", name, *AGENT))


WHOLE = {
    "empty": ("", "1:1: the policy is empty"),
    "no rules": ('version: "1.0"\nrules: []\n', "2:8: the list of rules is empty"),
    "too large": ("#" * 300_000, "1:1: too large: "),
    "too deep": ('version: "1.0"\nrules: ' + "[" * 40 + "]" * 40, "2:39: nested too deep"),
    "not yaml": ('version: "1.0"\nrules: [\n', "3:1: not valid YAML"),
    "not a mapping": ("- version\n", "1:1: a policy is a mapping"),
    "an alias": ('version: &v "1.0"\nrules: *v\n', "2:8: an alias (*v) is not allowed"),
    "a tag": ("version: !!python/name:os.system x\n", "1:10: the tag "),
    "control": ('version: "1.0"\nrules: \x1b[2J\n', "2:8: character U+001B is not allowed"),
}


def test_what_is_wrong_with_a_whole_policy_is_named_with_its_place(person: Person) -> None:
    names = {
        kind: str(person.write(f"{number}.yaml", text))
        for number, (kind, (text, _)) in enumerate(WHOLE.items())
    }
    binary = person.write("binary.yaml", "")
    binary.write_bytes(b'version: "1.0"\nrules: \xff\n')

    checked = person.safeclaw("policy", "check", *names.values(), str(binary))

    assert checked.returncode == 1
    assert "Traceback" not in checked.stderr
    for kind, (_, found) in WHOLE.items():
        assert f"{names[kind]}:{found}" in checked.stdout, kind
    assert f"{binary}:2:8: not UTF-8: byte 0xff" in checked.stdout
    refused(
        person, 125, WHOLE["too deep"][1], run=("--policy", names["too deep"], *AGENT)
    )  # fmt: skip


def test_a_policy_that_cannot_be_read_is_refused(person: Person) -> None:
    locked = person.write("locked.yaml", 'version: "1.0"\nrules: []\n', 0o000)
    os.mkfifo(person.workspace / "fifo.yaml")
    (person.workspace / "directory.yaml").mkdir()
    person.own()
    if person.uid != 0:
        refused(person, 125, f"{locked}: cannot be read: Permission denied",
                run=("--policy", str(locked), *AGENT))  # fmt: skip
        checked = person.safeclaw("policy", "check", str(locked))
        assert checked.returncode == 1
        assert f"{locked}: cannot be read: Permission denied" in checked.stdout
    refused(person, 125, "absent.yaml: cannot be read", run=("--policy", "absent.yaml", *AGENT))
    refused(person, 125, "no such policy file", "shipped are claude-code, codex, coding-agent,",
            run=("--policy", "absent", *AGENT))  # fmt: skip
    refused(person, 125, "fifo.yaml: not a regular file", run=("--policy", "fifo.yaml", *AGENT))
    refused(person, 125, "directory.yaml: ", run=("--policy", "directory.yaml", *AGENT))
    # The workspace's own, which nobody named, is not passed over either.
    person.write(".safeclaw/policy.yaml", "rules: []\n")
    refused(person, 125, ".safeclaw/policy.yaml:1:1: the key 'version' is missing", run=AGENT)


# --- commands


def test_a_command_that_cannot_be_started_ends_as_env_would(person: Person) -> None:
    person.write("plain", "echo ran > ran\n")
    person.write("directory/file", "")
    refused(person, 127, "no-such-program: not found on PATH", run=("no-such-program",))
    refused(person, 127, "./absent: not found", run=("./absent",))
    refused(person, 126, "./plain: not executable", "hint: chmod +x ./plain", run=("./plain",))
    refused(person, 126, "./directory: is a directory", run=("./directory",))
    # What only the kernel finds out, after the walls are up.
    person.write("garbage", "\x7fELF, but no program\n", 0o755)
    refused(person, 126, "garbage: Exec format error", run=("./garbage",))
    # Every session that was opened is also closed in the record, with the reason.
    ends = person.records("--type", "session_end")
    assert len(ends) == 5
    assert "not found on PATH" in str(ends[0]["reason"])
    assert "Exec format error" in str(ends[-1]["reason"])
    assert person.safeclaw("audit", "verify").returncode == 0


def test_a_wrong_command_line_is_a_usage_error(person: Person) -> None:
    refused(person, 2, "no command to run", "hint: ", run=())
    refused(person, 2, "--frob: no such option", run=("--frob", *AGENT))
    refused(person, 2, "--policy needs a value", run=("--policy",))
    refused(person, 2, "--grace soon: seconds", run=("--grace", "soon", *AGENT))
    refused(person, 2, "the workspace absent cannot be used", "hint: ",
            run=("--workspace", "absent", *AGENT))  # fmt: skip
    clear(person.safeclaw("frob"), 2, "frob: no such command", "hint: ")
    clear(person.safeclaw("audit", "frob"), 2, "No such command 'frob'")
    clear(person.safeclaw("audit", "show", "--last", "few"), 2, "'few' is not a valid")
    clear(person.safeclaw("audit", "show"), 125, "no journal here", "hint: ")


def test_a_directory_that_is_gone_is_no_workspace(person: Person) -> None:
    (person.workspace / "gone").mkdir()
    person.own()
    text = 'cd gone && rmdir ../gone && exec "$@"'
    command = ["sh", "-c", text, "sh", *person.command("run", *AGENT)]
    ended = person.finish(person.start(command, person.workspace))
    clear(ended, 2, "the workspace . cannot be used: No such file or directory", "hint: ")


def test_a_file_is_no_workspace(person: Person) -> None:
    person.write("file", "")
    ended = person.safeclaw("run", "--workspace", "file", *AGENT)
    clear(ended, 2, "the workspace file cannot be used: Not a directory", "hint: ")


# --- the state directory


def test_a_state_directory_that_cannot_be_used_stops_the_start(person: Person) -> None:
    person.write("file", "")
    refused(person, 125, "cannot be used: Not a directory", "hint: set XDG_STATE_HOME",
            run=AGENT, XDG_STATE_HOME=str(person.workspace / "file"))  # fmt: skip
    refused(person, 125, "cannot be used: No such file or directory",
            run=AGENT, XDG_STATE_HOME="/proc")  # fmt: skip
    shared = person.base / "shared" / "safeclaw"
    shared.mkdir(parents=True)
    person.own()
    shared.chmod(0o777)
    refused(person, 125, "is open to other users", "hint: chmod 700",
            run=AGENT, XDG_STATE_HOME=str(shared.parent))  # fmt: skip
    if person.uid != 0:
        shared.chmod(0o500)
        refused(person, 125, "Permission denied", "hint: set XDG_STATE_HOME",
                run=AGENT, XDG_STATE_HOME=str(shared.parent))  # fmt: skip
        shared.parent.chmod(0o500)
        refused(person, 125, "Permission denied", "hint: set XDG_STATE_HOME",
                run=AGENT, XDG_STATE_HOME=f"{shared.parent}/deeper")  # fmt: skip
    assert not list(shared.iterdir())


def test_somebody_elses_state_directory_is_refused(person: Person, ordinary_user: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("not root: cannot give a directory to somebody else")
    other = ordinary_user if person.uid == 0 else "root"
    state = person.base / "others" / "safeclaw"
    state.mkdir(parents=True)
    os.chown(state, pwd.getpwnam(other).pw_uid, -1)
    state.chmod(0o700)
    refused(person, 125, "belongs to another user", "hint: ",
            run=AGENT, XDG_STATE_HOME=str(state.parent))  # fmt: skip


# --- descriptors and variables


def test_closed_descriptors_lose_no_record_and_change_no_status(person: Person) -> None:
    script = "read x < /etc/shadow; echo done > done; exit 3"
    for number, redirect in enumerate((">&-", "2>&-", "<&- >&- 2>&-"), 1):
        ended = person.safeclaw("run", "--", "sh", "-c", script, redirect=redirect)
        clear(ended, 3)
        done = person.workspace / "done"
        assert done.read_text() == "done\n"
        done.unlink()
        denied = person.records("--decision", "deny", "--action", "file.read")
        assert [record["target"] for record in denied] == [{"path": "/etc/shadow"}] * number
        # The person is told wherever there is a stderr to tell it on.
        assert ("denied file.read /etc/shadow" in ended.stderr) == ("2>&-" not in redirect)
    assert person.safeclaw("audit", "verify").returncode == 0


@pytest.mark.parametrize("redirect", [">&-", ">/dev/full"])
def test_output_that_cannot_be_written_is_an_error(person: Person, redirect: str) -> None:
    assert person.safeclaw("run", "--", "true").returncode == 0
    why = "Bad file descriptor" if redirect == ">&-" else "No space left on device"
    for words in (
        ("audit", "show"),
        ("audit", "verify"),
        ("audit", "verify", "--json"),
        ("policy", "show", "default"),
        ("policy", "check", "absent"),
        ("run", "--help"),
        ("--help",),
    ):
        ended = person.safeclaw(*words, redirect=redirect)
        clear(ended, 125, f"safeclaw: {' '.join(words[:2])}: {why}\nhint: ")
        assert len(ended.stderr.splitlines()) == 2
    assert person.safeclaw("audit", "verify").returncode == 0


def test_an_error_with_a_closed_stderr_keeps_its_status(person: Person) -> None:
    for status, words in (
        (127, ("run", "no-such-program")),
        (125, ("run", "--policy", "absent", "true")),
        (2, ("frob",)),
        (2, ("audit", "frob")),
    ):
        assert person.safeclaw(*words, redirect="2>&-").returncode == status


def test_without_home_the_persons_own_home_is_meant(person: Person) -> None:
    home = Path(pwd.getpwnam(person.name).pw_dir).resolve()
    policy = person.write(
        "home.yaml",
        'version: "1.0"\nrules:\n'
        '  - {action: file.read, path: "~/no-such-file", effect: deny, reason: "mine"}\n'
        '  - {action: shell.execute, command: "cat *", effect: allow}\n'
        '  - {action: "*", effect: deny}\n',
    )
    command = person.command("run", "--policy", str(policy), "--", "cat", f"{home}/no-such-file")
    for change in ("LANG=C", "-uHOME", "HOME="):
        bare = person.start(["env", change, *command], person.workspace)
        clear(person.finish(bare), 1)
    denied = person.records("--decision", "deny", "--action", "file.read")
    found = [(record["rule"], record["target"]) for record in denied]
    assert found == [("home:1", {"path": f"{home}/no-such-file"})] * 3


def test_a_script_whose_interpreter_is_not_there_ends_with_127(person: Person) -> None:
    person.write("script", "#!/no/such/interpreter\n", 0o755)
    refused(person, 127, "script: No such file or directory", run=("./script",))


def test_what_may_be_written_but_cannot_be_made_is_said(person: Person) -> None:
    home = Path(pwd.getpwnam(person.name).pw_dir)
    rules = "".join(
        f'  - {{action: file.write, path: "{path}", effect: allow}}\n'
        for path in ("~/not-there/**", "not-there-either/**", "/tmp/nor-this/**")
    )
    person.write("policy.yaml", f'version: "1.0"\nextends: default\nrules:\n{rules}')
    script = "mkdir not-there-either /tmp/nor-this; mkdir ~/not-there || exit 3"
    done = person.safeclaw("run", "--policy", "policy.yaml", "--", "sh", "-c", script)
    assert done.returncode == 3, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "is not there" in line]
    assert line.startswith(f"safeclaw: {home}/not-there, which the policy lets the agent write")


# --- names that are no text


def test_a_workspace_and_a_policy_may_have_names_that_are_not_utf8(person: Person) -> None:
    odd = os.fsdecode(b"odd-\xff\xfe")
    person.write(
        f"{odd}/{odd}.yaml",
        'version: "1.0"\nextends: [parent.yaml]\nrules:\n  - {action: network, effect: deny}\n',
    )
    person.write(
        f"{odd}/parent.yaml",
        'version: "1.0"\nrules:\n'
        '  - {action: [file.read, file.write], path: "**", effect: allow}\n'
        "  - {action: shell.execute, effect: allow}\n",
    )
    for policy in ((), ("--policy", f"./{odd}.yaml")):
        command = person.command("run", "-v", *policy, "--", *AGENT)
        clear(person.finish(person.start(command, person.workspace / odd)), 0, "odd-\\xff\\xfe")
        (person.workspace / odd / "ran").unlink()
    assert person.safeclaw("audit", "verify").returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        *(("agent", word) for word in ("show", "revoke", "rotate-key")),
        *(("approvals", word) for word in ("approve", "deny")),
        *(("kill",), ("kill", "x", "--why"), ("resume",), ("resume", "x", "--why")),
        ("audit", "sample", "--seed"),
    ],
    ids=" ".join,
)
def test_a_word_that_is_no_text_is_a_usage_error(person: Person, words: tuple[str, ...]) -> None:
    clear(person.safeclaw(*words, os.fsdecode(b"odd-\xff")), 2, "odd-", "hint: ")


@pytest.mark.parametrize("isolation", ["full", "landlock"])
def test_where_few_processes_are_left_a_start_fails_in_a_line(
    person: Person, isolation: str
) -> None:
    """The limit counts all that the person has (root has none), so it is met at every place."""
    for most in range(2, 16):
        limited = ("prlimit", f"--nproc={most}", "--")
        command = person.command("run", "--isolation", isolation, "--", "true")
        ended = person.finish(person.start([*limited, *command], person.workspace))
        assert "Traceback" not in ended.stderr, ended.stderr
        assert ended.returncode == 0 or ended.stderr
