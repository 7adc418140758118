"""The texts of policies go when the records that name them have gone, and not before."""

from __future__ import annotations

import hashlib
import os
import select
import subprocess
import sys
import time
import warnings
from pathlib import Path

import msgspec
import pytest

from safeclaw.daemon.archive import Archive, Version
from safeclaw.daemon.journal import Entry, PolicyRef
from safeclaw.daemon.journal.keeping import Keeping
from safeclaw.policies.document import Parent
from tests.journals import DAY, Host, decision


def text(name: str, *, extends: str = "") -> bytes:
    head = f'version: "1.0"\ndescription: {name}\n'
    rules = f'rules:\n  - {{action: file.read, path: "{name}/**", effect: allow}}\n'
    return (head + (f"extends: [{extends}]\n" if extends else "") + rules).encode()


def under(version: Version) -> Entry:
    """Return a decision that was made by a policy."""
    entry = decision(1)
    return msgspec.structs.replace(entry, policy=PolicyRef("p", version.sha256, "1.0"))


@pytest.fixture(name="state")
def _state(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture(name="host")
def _host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def on_day(
    state: Path, host: Host, days_ago: int, *entries: Entry, retention: int = 10_000
) -> None:
    host.wall_ns = time.time_ns() - days_ago * DAY
    host.reboot()
    with host.open(state / "journal", Keeping(retention_days=retention)) as journal:
        for entry in entries:
            journal.append(entry)


def wanted_last(state: Path, days_ago: int) -> None:
    """Have all that is kept last wanted so long ago."""
    at = time.time() - days_ago * 86_400
    for path in (state / "policies").iterdir():
        os.utime(path, (at, at))


def there(state: Path) -> set[str]:
    return {path.name for path in (state / "policies").iterdir()}


def name_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() + ".yaml"


def test_a_text_stays_while_a_record_names_it(state: Path, host: Host) -> None:
    archive = Archive(state)
    named, unnamed, current = text("named"), text("unnamed"), text("current")
    version = archive.keep("/etc/p.yaml", named, ()).version
    archive.keep("/etc/p.yaml", unnamed, ())
    present = archive.keep("/etc/p.yaml", current, ()).version
    wanted_last(state, 400)
    on_day(state, host, 300, under(version))
    on_day(state, host, 250, decision(2))
    assert archive.sweep(state / "journal", [present]) == [name_of(unnamed)]
    assert there(state) == {name_of(named), name_of(current)}
    # That record goes, and now the text.
    on_day(state, host, 100, decision(3), retention=120)
    assert archive.sweep(state / "journal", [present]) == [name_of(named)]
    assert there(state) == {name_of(current)}


def test_what_a_policy_extends_stays_while_a_record_names_the_policy(
    state: Path, host: Host
) -> None:
    archive = Archive(state)
    own, base = text("own", extends="base"), text("base")
    parents = (Parent("/etc/p.yaml", "base", "/etc/base.yaml", base),)
    version = archive.keep("/etc/p.yaml", own, parents).version
    kept = {f"{version.sha256}.json", name_of(own), name_of(base)}
    assert there(state) == kept
    wanted_last(state, 400)
    on_day(state, host, 300, under(version))
    on_day(state, host, 250, decision(2))
    assert archive.sweep(state / "journal", []) == []
    assert there(state) == kept
    on_day(state, host, 100, decision(3), retention=120)
    assert set(archive.sweep(state / "journal", [])) == kept
    assert there(state) == set()


def test_what_was_wanted_since_the_oldest_record_stays(state: Path, host: Host) -> None:
    archive = Archive(state)
    archive.keep("/etc/p.yaml", text("tried"), ())
    wanted_last(state, 200)
    on_day(state, host, 300, decision(1))
    assert archive.sweep(state / "journal", []) == []
    # It comes back on the day of the sweep, before anybody knows the version.
    wanted_last(state, 400)
    archive.keep("/etc/p.yaml", text("tried"), ())
    assert archive.sweep(state / "journal", []) == []
    wanted_last(state, 400)
    assert archive.sweep(state / "journal", []) == [name_of(text("tried"))]


def test_without_a_journal_that_can_be_read_all_stays(state: Path, host: Host) -> None:
    archive = Archive(state)
    archive.keep("/etc/p.yaml", text("old"), ())
    wanted_last(state, 400)
    assert archive.sweep(state / "journal", []) == []
    on_day(state, host, 300, decision(1))
    segment = state / "journal" / "segment-000001.jsonl"
    segment.write_bytes(b"no record\n" + segment.read_bytes())
    assert archive.sweep(state / "journal", []) == []
    assert there(state) == {name_of(text("old"))}


def test_a_hash_that_two_reads_share_is_found(
    state: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive(state)
    version = archive.keep("/etc/p.yaml", text("named"), ()).version
    wanted_last(state, 400)
    on_day(state, host, 300, under(version))
    for size in range(64, 128):
        monkeypatch.setattr("safeclaw.daemon.archive._CHUNK", size)
        assert archive.sweep(state / "journal", []) == []


def test_a_broker_sweeps_as_it_begins(state: Path, host: Host) -> None:
    archive = Archive(state)
    version = archive.keep("/etc/p.yaml", text("named"), ()).version
    archive.keep("/etc/p.yaml", text("unnamed"), ())
    wanted_last(state, 95)
    on_day(state, host, 90, under(version))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pyinotify imports asyncore
        from safeclaw.daemon.policywatch import PolicyWatch
    watch = PolicyWatch({str(state / "policies")})
    process = subprocess.Popen(
        [sys.executable, "-m", "safeclaw.daemon.cli.safeclawd", "--state", str(state)],
        env={**os.environ, "XDG_CONFIG_HOME": str(state)},
    )
    try:
        while len(there(state)) > 1:
            assert select.select([watch.fileno()], [], [], 300)[0], "nothing is swept"
            watch.changed()
    finally:
        process.terminate()
        process.wait()
    assert there(state) == {name_of(text("named"))}
