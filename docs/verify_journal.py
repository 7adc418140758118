#!/usr/bin/env python3
# ruff: noqa: D101, D102, D103
"""Verify a safeclaw journal without safeclaw.

    verify_journal.py DIRECTORY [--public-key FILE] [--checkpoint FILE]...
                      [--witness-key FILE]

Needs Python 3.11 and the `cryptography` package, and nothing of safeclaw: it is
written from docs/audit-format.md, to be read in one sitting.  DIRECTORY is a
copy of a state's journal/ folder, or an unpacked evidence package.  FILEs count
only if they were kept where whoever holds the journal could not change them.

Exit status: 0 nothing wrong, 1 tampered with, 2 usage, 3 incomplete or unreadable.
"""

import argparse
import base64
import hashlib
import json
import re
import sys
from datetime import datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

TAMPERED, INCOMPLETE = 1, 3
MAX_INT = 2**53 - 1
MAX_LINE = 8 << 20

TYPES = {
    "agent_change", "approval", "checkpoint", "clock_step", "decision", "export", "fault", "gap",
    "genesis", "heartbeat", "key_change", "kill", "limit", "outcome", "policy_load", "prune",
    "recovery", "rotate", "session_end", "session_start", "violation",
}  # fmt: skip
TEXT = ("boot_id", "chain", "prev", "ts", "type")  # always there
WHOLE = ("boottime_us", "seq", "v")  # always there
OPTIONAL_TEXT = (
    "action", "agent", "decision", "enforced_by", "fingerprint", "reason", "rule", "session",
)  # fmt: skip
OPTIONAL_WHOLE = ("attempt", "latency_ns")


class Wrong(Exception):
    """Something is wrong: where, what, and which exit status says so."""

    def __init__(self, where, what, status=TAMPERED):
        text = f"{where}: {what}"
        # what whoever made the files chose must not move a terminal's cursor
        super().__init__(
            "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        )
        self.status = status


# ---- Merkle tree (RFC 6962): the roots of the complete subtrees, largest first


def leaf_hash(line):
    return hashlib.sha256(b"\x00" + line).digest()


def node_hash(left, right):
    return hashlib.sha256(b"\x01" + left + right).digest()


def tree_append(nodes, size, leaf):
    while size & 1:
        leaf = node_hash(nodes.pop(), leaf)
        size >>= 1
    nodes.append(leaf)


def tree_root(nodes):
    if not nodes:
        return hashlib.sha256(b"").digest()
    root = nodes[-1]
    for node in reversed(nodes[:-1]):
        root = node_hash(node, root)
    return root


def b64(data):
    return base64.b64encode(data).decode()


# ---- keys and signed notes (c2sp.org/signed-note, tlog-checkpoint)


def parse_key(text, kind=1):
    """Return (name, raw key) of `name+hash+base64`; kind 1 signs notes, 4 cosigns them."""
    name, _, rest = text.strip().partition("+")
    digest, _, body = rest.partition("+")
    raw = base64.b64decode(body, validate=True)
    if not name or len(raw) != 33 or raw[0] != kind:
        raise ValueError("not an Ed25519 note key")
    if hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4].hex() != digest:
        raise ValueError("the key's hash does not fit it")
    return name, raw[1:]


def key_text(key):
    name, raw = key
    body = b"\x01" + raw
    digest = hashlib.sha256(name.encode() + b"\n" + body).hexdigest()
    return f"{name}+{digest[:8]}+{b64(body)}"


def open_note(note, key):
    """Return the text of a note that `key` signed, or raise ValueError."""
    text, found, signatures = note.partition("\n\n")
    text += "\n"
    if not found or not signatures.endswith("\n"):
        raise ValueError("not a signed note")
    name, raw = key
    mark = hashlib.sha256(name.encode() + b"\n\x01" + raw).digest()[:4]
    for line in signatures[:-1].split("\n"):
        dash, _, rest = line.partition(" ")
        signer, _, body = rest.partition(" ")
        signature = base64.b64decode(body, validate=True)
        if dash != "\u2014" or b64(signature) != body:
            raise ValueError("not a signed note")
        if signer == name and signature[:4] == mark:
            try:
                Ed25519PublicKey.from_public_bytes(raw).verify(signature[4:], text.encode())
            except InvalidSignature:
                raise ValueError("the signature does not hold") from None
            return text
    raise ValueError("not signed by the key in force")


