"""Random calls from inside the walls: nothing outside is touched, and nobody who serves dies.

Three make them: fuzzer.c, which knows what is mediated; stress-ng's sysbadaddr, which gives bad
addresses to every call; and trinity, which knows the arguments of every call.

``./dev test`` fuzzes for a few seconds, ``./dev soak SECONDS`` for as long as it is told to,
with a seed of its own each time; the seed is printed, and SAFECLAW_FUZZ_SEED repeats it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.conftest import Person

SOURCE = Path(__file__).with_name("fuzzer.c")
POLICY = """\
version: "1.0"
description: "everything but two places"
rules:
  - {{action: [file, network], path: ["denied/**", "{outside}/**"], effect: {effect}}}
  - {{action: [file, network], path: "**", effect: allow}}
  - {{action: shell.execute, command: "*", effect: allow}}
"""
#: Between two rounds the supervisor holds one waiting call, and remembers at most 128 callers.  On
#: a busy machine some threads have not seen yet that their callers are gone.
DESCRIPTORS_MAX = 192
THREADS_MAX = 24
#: What the supervisor may come to remember of paths, in KiB.
GROWTH_MAX = 160 * 1024
#: trinity starts no child where it cannot have every kind of socket and perf's descriptors, and
#: a call of another architecture would kill each of its children; as root it has to be told
#: twice.  The names it uses are those below ``victims``, the canaries' among them.
TOOLS = {
    "stress-ng": "stress-ng -q --sysbadaddr 4 -t SECONDS --temp-path /tmp --metrics",
    "trinity": "timeout -s INT -k 9 SECONDS trinity $dangerous -s SEED -q -q -C 4 -a 64 -l off "
    "-V victims --disable-fds=perf --disable-fds=sockets",
}
AROUND = """\
[ "$(id -u)" != 0 ] || dangerous=--dangerous
mkdir victims victims/directory
cp /usr/bin/true victims/program
for name in "$@"; do ln -s "$(realpath "$name")" victims; done
%s >count 2>&1
made=$(grep -a -o -e "[0-9]* iterations" -e "Ran [0-9]* syscalls" -e "sysbadaddr *[0-9]*" count)
[ -n "$made" ] || exec tail count
chmod 700 .
rm -rf go
mkfifo go
echo "round 1: $(echo "$made" | tail -n 1)"
read -r go <go
exit 0
"""


@dataclass(frozen=True)
class Look:
    """What a process holds at one moment."""

    descriptors: int
    threads: int
    resident: int


def look(pid: int) -> Look:
    """Return what a process holds now: counts, and KiB (proc_pid_status(5)).

    The supervisor is not dumpable: only root can count its descriptors.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return Look(
        len(os.listdir(f"/proc/{pid}/fd")) if os.geteuid() == 0 else 0,
        int(fields["Threads"]),
        int(fields["VmRSS"].split()[0]),
    )


#: Canaries are shorter; their size is compared as well.
_LOOK = 65536


def state_of(paths: list[Path]) -> list[tuple[object, ...]]:
    """Return everything about some files that a call could change, but for their reading."""
    found: list[tuple[object, ...]] = []
    for path in paths:
        try:
            found.append((path, *_state_of(path)))
        except OSError as problem:  # a mode that lets nobody in, for one
            found.append((path, problem.errno))
    return found


def _state_of(path: Path) -> tuple[object, ...]:
    at = path.stat()
    content: object = None  # a FIFO has come in its place
    if path.is_file():
        with path.open("rb") as file:
            content = file.read(_LOOK)  # it may have been made as long as a file can be
    elif path.is_dir():
        content = sorted(os.listdir(path))
    names = ("ino", "mode", "uid", "gid", "nlink", "size", "mtime_ns", "ctime_ns")
    return (*(getattr(at, f"st_{name}") for name in names), content, tuple(os.listxattr(path)))


@pytest.fixture(name="fuzzer", scope="module")
def _fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("fuzzer") / "fuzzer"
    subprocess.run(
        ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", program, SOURCE], check=True
    )
    return program


def seed() -> str:
    """Return this run's seed."""
    given = os.environ.get("SAFECLAW_FUZZ_SEED")
    return given or str(int.from_bytes(os.urandom(4), "little"))


