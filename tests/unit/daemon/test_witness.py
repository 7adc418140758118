"""A witness over real HTTP, handed the checkpoints of real chains: what it signs, and what not."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from safeclaw.daemon.journal import Entry, Journal, RecordType, files, keys
from safeclaw.daemon.journal.cosignature import Cosigner, WitnessKey, cosigned_at
from safeclaw.daemon.journal.note import Checkpoint
from safeclaw.daemon.journal.report import Status
from safeclaw.daemon.journal.verifier import read_checkpoint, verify
from safeclaw.daemon.witness import protocol
from safeclaw.daemon.witness.push import Feed, WitnessError, fetch
from safeclaw.daemon.witness.server import Server
from safeclaw.daemon.witness.store import Store
from safeclaw.errors import JournalError, UsageError
from tests.forger import forge, whitewash
from tests.journals import decision
from tests.standalone import standalone
from tests.unit.daemon.auditing import broken_off, run


class Witness:
    """A witness that serves, and a chain that it knows."""

    def __init__(self, place: Path) -> None:
        self.state = place / "state"
        self.directory = self.state / "journal"
        self.store = Store.make(place / "witness", "witness.example/w1")
        self.key = self.store.cosigner.public
        with self.open() as journal:
            for number in range(20):
                journal.append(decision(number, effect="deny" if number == 5 else "allow"))
        self.store.add_log(keys.read_public_keys(self.state / "keys" / files.PUBLIC_KEY))
        self.server = Server(("127.0.0.1", 0), self.store)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    def open(self) -> Journal:
        journal = Journal.open(self.directory)
        journal.upkeep.segment_bytes = 5000
        return journal

    def grow(self, count: int = 15) -> None:
        with self.open() as journal:
            for number in range(count):
                journal.append(decision(number))

    def push(self) -> int:
        return Feed(self.directory, self.url, self.key).push().size

    def known(self) -> int:
        (seen,) = self.store.logs()
        return seen.size

    def post(self, body: bytes, call: str = protocol.ADD_CHECKPOINT) -> tuple[int, str, bytes]:
        connection = HTTPConnection("127.0.0.1", self.server.server_port, timeout=30)
        connection.request("POST", call, body)
        answer = connection.getresponse()
        found = answer.status, answer.getheader("Content-Type") or "", answer.read()
        connection.close()
        return found

    def request(self, old: int = 0, *proof: bytes, note: str | None = None) -> bytes:
        note = note or (self.directory / files.CHECKPOINT).read_text()
        return protocol.Request(old, proof, note, Checkpoint("", 0, b"")).body()

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    witness = Witness(tmp_path)
    yield witness
    witness.close()


# ---- the protocol


def test_a_witness_cosigns_a_chain_as_it_grows(witness: Witness, tmp_path: Path) -> None:
    feed = Feed(witness.directory, witness.url, witness.key)
    sizes: list[int] = []
    for again in range(4):
        pushed = feed.push() if again % 2 else Feed(witness.directory, witness.url, None).push()
        sizes.append(pushed.size)
        assert witness.known() == pushed.size
        cosigned = fetch(witness.url, witness.store.logs()[0].origin)
        at = cosigned_at(cosigned, witness.key)
        assert at is not None
        assert abs(at - time.time()) < 3600
        witness.grow()
    assert sizes == sorted(set(sizes))
    assert len(files.segments(witness.directory)) > 3
    # What it has seen outlives it.
    assert Store(tmp_path / "witness").logs() == witness.store.logs()
    kept = [("w", fetch(witness.url, witness.store.logs()[0].origin))]
    report = verify(witness.directory, checkpoints=kept, cosigners=[witness.key])
    assert (report.status, report.headline) == (Status.INTACT, "intact")
    assert "cosigned by witness.example/w1 at " in report.checked()[-1]
    assert f"records after the first {sizes[-1]}" in "\n".join(report.open_questions())


def test_a_witness_follows_the_keys_and_no_thief_of_an_old_one(witness: Witness) -> None:
    witness.push()
    first = files.load_key(witness.state / "keys")
    for _ in range(2):
        with witness.open() as journal:
            journal.append(decision(1))
            journal.roll_key()
            journal.append(decision(2))
    assert witness.push() == witness.known()
    (seen,) = witness.store.logs()
    assert len(seen.keys) == 3
    note = first.sign((witness.directory / files.CHECKPOINT).read_text().split("\n\n")[0] + "\n")
    assert witness.post(witness.request(seen.size, note=note))[0] == 403
    ring = keys.read_keyring(witness.directory)
    assert ring is not None
    assert witness.post(ring.certificates[0].encode(), protocol.ADD_KEY)[0] == 403
    assert witness.store.logs() == [seen]


def test_every_answer_of_the_specification(witness: Witness) -> None:
    unknown = (witness.directory / files.CHECKPOINT).read_text().replace("safeclaw/", "other/")
    assert witness.post(witness.request(note=unknown))[0] == 404
    forged = (witness.directory / files.CHECKPOINT).read_text()
    size = int(forged.split("\n")[1])
    forged = forged.replace(f"\n{size}\n", f"\n{size + 1}\n")
    assert witness.post(witness.request(note=forged))[0] == 403
    assert witness.post(witness.request(size + 1))[0] == 400
    status, kind, body = witness.post(witness.request(size))
    assert (status, kind, body) == (409, "text/x.tlog.size", b"0\n")
    assert witness.post(witness.request(0, bytes(32)))[0] == 422
    assert witness.known() == 0
    assert witness.post(witness.request(0))[0] == 200
    status, kind, body = witness.post(witness.request(0))
    assert (status, kind, body) == (409, "text/x.tlog.size", f"{size}\n".encode())
    assert witness.post(witness.request(size))[0] == 200  # the same again: a newer time
    witness.grow()
    assert witness.post(witness.request(size))[0] == 422
    assert witness.known() == size


@pytest.mark.parametrize(
    "body",
    [b"", b"old 0", b"old 0\n\n", b"old -1\n\nx", b"old 00\n\nx\n1\ny\n", b"old x\n\n", b"\xff\n\n",
     b"old 0\n!!!\n\n", b"old 0\nAA==\n\n", b"old 0\n" + b"A" * 43 + b"=\n" * 64 + b"\n"],
)  # fmt: skip
def test_what_is_no_request_is_a_bad_one(witness: Witness, body: bytes) -> None:
    assert witness.post(body)[0] == 400
    assert witness.push() == witness.known()


def test_other_calls_and_sizes_are_refused(witness: Witness) -> None:
    assert witness.post(b"x", "/other")[0] == 404
    assert witness.post(b"x" * (protocol.REQUEST_MAX + 1))[0] == 413
    assert witness.post(b"nonsense", protocol.ADD_KEY)[0] == 404
    with pytest.raises(WitnessError, match="no checkpoint"):
        fetch(witness.url, "safeclaw/unknown")
    with pytest.raises(UsageError):
        Feed(witness.directory, "ftp://x", None)


# ---- attacks that only an outside anchor shows


def test_a_rewritten_chain_is_not_cosigned_and_is_found(witness: Witness) -> None:
    """With the key, to the same length: the files alone verify."""
    size = witness.push()
    forge(witness.directory, whitewash(6), files.load_key(witness.state / "keys"))
    assert verify(witness.directory).status is Status.INTACT
    with pytest.raises(WitnessError, match="does not cosign"):
        witness.push()
    witness.grow()
    with pytest.raises(WitnessError, match="does not cosign"):
        witness.push()
    assert witness.known() == size
    refused = list((witness.store.directory / "refused").iterdir())
    assert len(refused) == 2  # signed by the log itself: proof of what it did
    kept = [("w", fetch(witness.url, witness.store.logs()[0].origin))]
    report = verify(witness.directory, checkpoints=kept, cosigners=[witness.key])
    assert report.status is Status.TAMPERED


def test_an_older_copy_is_said_and_found(witness: Witness) -> None:
    shutil.copytree(witness.directory, witness.state / "old")
    witness.grow()
    size = witness.push()
    shutil.rmtree(witness.directory)
    (witness.state / "old").rename(witness.directory)
    assert verify(witness.directory).status is Status.INTACT
    with pytest.raises(WitnessError, match=f"has seen {size} records"):
        witness.push()
    kept = [("w", fetch(witness.url, witness.store.logs()[0].origin))]
    report = verify(witness.directory, checkpoints=kept, cosigners=[witness.key])
    assert report.status is Status.TAMPERED
    assert report.finding is not None
    assert "the tail was cut off" in report.finding.what


def test_a_race_of_two_branches_leaves_one(witness: Witness, tmp_path: Path) -> None:
    """Whoever is first is cosigned; the other, signed by the same key, is not."""
    witness.push()
    shutil.copytree(witness.state, tmp_path / "fork")
    witness.grow()
    with Journal.open(tmp_path / "fork" / "journal") as journal:
        journal.append(Entry(type=RecordType.KILL))
    feeds = [Feed(place / "journal", witness.url, witness.key)
             for place in (witness.state, tmp_path / "fork")]  # fmt: skip
    won: list[int] = []

    def push(feed: Feed) -> None:
        try:
            won.append(feed.push().size)
        except JournalError:
            won.append(-1)

    threads = [threading.Thread(target=push, args=(feed,)) for feed in feeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won)[0] == -1
    assert sorted(won)[1] == witness.known()


def test_a_chain_pruned_beyond_the_witness_says_so(witness: Witness) -> None:
    witness.push()
    with witness.open() as journal:
        for number in range(60):
            journal.append(decision(number))
        journal.commit()
        assert journal.prune(0, override=True) > 2
    with pytest.raises(JournalError, match="was pruned"):
        witness.push()


# ---- the command line, and the auditor's own verifier


def test_the_commands_from_key_to_verdict(tmp_path: Path, witness: Witness) -> None:
    state, other = str(witness.state), str(tmp_path / "second")
    made = run("witness", "init", "--directory", other, "--name", "w.example/2")
    assert made.exit_code == 0, made.exception
    assert WitnessKey.parse(made.stdout).name == "w.example/2"
    exported = tmp_path / "public-keys"
    assert run("keys", "export", "--state", state, "--output", str(exported)).exit_code == 0
    assert "0 records seen" in run("witness", "add", str(exported), "--directory", other).stdout
    assert "cosigned never" in run("witness", "show", "--directory", other).stdout
    kept = tmp_path / "cosigned"
    pushed = run("witness", "push", witness.url, "--state", state, "--output", str(kept),
                 "--witness-key", str(witness.store.directory / "witness.pub"))  # fmt: skip
    assert pushed.exit_code == 0, pushed.exception
    assert "records cosigned 2" in pushed.stdout
    word = witness.key.text()
    for anchor in (("--witness", witness.url), ("--checkpoint", str(kept))):
        result = run("verify", "--state", state, *anchor, "--witness-key", word, "--json")
        value = json.loads(result.stdout)
        assert (result.exit_code, value["verdict"]) == (0, "intact"), value
        assert "cosigned by witness.example/w1" in value["anchors"][0]
        assert "a witness that whoever holds" in "\n".join(value["cannot_exclude"])
    key_file = tmp_path / "w.pub"
    key_file.write_text(word + "\n")
    assert standalone(witness.directory, checkpoint=kept, witness_key=key_file) == 0
    # Not cosigned, by another witness, or not as it was: it does not count as cosigned.
    plain = tmp_path / "plain"
    plain.write_text(read_checkpoint(witness.directory / files.CHECKPOINT)[1])
    strange = Cosigner("witness.example/w1", os.urandom(32)).public.text()
    for file, name, status in ((plain, word, 3), (kept, strange, 3)):
        key_file.write_text(name + "\n")
        result = run("verify", "--state", state, "--checkpoint", str(file), "--witness-key", name)
        assert result.exit_code == status, result.output
        assert standalone(witness.directory, checkpoint=file, witness_key=key_file) == status
    lines = kept.read_text().rstrip("\n").rpartition(" ")
    body = bytearray(base64.b64decode(lines[2]))
    body[-1] ^= 1
    kept.write_text(f"{lines[0]} {base64.b64encode(body).decode()}\n")
    key_file.write_text(word + "\n")
    result = run("verify", "--state", state, "--checkpoint", str(kept), "--witness-key", word)
    assert result.exit_code == 1, result.output
    assert standalone(witness.directory, checkpoint=kept, witness_key=key_file) == 1


def test_usage_errors_have_one_line_and_a_hint(tmp_path: Path, witness: Witness) -> None:
    state = str(witness.state)
    no_key = run("verify", "--state", state, "--witness", witness.url)
    none = run("witness", "show", "--directory", str(tmp_path / "none"))
    nobody = run("witness", "push", "http://127.0.0.1:1", "--state", state)
    nowhere = run("witness", "push", "witness.example", "--state", state)
    port = run("witness", "serve", "--directory", str(witness.store.directory), "--listen", "x")
    taken = run("witness", "serve", "--directory", str(tmp_path / "none"))
    for result in (no_key, none, nobody, nowhere, port, taken):
        assert isinstance(result.exception, UsageError | JournalError), result.output
        assert result.exception.hint
        assert "\n" not in result.exception.message
    again = run("witness", "init", "--directory", str(witness.store.directory), "--name", "x")
    assert isinstance(again.exception, JournalError)
    spaced = run("witness", "init", "--directory", str(tmp_path / "new"), "--name", "a b")
    assert isinstance(spaced.exception, JournalError)
    assert not (tmp_path / "new").exists()


def test_a_witness_that_cannot_keep_what_it_sees_does_not_cosign(
    witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "replace", full)
        assert witness.post(witness.request(0))[0] == 500
    assert witness.known() == 0
    assert witness.post(witness.request(0))[0] == 200


@pytest.mark.parametrize(
    "url",
    [
        "http://[",
        "http://host:port",
        "http://host:99999999",
        "http://a b",
        "http://a\nb",
        "ftp://a",
    ],
)
def test_what_is_no_url_is_a_usage_error(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a witness's URL"):
        Feed(tmp_path, url, None)


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 409 x\r\nContent-Length: 5000\r\n\r\n" + b"9" * 5000,
        b"HTTP/1.1 409 x\r\nContent-Length: 2\r\n\r\n" + "\u00b2".encode(),
        b"HTTP/1.1 403 x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000 + b"\r\n\r\n",
    ],
)
def test_a_witness_that_talks_nonsense_is_an_error_of_ours(witness: Witness, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(1 << 16)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(WitnessError):
            Feed(witness.directory, url, None).push()
        thread.join()


def test_a_client_leaves_no_traceback_in_a_witnesss_log(
    witness: Witness, capfd: pytest.CaptureFixture[str]
) -> None:
    def ask(request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", witness.server.server_port)) as peer:
            peer.sendall(request)
            return peer.recv(1 << 16)

    long = b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: %s\r\n\r\n"
    assert ask(long % (b"9" * 5000)).startswith(b"HTTP/1.1 411")
    assert ask(long % b"9999999").startswith(b"HTTP/1.1 413")
    with socket.create_connection(("127.0.0.1", witness.server.server_port)) as peer:
        peer.sendall(long % b"10")
        # SO_LINGER of 0: closing resets
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    witness.push()  # and another connection is served
    said = capfd.readouterr().err
    assert "411" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("every", [(), ("--every", "60")])
def test_a_push_that_is_broken_off_leaves_no_half_checkpoint(
    witness: Witness, tmp_path: Path, every: tuple[str, ...]
) -> None:
    output = tmp_path / "cosigned"
    status = broken_off(
        signal.SIGHUP, output, "witness", "push", witness.url, *every, "--state", str(witness.state)
    )
    assert status == 128 + signal.SIGHUP
    assert not list(tmp_path.glob("cosigned*"))
