"""Many agents at once, one broker, one chain: no gap, no torn line, every session's own count."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from typing import cast

import pytest

from safeclaw.daemon.journal import files
from tests.system.conftest import Person

#: Each opens so many files by name, and each time one that it may not.
FILES = 20
AGENT = f"""\
import os
mine = f"out-{{os.getpid()}}-{{os.urandom(4).hex()}}"
os.mkdir(mine)
for number in range({FILES}):
    open(f"{{mine}}/{{number}}", "x").close()
    try:
        open("secret/key")
    except OSError:
        pass
"""
POLICY = """\
version: "1.0"
rules:
  - {action: file.read, path: "secret/**", effect: deny}
  - {action: "file.*", path: "**", effect: allow}
  - {action: shell.execute, command: "*", effect: allow}
  - {action: "*", effect: deny}
"""


def run_at_once(person: Person, count: int) -> None:
    person.write("agent.py", AGENT)
    person.write("secret/key", "k")
    policy = person.base / "many.yaml"
    policy.write_text(POLICY)
    person.own()
    with contextlib.ExitStack() as stack:
        # On a machine that does other things as well, an answer may take its time.
        # All are started before the first is waited for.
        started = [
            stack.enter_context(
                person.popen("run", "--grace", "120", "--policy", str(policy), "--", "agent.py")
            )
            for _ in range(count)
        ]
        for process in started:
            _, said = process.communicate(timeout=600)
            assert process.returncode == 0, said
    made = list(person.workspace.glob("out-*/*"))
    assert len(made) == count * FILES
    found = person.records()
    numbers: dict[str, list[int]] = defaultdict(list)
    kinds: dict[str, list[str]] = defaultdict(list)
    allowed: set[str] = set()
    denied: dict[str, int] = defaultdict(int)
    for record in found:
        session = str(record.get("session"))
        kinds[str(record["type"])].append(session)
        if isinstance(record.get("attempt"), int):
            numbers[session].append(cast("int", record["attempt"]))
        target = cast("dict[str, object]", record.get("target") or {})
        if record.get("action") == "file.write.create" and record["decision"] == "allow":
            allowed.add(str(target["path"]))
        if str(target.get("path", "")).endswith("/secret/key") and record["decision"] == "deny":
            denied[session] += 1
    # One chain, with every number once and in order.
    assert [record["seq"] for record in found] == list(range(len(found)))
    assert len({record["chain"] for record in found}) == 1
    assert {"gap", "fault", "recovery", "violation"} & set(kinds) == set()
    # Every session whole: it began and ended once, and its own numbers are 1, 2, 3, ...
    assert len(numbers) == count
    assert sorted(kinds["session_start"]) == sorted(kinds["session_end"]) == sorted(numbers)
    for session, own in numbers.items():
        assert own == list(range(1, len(own) + 1)), session
        assert denied[session] == FILES
    # Every deed is there, and every line is one record.
    assert {str(path) for path in made} <= allowed
    directory = person.state / "safeclaw" / "journal"
    lines = b"".join(path.read_bytes() for _, path in files.segments(directory)).split(b"\n")
    assert len(lines) == len(found) + 1
    verified = person.safeclaw("audit", "verify")
    assert verified.returncode == 0, verified.stdout
    print(f"\n{count} agents at once: {len(found)} records")


@pytest.mark.parametrize("person", ["ordinary"], indirect=True)
def test_agents_at_once_share_one_chain(person: Person) -> None:
    run_at_once(person, 12)


@pytest.mark.soak
def test_fifty_agents_at_once_share_one_chain(person: Person) -> None:
    run_at_once(person, 50)
