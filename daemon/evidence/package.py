"""An evidence package: one zip file that vouches for itself on another machine.

``manifest.json`` names every other file with its size and SHA-256;
``manifest.note`` is a signed note over the manifest's hash, by the chain's key
in force.  ``journal/`` is a copy of the chain that verifies on its own.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from safeclaw.daemon.evidence import controls, derived, history, pages
from safeclaw.daemon.evidence.export import export, tool
from safeclaw.daemon.evidence.selection import Query
from safeclaw.daemon.evidence.summary import summarize
from safeclaw.daemon.evidence.whole import whole, writable
from safeclaw.daemon.journal import files, keys, verifier
from safeclaw.daemon.journal.note import NoteError, PublicKey, open_note
from safeclaw.daemon.journal.report import Report, Status, whose
from safeclaw.errors import JournalError

MANIFEST: Final = "manifest.json"
NOTE: Final = "manifest.note"
KEYS: Final = "public-keys"
_JOURNAL: Final = "journal"
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
#: No member unpacks to more than this; a whole journal of segments is far below.
_MEMBER_MAX: Final = 1 << 32
#: Nor all of them together: who sends a package does not choose how full the disk gets.
_TOTAL_MAX: Final = 1 << 35
#: What helps when a package is not what was made.
_BROKEN: Final = "it was changed, or broken on its way: ask for the package again"

README: Final = """\
Evidence of what agents attempted, and what was decided.

manifest.json        every file here with its SHA-256; manifest.note is the signature over it
journal/             the chain of records as the writer left it, with its last checkpoint
public-keys          the keys that signed it, oldest first; compare them with what you were given
verification.json    what verifying the chain found, what that rests on, what it cannot exclude
population.json      the query, the tool, the host, the operator, counts and control totals
export.jsonl         the records of the period; export.manifest.json has their proofs
summary.html         the period in figures, for printing; summary.json the same
policies.json        every policy hash in force, with the commit or file it comes from
policies/            the policies themselves, named by their hash
controls.json        which of this answers for which SOC 2 criterion; oscal.json the same

To check it: safeclaw audit evidence verify FILE --public-key KEYS-YOU-WERE-GIVEN
or, without safeclaw: unzip it, then verify_journal.py DIRECTORY --public-key KEYS
"""


class File(msgspec.Struct, frozen=True):
    """One file of a package."""

    path: str
    sha256: str
    size: int


class Contents(msgspec.Struct, frozen=True):
    """What a package holds."""

    chain: str
    made: str
    tool: str
    files: list[File]


def statement(chain: str, manifest: bytes) -> str:
    """Return the text that is signed for a manifest."""
    return f"safeclaw evidence\n{chain}\n{sha256(manifest).hexdigest()}\n"


def build(
    state: Path,
    query: Query,
    output: Path,
    *,
    repository: Path | None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Report:
    """Write the package; return the verdict on the chain that it holds.

    Raises:
        JournalError: the journal, its keys or the output cannot be read or written.
    """
    writable(output)
    try:
        with tempfile.TemporaryDirectory(prefix="safeclaw-evidence-") as place:
            return _build(state, query, output, Path(place), repository, on_step)
    except OSError as error:
        raise JournalError.of(error, error.filename or output) from error


def _build(
    state: Path,
    query: Query,
    output: Path,
    place: Path,
    repository: Path | None,
    on_step: Callable[[str], None],
) -> Report:
    try:
        signer = files.load_key(state / "keys")
    except JournalError as error:
        raise JournalError(
            error.message, hint="a package is signed with the chain's key: run this as its owner"
        ) from error
    made = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    on_step("copying the chain")
    chain = place / _JOURNAL
    copy_chain(state / "journal", chain)
    public = (state / "keys" / files.PUBLIC_KEY).read_text("ascii")
    (place / KEYS).write_text(public)
    on_step("verifying")
    # Without the keys beside it: they come from the same host, and are no anchor.
    report = verifier.verify(chain)
    on_step("exporting the period")
    with (place / "export.jsonl").open("w", encoding="utf-8", newline="") as stream:
        manifest = export(chain, query, "jsonl", stream.write)
    if not manifest.records:
        on_step("no records in this period: widen --since and --until")
    on_step("summing up")
    summary = summarize(chain, query)
    hashes = [policy.sha256 for policy in summary.policies]
    found, content = history.origins(hashes, repository, state / "policies")
    summary = derived.asked(summary, found, content)
    (place / "policies").mkdir()
    for digest, data in content.items():
        (place / "policies" / f"{digest}.yaml").write_bytes(data)
    population = {
        "command": "safeclaw audit evidence",
        "tool": tool(),
        "host": platform.node(),
        "operator_uid": os.getuid(),
        "made": made,
        **derived.population(manifest, summary, place / "export.jsonl"),
    }
    verdict = {
        "status": report.status,
        "verdict": report.headline,
        "finding": msgspec.to_builtins(report.finding),
        "checked": report.checked(),
        "cannot_exclude": report.open_questions(),
        "notes": report.notes,
        "owner": whose(state / _JOURNAL),
    }
    documents: dict[str, object] = {
        "export.manifest.json": manifest,
        "verification.json": verdict,
        "summary.json": summary,
        "population.json": population,
        "policies.json": found,
        "controls.json": controls.mapping(summary),
        "oscal.json": controls.oscal(summary, made, report.headline),
    }
    for name, value in documents.items():
        (place / name).write_bytes(msgspec.json.format(msgspec.json.encode(value)) + b"\n")
    (place / "summary.html").write_text(pages.html(summary), "utf-8")
    (place / "policies-git-log.txt").write_text(history.log_text(repository), "utf-8")
    (place / "README.txt").write_text(README)
    on_step("signing")
    listed = Contents(report.chain, made, tool(), _listed(place))
    (place / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(listed)) + b"\n")
    text = statement(report.chain, (place / MANIFEST).read_bytes())
    (place / NOTE).write_text(signer.sign(text), "utf-8")
    on_step("packing")
    _pack(place, output)
    return report


def copy_chain(source: Path, target: Path) -> None:
    """Copy what verifying needs: the checkpoint first, then whole lines only."""
    target.mkdir()
    for name in (files.CHECKPOINT, keys.KEYRING):
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    found = files.segments(source)
    if not found:
        raise JournalError(f"{source}: no journal here", hint="give --state DIR")
    for number, path in found:
        shutil.copyfile(path, target / path.name)
        if number == found[-1][0]:
            # A writer may be in the middle of a line.
            with (target / path.name).open("rb+") as stream:
                content = stream.read()
                stream.truncate(content.rfind(b"\n") + 1)


def _listed(place: Path) -> list[File]:
    return [
        File(str(path.relative_to(place)), _digest(path), path.stat().st_size)
        for path in sorted(place.rglob("*"))
        if path.is_file()
    ]


def _digest(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _pack(place: Path, output: Path) -> None:
    with whole(output) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(place.rglob("*")):
            if path.is_file():
                archive.write(path, str(path.relative_to(place)))


def check(
    path: Path,
    given: list[PublicKey] | None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Report:
    """Return the verdict on a package and the chain in it.

    ``given`` are public keys that did not come with it; without them the package
    vouches only for itself.

    Raises:
        JournalError: it cannot be read, or is no package.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="safeclaw-evidence-") as place:
            unpack(path, Path(place))
            on_step("verifying")
            return check_directory(Path(place), given, on_step)
    except OSError as error:
        raise JournalError.of(error, error.filename or path) from error


