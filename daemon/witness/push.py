"""Handing a chain's checkpoints to a witness.

A :class:`Feed` lives as long as it is wanted and holds nothing on disk: how far the
witness is, the witness says.  It reads the journal's files, and writes none of them, so
it needs no more than the right to read them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Final
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

import msgspec

from safeclaw.daemon.journal import files, keys, retention
from safeclaw.daemon.journal.consistency import Prover
from safeclaw.daemon.journal.cosignature import WitnessKey, cosigned_at
from safeclaw.daemon.journal.merkle import Frontier, leaf_hash
from safeclaw.daemon.journal.note import Checkpoint, NoteError, parse_checkpoint
from safeclaw.daemon.journal.record import MAX_LINE
from safeclaw.daemon.journal.recovery import opening_frontier
from safeclaw.daemon.witness import protocol
from safeclaw.errors import JournalError, UsageError
from safeclaw.policies.model import printable

#: How long an answer may take, in seconds.
PATIENCE: Final = 30.0
_ANSWER_MAX: Final = 64 << 10
_SIZE: Final = re.compile("[0-9]{1,16}")


class WitnessError(JournalError):
    """A witness did not cosign, or cannot be reached."""


class Pushed(msgspec.Struct, frozen=True):
    """A checkpoint that a witness has cosigned, and when."""

    size: int
    note: str
    at: int | None


class _Answer(msgspec.Struct, frozen=True):
    status: int
    text: str


class Feed:
    """One chain's way to one witness."""

    def __init__(self, directory: Path, url: str, key: WitnessKey | None) -> None:
        """Name the chain and the witness; with its ``key``, what it answers is checked.

        Raises:
            UsageError: the URL is none.
        """
        self._directory = directory
        self._url = checked_url(url)
        self._key = key
        #: The tree that the witness cosigned last, as far as this feed knows.
        self._frontier = Frontier()

    def push(self) -> Pushed:
        """Have the latest checkpoint cosigned.

        Raises:
            WitnessError: the witness is not there, or refuses.
            JournalError: there is no chain, or it does not reach back far enough.
        """
        note, checkpoint = self._latest()
        answer = self._offer(note, checkpoint)
        if answer.status == protocol.FORBIDDEN:
            self._hand_over_keys(checkpoint)
            answer = self._offer(note, checkpoint)
        if answer.status == protocol.CONFLICT and _SIZE.fullmatch(answer.text.strip()):
            known = int(answer.text)
            if known > checkpoint.size:
                raise WitnessError(
                    f"{self._url} has seen {known} records of this chain, which ends after "
                    f"{checkpoint.size}: it was cut, or is an older copy",
                    hint="safeclaw audit verify --witness shows which records agree",
                )
            if known != self._frontier.size:
                self._frontier = self._tree_of(known)
                answer = self._offer(note, checkpoint)
        if answer.status != protocol.OK:
            self._refused(answer)
        self._frontier = self._tree_of(checkpoint.size)
        return self._checked(note, checkpoint.size, answer.text)

    def _offer(self, note: str, checkpoint: Checkpoint) -> _Answer:
        if self._frontier.size > checkpoint.size:
            raise JournalError(
                f"{self._directory}: the chain is shorter than it was",
                hint="run: safeclaw audit verify --witness URL --witness-key KEY",
            )
        prover = Prover(self._frontier, checkpoint.size)
        if self._frontier.size:
            for leaf in self._leaves(self._frontier.size, checkpoint.size):
                prover.append(leaf)
            proof = prover.proof()
        else:
            proof = []
        request = protocol.Request(self._frontier.size, tuple(proof), note, checkpoint)
        return self._post(protocol.ADD_CHECKPOINT, request.body())

    def _checked(self, note: str, size: int, lines: str) -> Pushed:
        cosigned = note + lines
        if self._key is None:
            return Pushed(size, cosigned, None)
        try:
            at = cosigned_at(cosigned, self._key)
        except NoteError as error:
            raise WitnessError(
                f"{self._url}: {error.message}", hint="is that the URL of a safeclaw witness?"
            ) from error
        if at is None:
            raise WitnessError(
                f"{self._url} did not sign with the key of {self._key.name}",
                hint="compare --witness-key with what `safeclaw audit witness show` says there",
            )
        return Pushed(size, cosigned, at)

    def _hand_over_keys(self, checkpoint: Checkpoint) -> None:
        """Send every certificate that the checkpoint rests on; those known are refused."""
        ring = keys.read_keyring(self._directory)
        for certificate in ring.certificates if ring is not None else ():
            text = certificate.partition("\nkey ")[0] + "\n"
            if parse_checkpoint(text).size < checkpoint.size:
                self._post(protocol.ADD_KEY, certificate.encode())

    def _refused(self, answer: _Answer) -> None:
        why = answer.text.strip() or "no reason"
        hints = {
            protocol.NOT_FOUND: "on its host: safeclaw audit witness add PUBLIC-KEYS",
            protocol.FORBIDDEN: "it knows this chain under other keys",
            protocol.UNPROCESSABLE: "the chain does not continue what the witness has seen",
            protocol.CONFLICT: "the witness has seen another chain of this name and size",
        }
        raise WitnessError(
            f"{self._url} does not cosign ({answer.status}): {why}", hint=hints.get(answer.status)
        )

    # ---- the chain

    def _latest(self) -> tuple[str, Checkpoint]:
        path = self._directory / files.CHECKPOINT
        try:
            note = path.read_bytes().decode()
            return note, parse_checkpoint(note.partition("\n\n")[0] + "\n")
        except OSError as error:
            raise JournalError(f"{path}: {error.strerror}", hint="give --state DIR") from error
        except UnicodeDecodeError as error:
            raise JournalError(
                f"{path}: not a signed note", hint="run: safeclaw audit verify"
            ) from error

    def _tree_of(self, size: int) -> Frontier:
        """Return the tree of the first ``size`` records, from the nearest place it is known at."""
        frontier = self._opening(size)
        if frontier.size <= self._frontier.size <= size:
            frontier = Frontier(self._frontier.size, self._frontier.nodes)
        for leaf in self._leaves(frontier.size, size):
            frontier.append(leaf)
        return frontier

    def _opening(self, size: int) -> Frontier:
        """Return the tree at the beginning of the segment that holds record ``size - 1``."""
        best: Frontier | None = None
        for number, path in self._segments():
            record = retention.first_record(path)
            if record is None or record.seq > size:
                break
            best = opening_frontier(record) if number > 1 else Frontier()
        if best is None:
            raise JournalError(
                f"{self._directory}: the witness has seen {size} records, and what came next "
                "was pruned: it cannot be shown that this chain continues them",
                hint="push from a backup that still has them",
            )
        return best

    def _leaves(self, begin: int, end: int) -> Iterator[bytes]:
        """Yield the leaves of the records from ``begin`` to before ``end``."""
        place = begin
        for number, path in self._segments():
            if place == end:
                return
            first = retention.first_record(path)
            following = retention.first_record(self._directory / files.segment_name(number + 1))
            if first is None or first.seq > place:
                break
            if following is not None and following.seq <= place:
                continue
            for leaf in _leaves_of(path, place - first.seq, end - place):
                place += 1
                yield leaf
        if place != end:
            raise JournalError(
                f"{self._directory}: record {place} is missing", hint="run: safeclaw audit verify"
            )

    def _segments(self) -> list[tuple[int, Path]]:
        try:
            return files.segments(self._directory)
        except OSError as error:
            raise JournalError.of(error, self._directory) from error

    def _post(self, call: str, body: bytes) -> _Answer:
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        return _answer(HttpRequest(self._url + call, body, headers, method="POST"))


