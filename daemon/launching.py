"""From a compiled policy to walls: what the sandbox is told to build."""

from __future__ import annotations

import itertools
import os
import sys

import msgspec

import safeclaw
import safeclaw.daemon
import safeclaw.policies
import safeclaw.sandbox
from safeclaw.daemon import kept
from safeclaw.errors import WallError
from safeclaw.policies import source
from safeclaw.policies.buckets import covers
from safeclaw.policies.compiled import CompiledPolicy
from safeclaw.policies.context import Context
from safeclaw.policies.document import Effect, Policy
from safeclaw.policies.glob import path_globs
from safeclaw.policies.model import printable
from safeclaw.sandbox.caseless import Look, folding, within
from safeclaw.sandbox.spec import Degraded, Isolation, LaunchSpec

#: What an agent inherits unless its policy names more.
INHERITED = (
    "COLUMNS", "HOME", "LANG", "LANGUAGE", "LC_*", "LINES", "LOGNAME", "NO_COLOR", "PATH",
    "SHELL", "TERM", "COLORTERM", "TZ", "USER", "VIRTUAL_ENV",
)  # fmt: skip


def code() -> tuple[str, ...]:
    """Return where this program is, and what it imports, but for what is the system's own.

    SAFETY: it imports some of it late, while an agent runs, and all of it at the next start.
    """
    environment = (sys.prefix,) if sys.prefix != sys.base_prefix else ()
    parts = (safeclaw.daemon.__path__, safeclaw.policies.__path__, safeclaw.sandbox.__path__)
    system = [place for place in sys.path if not place.startswith("/usr/")]
    found = (*environment, *safeclaw.__path__, *itertools.chain(*parts), *system)
    return tuple(dict.fromkeys(place for place in found if place and os.path.exists(place)))


def with_programs(context: Context, command: tuple[str, ...], typed: int) -> Context:
    """Let the runtime read what the session starts with, and the programs that rules name.

    A script that may be run has to be read by its interpreter; a specific deny still wins.
    ``typed`` is how many words the person gave: more in ``command`` are safeclaw's own.
    """
    # SAFETY: only a script that safeclaw itself put behind its interpreter, never an argument.
    found = [*command[1 : 1 + len(command) - typed], *(one.found for one in context.programs)]
    # SAFETY: not where a link in the workspace leads: an earlier session may have made it.
    followed = [path for path in found if not _leads_out(path, context.workspace)]
    files = {os.path.realpath(path) for path in (command[0], *followed) if os.path.isfile(path)}
    more = sorted(path for path in files if not path.startswith("/usr/"))
    return msgspec.structs.replace(context, interpreter=(*context.interpreter, *more))


def _leads_out(path: str, workspace: str) -> bool:
    """Whether a path leads out of the workspace by a link that is in it."""
    inside = within(os.path.realpath(path), workspace)
    return not inside and any(within(link, workspace) for link in source.links(path))


def with_caseless(context: Context, policy: Policy, look: Look) -> Context:
    """Say where names are without regard to case, as far as a rule could name something there."""
    places, leads = look.places(), dict(context.leads)
    refused = source.refused(policy, context.workspace, context.home)
    ways = (
        *(context.workspace, *context.protected, *context.read_only),
        *(leads.get(prefix, prefix) for prefix in sorted(refused)),
    )
    return msgspec.structs.replace(context, caseless=(*places, *folding(ways, places)))


def require_case(context: Context) -> None:
    """Raise WallError where no rule could hold in the workspace."""
    if any(within(context.workspace, place) for place in context.caseless):
        raise WallError(
            f"the workspace {printable(context.workspace)} is where names are, or may be, without "
            "regard to case: no rule on a name can hold there",
            hint="safeclaw doctor, called there, says why; work on ext4, xfs, btrfs or tmpfs; "
            "another file system is asked by the names in it: it must not be empty",
        )


