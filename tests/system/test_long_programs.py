"""Programs whose arguments no record could hold are not started, and that is recorded."""

from __future__ import annotations

import pytest

from tests.system.conftest import Person, fields

#: Each of these characters takes five bytes in a record.
_AGENT = """\
import os
def started(count):
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        os.execv("/usr/bin/true", ["true", *["\\x01" * 131_000] * count])
    except OSError as problem:
        os._exit(problem.errno)
print(started(1), started(14), flush=True)
"""


@pytest.mark.parametrize("options", [(), ("--observe",)])
def test_what_no_record_can_hold_is_not_started(person: Person, options: tuple[str, ...]) -> None:
    person.write("policy.yaml", 'version: "1.0"\nextends: default\n')
    person.write("agent.py", _AGENT)
    words = ("run", *options, "--policy", "policy.yaml", "--", "/usr/bin/python3", "agent.py")
    done = person.safeclaw(*words)
    assert (done.stdout, done.returncode) == ("0 13\n", 0), done.stderr
    allowed, denied = (
        one for one in person.records("--action", "shell.execute") if "true" in str(one["target"])
    )
    assert (allowed["decision"], len(str(allowed["target"])) > 131_000) == ("allow", True)
    assert (denied["decision"], denied["rule"]) == ("deny", "protected")
    what = fields(denied["target"])["what"]
    assert what == "/usr/bin/true with 15 words of 1834004 characters"
