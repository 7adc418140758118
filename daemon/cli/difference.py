"""``safeclaw policy diff``: two policies by their rules, and over what was recorded."""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path

import msgspec

from safeclaw.daemon import statefile
from safeclaw.daemon.archive import Archive
from safeclaw.daemon.journal import reader
from safeclaw.daemon.journal.filter import Filter
from safeclaw.daemon.journal.record import Record, RecordType
from safeclaw.daemon.policystate import FILE_NAME, OnFile
from safeclaw.daemon.pseudonyms import is_sealed
from safeclaw.errors import BrokerError, PolicyError
from safeclaw.policies import source
from safeclaw.policies.compare import Comparison, compare
from safeclaw.policies.compiled import CompiledPolicy, compile_policy
from safeclaw.policies.document import Parent, Policy
from safeclaw.policies.loader import load
from safeclaw.policies.model import Attempt, describe, printable
from safeclaw.policies.observed import plain, target_of

_HASH = re.compile(r"[0-9a-f]{12,64}")
#: How many examples of each kind are shown.
_SHOWN = 10


class Version(msgspec.Struct, frozen=True):
    """A policy, and what it was called."""

    ref: str
    policy: Policy
    files: tuple[str, ...]


class Moved(msgspec.Struct, frozen=True):
    """One attempt that is decided otherwise, how often it was made, and by which rules."""

    count: int
    action: str
    target: str
    agent: str
    before: str
    before_rule: str
    after: str
    after_rule: str


class Replayed(msgspec.Struct, frozen=True):
    """What the recorded attempts come to; ``allow``, ``deny``, ``ask`` by what becomes of them."""

    attempts: int
    sessions: int
    since: str
    agent: str | None
    allow: tuple[Moved, ...]
    deny: tuple[Moved, ...]
    ask: tuple[Moved, ...]
    #: Not decided again: pseudonyms, and names that were not there.
    sealed: int
    absent: int


class Difference(msgspec.Struct, frozen=True):
    """All that is known."""

    old: str
    old_sha256: str
    new: str
    new_sha256: str
    relation: str
    rules: Comparison
    recorded: Replayed | None

    @property
    def wider(self) -> bool:
        """Whether the new policy may let through more."""
        more = self.recorded is not None and bool(self.recorded.allow)
        return bool(self.rules.wider) or more

    @property
    def any(self) -> bool:
        """Whether there is a difference in meaning."""
        found = self.recorded
        changed = found is not None and bool(found.allow or found.deny or found.ask)
        return self.relation != "equal" or changed


def find(ref: str, state: Path) -> Version:
    """Return a policy by file, name, or the hash it was in force under.  PolicyError."""
    if _HASH.fullmatch(ref) and not os.path.lexists(ref):
        return _kept(ref, state)
    name, text = source.find(ref, Path.cwd())
    return _version(ref, name, text, source.gather(name, text))


def _version(ref: str, name: str, text: bytes, parents: tuple[Parent, ...]) -> Version:
    files = (name, *(parent.name for parent in parents))
    return Version(ref, load(text, name=name, parents=parents), files)


def _kept(ref: str, state: Path) -> Version:
    """Return a policy that the broker has kept, with what it extended then.  PolicyError."""
    try:
        file = statefile.read(state / FILE_NAME, OnFile, OnFile())
    except BrokerError as problem:
        raise PolicyError(problem.message, hint=problem.hint) from problem
    known = [one for each in file.policies for one in each.versions]
    found = {one.sha256: one for one in known if one.sha256.startswith(ref)}
    if len(found) == 1:
        version = next(iter(found.values()))
        return _version(ref, version.name, *Archive(state).texts(version))
    what = "several" if found else "no"
    raise PolicyError(
        f"{ref}: {what} kept policies of that hash in {state}",
        hint="safeclaw policy history gives whole hashes; --state names another broker's",
    )


def difference(old: Version, new: Version, recorded: Replayed | None) -> Difference:
    """Compare two policies."""
    rules = compare(old.policy, new.policy)
    return Difference(
        old.ref, old.policy.sha256, new.ref, new.policy.sha256, rules.relation, rules, recorded
    )


class _Both:
    """Both policies, made ready for one session's workspace and home."""

    def __init__(self, old: Version, new: Version, workspace: str, home: str) -> None:
        self.old = self._ready(old, workspace, home)
        self.new = self._ready(new, workspace, home)

    @staticmethod
    def _ready(version: Version, workspace: str, home: str) -> CompiledPolicy:
        where = source.context(
            version.policy,
            workspace=Path(workspace),
            home=Path(home),
            read_only=tuple(file for file in version.files if os.path.exists(file)),
            resolve=False,
        )
        return compile_policy(version.policy, where)


