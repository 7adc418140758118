"""A real chain, and every attack on one that the threat model names."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from safeclaw.daemon.journal import files, keys
from safeclaw.daemon.journal.journal import Journal
from safeclaw.daemon.journal.merkle import leaf_hash
from safeclaw.daemon.journal.note import SigningKey
from safeclaw.daemon.journal.record import Record, RecordType, decode, encode
from safeclaw.daemon.journal.verifier import read_checkpoint, verify
from tests.forger import drop, forge, same, whitewash
from tests.journals import decision, segment

DENIED = 9  # the number of a denial in the chain of the fixture


class Chain:
    """A closed chain of several segments and two epochs; the thief holds the present key."""

    def __init__(self, state: Path) -> None:
        self.directory = state / "journal"
        self.keys = state / "keys"
        with Journal.open(self.directory) as journal:
            self.first_key = files.load_key(self.keys)
            journal.upkeep.segment_bytes = 9000
            for number in range(12):
                journal.append(decision(number, effect="deny" if number % 3 == 2 else "allow"))
            journal.roll_key()
            for number in range(12, 18):
                journal.append(decision(number))
        self.kept = read_checkpoint(self.directory / files.CHECKPOINT)
        with Journal.open(self.directory) as journal:
            journal.upkeep.segment_bytes = 4000
            for number in range(18, 24):
                journal.append(decision(number))
        self.stolen = files.load_key(self.keys)
        self.ring = keys.read_public_keys(self.keys / files.PUBLIC_KEY)
        assert self.line(DENIED).decision == "deny"
        assert len(files.segments(self.directory)) > 2

    def place(self, seq: int) -> tuple[Path, int]:
        """Return the segment and the index of a record's line in it."""
        for _, path in files.segments(self.directory):
            for index, line in enumerate(path.read_bytes().splitlines()):
                if decode(line).seq == seq:
                    return path, index
        raise AssertionError(seq)

    def line(self, seq: int) -> Record:
        path, index = self.place(seq)
        return decode(path.read_bytes().splitlines()[index])

    def replace(self, seq: int, *new: bytes) -> None:
        """Put other lines in the place of one."""
        path, index = self.place(seq)
        lines = path.read_bytes().splitlines(keepends=True)
        lines[index : index + 1] = [line + b"\n" for line in new]
        path.write_bytes(b"".join(lines))

    def size(self) -> int:
        return verify(self.directory).records


def edited(chain: Chain) -> None:
    line = encode(chain.line(DENIED))
    chain.replace(DENIED, line.replace(b'"decision":"deny"', b'"decision":"allow"'))


def deleted(chain: Chain) -> None:
    chain.replace(DENIED)


def inserted(chain: Chain) -> None:
    record = chain.line(DENIED)
    line = encode(record)
    between = msgspec.structs.replace(record, seq=DENIED + 1, prev=leaf_hash(line).hex())
    chain.replace(DENIED, line, encode(between))


def duplicated(chain: Chain) -> None:
    line = encode(chain.line(DENIED))
    chain.replace(DENIED, line, line)


def reordered(chain: Chain) -> None:
    path, index = chain.place(DENIED)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[index], lines[index + 1] = lines[index + 1], lines[index]
    path.write_bytes(b"".join(lines))


def recoded(old: bytes, new: bytes) -> Callable[[Chain], None]:
    def attack(chain: Chain) -> None:
        line = encode(chain.line(DENIED))
        assert old in line
        chain.replace(DENIED, line.replace(old, new, 1))

    return attack


def line_separator(chain: Chain) -> None:
    # A line that some readers take for two.
    record = msgspec.structs.replace(chain.line(DENIED), reason="a\u2028b")
    chain.replace(DENIED, encode(record).replace("\u2028".encode(), b"\\u2028"))


def cut_tail(chain: Chain) -> None:
    path = files.segments(chain.directory)[-1][1]
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def middle_segment_gone(chain: Chain) -> None:
    segment(chain.directory, 2).unlink()


def oldest_segment_gone(chain: Chain) -> None:
    segment(chain.directory, 1).unlink()