def fuzz(person: Person, program: Path, rounds: int, seconds: float, effect: str = "deny") -> bool:
    """Fuzz for some rounds; return whether the canaries are as they were."""
    shutil.copy(program, person.workspace / "fuzzer")
    return campaign(person, ["./fuzzer", seed(), str(rounds), str(seconds)], rounds, effect)


def campaign(person: Person, command: list[str], rounds: int, effect: str = "deny") -> bool:
    """Run what fuzzes, with the canaries' names as its last words; return whether they are as
    they were.

    It says "round N: …" at the end of each round, and then reads a byte from the FIFO ``go``.
    """
    key = person.write("denied/key", "secret\n", 0o666)
    outside = Path(tempfile.mkdtemp(prefix="safeclaw-fuzz-"))
    keep = outside / "keep"
    keep.write_text("keep me\n")
    policy = person.base / "fuzzed.yaml"
    policy.write_text(POLICY.format(outside=outside, effect=effect))
    for path, mode in ((outside, 0o777), (keep, 0o666)):
        path.chmod(mode)  # only the policy stands before them
    person.own()
    canaries = [key, key.parent, keep, outside, policy]
    before = state_of(canaries)
    print(" ".join(command))
    words = [*command, "denied/key", "denied", str(keep), str(outside)]
    running = person.popen(
        *("run", "--policy", str(policy), "--", *words), redirect=f"2>{person.base}/said"
    )
    looks: list[Look] = []
    with running, contextlib.ExitStack() as failed:
        failed.callback(running.kill)  # leaving the block waits for it
        assert running.stdout is not None
        for line in running.stdout:
            # anything else is from a program that chance has started
            if line.startswith("round "):
                print(line, end="")
                looks.append(look(running.pid))
                with (person.workspace / "go").open("w") as go:
                    go.write("x")
        status = running.wait(timeout=60)
        failed.pop_all()
    said = (person.base / "said").read_text(errors="replace")
    ours = [line for line in said.splitlines() if line.startswith("safeclaw: ")]
    assert status == 0, ours[-5:]
    assert len(looks) == rounds

    assert "Traceback" not in said
    defects = [
        record["reason"]
        for record in person.records("--type", "violation")
        if record["action"] == "sandbox.defect"
    ]
    assert defects == []
    (end,) = person.records("--type", "session_end")
    assert end["reason"] == "the agent has ended"
    verified = person.safeclaw("audit", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    print(next(line for line in verified.stdout.splitlines() if "records" in line))

    assert max(each.descriptors for each in looks) < DESCRIPTORS_MAX, looks
    assert max(each.threads for each in looks) < THREADS_MAX, looks
    assert looks[-1].resident - looks[0].resident < GROWTH_MAX, looks
    untouched = state_of(canaries) == before
    outside.chmod(0o700)  # where it may, chance takes every right away
    shutil.rmtree(outside)
    return untouched


def tool(person: Person, name: str, seconds: int) -> bool:
    """Have one of Debian's fuzzers run; return whether the canaries are as they were."""
    command = TOOLS[name].replace("SECONDS", str(seconds)).replace("SEED", seed())
    print(command)
    person.write("fuzz.sh", AROUND % command)
    return campaign(person, ["/bin/sh", "./fuzz.sh"], 1)


def test_random_calls_touch_nothing_and_kill_nobody(person: Person, fuzzer: Path) -> None:
    assert fuzz(person, fuzzer, rounds=2, seconds=4)


def test_where_the_rules_allow_it_the_same_calls_do_touch(person: Person, fuzzer: Path) -> None:
    assert not fuzz(person, fuzzer, rounds=1, seconds=2, effect="allow")


@pytest.mark.parametrize("name", sorted(TOOLS))
def test_what_others_fuzz_with_touches_nothing_and_kills_nobody(person: Person, name: str) -> None:
    assert tool(person, name, seconds=20 if name == "trinity" else 4)


@pytest.mark.soak
@pytest.mark.parametrize("name", sorted(TOOLS))
def test_what_others_fuzz_with_for_long_touches_nothing_and_kills_nobody(
    person: Person, name: str, soak_seconds: int
) -> None:
    assert tool(person, name, seconds=soak_seconds)


@pytest.mark.soak
def test_random_calls_for_long_touch_nothing_and_kill_nobody(
    person: Person, fuzzer: Path, soak_seconds: int
) -> None:
    assert fuzz(person, fuzzer, rounds=10, seconds=soak_seconds / 10)
