"""A variable never turns a program that a rule denies into one that is allowed."""

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
