"""What is in force, what was, and what waits: over changes of files, restarts and two people."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from safeclaw.daemon.changes import Change, Event
from safeclaw.daemon.hands import Hands
from safeclaw.daemon.inforce import InForce
from safeclaw.daemon.peer import Peer
from safeclaw.errors import BrokerError, PolicyError
from safeclaw.policies import source

NARROW = """\
version: "1.0"
rules:
  - {action: file.read, path: "src/**", effect: allow}
"""
WIDE = NARROW.replace("src/**", "**")
OTHER = NARROW.replace("src/**", "doc/**")
ANN, BOB = Peer(1, 2001, 2001), Peer(2, 2002, 2002)


class Host:
    """A broker's policies over restarts."""

    def __init__(self, base: Path) -> None:
        self.state, self.directory = base / "state", base / "policies"
        self.state.mkdir()
        self.directory.mkdir()
        self.now = 1_000_000.0
        self.rule = False
        self.policies = self.start()

    def start(self, *used: str) -> InForce:
        self.policies = InForce(
            self.state, self.directory, lambda: self.now, Hands("root"), rule=self.rule
        )
        self.policies.load(frozenset(used or ("demo",)))
        return self.policies

    def write(self, text: str, name: str = "demo") -> None:
        (self.directory / f"{name}.yaml").write_text(text)

    def change(self, text: str, name: str = "demo") -> list[Event]:
        """Write a file, and have it noticed; return what happened."""
        self.write(text, name)
        self.policies.accept(self.policies.look())
        return [one.event for one in self.news()]

    def news(self) -> list[Change]:
        news = self.policies.news()
        for one in news:
            one.entry()
        self.policies.save()
        return news

    @property
    def path(self) -> str:
        """What demo lets be read now."""
        return self.policies.get("demo").policy.rules[0].paths[0]

    @property
    def waiting(self) -> str:
        """The hash that waits."""
        pending = self.policies.state("demo").pending
        assert pending is not None
        return pending.version.sha256


@pytest.fixture(name="host")
def _host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    host.write(NARROW)
    host.policies.get("demo")
    host.news()
    return host


@pytest.fixture(name="ruled")
def _ruled(host: Host) -> Host:
    host.rule = True
    host.start()
    assert [one.event for one in host.news()] == [Event.RULE]
    return host


def test_a_change_while_the_broker_was_down_is_told_with_both_hashes(host: Host) -> None:
    before = host.policies.state("demo").sha256
    host.write(WIDE)
    host.now += 60
    host.start()
    (change,) = host.news()
    after = host.policies.state("demo").sha256
    assert before != after
    entry = change.entry()
    assert entry.detail is not None
    assert (entry.detail["previous"], entry.detail["event"]) == (before, "loaded")
    assert entry.policy is not None
    assert entry.policy.sha256 == after
    host.start()
    assert host.news() == []


def test_a_file_that_is_gone_after_a_restart_leaves_nothing_in_force(host: Host) -> None:
    (host.directory / "demo.yaml").unlink()
    host.start()
    assert [one.event for one in host.news()] == [Event.INVALID]
    with pytest.raises(PolicyError, match="demo"):
        host.policies.get("demo")
    host.start("another")  # nobody is registered with it any more: nothing to say
    assert host.news() == []
    assert host.policies.states == ()


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_a_damaged_file_is_an_error_and_never_nothing(host: Host, cut: int) -> None:
    file = host.state / "in-force.json"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(BrokerError, match="damaged"):
        host.start()


def test_a_file_with_a_byte_that_is_no_text_is_an_error(host: Host) -> None:
    file = host.state / "in-force.json"
    content = file.read_bytes()
    at = content.index(b': "') + 3
    file.write_bytes(content[:at] + b"\xb8" + content[at + 1 :])
    with pytest.raises(BrokerError, match="damaged"):
        host.start()


def test_without_the_rule_what_is_wider_is_in_force_at_once(host: Host) -> None:
    assert host.change(WIDE) == [Event.LOADED]
    assert host.path == "**"


def test_with_the_rule_what_is_wider_waits_and_what_is_narrower_does_not(ruled: Host) -> None:
    assert ruled.change(WIDE) == [Event.PENDING]
    assert ruled.path == "src/**"
    assert ruled.change(WIDE) == []
    assert ruled.change(NARROW.replace("allow", "deny")) == [Event.WITHDRAWN, Event.LOADED]
    assert ruled.policies.get("demo").policy.rules[0].effect == "deny"
    # what was in force yesterday is wider than what is today
    assert ruled.change(NARROW) == [Event.PENDING]


def test_what_cannot_be_shown_not_to_be_wider_waits(ruled: Host) -> None:
    assert ruled.change(OTHER) == [Event.PENDING]
    assert ruled.change(NARROW) == [Event.WITHDRAWN]
    assert ruled.policies.state("demo").pending is None


def test_a_restart_is_no_way_round_the_rule(ruled: Host) -> None:
    for _ in range(2):
        ruled.write(WIDE)
        ruled.start()
        ruled.news()
        assert ruled.path == "src/**"
    ruled.policies.approve("demo", ruled.waiting, ANN, "")
    ruled.news()
    ruled.start()
    assert ruled.news() == []
    assert ruled.path == "src/**"
    # the yes is still there, and is one person's
    with pytest.raises(BrokerError, match="said yes already"):
        ruled.policies.approve("demo", ruled.waiting, ANN, "")
    assert ruled.policies.approve("demo", ruled.waiting, BOB, "fine")
    (change,) = ruled.news()
    assert (change.event, change.approved_by, change.by) == (Event.LOADED, (2001, 2002), 2002)
    ruled.start()
    assert ruled.path == "**"