def newest_segment_gone(chain: Chain) -> None:
    files.segments(chain.directory)[-1][1].unlink()


def second_genesis(chain: Chain) -> None:
    genesis = chain.line(0)
    forge(
        chain.directory,
        lambda record: [genesis] if record.seq == DENIED else [record],
        chain.first_key,
    )


def spliced(chain: Chain) -> None:
    with Journal.open(chain.directory.parent / "other" / "journal") as journal:
        for number in range(20):
            journal.append(decision(number))
    other = segment(chain.directory.parent / "other" / "journal").read_bytes().splitlines()
    chain.replace(DENIED, other[DENIED])


def renumbered_without_the_key(chain: Chain) -> None:
    forge(chain.directory, drop(DENIED), None)


def prune_forged_at_the_tail(chain: Chain) -> None:
    """Append a prune record with right links, unsigned, and delete what it names."""
    path = files.segments(chain.directory)[-1][1]
    last_line = path.read_bytes().splitlines()[-1]
    last = decode(last_line)
    opening = decode(segment(chain.directory, 2).read_bytes().splitlines()[0])
    assert opening.detail is not None
    record = msgspec.structs.replace(
        last,
        type=RecordType.PRUNE,
        seq=last.seq + 1,
        prev=leaf_hash(last_line).hex(),
        detail={
            "newest": "2020-01-01T00:00:00.000000Z",
            "override": False,
            "retention_days": 100,
            "root": opening.detail["root"],
            "size": opening.seq,
            "through": files.segment_name(1),
        },
    )
    path.write_bytes(path.read_bytes() + encode(record) + b"\n")
    segment(chain.directory, 1).unlink()


def retimed(microseconds: int) -> Callable[[Chain], None]:
    def attack(chain: Chain) -> None:
        def edit(record: Record) -> list[Record]:
            if record.seq != DENIED:
                return [record]
            boottime = record.boottime_us + microseconds
            return [msgspec.structs.replace(record, boottime_us=boottime)]

        forge(chain.directory, edit, chain.first_key)

    return attack


def stolen_key_before_its_epoch(chain: Chain) -> None:
    """Whoever has the present key rewrites what the erased one signed."""
    forge(chain.directory, whitewash(DENIED), chain.stolen)


