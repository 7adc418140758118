"""Variables: none turns a denied program into an allowed one, and a policy forbids and pins some.

The attacks on it are in tests/escape: `variable_*`, `pinned_*` and `race_exec_pointer`.
"""

from __future__ import annotations

from tests.system.conftest import Person, fields

POLICY = """\
version: "1.0"
rules:
  - {action: shell.execute, command: "git push *", effect: deny, reason: "people push"}
  - {action: shell.execute, command: ["git *", "env *"], effect: allow}
  - {action: file, path: "**", effect: allow}
"""


def test_a_program_is_not_started_with_an_auditor_and_a_denied_one_not_at_all(
    person: Person,
) -> None:
    policy = person.base / "policy.yaml"
    policy.write_text(POLICY)

    def run(*command: str) -> int:
        words = ("run", "--policy", str(policy), "--", "env", *command)
        return person.safeclaw(*words).returncode

    assert run("/usr/bin/git", "--version") == 0
    assert run("/usr/bin/git", "push", "there") == 126
    assert run("LD_AUDIT=/nonexistent", "/usr/bin/git", "--version") == 126
    assert run("LD_AUDIT=/nonexistent", "/usr/bin/git", "push", "there") == 126
    denied = [
        (fields(one["target"])["argv"], one["rule"])
        for one in person.records("--decision", "deny")
        if "argv" in fields(one["target"])  # where PATH has none, it is absent
    ]
    assert denied == [(["/usr/bin/git", "push", "there"], "policy:1")] * 2
    (refused,) = person.records("--type", "violation")
    assert fields(refused["target"])["argv"] == ["/usr/bin/git", "--version"]
    assert "LD_AUDIT" in str(refused["reason"])


HELD = """\
version: "1.0"
environment:
  pass: [TOKEN]
  forbid: ["LD_*", TOKEN]
  pin: {PATH: /usr/bin:/bin}
rules:
  - {action: shell.execute, command: "*", effect: allow}
  - {action: file, path: "**", effect: allow}
"""
PROGRAM = """\
echo "$PATH ${TOKEN-none}"
"$@"
echo "status $?"
"""


def test_a_policy_forbids_and_pins_variables_of_every_program(person: Person) -> None:
    policy = person.base / "policy.yaml"
    policy.write_text(HELD)
    person.write("try.sh", PROGRAM)

    def run(*words: str, mode: str = "") -> tuple[list[str], str]:
        command = ("run", *mode.split(), "--policy", str(policy), "--", "sh", "try.sh", *words)
        done = person.safeclaw(*command, TOKEN="t")
        return done.stdout.splitlines(), done.stderr

    first = "/usr/bin:/bin none"
    for words in (["true"], ["env", "HOME=/", "true"], ["sh", "-c", "HOME=/ exec true"]):
        assert run(*words)[0] == [first, "status 0"]
    for words, name in (
        (["env", "LD_LIBRARY_PATH=secret-value", "/usr/bin/true"], "LD_LIBRARY_PATH"),
        (["env", "PATH=/bin", "/usr/bin/true"], "PATH"),
        (["env", "-i", "/usr/bin/true"], "PATH"),
    ):
        said, errors = run(*words)
        assert said == [first, "status 126"]
        (line,) = [line for line in errors.splitlines() if line.startswith("safeclaw: denied")]
        assert "[environment]" in line
        assert name in line
        assert line.endswith("to allow: change 'forbid' or 'pin' under environment:")
    denied = [one for one in person.records("--decision", "deny") if one["rule"] == "environment"]
    assert [fields(one["target"])["variables"] for one in denied] == [
        ["LD_LIBRARY_PATH"], ["PATH"], ["PATH"],
    ]  # fmt: skip
    assert "secret-value" not in str(denied)
    said, errors = run("env", "PATH=/bin", "/usr/bin/true", mode="--observe")
    assert said == [first, "status 0"]
    assert "would deny shell.execute" in errors


def test_explain_and_test_know_what_a_program_is_started_with(person: Person) -> None:
    person.write("policy.yaml", HELD)
    explain = ("policy", "explain", "--policy", "policy.yaml")
    assert "verdict: allow" in person.safeclaw(*explain, "shell.execute", "git").stdout
    for given in ("LD_PRELOAD=x", "PATH=/x"):
        said = person.safeclaw(*explain, "--env", given, "shell.execute", "git").stdout
        assert "verdict: deny" in said
        assert "rule: environment" in said
    wrong = person.safeclaw(*explain, "--env", "X", "shell.execute", "git")
    assert (wrong.returncode, "write NAME=VALUE" in wrong.stderr) == (2, True)
    wrong = person.safeclaw(*explain, "--env", "X=1", "file.read", "a")
    assert (wrong.returncode, "only a program" in wrong.stderr) == (2, True)
    case = "{action: shell.execute, target: git, environment: {LD_X: ''}, expect: deny"
    person.write("cases.yaml", f"cases:\n  - {case}, rule: environment}}\n")
    done = person.safeclaw("policy", "test", "--policy", "policy.yaml", "cases.yaml")
    assert done.returncode == 0, done.stdout
