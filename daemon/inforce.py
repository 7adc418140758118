"""The policies in force for registered agents: read by the broker, never by an agent's user.

A policy is named by an absolute path, by its name in the configuration's ``policies``
directory, or by the name of a shipped one.  What is in force, what was, and what waits for
two people is on file in the state directory; the texts are in the archive.  So a restart
finds again what was in force, and knows what has changed meanwhile.

With the two-person rule, what may be wider than what is in force is pending until two
people have said yes (docs/adr/two-people-for-a-wider-policy.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from safeclaw.daemon import statefile
from safeclaw.daemon.archive import Archive, Found, Version
from safeclaw.daemon.changes import Change, Event
from safeclaw.daemon.gitcommit import commit_of
from safeclaw.daemon.hands import Hands
from safeclaw.daemon.peer import Peer, user_name
from safeclaw.daemon.policystate import FILE_NAME, OnFile, Pending, PolicyState, Yes
from safeclaw.errors import BrokerError, PolicyError
from safeclaw.policies import source

#: How many earlier versions of one policy are remembered.
_EARLIER_MAX = 64


class Look(msgspec.Struct, frozen=True):
    """What reading a policy again has found; without one, why.

    ``wider`` is what it may let through that the version ``against`` did not; empty where
    that is known to be nothing, or does not matter.
    """

    ref: str
    found: Found | None
    against: str = ""
    wider: tuple[str, ...] = ()
    commit: str = ""
    problem: str = ""
    hint: str | None = None


class InForce:
    """What was last read whole and valid, by reference.

    Changes collect until :meth:`news` returns them; whoever takes them has them recorded,
    and then calls :meth:`save`.
    """

    def __init__(
        self,
        state: Path,
        directory: Path,
        clock: Callable[[], float],
        hands: Hands | None = None,
        *,
        rule: bool = False,
    ) -> None:
        """``hands``: who may be able to change a policy's file; None where one user does all.

        ``rule``: wider policies need two people.
        """
        self.archive = Archive(state)
        self.rule = rule
        self._path = state / FILE_NAME
        self._directory = directory
        self._clock = clock
        self._hands = hands
        self._states: dict[str, PolicyState] = {}
        self._found: dict[str, Found] = {}
        self._problems: dict[str, str] = {}
        self._news: list[Change] = []
        #: Changes whenever :meth:`watched` may.
        self.turn = 0

    # ---- on file

    def load(self, used: frozenset[str]) -> None:
        """Read what was in force, and what has become of it since.  BrokerError.

        ``used`` are the references that agents are registered with.
        """
        file = statefile.read(self._path, OnFile, OnFile())
        self._states = {one.ref: one for one in file.policies}
        if file.rule != self.rule:
            self._news.append(Change(event=Event.RULE, on=self.rule))
        for ref in list(self._states):
            look = self._look(ref)
            if look.found is None and ref not in used:
                del self._states[ref]
            else:
                self.accept([look])

    def save(self) -> None:
        """Write what stands.

        SAFETY: a full disk keeps nothing back that is narrower, and what is wider is
        compared with the older state after a restart, and waits again.
        """
        file = OnFile(self.rule, tuple(self._states[ref] for ref in sorted(self._states)))
        try:
            statefile.write(self._path, file, 0o640)
        except BrokerError as problem:
            os.write(2, f"safeclawd: {problem.message}\n".encode())

    def news(self) -> list[Change]:
        """Return, once, what has happened."""
        news, self._news = self._news, []
        self.turn += bool(news)
        return news

    # ---- what there is

    @property
    def directory(self) -> Path:
        """Where named policies are looked for first."""
        return self._directory

    @property
    def states(self) -> tuple[PolicyState, ...]:
        """What every reference stands for, by reference."""
        return tuple(self._states[ref] for ref in sorted(self._states))

    def state(self, ref: str) -> PolicyState:
        """Return what a reference stands for.  BrokerError when it was never read."""
        found = self._states.get(ref)
        if found is None:
            known = ", ".join(sorted(self._states)) or "none"
            raise BrokerError(f"no policy is in force as {ref}", hint=f"there are: {known}")
        return found

    def watched(self) -> set[str]:
        """Return the directories in which a change can change what is in force, or waits."""
        files = {path for one in self.states for each in one.live for path in each.files}
        # a link on the way may be changed where it lies
        ways = {way for path in (*files, str(self._directory)) for way in source.links(path)}
        ends = {os.path.realpath(path) for path in files}
        return {*map(os.path.dirname, ways | ends), str(self._directory)}

    def hashes(self) -> dict[str, str]:
        """Return the hash of what is in force under each reference."""
        return {ref: found.policy.sha256 for ref, found in self._found.items()}

    def told(self) -> dict[str, dict[str, str]]:
        """Return what is in force, what waits, and what is wrong, by reference."""
        return {
            "in_force": self.hashes(),
            "pending": self.waiting(),
            "problems": self.problems(),
        }

    def waiting(self) -> dict[str, str]:
        """Return the hash of what waits for two people under each reference."""
        return {
            one.ref: one.pending.version.sha256
            for one in self.states
            if one.pending is not None and one.pending.refused is None
        }

    def problems(self) -> dict[str, str]:
        """Return why what stands in a file is not in force, by reference."""
        return dict(self._problems)

    def get(self, ref: str) -> Found:
        """Return the policy in force under a reference; read it, the first time.

        PolicyError when it cannot be read; BrokerError when two people have to say yes first.
        """
        if ref not in self._found:
            look = self._look(ref)
            if look.found is None:
                raise PolicyError(look.problem, hint=look.hint)
            self.accept([look])
        found = self._found.get(ref)
        if found is not None:
            return found
        state = self._states[ref]
        assert state.pending is not None
        if state.current is not None:
            raise BrokerError(
                f"{ref}: {self._problems.get(ref)}", hint="put back the file that was in force"
            )
        if state.pending.refused is not None:
            raise BrokerError(
                f"the policy {ref} was refused by {user_name(state.pending.refused.uid)}",
                hint="change the file",
            )
        raise BrokerError(
            f"the policy {ref} was never in force, and waits for two people",
            hint=f"safeclaw policy approve {ref} {state.pending.version.sha256}",
        )

    def sweep(self, journal: Path) -> Callable[[], list[str]]:
        """Return what deletes the texts that nothing names any more, for a thread to call."""
        known = [version for one in self.states for version in one.versions]
        return lambda: self.archive.sweep(journal, known)

    # ---- reading again

    def look(self) -> list[Look]:
        """Read all again.  For a thread: it takes its time."""
        return [self._look(ref) for ref in list(self._states)]

    def accept(self, looks: list[Look]) -> None:
        """Put in force what was found, as far as it may be.  For the main thread."""
        for look in looks:
            found = look.found
            if found is None:
                self._invalid(look.ref, look.problem)
                continue
            state = self._states.get(look.ref, PolicyState(look.ref))
            if look.against != state.sha256:
                look = self._weighed(look.ref, found)  # something came in between
            self._accept(state, look, found)

    def _accept(self, state: PolicyState, look: Look, found: Found) -> None:
        pending = state.pending
        if found.version.sha256 == state.sha256:
            self._found.setdefault(look.ref, found)
            self._problems.pop(look.ref, None)
            self._withdraw(state, found.version)
            self._states[look.ref] = msgspec.structs.replace(state, pending=None)
        elif not look.wider:
            self._withdraw(state, found.version)
            self._put(state, found, Change(event=Event.LOADED, commit=look.commit))
        elif pending is None or pending.version.sha256 != found.version.sha256:
            self._withdraw(state, found.version)
            now = int(self._clock())
            waits = Pending(found.version, now, look.wider, look.commit)
            self._states[look.ref] = msgspec.structs.replace(state, pending=waits)
            self._tell(state, Event.PENDING, found.version, commit=look.commit, wider=look.wider)
            self._restore(state)
        else:
            self._states[look.ref] = state
            self._restore(state)
        if look.ref in self._found:
            self._problems.pop(look.ref, None)

    def _put(self, state: PolicyState, found: Found, change: Change) -> None:
        """Put a policy in force; the change says by whom."""
        ref, old = state.ref, state.current
        earlier = state.earlier if old is None else (old, *state.earlier)[:_EARLIER_MAX]
        self._states[ref] = PolicyState(ref, found.version, int(self._clock()), earlier)
        self._found[ref] = found
        self._problems.pop(ref, None)
        self._news.append(
            msgspec.structs.replace(change, ref=ref, old=old, new=found.version, found=found)
        )

    def _restore(self, state: PolicyState) -> None:
        """Have what was in force before a restart in force again, whatever its file says now."""
        if state.current is None or state.ref in self._found:
            return
        try:
            self._found[state.ref] = self.archive.load(state.current)
        except PolicyError as problem:
            self._invalid(state.ref, f"what was in force is not kept: {problem.message}")

    def _invalid(self, ref: str, problem: str) -> None:
        if self._problems.get(ref) != problem:
            self._problems[ref] = problem
            state = self._states.get(ref, PolicyState(ref))
            self._tell(state, Event.INVALID, None, reason=problem)

    def _withdraw(self, state: PolicyState, other: Version) -> None:
        pending = state.pending
        if pending is not None and pending.version.sha256 != other.sha256:
            self._tell(state, Event.WITHDRAWN, pending.version, reason="the file has changed")

    def _tell(self, state: PolicyState, event: Event, new: Version | None, **more: object) -> None:
        change = Change(event=event, ref=state.ref, old=state.current, new=new)
        self._news.append(msgspec.structs.replace(change, **more))

    # ---- two people

    def pending(self, ref: str, sha256: str) -> tuple[PolicyState, Pending]:
        """Return what waits under a reference and a hash.  BrokerError.

        SAFETY: the whole hash.  Who writes the file finds two texts whose hashes begin alike in
        a minute (12 digits: 2**24 tries), and could have the one shown and the other approved.
        """
        state = self.state(ref)
        pending = state.pending
        hint = "safeclaw policy pending"
        if pending is None:
            raise BrokerError(f"{ref}: nothing waits for anybody", hint=hint)
        if sha256 != pending.version.sha256:
            whole = "" if len(sha256) == 64 else "; all 64 digits are needed"
            raise BrokerError(f"{ref}: it is not {sha256} that waits{whole}", hint=hint)
        if pending.refused is not None:
            who = user_name(pending.refused.uid)
            raise BrokerError(
                f"{ref}: {pending.version.sha256[:12]} was refused by {who}",
                hint="change the file, or put back the one that is in force",
            )
        return state, pending

    def approve(self, ref: str, sha256: str, peer: Peer, why: str) -> bool:
        """Take in a yes; True when it was the second, and the policy is in force.  BrokerError."""
        state, pending = self.pending(ref, sha256)
        if any(one.uid == peer.uid for one in pending.yes):
            raise BrokerError(
                f"{ref}: {user_name(peer.uid)} has said yes already",
                hint="the second yes has to be another user's",
            )
        yes = (*pending.yes, Yes(peer.uid, int(self._clock())))
        change = Change(
            event=Event.APPROVED, by=peer.uid, pid=peer.pid, reason=why, commit=pending.commit
        )
        if len(yes) == 1:
            waits = msgspec.structs.replace(pending, yes=yes)
            self._states[ref] = msgspec.structs.replace(state, pending=waits)
            self._news.append(
                msgspec.structs.replace(change, ref=ref, old=state.current, new=pending.version)
            )
            return False
        # SAFETY: the text that was shown, whatever the file says meanwhile.
        found = self.archive.load(pending.version)
        uids = tuple(one.uid for one in yes)
        change = msgspec.structs.replace(change, event=Event.LOADED, approved_by=uids)
        self._put(state, found, change)
        return True

    def refuse(self, ref: str, sha256: str, peer: Peer, why: str) -> None:
        """Take in a no: this text does not come into force.  BrokerError."""
        state, pending = self.pending(ref, sha256)
        no = Yes(peer.uid, int(self._clock()))
        waits = msgspec.structs.replace(pending, yes=(), refused=no)
        self._states[ref] = msgspec.structs.replace(state, pending=waits)
        self._tell(state, Event.REFUSED, pending.version, by=peer.uid, pid=peer.pid, reason=why)

    # ---- the files

    def _look(self, ref: str) -> Look:
        try:
            return self._weighed(ref, self._read(ref))
        except PolicyError as problem:
            return Look(ref, None, problem=problem.message, hint=problem.hint)
        except Exception as problem:
            # What is in force stays; that its file cannot be read any more is recorded.
            return Look(ref, None, problem=f"a defect: {type(problem).__name__}: {problem}")

    def _weighed(self, ref: str, found: Found) -> Look:
        current = self._states.get(ref, PolicyState(ref)).current
        if current is not None and current.sha256 == found.version.sha256:
            return Look(ref, found, current.sha256)
        against = current.sha256 if current is not None else ""
        wider = self._wider(ref, current, found) if self.rule else ()
        commit = commit_of(found.files[0]) if found.files else ""
        return Look(ref, found, against, wider, commit)

    def _wider(self, ref: str, current: Version | None, found: Found) -> tuple[str, ...]:
        """Return what a policy may let through that the one in force does not."""
        if current is None:
            return ("nothing was in force before",)
        from safeclaw.policies.compare import compare

        known = self._found.get(ref)
        if known is not None and known.version.sha256 != current.sha256:
            known = None  # another came into force while this thread looks
        try:
            old = known if known is not None else self.archive.load(current)
        except PolicyError as problem:
            return (f"it cannot be compared: {problem.message}",)
        findings = compare(old.policy, found.policy).wider
        return tuple(f"{one.place}: {one.what}: {one.why}" for one in findings)

    def _read(self, ref: str) -> Found:
        name, text = self._find(ref)
        found = self.archive.keep(name, text, source.gather(name, text))
        if self._hands is not None:
            for path in found.version.files:
                self._hands.check(path)
        return found

    def _find(self, ref: str) -> tuple[str, bytes]:
        named = self._directory / f"{ref}.yaml"
        if not ref.startswith(("/", ".")) and ".." not in ref.split("/") and named.exists():
            return str(named), source.read(named)
        if "/" in ref and not os.path.isabs(ref) and not ref.startswith("roles/"):
            raise PolicyError(
                f"{ref}: the broker reads policies by absolute path, or by name",
                hint=f"put it into {self._directory} and name it without .yaml",
            )
        return source.find(ref, self._directory)
