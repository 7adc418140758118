"""A policy made ready: a pure function from an attempt to a verdict.

What holds before any rule: protected paths are denied, and a path that is not
canonical is denied.  Then the first rule that matches decides; none is a deny.
The runtime preset stands before a final catch-all, else at the end.

Nothing here looks at the world: what the verdict needs to know about it is in
the :class:`~safeclaw.policies.context.Context`, collected beforehand (``source.context``).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import msgspec

from safeclaw.policies import network, reach
from safeclaw.policies.buckets import Bucket, Buckets
from safeclaw.policies.context import Context, Program
from safeclaw.policies.document import Effect, Policy, Rule, Runtime
from safeclaw.policies.index import Prefixes, lies_in
from safeclaw.policies.model import (
    AddressTarget,
    Attempt,
    Decision,
    FileTarget,
    NameTarget,
    ProgramTarget,
    SocketTarget,
    Verdict,
    printable,
)
from safeclaw.policies.moves import REACHES, Moves
from safeclaw.policies.variables import Variables

PROTECTED = "protected"
DEFAULT_DENY = "default-deny"
ENVIRONMENT = "environment"
_RENAME = "file.write.rename"
_LINK = "file.write.link"
#: What can be done to a file by any of its names.
CHANGES = ("file.write.modify", "file.write.metadata")
_WRITES = ("file.write.create", "file.write.modify", "file.write.rename", _LINK)
#: What makes a name lead to another file.
_REPLACES = ("file.write.create", "file.write.rename", _LINK)
#: Each session has its own in full isolation (``sandbox.walls``).
_PRIVATE = ("/tmp", "/var/tmp")
_REMEMBERED = 4096
#: What a process has open (proc_pid_fd(5)).
_OWN_DESCRIPTORS = "/proc/self/fd/"
#: Writing there changes the machine, not a file, and for root nothing else would stop it.
_KERNEL = (
    "/sys", "/proc/sys", "/proc/sysrq-trigger", "/proc/acpi", "/proc/bus", "/proc/fs",
    "/proc/irq", "/proc/scsi",
)  # fmt: skip


class CompiledPolicy:
    """A policy for one context.  Immutable in effect; may be shared by threads."""

    def __init__(self, policy: Policy, context: Context, runtime: tuple[Rule, ...]) -> None:
        self.policy = policy
        self.context = context
        self.rules = _with_runtime(policy, context, runtime)
        self._verdicts = tuple(_verdict(rule) for rule in self.rules)
        #: Whether some rule leaves its decision to a person.
        self.asks = any(rule.effect is Effect.ASK for rule in self.rules)
        leads = dict(context.leads)
        self._buckets = Buckets(
            self.rules, context.workspace, context.home, context.addresses, leads
        )
        self._aliases: dict[str, tuple[Program, ...]] = {}
        for program in context.programs:
            known = self._aliases.get(program.canonical, ())
            self._aliases[program.canonical] = (*known, program)
        self._moves = Moves(
            self.rules,
            (*context.protected, *context.read_only),
            workspace=context.workspace,
            home=context.home,
            leads=leads,
        )
        self._caseless = Prefixes(dict.fromkeys(context.caseless))
        self._writable: dict[str, bool] = {}
        self.variables = Variables(policy.environment)

    def shut(self, places: tuple[str, ...]) -> CompiledPolicy:
        """Return the same policy where names in these places, too, are without regard to case."""
        shut = copy.copy(self)
        shut.context = msgspec.structs.replace(
            self.context, caseless=(*self.context.caseless, *places)
        )
        shut._caseless = Prefixes(dict.fromkeys(shut.context.caseless))
        shut._writable = {}
        return shut

    def evaluate(self, attempt: Attempt) -> Verdict:
        """Return what is to happen with ``attempt``."""
        return self._judge(attempt)[0]

    def decisive_rule(self, attempt: Attempt) -> Rule | None:
        """Return the rule that decides on ``attempt``; None when no rule does."""
        at = self._judge(attempt)[1]
        return None if at is None else self.rules[at]

    def depends_on_state(self, attempt: Attempt) -> bool:
        """Return whether more than the policy and the attempt decides (``ask``)."""
        rule = self.decisive_rule(attempt)
        return rule is not None and rule.effect is Effect.ASK

    def outcome(self, attempt: Attempt) -> Effect:
        """Return what becomes of ``attempt``: allow, deny, or ask a person first."""
        verdict, at = self._judge(attempt)
        if verdict.decision is Decision.ALLOW:
            return Effect.ALLOW
        return Effect.ASK if self._asks_at(at) else Effect.DENY

    def _asks_at(self, at: int | None) -> bool:
        return at is not None and self.rules[at].effect is Effect.ASK

    def refused_variables(self, environment: Sequence[bytes]) -> tuple[str, ...]:
        """Return the names for which no program is started with this environment."""
        return self.variables.refused(environment)

    def writable(self, path: str) -> bool:
        """Return whether the rules let the agent put a file of its own at ``path``."""
        known = self._writable.get(path)
        if known is None:
            target = FileTarget(path)
            known = any(
                self.evaluate(Attempt(action, target)).decision is Decision.ALLOW
                for action in _WRITES
            )
            if len(self._writable) < _REMEMBERED:
                self._writable[path] = known
        return known

    def view(self) -> tuple[str, ...]:
        """Return the path prefixes that anything allowed can lie in.

        What is outside them need not exist for the agent.
        """
        return reach.view(self.rules, self.context.workspace, self.context.home, self._found())

    def names(self) -> tuple[str, ...]:
        """Return the host names that an allowing rule spells out."""
        return reach.names(self.rules)

    def executable_roots(self) -> tuple[str, ...]:
        """Return the path prefixes that programs may be run from.

        The kernel's floor knows files, not names: where the rules let the agent make a program,
        or put another in its place, the root is a directory that stays.
        """
        roots = reach.executable_roots(
            self.rules, self.context.workspace, self.context.home, self._found()
        )
        if not roots:
            return roots
        # Nobody in the session can replace a mount of its own.
        mounts = (self.context.workspace, *_PRIVATE)
        stays = {"/", *mounts}
        stays.update(
            place
            for place in self.view()
            if not any(place.startswith(f"{mount}/") for mount in mounts)
        )
        staying: list[str] = []
        for root in roots:
            while root not in stays and self._replaceable(root):
                root = root[: root.rfind("/")] or "/"
            staying.append(root)
        return reach.outermost((*staying, *self.context.interpreter))

    def _replaceable(self, path: str) -> bool:
        target = FileTarget(path)
        return any(self.outcome(Attempt(action, target)) is not Effect.DENY for action in _REPLACES)

    def names_network(self) -> bool:
        """Return whether some rule could allow a connection to another host."""
        return reach.names_network(self.rules)

    def _found(self) -> tuple[str, ...]:
        programs = self.context.programs
        return tuple(path for item in programs for path in (item.found, item.canonical))

    def _judge(self, attempt: Attempt) -> tuple[Verdict, int | None]:
        target = attempt.target
        match target:
            case FileTarget(path, None, link):
                answer = self._judge_path(attempt.action, path)
                if not link:
                    return answer
                return self._strictest([answer, self._judge_link(path)]) or answer
            case FileTarget(path, str(to), link):
                answer = self._judge_move(attempt.action, path, to)
                if not link:
                    return answer
                return self._strictest([answer, self._judge_link(to)]) or answer
            case SocketTarget(path) if path.startswith("@"):
                return self._conclude(self._bucket(attempt.action).socket(path))
            case SocketTarget(path):
                refused = self._refuse_path("file.write", path)
                if refused is not None:
                    return refused, None
                return self._conclude(self._bucket(attempt.action).socket(path))
            case ProgramTarget():
                return self._judge_program(attempt.action, target)
            case AddressTarget():
                return self._judge_address(attempt.action, target)
            case NameTarget(name):
                return self._judge_name(name)
            case _:
                return self._conclude(self._bucket(attempt.action).always)

    def _bucket(self, action: str) -> Bucket:
        return self._buckets.of(action)

    def _conclude(self, at: int | None) -> tuple[Verdict, int | None]:
        if at is None:
            return Verdict(Decision.DENY, DEFAULT_DENY, "no rule allows this"), None
        return self._verdicts[at], at

    def _refuse_path(self, action: str, path: str) -> Verdict | None:
        if not path.startswith("/"):
            return Verdict(
                Decision.DENY, PROTECTED, "not a file of the view, and not open for this"
            )
        if "/../" in path or path.endswith("/.."):
            return Verdict(Decision.DENY, PROTECTED, "the path is not canonical")
        inside = lies_in(path, self.context.protected)
        if inside is not None:
            return Verdict(Decision.DENY, PROTECTED, "out of every policy's reach")
        inside = lies_in(path, self.context.caseless)
        if inside is not None:
            reason = f"names in {printable(inside)} are, or may be, without regard to case"
            return Verdict(Decision.DENY, PROTECTED, reason)
        if action != "file.read":
            inside = lies_in(path, self.context.read_only)
            if inside is not None:
                return Verdict(Decision.DENY, PROTECTED, "in force, hence not to be changed")
            if path.startswith(_OWN_DESCRIPTORS):
                # SAFETY: what is changed by such a name has none in the view; no rule means it.
                return Verdict(Decision.DENY, PROTECTED, "not a file of the view")
            if path.startswith(("/sys", "/proc/")) and lies_in(path, _KERNEL) is not None:
                return Verdict(Decision.DENY, PROTECTED, "an interface of the kernel")
        return None

    def _judge_path(self, action: str, path: str) -> tuple[Verdict, int | None]:
        refused = self._refuse_path(action, path)
        if refused is not None:
            return refused, None
        return self._conclude(self._bucket(action).path(path))

    def _judge_move(self, action: str, path: str, to: str) -> tuple[Verdict, int | None]:
        """Judge a rename or a link: both ends, and what would be carried past a rule.

        SAFETY: content that may not be read must not gain a name under which it
        may be, so the source is judged for reading too, and as a socket; and moving a directory
        must not move what lies in it out of a rule that denies by place.
        """
        ends = [(action, path), (action, to)]
        if action in (_RENAME, _LINK):
            ends.append(("file.read", path))
        if action == _LINK:
            # SAFETY: nor a name by which it may be changed, where by this one it may not.
            ends += [(change, path) for change in CHANGES]
        obstacle = None
        if action == _RENAME:
            obstacle = self._caseless.below(path) or self._caseless.below(to)
            obstacle = obstacle or self._moves.obstacle(path, to)
        held = obstacle is not None and obstacle[1] is None
        # SAFETY: what is protected is said first, whichever end it is: a session that only
        # observes lets through what a rule denies.
        for one, where in ends:
            refused = self._refuse_path(one, where)
            if refused is not None:
                return refused, None
        answer = self._judge_path(action, path)
        if not held:
            parts = [self._judge_path(one, where) for one, where in ends]
            parts += self._newly_reached(path, to)
            refused_part = self._strictest(parts)
            if refused_part is not None:
                return refused_part
        if obstacle is not None:
            place, at = obstacle
            rule = PROTECTED if at is None else self.rules[at].id
            reason = f"the move would carry what lies at {printable(place)} past this rule"
            if at is not None and self.rules[at].effect is Effect.ALLOW:
                reason = f"the move would have this rule allow what lies at {printable(place)}"
            return Verdict(Decision.DENY, rule, reason), at
        return answer

    def _judge_link(self, path: str) -> tuple[Verdict, int | None]:
        """Judge that a symbolic link gets a name, beside that the name may be made.

        SAFETY: what is refused below would be made where the link leads, and be found here.
        """
        obstacle = self._moves.link_obstacle(path)
        if obstacle is None:
            return Verdict(Decision.ALLOW, "", ""), None
        place, at = obstacle
        rule = PROTECTED if at is None else self.rules[at].id
        reason = f"a link there would have {printable(place)} elsewhere, past this rule"
        return Verdict(Decision.DENY, rule, reason), at

    def _newly_reached(self, path: str, to: str) -> list[tuple[Verdict, int | None]]:
        """Return what is said of reaching a socket at ``path``, where one at ``to`` could be.

        SAFETY: a socket must not gain a name by which it may be reached, where by this one it
        may not.  Whether it is one is not asked: by the time of the deed it could be.
        """
        return [
            self._judge(Attempt(action, SocketTarget(path)))
            for action in REACHES
            if self.outcome(Attempt(action, SocketTarget(to))) is not Effect.DENY
        ]

    def _judge_program(self, action: str, target: ProgramTarget) -> tuple[Verdict, int | None]:
        for path in (target.program, *target.interpreters):
            refused = self._refuse_path("file.read", path)
            if refused is not None:
                return refused, None
        bucket = self._bucket(action)
        started: list[ProgramTarget] = []
        words = (target.program, *target.argv[1:])
        for at_level, path in enumerate(target.interpreters):
            # what the kernel gives it: its line's argument stands before the script's name
            argument = target.arguments[at_level] if target.arguments else ""
            words = (path, *((argument,) if argument else ()), *words)
            started.append(ProgramTarget(path, words))
        parts = [self._conclude(self._program(bucket, target))]
        for each in started:
            at = self._program(bucket, each)
            if at is not None and self._names_program(self.rules[at]):
                parts.insert(0, (self._verdicts[at], at))
        refused_part = self._strictest(parts)
        if refused_part is None or self._asks_at(refused_part[1]):
            # SAFETY: what only a person could allow is not asked about with such variables.
            reason = self.variables.reason(target.variables)
            if reason is not None:
                return Verdict(Decision.DENY, ENVIRONMENT, reason), None
        return refused_part or parts[-1]

    def _strictest(
        self, parts: list[tuple[Verdict, int | None]]
    ) -> tuple[Verdict, int | None] | None:
        """Return the first denial, else the first question; None when all are allowed.

        SAFETY: a person is not asked about what another part of it forbids.
        """
        refused = [part for part in parts if part[0].decision is not Decision.ALLOW]
        for verdict, at in refused:
            if at is None or self.rules[at].effect is Effect.DENY:
                return verdict, at
        return refused[0] if refused else None

    def _names_program(self, rule: Rule) -> bool:
        return rule.effect is not Effect.ALLOW and bool(rule.commands) and "*" not in rule.commands

    def _program(self, bucket: Bucket, target: ProgramTarget) -> int | None:
        aliases = self._aliases.get(target.program, ())
        # SAFETY: not where the agent could have made the link, in an earlier session or before a
        # reload: any program would go by the name.
        trusted = [one.name for one in aliases if not any(map(self.writable, one.links))]
        return bucket.program(target, [one.name for one in aliases], trusted, self.writable)

    def _judge_address(self, action: str, target: AddressTarget) -> tuple[Verdict, int | None]:
        address = network.address(target.address)
        if address is None:
            return Verdict(Decision.DENY, PROTECTED, "not an internet address"), None
        return self._conclude(self._bucket(action).address(target, address))

    def _judge_name(self, name: str) -> tuple[Verdict, int | None]:
        """A name may be looked up where some rule could let the agent reach it."""
        found = self._conclude(self._bucket("network.connect").name(name))
        if found[0].decision is Decision.ALLOW:
            return found
        sent = self._conclude(self._bucket("network.send").name(name))
        return sent if sent[0].decision is Decision.ALLOW else found


def compile_policy(
    policy: Policy, context: Context, runtime: tuple[Rule, ...] | None = None
) -> CompiledPolicy:
    """Return ``policy`` ready for evaluation in ``context``.

    ``runtime`` are the rules of the runtime preset, where they have been read already.
    """
    if policy.runtime is not Runtime.DEFAULT:
        runtime = ()
    elif runtime is None:
        # Imported late: the preset is itself a policy, read by the loader.
        from safeclaw.policies.source import runtime_rules

        runtime = runtime_rules()
    return CompiledPolicy(policy, context, runtime)


def _with_runtime(policy: Policy, context: Context, runtime: tuple[Rule, ...]) -> tuple[Rule, ...]:
    if runtime and context.interpreter:
        paths = tuple(f"{_escape(path)}/**" for path in context.interpreter)
        library = Rule(
            id="runtime:interpreter", line=0, actions=("file.read",), effect=Effect.ALLOW,
            paths=paths, reason="the interpreter's own library",
        )  # fmt: skip
        runtime = (*runtime, library)
    own = policy.rules
    if own and own[-1].catch_all:
        return (*own[:-1], *runtime, own[-1])
    return (*own, *runtime)


def _escape(path: str) -> str:
    return "".join(f"\\{char}" if char in "\\*?[]{}" else char for char in path).rstrip("/")


def _verdict(rule: Rule) -> Verdict:
    where = f" on line {rule.line}" if rule.line else ""
    where += f" of {printable(rule.file)}" if rule.file else ""
    match rule.effect:
        case Effect.ALLOW:
            return Verdict(Decision.ALLOW, rule.id, rule.reason or f"allowed by the rule{where}")
        case Effect.DENY:
            return Verdict(Decision.DENY, rule.id, rule.reason or f"denied by the rule{where}")
        case Effect.ASK:
            said = f"{rule.reason}: " if rule.reason else ""
            return Verdict(Decision.DENY, rule.id, f"{said}needs approval")
