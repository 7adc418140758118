"""What a kernel older than Landlock's scopes lacks is said, and gone without by name only."""

from __future__ import annotations

import json

import pytest

from safeclaw.sandbox import landlock, linux
from tests.system.conftest import Person, fields

#: A machine under emulation is slow.
RUN = ("run", "--grace", "60")
PROGRAM = ("--", "/usr/bin/touch", "made")


def test_doctor_names_what_is_lacking_and_the_way_without(person: Person) -> None:
    done = person.safeclaw("doctor", "--json")
    found = {one["layer"]: one for one in json.loads(done.stdout)["layers"]}
    assert found["landlock"]["state"] == "missing"
    for name in landlock.lacking(linux.landlock_abi()):
        assert name in found["landlock"]["found"]
    assert "--allow-degraded landlock-abi" in found["landlock"]["hint"]
    assert found["seccomp"]["state"] == "weaker"
    assert "SYNC_WAKE_UP" in found["seccomp"]["found"]
    for layer in ("namespaces", "view", "exec stop"):
        assert found[layer]["state"] == "ok", found[layer]
    # pytest runs in a service of systemd's own
    assert found["cgroup"]["state"] == "weaker"
    assert "Delegate=yes" in found["cgroup"]["hint"]
    assert done.returncode != 0


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--allow-degraded cgroup",
        # nothing else keeps signals in there
        "--isolation landlock --allow-degraded landlock-abi",
    ],
)
def test_nothing_runs_without_the_floor(person: Person, options: str) -> None:
    done = person.safeclaw(*RUN, *options.split(), *PROGRAM)
    assert done.returncode == 125
    assert "Landlock ABI 6 is needed" in done.stderr
    assert "hint: " in done.stderr
    assert not (person.workspace / "made").exists()


def test_by_name_it_runs_and_the_record_says_what_is_lacking(person: Person) -> None:
    done = person.safeclaw(*RUN, "--allow-degraded", "landlock-abi", *PROGRAM)
    assert done.returncode == 0, done.stderr
    assert (person.workspace / "made").exists()
    (start,) = person.records("--type", "session_start")
    walls = fields(fields(start["detail"])["walls"])
    abi = linux.landlock_abi()
    assert walls["landlock_abi"] == abi
    assert walls["missing"] == [f"landlock: {name}" for name in landlock.lacking(abi)]


def test_a_limit_that_needs_a_cgroup_is_refused_outside_a_delegated_one(person: Person) -> None:
    text = 'version: "1.0"\nresources: {memory: 128M}\nrules: [{action: "*", effect: allow}]\n'
    policy = person.write("policy.yaml", text)
    words = (*RUN, "--allow-degraded", "landlock-abi", "--policy", str(policy), *PROGRAM)
    done = person.safeclaw(*words)
    assert done.returncode == 125
    assert "cgroup" in done.stderr
    assert "Delegate=yes" in done.stderr
    assert not (person.workspace / "made").exists()
