"""What people ask of the policies in force: what waits, yes and no, and the way back.

It belongs to the broker's main thread.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from safeclaw.daemon import control
from safeclaw.daemon.archive import Version
from safeclaw.daemon.authority import Authority
from safeclaw.daemon.changes import Change, Event
from safeclaw.daemon.outcome import Outcome
from safeclaw.daemon.peer import Peer
from safeclaw.daemon.policystate import PolicyState
from safeclaw.daemon.services import Services
from safeclaw.errors import BrokerError, PolicyError
from safeclaw.policies import source


class PolicyRequests:
    """See the module."""

    def __init__(self, authority: Authority, services: Services) -> None:
        self._authority = authority
        self._services = services

    def handle(self, peer: Peer, request: control.PolicyRequest) -> Outcome:
        """Do what is asked.  BrokerError, PolicyError."""
        policies = self._authority.policies
        match request:
            case control.PendingPolicies():
                return Outcome([_waiting(one) for one in policies.states if one.pending])
            case control.ApprovePolicy(ref, sha256, why):
                try:
                    done = policies.approve(ref, sha256, peer, why)
                finally:
                    self._authority.changed()
                return Outcome({"policy": ref, "in_force": done})
            case control.RefusePolicy(ref, sha256, why):
                policies.refuse(ref, sha256, peer, why)
                self._authority.changed()
                return Outcome({"policy": ref})
            case control.RollBack():
                return Outcome(self._roll_back(peer, request))
            case control.PolicyText(sha256):
                return Outcome({"text": policies.archive.text(sha256)})

    def _roll_back(self, peer: Peer, request: control.RollBack) -> dict[str, object]:
        """Return which file is to have which text, and record who wants that."""
        if not request.why:
            raise BrokerError("a rollback needs a reason", hint="--why TEXT")
        policies = self._authority.policies
        state = policies.state(request.policy)
        target = _earlier(state, request.to)
        if state.current is not None and state.current.name != target.name:
            raise BrokerError(
                f"{state.ref} was {target.name} then, and is {state.current.name} now",
                hint="move the file by hand",
            )
        path, text = _one_file(target, state.ref)
        others = [
            one.ref
            for one in policies.states
            if one.ref != state.ref and one.current is not None and path in one.current.files
        ]
        if others:
            raise BrokerError(
                f"{path} is part of {', '.join(others)}, too",
                hint="change it by hand: safeclaw policy text prints what it was",
            )
        policies.archive.text(text)  # it has to be there
        change = Change(
            event=Event.ROLLBACK,
            ref=state.ref,
            old=state.current,
            new=target,
            by=peer.uid,
            pid=peer.pid,
            reason=request.why,
        )
        self._services.append(change.entry())
        return {
            "policy": state.ref,
            "from": state.sha256,
            "to": target.sha256,
            "file": path,
            "text": text,
        }


def _waiting(state: PolicyState) -> dict[str, object]:
    pending = state.pending
    assert pending is not None
    return {
        "policy": state.ref,
        "in_force": msgspec.to_builtins(state.current),
        "pending": msgspec.to_builtins(pending.version),
        "since": pending.since,
        "commit": pending.commit,
        "wider": list(pending.wider),
        "yes": msgspec.to_builtins(pending.yes),
        "refused": msgspec.to_builtins(pending.refused),
    }


def _earlier(state: PolicyState, to: str) -> Version:
    """Return the version that ``to`` means.  BrokerError."""
    hint = f"safeclaw policy history {state.ref}"
    if to == "previous":
        if not state.earlier:
            raise BrokerError(f"{state.ref}: nothing was in force before", hint=hint)
        return state.earlier[0]
    if len(to) >= 12 and state.sha256.startswith(to):
        raise BrokerError(f"{state.ref}: {to[:12]} is in force already", hint=hint)
    found = {one.sha256: one for one in state.earlier if one.sha256.startswith(to)}
    if len(to) < 12 or len(found) != 1:
        raise BrokerError(f"{state.ref}: {to[:64]} was not in force", hint=hint)
    return next(iter(found.values()))


def _one_file(target: Version, ref: str) -> tuple[str, str]:
    """Return the one file that differs from what it was, and the text it had.  BrokerError.

    One rename puts it back: with several, policies that nobody has seen would be in force
    in between.
    """
    _check_shipped(target)
    differ = [(path, text) for path, text in target.files.items() if _digest(path) != text]
    if len(differ) == 1:
        return differ[0]
    if not differ:
        raise BrokerError(
            f"{ref}: its files have the texts of {target.sha256[:12]} already",
            hint="safeclaw policy pending says whether that waits for somebody",
        )
    texts = ", ".join(f"{path} ({text[:12]})" for path, text in differ)
    raise BrokerError(
        f"{ref}: more than one file has changed since: {texts}",
        hint="put them back by hand: safeclaw policy text HASH prints what each was",
    )


def _check_shipped(target: Version) -> None:
    texts = {target.name: target.text, **{part.name: part.text for part in target.parents}}
    for name, text in texts.items():
        if name not in target.files and _digest(str(source.PRESETS / name)) != text:
            raise BrokerError(
                f"{name} is shipped with safeclaw, and has changed with it",
                hint="a copy of one's own, in the directory of policies, can be put back",
            )


def _digest(path: str) -> str:
    try:
        return hashlib.sha256(source.read(Path(path))).hexdigest()
    except PolicyError:
        return ""
