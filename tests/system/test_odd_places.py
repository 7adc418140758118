"""A person without an entry in the user database, without a home, or with an odd umask."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.conftest import Person, options_here

#: Shell text that goes on as a user that nobody knows, as containers have them.
NOBODY_KNOWN = 'exec unshare --user --map-user=54321 --map-group=54321 env -u HOME "$@"'
ORDINARY = pytest.mark.parametrize("person", ["ordinary"], indirect=True)  # root could make a home


def started(person: Person, script: str, *arguments: str, **more: str) -> tuple[int, str, str]:
    command = ["sh", "-c", script, "sh", *person.command(*arguments)]
    done = person.finish(person.start(command, person.workspace, **more))
    return done.returncode, done.stdout, done.stderr


@ORDINARY
def test_a_user_that_nobody_knows_can_run_an_agent(person: Person) -> None:
    run = ("run", *options_here(), "--", "id", "-u")
    assert started(person, NOBODY_KNOWN, *run)[:2] == (0, "54321\n")
    shown = started(person, NOBODY_KNOWN, "audit", "show", "--type", "session_end")
    assert "session_end" in shown[1], shown


@pytest.mark.parametrize(
    "verb",
    [
        ("run", "--", "true"),
        ("status",),
        ("audit", "show"),
        ("audit", "keys", "show"),
        ("audit", "witness", "show", "--json"),
        ("policy", "suggest"),
        ("policy", "explain", "file.read", "x"),
        ("policy", "show", "default"),
    ],
)
@ORDINARY
@pytest.mark.parametrize("script", [NOBODY_KNOWN, 'HOME=relative exec "$@"'])
def test_without_a_home_a_verb_works_or_says_what_is_missing(
    person: Person, script: str, verb: tuple[str, ...]
) -> None:
    unknown = script == NOBODY_KNOWN
    more = {"XDG_STATE_HOME": "relative"} if unknown else {}
    code, _, err = started(person, script, *verb, **more)
    if unknown and verb[:2] not in (("policy", "explain"), ("policy", "show")):
        first, hint = err.splitlines()
        assert (code, hint[:6]) == (125, "hint: ")
        assert "/nonexistent/.local/state" in first
    else:
        assert "Traceback" not in err
        assert "has gone" not in err
    assert [path.name for path in Path(person.workspace).iterdir()] == []


@pytest.mark.parametrize("isolation", ["full", "landlock"])
def test_an_umask_that_keeps_out_the_owner_is_the_agents_alone(
    person: Person, isolation: str
) -> None:
    (person.state / "safeclaw").mkdir(mode=0o700)
    person.write("given", "given\n")
    agent = "umask; cat given; umask 022; : >made; : >${TMPDIR:-/tmp}/x && echo ok"
    run = ("run", *options_here(isolation), "--", "sh", "-c", agent)
    code, out, err = started(person, 'umask 0777; exec "$@"', *run)
    assert (code, out) == (0, "0777\ngiven\nok\n"), err