def parse_checkpoint(text):
    """Return (origin, size, root) of a checkpoint's text, or raise ValueError."""
    lines = text.split("\n")
    if len(lines) != 4 or not re.fullmatch("[0-9]+", lines[1]):
        raise ValueError("not a checkpoint")
    root = base64.b64decode(lines[2], validate=True)
    if len(root) != 32 or f"{lines[0]}\n{int(lines[1])}\n{b64(root)}\n" != text:
        raise ValueError("the checkpoint is not in canonical form")
    return lines[0], int(lines[1]), root


def cosigned_at(note, key):
    """Return when a witness cosigned a note (c2sp.org/tlog-cosignature), None if it did not."""
    text, _, signatures = note.partition("\n\n")
    name, raw = key
    mark = hashlib.sha256(name.encode() + b"\n\x04" + raw).digest()[:4]
    for line in signatures.splitlines():
        signer, _, body = line.removeprefix("\u2014 ").partition(" ")
        signature = base64.b64decode(body, validate=True)
        if signer == name and signature[:4] == mark:
            seconds = int.from_bytes(signature[4:12], "big")
            message = f"cosignature/v1\ntime {seconds}\n{text}\n".encode()
            try:
                Ed25519PublicKey.from_public_bytes(raw).verify(signature[12:], message)
            except InvalidSignature:
                raise ValueError(f"the cosignature of {name} does not hold") from None
            return seconds
    return None


def check_cosigners(checkpoints, keys):
    """Print who cosigned what; someone must have, where witnesses' keys were given."""
    found = False
    for path in checkpoints:
        for key in keys:
            try:
                seconds = cosigned_at(path.read_text(), key)
            except (OSError, ValueError) as error:
                raise Wrong(path, error) from None
            if seconds is not None:
                found = True
                print(f"{path}: cosigned by {key[0]}, {seconds} seconds after 1970")
    if keys and not found:
        raise Wrong("witness", "no checkpoint that was given is cosigned by it", INCOMPLETE)


def open_certificate(note, old):
    """Return (checkpoint, next key): signed by the old key and by the new one."""
    head, found, rest = open_note(note, old).partition("\nkey ")
    if not found or rest.count("\n") != 1 or not rest.endswith("\n"):
        raise ValueError("not a key certificate")
    key = parse_key(rest[:-1])
    if key_text(key) != rest[:-1] or key[0] != old[0]:
        raise ValueError("a certificate for another name's key")
    open_note(note, key)
    return parse_checkpoint(head + "\n"), key


# ---- records


def plain(value, depth=0):
    """Whether a value has a canonical form: no floats, no large integers, ASCII keys."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return True
    if isinstance(value, int):
        return abs(value) <= MAX_INT
    if depth > 16:
        return False
    if isinstance(value, list):
        return all(plain(item, depth + 1) for item in value)
    if isinstance(value, dict):
        return all(key.isascii() and plain(item, depth + 1) for key, item in value.items())
    return False


def whole(value):
    return type(value) is int and 0 <= value <= MAX_INT


def decode(line):
    """Return the record of a line, or raise ValueError."""
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):
        raise ValueError("not a record: not JSON") from None
    if not isinstance(record, dict):
        raise ValueError("not a record: not an object")
    known = {*TEXT, *WHOLE, *OPTIONAL_TEXT, *OPTIONAL_WHOLE}
    rest = {key: value for key, value in record.items() if key not in known}
    good = (
        all(isinstance(record.get(key), str) for key in TEXT)
        and all(whole(record.get(key)) for key in WHOLE)
        and all(isinstance(record[key], str) for key in OPTIONAL_TEXT if key in record)
        and all(whole(record[key]) for key in OPTIONAL_WHOLE if key in record)
        and record["type"] in TYPES
        and record["v"] == 1
        and set(rest) <= {"detail", "target", "policy", "subject"}
        and all(isinstance(value, dict) and plain(value) for value in rest.values())
    )
    if good and "policy" in rest:
        good = set(rest["policy"]) == {"name", "sha256", "version"} and all(
            isinstance(value, str) for value in rest["policy"].values()
        )
    if good and "subject" in rest:
        subject = rest["subject"]
        good = (
            set(subject) <= {"exe", "pid", "uid"}
            and isinstance(subject.get("exe", ""), str)
            and whole(subject.get("pid", 0))
            and whole(subject.get("uid", 0))
        )
    if not good:
        raise ValueError("not a record: a field is missing, unknown, or not what it should be")
    again = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    if again.encode("utf-8", "surrogatepass") != line:
        raise ValueError("not in canonical form")
    return record


def segment_number(name):
    """Return the number in a segment's one name; None for any other name."""
    match = re.fullmatch(r"segment-([0-9]{6,12})\.jsonl", name)
    return int(match[1]) if match and name == f"segment-{int(match[1]):06}.jsonl" else None