def _outcome(policy: CompiledPolicy, attempt: Attempt) -> tuple[str, str]:
    return policy.outcome(attempt).value, policy.evaluate(attempt).rule


def replay(journal: Path, old: Version, new: Version, since: str, agent: str | None) -> Replayed:
    """Decide what was recorded once more, under both.  JournalError."""
    places: dict[str, str] = {}
    ready: dict[tuple[str, str], _Both] = {}
    counts: dict[tuple[str, str, str, str, bytes], int] = {}
    sealed = absent = attempts = 0
    sessions: set[str] = set()
    for record in reader.read(journal, Filter(agent=agent)):
        if record.type is RecordType.SESSION_START:
            workspace = (record.detail or {}).get("workspace")
            places[record.session or ""] = plain(str(workspace or ""))
        if record.type is not RecordType.DECISION or record.ts < since:
            continue
        if record.action is None or record.target is None or record.session not in places:
            continue  # a refusal of safeclaw's own (access control): no policy decides on it
        if is_sealed(record):
            sealed += 1
        elif record.enforced_by == "absent":
            absent += 1
        else:
            attempts += 1
            sessions.add(record.session)
            target = msgspec.json.encode(record.target, order="sorted")
            place = (places[record.session], _home(record))
            key = (record.action, *place, record.agent or "", target)
            counts[key] = counts.get(key, 0) + 1
    moved: dict[str, list[Moved]] = {"allow": [], "deny": [], "ask": []}
    for (action, workspace, home, who, target), count in counts.items():
        both = ready.get((workspace, home))
        if both is None:
            both = ready[workspace, home] = _Both(old, new, workspace, home)
        attempt = Attempt(action, target_of(msgspec.json.decode(target, type=dict[str, object])))
        before, before_rule = _outcome(both.old, attempt)
        after, after_rule = _outcome(both.new, attempt)
        if before != after:
            shown = describe(attempt.target)
            moved[after].append(
                Moved(count, action, shown, who, before, before_rule, after, after_rule)
            )
    for found in moved.values():
        found.sort(key=lambda one: (-one.count, one.action, one.target))
    return Replayed(
        attempts, len(sessions), since, agent,
        tuple(moved["allow"]), tuple(moved["deny"]), tuple(moved["ask"]), sealed, absent,
    )  # fmt: skip


def _home(record: Record) -> str:
    uid = record.subject.uid if record.subject is not None else None
    try:
        return pwd.getpwuid(os.getuid() if uid is None else uid).pw_dir
    except KeyError:
        return "/"


_MEANING = {
    "equal": "the same in meaning, by their rules",
    "narrower": "NEW is narrower: it lets through nothing that OLD did not",
    "wider": "NEW is wider, or cannot be shown not to be",
    "different": "NEW is wider in some, or cannot be shown not to be, and narrower in some",
}


def lines(found: Difference) -> list[str]:
    """Return the difference for a person."""
    out = [
        f"OLD {printable(found.old)} ({found.old_sha256[:12]})",
        f"NEW {printable(found.new)} ({found.new_sha256[:12]})",
        f"rules: {_MEANING[found.relation]}",
    ]
    for sign, side in (("+", found.rules.wider), ("-", found.rules.narrower)):
        for one in side:
            place = f"{one.place}: " if one.place else ""
            out.append(f"  {sign} {printable(place + one.what)}: {printable(one.why)}")
    recorded = found.recorded
    if recorded is None:
        return out
    when = f" since {recorded.since[:16]}Z" if recorded.since else ""
    out.append(f"recorded: {recorded.attempts} attempts in {recorded.sessions} sessions{when}")
    for word, kind in (
        ("become allowed", recorded.allow),
        ("are refused", recorded.deny),
        ("ask a person", recorded.ask),
    ):
        out.append(f"  {sum(one.count for one in kind)} {word} ({len(kind)} different)")
        out += [
            f"    {one.count}x {printable(one.agent)}: {one.action} {one.target}: "
            f"{one.before} by {one.before_rule} -> {one.after} by {one.after_rule}"
            for one in kind[:_SHOWN]
        ]
        if len(kind) > _SHOWN:
            out.append(f"    and {len(kind) - _SHOWN} more; --json has all")
    if recorded.sealed or recorded.absent:
        out.append(
            f"  not decided again: {recorded.sealed} under pseudonyms, "
            f"{recorded.absent} on names that were not there"
        )
    return out
