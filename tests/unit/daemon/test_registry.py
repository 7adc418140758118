"""Agents and keys: shown once, kept as a digest, and good only while they should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from safeclaw.daemon.registry import FILE_NAME, Agent, Registry
from safeclaw.errors import BrokerError

DAY = 86400


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def demo(name: str = "demo", uid: int | None = None) -> Agent:
    return Agent(name, "olga", "test", "demo", created=1, created_by=0, uid=uid)


@pytest.fixture(name="clock")
def _clock() -> Clock:
    return Clock()


@pytest.fixture(name="registry")
def _registry(tmp_path: Path, clock: Clock) -> Registry:
    return Registry(tmp_path, clock)


def put(registry: Registry, agent: Agent, days: int = 90) -> str:
    planned, text = registry.plan(agent, days * DAY)
    registry.put(planned)
    return text


def test_a_key_opens_its_own_agent_and_is_nowhere_on_disk(
    registry: Registry, tmp_path: Path, clock: Clock
) -> None:
    text = put(registry, demo())
    agent, key = registry.authenticate("demo", f"{text}\n", 1000)
    assert (agent.name, key.id) == ("demo", text.split("_")[1])
    kept = (tmp_path / FILE_NAME).read_text()
    assert text.split("_", 2)[2] not in kept
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600
    again = Registry(tmp_path, clock)
    again.load()
    assert again.authenticate("demo", text, 1000)[1] == key


def test_a_key_that_is_not_quite_one_opens_nothing(registry: Registry) -> None:
    text = put(registry, demo())
    for spoilt in ("", text.upper(), text[:-1], f"{text}A", text.replace("_", "-"), f"x{text}"):
        with pytest.raises(BrokerError, match="not one of demo's"):
            registry.authenticate("demo", spoilt, 0)


def test_anothers_key_and_no_agent_are_not_told_apart(registry: Registry) -> None:
    put(registry, demo())
    other = put(registry, demo("other"))
    said: list[str] = []
    for name in ("demo", "nobody"):
        with pytest.raises(BrokerError) as raised:
            registry.authenticate(name, other, 0)
        said.append(raised.value.message.replace(name, "NAME"))
    assert said[0] == said[1]


def test_a_key_expires(registry: Registry, clock: Clock) -> None:
    text = put(registry, demo(), days=1)
    clock.now += DAY - 1
    registry.authenticate("demo", text, 0)
    clock.now += 1
    with pytest.raises(BrokerError, match="expired"):
        registry.authenticate("demo", text, 0)


def test_rotation_leaves_the_old_key_its_overlap_and_no_more(
    registry: Registry, clock: Clock
) -> None:
    old = put(registry, demo())
    rotated, _, new = registry.rotated(registry.get("demo"), 90 * DAY, overlap=3600)
    registry.put(rotated)
    clock.now += 3599
    registry.authenticate("demo", old, 0)
    clock.now += 1
    with pytest.raises(BrokerError, match="expired"):
        registry.authenticate("demo", old, 0)
    registry.authenticate("demo", new, 0)


def test_rotation_never_lengthens_a_key(registry: Registry, clock: Clock) -> None:
    old = put(registry, demo(), days=1)
    rotated, _, _ = registry.rotated(registry.get("demo"), 90 * DAY, overlap=7 * DAY)
    registry.put(rotated)
    clock.now += DAY
    with pytest.raises(BrokerError, match="expired"):
        registry.authenticate("demo", old, 0)


def test_one_key_or_all_are_revoked(registry: Registry) -> None:
    first = put(registry, demo())
    rotated, _, second = registry.rotated(registry.get("demo"), DAY, overlap=DAY)
    registry.put(rotated)
    one, ids = registry.revoked(registry.get("demo"), first.split("_")[1])
    assert ids == (first.split("_")[1],)
    registry.put(one)
    with pytest.raises(BrokerError, match="revoked"):
        registry.authenticate("demo", first, 0)
    registry.authenticate("demo", second, 0)
    registry.put(registry.revoked(registry.get("demo"), None)[0])
    with pytest.raises(BrokerError, match="revoked"):
        registry.authenticate("demo", second, 0)
    with pytest.raises(BrokerError, match="no key is left"):
        registry.revoked(registry.get("demo"), None)


def test_an_agent_of_one_user_is_nobody_elses_but_roots(registry: Registry) -> None:
    text = put(registry, demo(uid=1000))
    registry.authenticate("demo", text, 1000)
    registry.authenticate("demo", text, 0)
    with pytest.raises(BrokerError, match="not this user's"):
        registry.authenticate("demo", text, 1001)


@pytest.mark.parametrize("name", ["", "Demo", "-a", "a-", "a_b", "a/b", "a" * 65, "a\n", "é"])
def test_odd_names_are_refused(registry: Registry, name: str) -> None:
    with pytest.raises(BrokerError, match="no name for an agent"):
        registry.plan(demo(name), DAY)


def test_a_removed_agents_name_is_never_anothers(registry: Registry) -> None:
    import msgspec

    text = put(registry, demo())
    registry.put(msgspec.structs.replace(registry.get("demo"), removed=2))
    with pytest.raises(BrokerError, match="not used again"):
        registry.plan(demo(), DAY)
    with pytest.raises(BrokerError, match="not one of demo's"):
        registry.authenticate("demo", text, 0)


def test_a_damaged_file_is_an_error_and_never_no_agents(registry: Registry, tmp_path: Path) -> None:
    put(registry, demo())
    whole = (tmp_path / FILE_NAME).read_bytes()
    for cut in range(len(whole) - 2):
        (tmp_path / FILE_NAME).write_bytes(whole[:cut])
        with pytest.raises(BrokerError, match="damaged"):
            registry.load()


def test_many_uses_of_a_key_are_written_once_and_outlive_a_restart(
    registry: Registry, tmp_path: Path, clock: Clock
) -> None:
    text = put(registry, demo())
    _, key = registry.authenticate("demo", text, 0)
    file = tmp_path / FILE_NAME
    before = file.stat().st_ino
    for number in range(1000):
        clock.now += 1
        registry.used("demo", key.id, f"session-{number}")
    assert file.stat().st_ino == before, "it was written anew"
    assert registry.unwritten
    registry.flush()
    assert not registry.unwritten
    again = Registry(tmp_path, clock)
    again.load()
    agent = again.get("demo")
    assert (agent.last_session, agent.keys[0].used) == ("session-999", int(clock.now))
    # and what is changed meanwhile takes it along
    registry.used("demo", key.id, "one more")
    rotated, _, _ = registry.rotated(registry.get("demo"), DAY, 0)
    registry.put(rotated)
    again.load()
    assert again.get("demo").last_session == "one more"


def test_a_key_that_was_revoked_does_not_make_the_one_in_use_young(
    registry: Registry, clock: Clock
) -> None:
    put(registry, demo(), days=365)
    made = int(clock.now)
    clock.now += 80 * DAY
    agent, key, _ = registry.rotated(registry.get("demo"), 90 * DAY, 30 * DAY)
    assert agent.newest == int(clock.now)
    agent, _ = registry.revoked(agent, key.id)
    assert agent.newest == made
    agent, _ = registry.revoked(agent, None)
    assert agent.newest == int(clock.now)