def micros(ts):
    """Return a record's time in microseconds, or raise ValueError."""
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", ts, re.ASCII):
        raise ValueError("ts is not a time")
    second = datetime.strptime(ts[:19], "%Y-%m-%dT%H:%M:%S") - datetime(1970, 1, 1)
    return second.days * 86_400_000_000 + second.seconds * 1_000_000 + int(ts[20:26])


# ---- the walk


class Chain:
    def __init__(self, given, ring, claims):
        self.given, self.ring = given, ring
        self.claims = claims  # (source, note) until the chain's name is known
        self.keys = []
        self.from_genesis = False
        self.nodes, self.size, self.prev = [], 0, "0" * 64
        self.base = 0
        self.name = ""
        self.chain = ""
        self.signed = 0
        self.boot, self.boottime, self.offset = "", 0, 0
        self.pruned = None
        self.starts = {}
        self.first_ts = self.last_ts = ""

    def begin(self, record, number):
        """Take the first record that is there: the genesis, or what a pruned chain opens with."""
        detail = record.get("detail", {})
        self.chain, self.name = record["chain"], f"safeclaw/{record['chain']}"
        self.first_ts = record["ts"]
        if number == 1:
            if record["type"] != "genesis" or detail.get("origin") != self.name:
                raise ValueError("the first record is not this chain's genesis")
            key, self.from_genesis = parse_key(str(detail.get("public_key"))), True
        else:
            if record["type"] != "rotate":
                raise ValueError("a later segment opens with rotate")
            self.nodes = [bytes.fromhex(node) for node in str(detail.get("nodes")).split()]
            self.size = self.base = record["seq"]
            self.prev = record["prev"]
            if len(self.nodes) != self.size.bit_count() or any(len(n) != 32 for n in self.nodes):
                raise ValueError("the nodes of rotate are not those of a tree of its size")
            key = parse_key(str(detail.get("key")))
            if key in self.ring:
                self.from_genesis = True
                for known in self.ring[: self.ring.index(key)]:
                    self.enter(known)
            elif self.ring:
                raise ValueError("the keyring does not lead to the key in force")
            elif self.given[:1] == [key]:
                self.from_genesis = True
        if key[0] != self.name:
            raise ValueError("the key of another chain")
        self.enter(key)
        claims, self.claims = self.claims, []
        for source, note in claims:
            try:
                origin, size, root = parse_checkpoint(note.partition("\n\n")[0] + "\n")
            except ValueError as error:
                raise Wrong(source, error) from None
            if origin != self.name:
                raise Wrong(source, "a checkpoint of another chain")
            if size >= self.base:
                self.claims.append((size, root, source, note))
        self.claims.sort(key=lambda claim: claim[0])

    def enter(self, key):
        epoch = len(self.keys)
        self.keys.append(key)
        if self.from_genesis and epoch < len(self.given) and self.given[epoch] != key:
            raise ValueError("the chain's key is not the public key given")

    def accept(self, line, number, opens):
        record = decode(line)
        if not self.keys:
            self.begin(record, number)
        kind, detail = record["type"], record.get("detail", {})
        if record["seq"] != self.size:
            raise ValueError(f"the record says {record['seq']}, {self.size} is due here")
        if record["prev"] != self.prev:
            raise ValueError("prev is not the hash of the record before")
        if record["chain"] != self.chain:
            raise ValueError("a record of another chain")
        root = tree_root(self.nodes)
        here = {"root": b64(root), "size": self.size}
        place = (self.name, self.size, root)
        if opens and self.size > 0:
            expected = here | {
                "continues": f"segment-{number - 1:06}.jsonl",
                "key": key_text(self.keys[-1]),
                "nodes": " ".join(node.hex() for node in self.nodes),
            }
            if kind != "rotate" or detail != expected:
                raise ValueError("the segment does not continue the one before")
            self.starts[number] = (self.size, b64(root))
        elif kind == "rotate":
            raise ValueError("rotate in the middle of a segment")
        elif kind == "genesis" and self.size > 0:
            raise ValueError("a second genesis")
        elif kind == "checkpoint":
            note = str(detail.get("note"))
            stated = parse_checkpoint(open_note(note, self.keys[-1]))
            if (
                stated != place
                or detail.get("size") != self.size
                or detail.get("root") != b64(root)
            ):
                raise ValueError("the checkpoint does not state the chain before it")
            self.signed = self.size
        elif kind == "key_change":
            note = str(detail.get("certificate"))
            stated, key = open_certificate(note, self.keys[-1])
            if stated != place or detail != here | {
                "certificate": note,
                "public_key": key_text(key),
            }:
                raise ValueError("the certificate does not state the chain before it")
            self.enter(key)
            self.signed = self.size
        elif kind == "prune":
            self.prune(record, detail, number)
        self.clock(record)
        leaf = leaf_hash(line)
        tree_append(self.nodes, self.size, leaf)
        self.size += 1
        self.prev, self.last_ts = leaf.hex(), record["ts"]
        self.settle()

    def settle(self):
        """Compare the chain, at its present size, with who claims to know its root."""
        while self.claims and self.claims[0][0] <= self.size:
            size, root, source, note = self.claims.pop(0)
            try:
                open_note(note, self.keys[-1])
            except ValueError as error:
                raise Wrong(source, error) from None
            if root != tree_root(self.nodes):
                raise ValueError(f"not the records that {source} (size {size}) was signed for")
            self.signed = max(self.signed, size)

    def prune(self, record, detail, number):
        through = segment_number(str(detail.get("through")))
        days, override = detail.get("retention_days"), detail.get("override")
        size, root = detail.get("size"), detail.get("root")
        newest = detail.get("newest")
        if not (
            through and type(days) is int and type(override) is bool and type(size) is int
            and isinstance(root, str) and isinstance(newest, str)
        ):  # fmt: skip
            raise ValueError("prune: a field is missing")
        if days < 90 and not override:
            raise ValueError("prune: less than 90 days of retention without an override")
        if micros(record["ts"]) - micros(newest) < (days * 86_400 - 1) * 1_000_000:
            raise ValueError(f"prune: records were not {days} days old")
        if through >= number or self.starts.get(through + 1, (size, root)) != (size, root):
            raise ValueError("prune: it does not state the chain at its place")
        self.pruned = (through, self.size)

    def clock(self, record):
        offset = micros(record["ts"]) - record["boottime_us"]
        if record["boot_id"] == self.boot and record["type"] != "clock_step":
            elapsed = record["boottime_us"] - self.boottime
            if elapsed < 0 or abs(offset - self.offset) > 2_000_000 + elapsed // 500:
                raise ValueError("ts does not keep step with the boot clock")
        self.boot, self.boottime, self.offset = record["boot_id"], record["boottime_us"], offset

    def finish(self):
        if self.base:
            first = min(self.starts)
            if self.pruned is None or self.pruned[0] < first - 1:
                raise Wrong(
                    f"segment-{first - 1:06}.jsonl", "missing, and no prune record says why"
                )
            if self.pruned[1] >= self.signed:
                raise Wrong("prune", "no checkpoint covers it")
        if self.given and not self.from_genesis and self.given[0] != self.keys[0]:
            raise Wrong(
                "keyring", "nothing leads from the key given to the key in force", INCOMPLETE
            )
        if self.from_genesis and len(self.given) > len(self.keys):
            raise Wrong("keys", "more epochs were given than the chain has: an older copy")


