"""The pages say of each call what the programs that are loaded do with it, and of each attack."""

from __future__ import annotations

import re
from pathlib import Path

from safeclaw.sandbox import filters, syscalls
from tests.escape.corpus import CORPUS

ROOT = Path(__file__).resolve().parents[3]
_CONTINUE = "flags=linux.SECCOMP_USER_NOTIF_FLAG_CONTINUE"


def section(title: str, page: str = "system-calls.md") -> str:
    text = (ROOT / "docs" / page).read_text()
    _, _, rest = text.partition(f"# {title}\n")
    assert rest, f"there is no such heading: {title}"
    return rest.partition("\n## ")[0]


def calls(text: str) -> list[str]:
    """Return the names in the first column, or in a paragraph of nothing else."""
    found: list[str] = []
    for line in text.splitlines():
        first = line.split("|")[1] if line.startswith("|") else line
        if re.fullmatch(r"\s*(?:`[a-z0-9_]+`\s*)+", first):
            found += re.findall(r"`([a-z0-9_]+)`", first)
    return found


def test_what_is_answered() -> None:
    named = calls(section("Answered by the supervisor"))
    assert sorted(named) == sorted(
        {
            *(*syscalls.NOTIFIED, *filters.FORK_CALLS),
            *(*filters.PROCESS_CALLS, *filters.SOCKET_CALLS),
        }
    )


def test_what_is_let_through() -> None:
    named = calls(section("Let through without a question"))
    by_argument = ("open", "openat", "fcntl", "ioctl", "sendto")
    assert sorted(named) == sorted((*syscalls.ALLOWED, *syscalls.IPC_CALLS, *by_argument))


def test_what_is_refused() -> None:
    named = calls(section("Refused with EPERM"))
    assert sorted(named) == sorted(syscalls.REFUSED)


def test_every_continue_is_there_and_has_its_reason_in_the_code() -> None:
    where = dict[str, int]()
    for path in (ROOT / "sandbox").glob("*.py"):
        lines = path.read_text().splitlines()
        uses = [number for number, line in enumerate(lines) if _CONTINUE in line]
        for number in uses:
            assert any("# SAFETY:" in line for line in lines[max(0, number - 6) : number]), path
            where[path.name] = where.get(path.name, 0) + 1
    # a further one needs a line on the page, and then one here
    assert where == {"processes.py": 3, "exec_stop.py": 1}
    heading = "Continued after a verdict (SECCOMP_USER_NOTIF_FLAG_CONTINUE)"
    assert sorted(calls(section(heading, "threat-model.md"))) == sorted(
        (*syscalls.PROGRAM_CALLS, *filters.FORK_CALLS, *filters.PROCESS_CALLS)
    )


def test_there_is_no_other_way_to_continue_a_call() -> None:
    text = {path.name: path.read_text() for path in (ROOT / "sandbox").glob("*.py")}
    # one function answers; it is given flags where the call is continued, and nowhere else
    assert [name for name in text if "NOTIF_RESP.pack" in text[name]] == ["mediator.py"]
    with_flags = re.findall(r"\breply\([^)]*\bflags=(\S+)\)", "".join(text.values()))
    assert with_flags == ["linux.SECCOMP_USER_NOTIF_FLAG_CONTINUE"] * 4
    for name in text:
        spelled = re.findall(r".*FLAG_CONTINUE.*", text[name])
        assert all(_CONTINUE in line or name == "linux.py" for line in spelled), name


def test_every_attack_is_listed_and_stands_for_something() -> None:
    listed = calls((ROOT / "docs" / "attacks.md").read_text().replace("# ", "## "))
    assert sorted(set(listed)) == sorted(listed)
    assert set(listed) == {attack.name.replace("-", "_") for attack in CORPUS}


def test_the_differences_between_the_isolations_are_listed() -> None:
    section_of = section("The attacks", "threat-model.md")
    listed = dict(re.findall(r"\| `(\w+)` \| (.+?) \|", section_of))
    assert listed == {attack.name: attack.gap for attack in CORPUS if attack.gap}


def test_what_is_shown_elsewhere_is_there() -> None:
    named = re.findall(r"`(tests/[^`]*)`", section("Shown elsewhere", "attacks.md"))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