def environment(policy: CompiledPolicy, inherited: dict[str, str]) -> dict[str, str]:
    """Return the agent's variables: those on the pass list, then those the policy sets.

    Never one that it forbids, and each that it pins.
    """
    names = (*INHERITED, *policy.policy.environment.inherit)
    exact = {name for name in names if not name.endswith("*")}
    starts = tuple(name[:-1] for name in names if name.endswith("*"))
    chosen = {
        name: value
        for name, value in inherited.items()
        # the key of a registered agent is the supervisor's, whatever a policy says
        if name != "SAFECLAW_API_KEY" and (name in exact or (starts and name.startswith(starts)))
    }
    chosen["PWD"] = policy.context.workspace
    chosen.update(policy.policy.environment.assign)
    return policy.variables.first(chosen)


def writable(policy: CompiledPolicy, view: tuple[str, ...]) -> tuple[str, ...]:
    """Return those prefixes of the view in which some rule allows a change."""
    context = policy.context
    found: set[str] = set()
    for rule in policy.rules:
        if rule.effect is Effect.DENY or not any(
            covers(pattern, "file.write") or covers("file.write", pattern)
            for pattern in rule.actions
        ):
            continue
        if not rule.paths:
            return view
        for text in rule.paths:
            globs = path_globs(text, workspace=context.workspace, home=context.home)
            found.update(glob.prefix for glob in globs)
    return tuple(
        place for place in view if any(_within(end, place) or _within(place, end) for end in found)
    )


def _unturned(policy: CompiledPolicy, places: tuple[str, ...]) -> tuple[str, ...]:
    """Return the places but for those that an agent could have made lead anywhere.

    SAFETY: what is in the view can be looked at.  A link on the way to a place may be an earlier
    session's; and what a rule allows is named as what it is, so that nothing is lost.
    """
    found = {program.found for program in policy.context.programs}
    return tuple(
        place
        for place in places
        if place in found
        or not any(
            _within(link, policy.context.workspace) or policy.writable(link)
            for link in source.links(place)
        )
    )


def absent(spec: LaunchSpec) -> tuple[str, ...]:
    """Return what the agent may write but cannot make, for it is not there at the start.

    A view shows what exists: there is nothing in it to make a directory in.
    """
    roots = [place for place in spec.writable if os.path.exists(place)]
    own = ("/tmp", "/var/tmp", "/dev", "/proc")
    return tuple(
        place for place in spec.writable if not any(_within(place, root) for root in (*roots, *own))
    )


def spec(
    policy: CompiledPolicy,
    command: tuple[str, ...],
    inherited: dict[str, str],
    *,
    state: str,
    observe: bool = False,
    isolation: Isolation = Isolation.FULL,
    degraded: tuple[Degraded, ...] = (),
    ignored: tuple[int, ...] = (),
) -> LaunchSpec:
    """Return what to launch; ``command`` has the program's absolute path.

    ``observe`` shows everything but what is protected: what no rule names is to
    be let through and recorded, so it must exist.  ``state`` is the state directory.
    """
    context = policy.context
    reach = ("/",) if observe else _unturned(policy, policy.view())
    # Named by themselves, too: /tmp in a view is the session's own, and what lies there is not.
    view = (*reach, context.workspace, *context.interpreter)
    network = observe or policy.names_network()
    confined = isolation is Isolation.LANDLOCK
    return LaunchSpec(
        command=command,
        workspace=context.workspace,
        view=view,
        writable=("/",)
        if observe
        else writable(
            policy,
            tuple(path for path in view if path not in ("/tmp", "/var/tmp", *context.interpreter)),
        ),
        executable_roots=("/",) if observe else _unturned(policy, policy.executable_roots()),
        caseless=context.caseless,
        masked=tuple(
            path
            for path in context.protected
            if os.path.exists(path) and any(_within(path, place) for place in view)
        ),
        environment=environment(policy, inherited),
        network=network,
        filters=kept.filters(state, network=network, confined=confined),
        isolation=isolation,
        degraded=degraded,
        ignored=ignored,
        hosts=policy.names() if confined else (),
        resources=policy.policy.resources,
    )


def _within(path: str, root: str) -> bool:
    return root == "/" or path == root or path.startswith(root.rstrip("/") + "/")