FOUND: dict[str, tuple[Callable[[Chain], None], int | None, str]] = {
    "edit": (edited, DENIED + 1, "one of the two was changed"),
    "delete": (deleted, DENIED, f"says {DENIED + 1}, {DENIED} is due"),
    "insert": (inserted, DENIED + 2, f"says {DENIED + 1}, {DENIED + 2} is due"),
    "duplicate": (duplicated, DENIED + 1, f"says {DENIED}, {DENIED + 1} is due"),
    "reorder": (reordered, DENIED, f"says {DENIED + 1}, {DENIED} is due"),
    "a float for an integer": (recoded(b'"pid":7', b'"pid":7.0'), DENIED, "canonical|not a rec"),
    "a key twice": (recoded(b'"pid":7', b'"pid":7,"pid":7'), DENIED, "canonical"),
    "carriage return": (recoded(b'"v":1}', b'"v":1}\r'), DENIED, "canonical|not a record"),
    "escaped U+2028": (line_separator, DENIED, "canonical"),
    "strip prev": (recoded(b'"prev":', b'"reason":'), DENIED, "not a record|canonical"),
    "strip v": (recoded(b',"v":1', b""), DENIED, "not a record"),
    "an older version": (recoded(b'"v":1', b'"v":0'), DENIED, "version 0"),
    "cut the tail": (cut_tail, None, "cut off"),
    "the newest segment": (newest_segment_gone, None, "cut off"),
    "a middle segment": (middle_segment_gone, None, "segment is missing"),
    "the oldest segment": (oldest_segment_gone, None, "no prune record says why"),
    "a second genesis": (second_genesis, DENIED, "second genesis"),
    "a record of another host": (spliced, DENIED, "prev is not the hash|another chain"),
    "recompute without the key": (renumbered_without_the_key, None, "does not state|signature"),
    "forge a prune record": (prune_forged_at_the_tail, None, "no checkpoint covers it"),
    "the boot clock back": (
        retimed(-(10**12) // 10**6 * 10),
        DENIED,
        "boot clock|keep step|2\\^53",
    ),
    "the boot clock forward": (retimed(60_000_000), DENIED, "keep step"),
    "steal the key, rewrite before its epoch": (stolen_key_before_its_epoch, None, "signed by"),
}


# What only an anchor shows: without one it verifies, which is the control.


def rewritten_suffix(chain: Chain) -> None:
    """The same length, signed with the present key."""
    covered = int(chain.kept[1].split("\n")[1]) - 1
    at = next(seq for seq in range(covered, 0, -1) if chain.line(seq).decision is not None)
    before = chain.line(at)
    forge_since_the_roll(chain, whitewash(at))
    assert chain.line(at) != before


def forge_since_the_roll(chain: Chain, edit: Callable[[Record], list[Record]]) -> None:
    # Before the certificate nothing changes, so the old key's signatures stay as they are.
    rolled = next(
        decode(line).seq
        for _, path in files.segments(chain.directory)
        for line in path.read_bytes().splitlines()
        if b'"type":"key_change"' in line
    )
    before = {seq: encode(chain.line(seq)) for seq in range(rolled + 1)}
    forge(chain.directory, edit, chain.stolen)
    # Checkpoints that the first key signed were signed anew: put them back.
    restored: list[tuple[Path, bytes]] = []
    for _, path in files.segments(chain.directory):
        lines = path.read_bytes().splitlines()
        kept = [before.get(decode(line).seq, line) for line in lines]
        restored.append((path, b"".join(line + b"\n" for line in kept)))
    for path, content in restored:
        path.write_bytes(content)
    forge_links(chain, rolled)


def forge_links(chain: Chain, rolled: int) -> None:
    forge_key = chain.stolen
    first = chain.first_key

    class Both(SigningKey):
        """Signs as whoever was in force: only the thief's half is a forgery."""

        def sign(self, text: str) -> str:
            size = int(text.split("\n")[1])
            return (first if size <= rolled else forge_key).sign(text)

    forge(chain.directory, same, Both(forge_key.public.name, forge_key.seed))


def rolled_back(chain: Chain) -> None:
    """An older copy of everything, as a restored virtual machine has it."""
    state = chain.directory.parent
    old = state / "old"
    shutil.copytree(chain.directory, old)
    with Journal.open(chain.directory, chain.keys) as journal:
        journal.append(decision(99))
    chain.kept = read_checkpoint(chain.directory / files.CHECKPOINT)
    shutil.rmtree(chain.directory)
    old.rename(chain.directory)


def tail_cut_with_its_checkpoints(chain: Chain) -> None:
    size = chain.size()
    rolled = next(seq for seq in range(size) if chain.line(seq).type is RecordType.KEY_CHANGE)
    # Back to before the checkpoint that was kept elsewhere.
    limit = int(chain.kept[1].split("\n")[1]) - 3
    assert limit > rolled
    for _, path in files.segments(chain.directory):
        lines = [
            line for line in path.read_bytes().splitlines(keepends=True)
            if decode(line[:-1]).seq < limit
        ]  # fmt: skip
        if lines:
            path.write_bytes(b"".join(lines))
        else:
            path.unlink()
    forge_links(chain, rolled)


def replaced_with_another_key(chain: Chain) -> None:
    """Everything anew, under a key of the attacker's own."""
    shutil.rmtree(chain.directory)
    with Journal.open(chain.directory, chain.directory.parent / "mine") as journal:
        for number in range(30):
            journal.append(decision(number))


ANCHORED: dict[str, tuple[Callable[[Chain], None], str]] = {
    "rewrite a suffix to the same length with the key": (rewritten_suffix, "checkpoint"),
    "roll everything back": (rolled_back, "checkpoint"),
    "cut the tail together with its checkpoints": (tail_cut_with_its_checkpoints, "checkpoint"),
    "replace everything under another key": (replaced_with_another_key, "key"),
}