def read_ring(directory):
    """Return the keys that the keyring certifies; none when there is no whole one."""
    try:
        ring = json.loads((directory / "keyring").read_text())
        keys = [parse_key(ring["genesis"])]
        for note in ring["certificates"]:
            keys.append(open_certificate(note, keys[-1])[1])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return keys


def verify(directory, given, checkpoints):
    """Return the chain, or raise Wrong."""
    try:
        names = sorted(
            (number, path)
            for path in directory.iterdir()
            if (number := segment_number(path.name)) is not None
        )
        latest = directory / "checkpoint"
        claims = [(str(path), path.read_text()) for path in checkpoints]
        if latest.exists():
            claims.insert(0, ("checkpoint", latest.read_bytes().decode()))
    except UnicodeDecodeError:
        raise Wrong("checkpoint", "not a signed note") from None
    except OSError as error:
        raise Wrong(error.filename, error.strerror, INCOMPLETE) from None
    if not names and not claims:
        raise Wrong(directory, "no journal here", INCOMPLETE)
    chain = Chain(given, read_ring(directory), claims)
    torn = None
    for position, (number, path) in enumerate(names):
        if number != names[0][0] + position:
            raise Wrong(f"segment-{names[0][0] + position:06}.jsonl", "the segment is missing")
        if torn:
            raise Wrong(path.name, "the segment before ends in a torn line")
        with path.open("rb") as stream:
            count = 0
            while line := stream.readline(MAX_LINE + 2):
                count += 1
                where = f"{path.name}:{count} (record {chain.size})"
                if len(line.removesuffix(b"\n")) > MAX_LINE:
                    raise Wrong(where, "the line is too long")
                if not line.endswith(b"\n"):
                    torn = where
                    break
                try:
                    chain.accept(line[:-1], number, count == 1)
                except ValueError as error:
                    raise Wrong(where, error) from None
    if not chain.keys:
        if claims:
            raise Wrong(directory, "the chain ends before its first record: the tail was cut off")
        raise Wrong(directory, "no record yet, as a crash at its beginning leaves it", INCOMPLETE)
    if chain.claims:
        size, _, source, note = chain.claims[-1]
        try:
            open_note(note, chain.keys[-1])
        except ValueError as error:
            raise Wrong(source, error) from None
        raise Wrong(
            f"{names[-1][1].name} (record {chain.size})",
            f"the chain ends here, but {source} was signed for {size}: the tail was cut off",
        )
    if torn:
        raise Wrong(torn, "a torn tail, as a crash leaves it", INCOMPLETE)
    chain.finish()
    if not latest.exists():
        raise Wrong("checkpoint", "the file is missing", INCOMPLETE)
    return chain