def unpack(path: Path, place: Path) -> None:
    """Unpack a package into an empty directory.

    Raises:
        JournalError: it is no zip file, is damaged, or names files elsewhere.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [member.filename for member in archive.infolist()]
            if len(set(names)) != len(names):
                raise JournalError(f"{path}: a file is in it twice", hint=_BROKEN)
            total = sum(member.file_size for member in archive.infolist())
            if total > _TOTAL_MAX:
                raise JournalError(
                    f"{path}: it unpacks to {total} bytes, more than {_TOTAL_MAX} (32 GiB)",
                    hint=_BROKEN,
                )
            for member in archive.infolist():
                name = member.filename
                # SAFETY: the names are the package's, and nothing may land outside.
                if not _NAME.fullmatch(name) or ".." in name.split("/"):
                    raise JournalError(
                        f"{path}: a file with a name that no package has", hint=_BROKEN
                    )
                if member.file_size > _MEMBER_MAX:
                    raise JournalError(f"{path}: {name} is too large", hint=_BROKEN)
                target = place / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("xb") as stream:
                    shutil.copyfileobj(source, stream)
    except JournalError:
        raise
    except Exception as error:
        # What zipfile and the codecs raise for bytes that are wrong has no common base; an error
        # of the disk has a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise JournalError(
            f"{path}: not an evidence package, or damaged: {error}", hint=_BROKEN
        ) from error


def check_directory(
    place: Path,
    given: list[PublicKey] | None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Report:
    """Return the verdict on an unpacked package."""
    report = Report()
    problem = _manifest_problem(place)
    if problem is None:
        known = given or keys.read_public_keys(place / KEYS)
        report = verifier.verify(place / _JOURNAL, public_key=known)
        if given is None:
            # Keys that came with the package vouch for nothing outside it.
            report.anchors = [
                anchor for anchor in report.anchors if anchor.what != verifier.PUBLIC_KEY
            ]
        if report.status is Status.INTACT:
            problem = _signature_problem(place, report)
        if report.status is Status.INTACT and problem is None:
            on_step("making the figures again")
            problem = derived.problem(place, place / _JOURNAL, report)
    if problem is not None:
        from safeclaw.daemon.journal.report import Finding

        report.status = Status.TAMPERED
        report.finding = Finding(problem[0], 0, None, problem[1])
    return report


def _manifest_problem(place: Path) -> tuple[str, str] | None:
    try:
        manifest = msgspec.json.decode((place / MANIFEST).read_bytes(), type=Contents)
    except FileNotFoundError:
        return MANIFEST, "the file is missing"
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return MANIFEST, "not a manifest"
    listed = {file.path: file for file in manifest.files}
    there = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    for name in sorted(set(listed) - there):
        return name, "the manifest names it, and it is missing"
    for name in sorted(there - set(listed) - {MANIFEST, NOTE}):
        return name, "the manifest does not name it"
    for name, file in listed.items():
        if _digest(place / name) != file.sha256:
            return name, "its hash is not the one in the manifest"
    return None


def _signature_problem(place: Path, report: Report) -> tuple[str, str] | None:
    try:
        signed = (place / NOTE).read_bytes().decode()  # a \r is not taken for a \n
        key = keys.read_public_keys(place / KEYS)[-1]
        text = open_note(signed, key)
    except (FileNotFoundError, UnicodeDecodeError, JournalError, NoteError) as error:
        reason = error.message if isinstance(error, JournalError) else "missing or unreadable"
        return NOTE, reason
    if report.last_key != key.text():
        return KEYS, "the last key is not the one that signs the chain"
    if text != statement(report.chain, (place / MANIFEST).read_bytes()):
        return NOTE, "it signs another manifest"
    return None
