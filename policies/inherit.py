"""``extends:`` a policy and its parents made into one.

Own rules come first, then the parents' in the order they are named, each followed
by its own parents.  A final catch-all of any of them stands at the very end, once.
What a policy does not say it takes from the nearest parent that says it; only
``mode`` is never taken: whether verdicts bind is said by the policy in force itself.

Pure: the parents' texts are passed in (``source.gather`` collects them).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping

import msgspec

from safeclaw.policies.document import (
    Assurance,
    Environment,
    Parent,
    Policy,
    Pseudonymise,
    Resources,
    Rule,
)
from safeclaw.policies.patterns import Patterns
from safeclaw.policies.yamltext import Place, Problems

MAX_DEPTH = 8
MAX_PARENTS = 64
#: How long a policy may be with all that it extends, in bytes: to read a megabyte takes a second.
MAX_TOTAL = 1024 * 1024


class Draft(msgspec.Struct, frozen=True):
    """One file of a policy: what it says, which keys it has, and whom it extends."""

    policy: Policy
    given: frozenset[str]
    extends: tuple[tuple[Place, str], ...]


Read = Callable[[bytes | str, str, Problems, Patterns], Draft | None]


class _Files:
    """Reads a policy and all it extends; collects the problems of all files."""

    def __init__(self, parents: Iterable[Parent], read: Read, name_of: Callable[[str], str]):
        self._known: Mapping[tuple[str, str], Parent] = {
            (parent.child, parent.ref): parent for parent in parents
        }
        self._read = read
        self._name_of = name_of
        self._patterns = Patterns()
        self._titles: set[str] = set()
        self._seen: set[str] = set()
        self.lines: list[str] = []

    def collect(
        self, text: bytes | str, name: str, title: str | None, above: tuple[str, ...]
    ) -> list[Draft]:
        problems = Problems(name)
        draft = self._read(text, title or self._title(name), problems, self._patterns)
        self._titles.add(draft.policy.name if draft is not None else "")
        self._seen.add(name)
        later: list[Parent] = []
        chain = (*above, name)
        for place, ref in draft.extends if draft is not None else ():
            parent = self._known.get((name, ref))
            if parent is None or parent.problem:
                why = "no such policy" if parent is None else parent.problem
                problems.add(place, f"extends '{ref}': {why}")
            elif parent.name in chain:
                problems.add(place, f"extends itself: {' -> '.join((*chain, parent.name))}")
            elif len(chain) > MAX_DEPTH or len(self._seen) > MAX_PARENTS:
                problems.add(place, f"extends too many: at most {MAX_DEPTH} deep")
            elif parent.name not in self._seen:
                self._seen.add(parent.name)
                later.append(parent)
        self.lines += problems.lines()
        found = [] if draft is None else [_named(draft, name) if above else draft]
        for parent in later:
            found += self.collect(parent.text, parent.name, None, chain)
        return found

    def _title(self, name: str) -> str:
        """Return a name that no other file of this policy has: rule ids stand on it."""
        plain, number = self._name_of(name), 2
        title = plain
        while title in self._titles:
            title, number = f"{plain}-{number}", number + 1
        return title


def _named(draft: Draft, file: str) -> Draft:
    """Return a parent's draft, whose rules say which file their lines are in."""
    rules = tuple(msgspec.structs.replace(rule, file=file) for rule in draft.policy.rules)
    policy = msgspec.structs.replace(draft.policy, rules=rules)
    return Draft(policy, draft.given, draft.extends)


def assemble(
    text: bytes | str,
    name: str,
    title: str,
    *,
    parents: Iterable[Parent],
    read: Read,
    name_of: Callable[[str], str],
) -> tuple[Policy | None, list[str]]:
    """Return the whole policy, and every problem of every file as a line."""
    parents = list(parents)
    total = len(text) + sum(len(parent.text) for parent in parents)
    if total > MAX_TOTAL:
        said = f"with all that it extends it is {total} bytes long, at most {MAX_TOTAL}"
        return None, [f"{name}:1:1: {said}"]
    files = _Files(parents, read, name_of)
    drafts = files.collect(text, name, title, ())
    if not drafts or files.lines:
        return None, files.lines
    return merge(drafts), []


def merge(drafts: list[Draft]) -> Policy:
    """Return one policy; the first draft is the policy itself."""
    own, *others = drafts
    if not others:
        return own.policy

    def nearest(key: str) -> Policy:
        return next((draft.policy for draft in drafts if key in draft.given), own.policy)

    resources: dict[str, int] = {}
    assigned: dict[str, str] = {}
    pinned: dict[str, str] = {}
    inherit: list[str] = []
    for draft in reversed(drafts):
        said: dict[str, int | None] = msgspec.structs.asdict(draft.policy.resources)
        resources |= {key: value for key, value in said.items() if value is not None}
        assigned |= dict(draft.policy.environment.assign)
        pinned |= dict(draft.policy.environment.pin)
        inherit += draft.policy.environment.inherit
    strict = any(draft.policy.assurance is Assurance.STRICT for draft in drafts)
    return msgspec.structs.replace(
        own.policy,
        rules=_rules(drafts),
        sha256=digest(drafts),
        runtime=nearest("runtime").runtime,
        # SAFETY: a parent that waits for its records is not made laxer by who extends it.
        assurance=Assurance.STRICT if strict else own.policy.assurance,
        resources=Resources(**resources),
        environment=Environment(
            tuple(dict.fromkeys(inherit)),
            tuple(sorted(assigned.items())),
            # SAFETY: what a parent forbids or pins is not given back by setting it.
            tuple(dict.fromkeys(name for d in drafts for name in d.policy.environment.forbid)),
            tuple(sorted(pinned.items())),
        ),
        parents=tuple(draft.policy.name for draft in others),
        # SAFETY: nor does it make public what a parent keeps private.
        pseudonymise=Pseudonymise(
            paths=tuple(path for draft in drafts for path in draft.policy.pseudonymise.paths),
            actions=tuple(name for draft in drafts for name in draft.policy.pseudonymise.actions),
        ),
    )


def _rules(drafts: list[Draft]) -> tuple[Rule, ...]:
    rules: list[Rule] = []
    last: Rule | None = None
    for draft in drafts:
        own = draft.policy.rules
        if own and own[-1].catch_all:
            last = last or own[-1]
            own = own[:-1]
        rules += own
    return (*rules, last) if last is not None else tuple(rules)


def digest(drafts: Iterable[Draft]) -> str:
    """Return the SHA-256 (hex) that names a policy with parents.

    It is over one line for each file, as sha256sum(1) writes them: the hash of its
    bytes, two spaces, its name; own first, then the parents in the order of their rules.
    """
    lines = [f"{draft.policy.sha256}  {draft.policy.name}\n" for draft in drafts]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