def check_manifest(place):
    """Return the bytes of an evidence package's manifest, after every file fits it."""
    try:
        manifest = (place / "manifest.json").read_bytes()
        listed = {str(file["path"]): file["sha256"] for file in json.loads(manifest)["files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise Wrong("manifest.json", "not a manifest") from None
    there = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    there -= {"manifest.json", "manifest.note"}
    if there != set(listed):
        raise Wrong(sorted(there ^ set(listed))[0], "missing, or not in the manifest")
    for name, digest in listed.items():
        try:
            with (place / name).open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise Wrong(name, error.strerror, INCOMPLETE) from None
        if found != digest:
            raise Wrong(name, "its hash is not the one in the manifest")
    return manifest


def check_signature(place, manifest, chain):
    """Check that the chain's last key signed the manifest."""
    try:
        text = open_note((place / "manifest.note").read_bytes().decode(), chain.keys[-1])
    except (OSError, ValueError) as error:
        raise Wrong("manifest.note", error) from None
    if text != f"safeclaw evidence\n{chain.chain}\n{hashlib.sha256(manifest).hexdigest()}\n":
        raise Wrong("manifest.note", "it signs another manifest")


def main():
    parser = argparse.ArgumentParser(description="Verify a safeclaw journal without safeclaw.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--public-key", type=Path)
    parser.add_argument("--checkpoint", type=Path, action="append", default=[])
    parser.add_argument("--witness-key", type=Path)
    options = parser.parse_args()
    given, witnesses = [], []
    for path, keys, kind in ((options.public_key, given, 1), (options.witness_key, witnesses, 4)):
        try:
            lines = path.read_text().splitlines() if path is not None else []
            keys += [parse_key(line, kind) for line in lines if line.strip()]
        except (OSError, ValueError) as error:
            parser.error(f"{path}: {error}")
    try:
        check_cosigners(options.checkpoint, witnesses)
        package = (options.directory / "manifest.json").exists()
        if package:
            manifest = check_manifest(options.directory)
            chain = verify(options.directory / "journal", given, options.checkpoint)
            check_signature(options.directory, manifest, chain)
        else:
            chain = verify(options.directory, given, options.checkpoint)
    except Wrong as wrong:
        print(f"{'TAMPERED' if wrong.status == TAMPERED else 'INCOMPLETE'}: {wrong}")
        return wrong.status
    anchors = bool(given) + len(options.checkpoint)
    print("INTACT" if anchors else "INTERNALLY CONSISTENT (no anchor was given)")
    # without this line, only the chain was checked, and nothing that lies beside it
    if package:
        print("evidence package: every file is the one that the chain's last key signed for")
    print(f"chain {chain.chain}, {chain.first_ts} to {chain.last_ts}")
    print(
        f"{chain.size - chain.base} records, {chain.base} pruned before them, "
        f"{len(chain.keys)} signing keys, {chain.size - chain.signed} not covered by a checkpoint"
    )
    print(f"head {chain.prev}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
