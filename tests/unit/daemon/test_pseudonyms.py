"""Private targets: what the chain says of them, to whom, and what nobody can learn from it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from safeclaw.daemon import pseudonyms
from safeclaw.daemon.cli.audit import audit_group
from safeclaw.daemon.journal import files
from safeclaw.daemon.journal.filter import Filter
from safeclaw.daemon.journal.journal import Journal
from safeclaw.daemon.journal.journald import message
from safeclaw.daemon.journal.merkle import leaf_hash
from safeclaw.daemon.journal.reader import lines, read
from safeclaw.daemon.journal.record import Entry, RecordType, decode, encode
from safeclaw.daemon.journal.report import Status
from safeclaw.daemon.journal.verifier import verify
from safeclaw.errors import JournalError
from safeclaw.policies import loader
from safeclaw.policies.document import Pseudonymise
from safeclaw.policies.marks import Marks
from safeclaw.policies.model import Attempt, FileTarget, fingerprint, target_fields

PATIENT = "/w/patients/mueller.txt"
POLICY = loader.load(
    """
version: "1.0"
pseudonymise: {path: "patients/**", action: network}
rules:
  - {action: "*", effect: deny}
""",
    name="private.yaml",
)


def decision(attempt: Attempt, **more: object) -> Entry:
    entry = Entry(
        type=RecordType.DECISION,
        session="s-1",
        agent="tester",
        attempt=1,
        pid=7,
        uid=1000,
        exe="/usr/bin/python3",
        action=attempt.action,
        target=target_fields(attempt.target),
        fingerprint=fingerprint(attempt),
        decision="deny",
        rule="private:1",
        reason=f"no rule allows {PATIENT}",
        latency_ns=5,
    )
    return msgspec.structs.replace(entry, **more)


@pytest.fixture(name="state")
def _state(tmp_path: Path) -> Path:
    """A state with one private record, made as the broker makes it, and one that is not."""
    attempt = Attempt("file.read", FileTarget(PATIENT))
    with Journal.open(tmp_path / "journal") as journal:
        veils = pseudonyms.Veils(tmp_path / "keys")
        veils.cover("s-1", POLICY, "/w", "/home/u")
        journal.veil = veils
        journal.append_all([(journal.template(decision(attempt)), 1, 7, 5)])
        journal.append(decision(Attempt("file.read", FileTarget("/w/src/a")), reason="no rule"))
        start = {"command": ["cat", "patients/mueller.txt"], "workspace": "/w"}
        journal.append(Entry(type=RecordType.SESSION_START, session="s-1", detail=dict(start)))
    return tmp_path


def chain(state: Path) -> str:
    return "".join(line.decode() for _, _, line in lines(state / "journal"))


def test_neither_the_chain_nor_journald_says_a_private_name(state: Path) -> None:
    plain = fingerprint(Attempt("file.read", FileTarget(PATIENT)))
    text = chain(state)
    sent = b"".join(
        message(decode(line), leaf_hash(line).hex()) for _, _, line in lines(state / "journal")
    ).decode("utf-8", "replace")
    for where in (text, sent):
        assert "mueller" not in where
        assert plain not in where
        assert hashlib.sha256(PATIENT.encode()).hexdigest() not in where
        assert "hmac:" in where
        assert "/w/src/a" in where  # the control: what is not private is there
    assert "sealed" not in sent
    assert verify(state / "journal").status is Status.INTACT


def test_the_same_name_has_the_same_pseudonym_and_under_another_key_another(state: Path) -> None:
    key = pseudonyms.read_key(state / "keys" / pseudonyms.KEY_FILE)
    (first, *_) = read(state / "journal", Filter(type="decision"))
    assert first.target == {"path": key.pseudonym(PATIENT)}
    other = pseudonyms.Key(bytes(32))
    assert other.pseudonym(PATIENT) != key.pseudonym(PATIENT)
    assert other.id != key.id
    with pytest.raises(JournalError, match="sealed with another key"):
        pseudonyms.reveal(first, other)


def test_reveal_says_the_name_and_records_who_asked_and_why_first(state: Path) -> None:
    (private, public) = read(state / "journal", Filter(type="decision"))
    done = CliRunner().invoke(
        audit_group,
        ["reveal", str(private.seq), "--why", "case 17", "--state", str(state), "--json"],
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["plain"]["target"] == {"path": PATIENT}
    assert PATIENT in json.loads(done.stdout)["plain"]["reason"]
    (noted,) = read(state / "journal", Filter(type="export"))
    assert (noted.action, noted.reason) == ("audit.reveal", "case 17")
    assert (noted.detail or {})["records"] == [private.seq]
    assert verify(state / "journal").status is Status.INTACT
    refused = CliRunner().invoke(
        audit_group, ["reveal", str(public.seq), "--why", "x", "--state", str(state)]
    )
    assert isinstance(refused.exception, JournalError)
    assert "nothing in it is sealed" in refused.exception.message


def test_reveal_without_the_key_or_beside_a_writer_prints_nothing(state: Path) -> None:
    (private, _) = read(state / "journal", Filter(type="decision"))
    arguments = ["reveal", str(private.seq), "--why", "x", "--state", str(state)]
    with Journal.open(state / "journal"):
        done = CliRunner().invoke(audit_group, arguments)
    assert isinstance(done.exception, JournalError)
    assert "a broker is writing" in done.exception.message
    assert "mueller" not in done.output
    (state / "keys" / pseudonyms.KEY_FILE).unlink()
    done = CliRunner().invoke(audit_group, arguments)
    assert isinstance(done.exception, JournalError)
    assert (done.exception.hint or "").startswith("without the pseudonym key")
    assert "mueller" not in done.output
    assert not list(read(state / "journal", Filter(type="export")))


def test_a_pseudonym_that_is_not_of_what_is_sealed_is_said(state: Path) -> None:
    key = pseudonyms.read_key(state / "keys" / pseudonyms.KEY_FILE)
    (private, _) = read(state / "journal", Filter(type="decision"))
    forged = msgspec.structs.replace(private, target={"path": key.pseudonym("/w/patients/other")})
    with pytest.raises(JournalError, match="not of what is sealed"):
        pseudonyms.reveal(forged, key)


def test_the_key_is_for_its_owner_alone_and_not_in_the_journal(state: Path) -> None:
    path = state / "keys" / pseudonyms.KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert not list((state / "journal").glob("*pseudonym*"))
    assert path.read_text().split()[1] not in chain(state)


def test_what_is_sealed_is_of_a_record_that_still_has_one_canonical_form(state: Path) -> None:
    for _, _, line in lines(state / "journal"):
        assert encode(decode(line)) == line
    assert len(files.segments(state / "journal")) == 1


MARKS = Marks(Pseudonymise(("patients/**", "~/mail/**"), ("network",)), "/w", "/home/u")


@pytest.mark.parametrize(
    "word",
    [
        "/w/patients/mueller.txt",
        "patients/mueller.txt",
        "./patients/../patients/x",
        "--file=patients/x",
        "cat patients/x > out",
        "a:/w/patients/x",
        "~/mail/inbox",
        "/w/patients",
        "'patients/x y'",
    ],
)
def test_words_that_name_something_private(word: str) -> None:
    assert MARKS.word(word)


@pytest.mark.parametrize("word", ["/w/src", "patient", "/x/patients/a", "~", "", "a\0b", "network"])
def test_words_that_do_not(word: str) -> None:
    assert not MARKS.word(word)


@given(st.text())
def test_any_word_can_be_asked_about_and_stands_for_itself_alone(word: str) -> None:
    MARKS.word(word)
    MARKS.pieces(word)
    key = pseudonyms.Key(bytes(32))
    assert key.pseudonym(word) != key.pseudonym(word + "x")
    assert (
        key.open(key.seal(word.encode("utf-8", "surrogatepass"))).decode("utf-8", "surrogatepass")
        == word
    )


def test_a_whole_action_keeps_only_what_names_nobody(state: Path) -> None:
    key = pseudonyms.read_key(state / "keys" / pseudonyms.KEY_FILE)
    target: dict[str, object] = {
        "address": "192.0.2.7", "port": 443, "protocol": "tcp", "names": ["clinic.example"],
    }  # fmt: skip
    entry = decision(Attempt("file.read", FileTarget("/x")), action="network.connect")
    entry = msgspec.structs.replace(entry, target=target, reason="to 192.0.2.7")
    veiled = pseudonyms.veiled(entry, MARKS, key)
    assert veiled.target is not None
    assert (veiled.target["port"], veiled.target["protocol"]) == (443, "tcp")
    assert "192.0.2.7" not in str(veiled)
    assert "clinic" not in str(veiled)


def test_a_child_policy_keeps_private_what_its_parent_does() -> None:
    from safeclaw.policies.document import Parent

    parent = b'version: "1.0"\npseudonymise: {path: "a/**"}\nrules: [{action: "*", effect: deny}]\n'
    child = b'version: "1.0"\nextends: base.yaml\npseudonymise: {action: shell}\n'
    policy = loader.load(
        child, name="child.yaml",
        parents=[Parent("child.yaml", "base.yaml", "base.yaml", parent)],
    )  # fmt: skip
    assert policy.pseudonymise == Pseudonymise(("a/**",), ("shell",))