def test_to_lose_what_is_on_file_is_no_way_round_the_rule(ruled: Host) -> None:
    ruled.change(WIDE)
    (ruled.state / "in-force.json").unlink()
    ruled.start()
    with pytest.raises(BrokerError, match="waits for two people"):
        ruled.policies.get("demo")


def test_a_text_that_was_changed_in_the_archive_comes_back_for_nobody(ruled: Host) -> None:
    kept = ruled.state / "policies" / f"{ruled.policies.state('demo').sha256}.yaml"
    ruled.write(OTHER)
    kept.chmod(0o600)
    kept.write_text(WIDE)
    ruled.start()
    assert Event.INVALID in [one.event for one in ruled.news()]
    with pytest.raises(BrokerError, match="damaged"):
        ruled.policies.get("demo")


def test_what_was_approved_is_what_comes_whatever_the_file_says_meanwhile(ruled: Host) -> None:
    ruled.change(OTHER)
    waiting = ruled.waiting
    ruled.write(WIDE)  # and nobody has looked yet
    ruled.policies.approve("demo", waiting, ANN, "")
    ruled.policies.approve("demo", waiting, BOB, "")
    assert ruled.path == "doc/**"
    ruled.news()
    assert ruled.change(WIDE) == [Event.PENDING]
    assert ruled.path == "doc/**"


def test_a_file_that_is_valid_again_is_no_problem_any_more(ruled: Host) -> None:
    for text in (NARROW, WIDE, WIDE):
        assert ruled.change("rules: [") == [Event.INVALID]
        assert "demo" in ruled.policies.told()["problems"]
        ruled.change(text)
        assert ruled.policies.told()["problems"] == {}
    assert ruled.path == "src/**"


def test_a_yes_is_for_one_text(ruled: Host) -> None:
    ruled.change(OTHER)
    first = ruled.waiting
    ruled.policies.approve("demo", first, ANN, "")
    assert ruled.change(WIDE) == [Event.APPROVED, Event.WITHDRAWN, Event.PENDING]
    with pytest.raises(BrokerError, match="that waits"):
        ruled.policies.approve("demo", first, BOB, "")
    with pytest.raises(BrokerError, match="that waits"):
        ruled.policies.approve("demo", ruled.waiting[:11], BOB, "")
    assert not ruled.policies.approve("demo", ruled.waiting, BOB, "")
    assert ruled.path == "src/**"


def test_a_no_stands_until_the_file_changes(ruled: Host) -> None:
    ruled.change(WIDE)
    ruled.policies.refuse("demo", ruled.waiting, ANN, "too much")
    assert [one.event for one in ruled.news()] == [Event.REFUSED]
    assert ruled.change(WIDE) == []
    ruled.start()
    with pytest.raises(BrokerError, match="was refused"):
        ruled.policies.approve("demo", ruled.waiting, BOB, "")
    assert ruled.change(OTHER) == [Event.WITHDRAWN, Event.PENDING]


def test_a_policy_that_was_never_in_force_waits_for_two(ruled: Host) -> None:
    ruled.write(NARROW, "new")
    with pytest.raises(BrokerError, match="waits for two people") as raised:
        ruled.policies.get("new")
    sha256 = str(raised.value.hint).split()[-1]
    ruled.policies.approve("new", sha256, BOB, "")
    assert ruled.policies.approve("new", sha256, ANN, "")
    assert ruled.policies.get("new").policy.name == "new"


def test_the_rule_that_is_off_again_holds_nothing_back_and_is_told(ruled: Host) -> None:
    ruled.change(WIDE)
    ruled.rule = False
    ruled.start()
    off, loaded = ruled.news()
    assert (off.event, off.on, loaded.event) == (Event.RULE, False, Event.LOADED)
    assert ruled.path == "**"


def test_what_is_extended_is_kept_with_it(ruled: Host) -> None:
    ruled.write(NARROW, "base")
    ruled.write(
        'version: "1.0"\nextends: ./base.yaml\nrules:\n  - {action: network, effect: deny}\n'
    )
    ruled.policies.accept(ruled.policies.look())  # it is shown not to be wider
    before = ruled.policies.get("demo").policy
    assert [rule.paths for rule in before.rules] == [(), ("src/**",)]
    ruled.news()
    ruled.write(WIDE, "base")
    ruled.start()
    assert [one.event for one in ruled.news()] == [Event.PENDING]
    assert ruled.policies.get("demo").policy == before


def test_the_commit_of_a_change_is_recorded(host: Host) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x@example.com")
        command = ["git", "-C", str(host.directory), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    host.write(WIDE)
    git("add", "demo.yaml")
    git("commit", "-m", "wider")
    commits = [f"{git('rev-parse', 'HEAD')}-dirty", git("rev-parse", "HEAD")]
    for text in (OTHER, WIDE):
        host.write(text)
        host.policies.accept(host.policies.look())
        (change,) = host.news()
        assert change.commit == commits.pop(0)


def test_what_is_on_file_can_be_read_by_a_person(ruled: Host) -> None:
    ruled.change(WIDE)
    mask = os.umask(0)
    os.umask(mask)
    for file in (ruled.state / "in-force.json", *(ruled.state / "policies").iterdir()):
        assert file.stat().st_mode & 0o777 == 0o640 & ~mask, file
    (one,) = json.loads((ruled.state / "in-force.json").read_text())["policies"]
    assert (one["ref"], one["pending"]["version"]["name"]) == (
        "demo",
        str(ruled.directory / "demo.yaml"),
    )


def test_a_defect_in_reading_a_policy_is_told_and_what_is_in_force_stays(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RecursionError("unforeseen")

    monkeypatch.setattr(source, "gather", broken)
    assert host.change(WIDE) == [Event.INVALID]
    assert "unforeseen" in host.policies.problems()["demo"]