def _leaves_of(path: Path, skip: int, count: int) -> Iterator[bytes]:
    """Yield the leaves of ``count`` lines, or of as many as there are, after ``skip``."""
    try:
        with path.open("rb") as stream:
            for number in range(skip + count):
                line = stream.readline(MAX_LINE + 2)
                if not line.endswith(b"\n"):
                    return
                if number >= skip:
                    yield leaf_hash(line[:-1])
    except OSError as error:
        raise JournalError.of(error, path) from error


def fetch(url: str, origin: str) -> str:
    """Return the latest checkpoint that the witness at ``url`` cosigned for ``origin``.

    Raises:
        WitnessError: it is not there, or has none.
    """
    address = checked_url(url) + protocol.CHECKPOINT + quote(origin, safe="")
    answer = _answer(HttpRequest(address))
    if answer.status != protocol.OK:
        raise WitnessError(
            f"{url} has no checkpoint of {origin}: {answer.text.strip()}",
            hint="push to it first: safeclaw audit witness push",
        )
    return answer.text


def read_witness_keys(text: str) -> list[WitnessKey]:
    """Return the witness keys of a command line: a key itself, or a file with one a line.

    Raises:
        JournalError: it is neither.
    """
    if "+" in text and not Path(text).exists():
        return [WitnessKey.parse(text)]
    try:
        lines = Path(text).read_text("utf-8").splitlines()
    except OSError as error:
        raise JournalError(
            f"{text}: {error.strerror}", hint="on its host: safeclaw audit witness show"
        ) from error
    except UnicodeDecodeError as error:
        raise JournalError(
            f"{text}: not a witness's key", hint="on its host: safeclaw audit witness show"
        ) from error
    found = [WitnessKey.parse(line) for line in lines if line.strip()]
    if not found:
        raise JournalError(
            f"{text}: no witness's key in it", hint="on its host: safeclaw audit witness show"
        )
    return found


def checked_url(url: str) -> str:
    """Return a witness's URL without a final slash.  UsageError."""
    problem = UsageError(
        f"{printable(url)}: not a witness's URL", hint="such as https://witness.example.com"
    )
    try:
        parts = urlsplit(url)
        named = parts.port != 0 and parts.scheme in ("http", "https") and parts.hostname
    except ValueError:
        raise problem from None
    # what http.client would refuse, and later
    if not named or not url.isprintable() or " " in url:
        raise problem
    return url.rstrip("/")


def _answer(request: HttpRequest) -> _Answer:
    try:
        try:
            with urlopen(request, timeout=PATIENCE) as response:
                return _Answer(response.status, _text(response.read(_ANSWER_MAX)))
        except HTTPError as error:
            with error:
                return _Answer(error.code, _text(error.read(_ANSWER_MAX)))
    except (HTTPException, URLError, OSError, ValueError) as error:
        reason = printable(str(getattr(error, "reason", error) or type(error).__name__))
        raise WitnessError(
            f"{request.full_url}: {reason}", hint="is the witness running, and reachable?"
        ) from error


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
