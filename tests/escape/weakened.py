"""``weakened.py DEFENCE run …``: safeclaw with one defence switched off, for positive controls.

Never installed.  Everything but the named piece is the real thing: the same
broker, policy, walls and mediator.  :data:`DEFENCES` says what each name turns off.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pyseccomp

from safeclaw.daemon import gate as daemon_gate
from safeclaw.daemon import kept, launching
from safeclaw.daemon.cli import run
from safeclaw.daemon.cli.main import main
from safeclaw.policies import compiled, moves, spared
from safeclaw.policies.model import Attempt, Decision, Verdict
from safeclaw.sandbox import (
    binding,
    caseless,
    clearing,
    confine,
    exec_stop,
    filters,
    first,
    limits,
    linux,
    mediator,
    opens,
    pinning,
    programs,
    quick,
    resolve,
    syscalls,
)

#: linux/fs.h
_FIDEDUPERANGE = 0xC0189436


def _replace(owner: object, name: str, value: object) -> None:
    getattr(owner, name)  # a piece that was renamed must not go unnoticed
    setattr(owner, name, value)


def _nothing(*_: object, **__: object) -> None:
    pass


def _verdict() -> None:
    allowed = Verdict(Decision.ALLOW, "weakened", "whatever the policy says")
    judge = daemon_gate.Gate.judge

    def judge_and_allow(self: daemon_gate.Gate, attempt: Attempt, **more: Any) -> Verdict:
        judge(self, attempt, **more)
        return allowed

    def peek(self: daemon_gate.Gate, attempt: Attempt) -> Verdict:
        del self, attempt
        return allowed

    _replace(daemon_gate.Gate, "judge", judge_and_allow)
    _replace(daemon_gate.Gate, "peek", peek)


def _no_short_way(*_: object) -> Callable[[bytes], bool]:
    def leave(_: bytes) -> bool:
        return False

    return leave


class _LetThrough(BaseException):
    pass


def _pinned() -> None:
    """Judge the copy, then let the kernel read the caller's memory and walk the names again."""
    _landlock()
    judge = daemon_gate.Gate.judge

    def judge_and_leave(self: daemon_gate.Gate, attempt: Attempt, **more: Any) -> Verdict:
        verdict = judge(self, attempt, **more)
        if verdict.decision is Decision.ALLOW and attempt.action.startswith(("file.", "network.")):
            raise _LetThrough
        return verdict

    def answer(
        self: mediator.Mediator, note: mediator.Notification, handler: mediator.Handler
    ) -> None:
        del self
        try:
            value = handler(note)
        except _LetThrough:
            note.reply(flags=linux.SECCOMP_USER_NOTIF_FLAG_CONTINUE)
        except OSError as problem:
            note.reply(code=problem.errno or errno.EIO)
        else:
            if value is not None:
                note.reply(value=value)

    _replace(daemon_gate.Gate, "judge", judge_and_leave)
    _replace(mediator.Mediator, "_answer", answer)
    _replace(quick, "reader", _no_short_way)


def _landlock() -> None:
    _replace(linux, "landlock_restrict_self", _nothing)
    # what stands in for the scope of signals where Landlock has none
    _replace(first, "_own_group", _nothing)


def _refusals() -> None:
    everything = syscalls._export(pyseccomp.SyscallFilter(pyseccomp.ALLOW))  # pyright: ignore[reportPrivateUsage]

    def refusals(**_: object) -> bytes:
        return everything

    _replace(syscalls, "refusals", refusals)

    # What an earlier run has kept is whole; and the weak one must not be kept.
    def afresh(_: object, **what: bool) -> object:
        return filters.build(**what)

    _replace(kept, "filters", afresh)


def _ioctls() -> None:
    _refusals()
    requests = syscalls._IOCTLS  # pyright: ignore[reportPrivateUsage]
    _replace(syscalls, "_IOCTLS", (*requests, *syscalls.FILE_IOCTLS, _FIDEDUPERANGE))


def _exec_stop() -> None:
    _replace(exec_stop.Image, "differs", _nothing)


def _interpreter() -> None:
    def may(*_: object) -> bool:
        return True

    _replace(exec_stop, "_may_read", may)


def _loader() -> None:
    _replace(programs, "_LOADER", re.compile("(?!)"))


def _loader_name() -> None:
    def harmless(*_: object) -> bool:
        return True

    _replace(programs, "_only_lists", harmless)


def _variables() -> None:
    def nothing(*_: object) -> tuple[str, ...]:
        return ()

    _replace(compiled.CompiledPolicy, "refused_variables", nothing)


def _loader_code() -> None:
    _replace(programs, "_FORBIDDEN_VARIABLES", ())


def _closing() -> None:
    _replace(os, "closerange", _nothing)


def _upward() -> None:
    def directories(text: bytes, _: bytes) -> bytes:
        return text.rpartition(b"/")[0]

    def out_of_reach(*_: object) -> bool:
        return False

    _replace(binding, "_directories", directories)
    _replace(binding, "_reachable", out_of_reach)


def _core() -> None:
    _replace(limits, "CORE_LIMIT", 0)


def _links() -> None:
    remove = clearing.remove

    def follow(path: str) -> None:
        remove(os.path.realpath(path))
        remove(path)

    _replace(clearing, "remove", follow)


def _view() -> None:
    spec = launching.spec

    def whole(*arguments: Any, **more: Any) -> object:
        found = spec(*arguments, **more)
        return msgspec.structs.replace(found, view=(*found.view, os.path.dirname(found.workspace)))

    _replace(launching, "spec", whole)


def _literal_names() -> None:
    _replace(opens, "RESOLVE_LITERALLY", resolve.RESOLVE)
    _replace(quick, "reader", _no_short_way)


def _hosts_files() -> None:
    def no(*_: object) -> bool:
        return False

    _replace(resolve, "is_hosts", no)
    for name in ("is_proc", "is_device"):
        _replace(confine, name, no)


def _others_names() -> None:
    def look(where: str, _: tuple[str, ...]) -> bool:
        return os.path.lexists(where)

    _replace(pinning, "_is_unseen", look)


def _own_code() -> None:
    _replace(launching, "code", tuple)
    _replace(run, "_import_nothing_from", _nothing)


def _links_in_rules() -> None:
    _replace(moves.Moves, "link_obstacle", _nothing)


def _spared() -> None:
    def no(*_: object) -> bool:
        return False

    _replace(spared.Spared, "__contains__", no)


def _unturned() -> None:
    def all_of_them(_: object, places: tuple[str, ...]) -> tuple[str, ...]:
        return places

    _replace(launching, "_unturned", all_of_them)


def _caseless() -> None:
    def nowhere(*_: object) -> tuple[str, ...]:
        return ()

    _replace(caseless.Look, "places", nowhere)
    _replace(launching, "folding", nowhere)


#: Each name with what it switches off; ``outside`` (no walls at all) needs no entry here.
DEFENCES = {
    "verdict": _verdict,  # the policy is asked, and its answer ignored
    "pinned": _pinned,  # acting on the private copy and the pinned objects, and the floor behind it
    "landlock": _landlock,  # the floor: rights to files, scopes of signals and abstract sockets
    "refusals": _refusals,  # the refusals by argument (the first seccomp program)
    "ioctls": _ioctls,  # the list of requests of ioctl(2), and the refusals by argument
    "exec-stop": _exec_stop,  # the comparison of the new image with what was approved
    "interpreter": _interpreter,  # that a program's ELF interpreter is a file that may be read
    "loader": _loader,  # judging a loader as the program that it loads
    "loader-name": _loader_name,  # that a loader is given the name that was judged, without links
    "variables": _variables,  # what a policy forbids and pins of a program's environment
    "loader-code": _loader_code,  # that no program is started with an auditor in its loader
    "closing": _closing,  # closing inherited descriptors
    "upward": _upward,  # where the stage of a socket's name stands, and that it goes nowhere else
    "core": _core,  # the one limit with which a crash starts no handler of the host's
    "links": _links,  # that what is removed at a session's end is reached by no link
    "literal-names": _literal_names,  # that what was opened before is opened by no link
    "hosts-files": _hosts_files,  # that what is the kernel's has no other name than its own
    "others-names": _others_names,  # that no server is asked for what is outside the view
    "own-code": _own_code,  # that what safeclaw imports is not written, nor lies in the workspace
    "links-in-rules": _links_in_rules,  # that no link stands on the way to what a rule refuses
    "spared": _spared,  # that nothing is moved to where a rule allows what another denies
    "unturned": _unturned,  # that no place is in the view to which an agent's link leads
    "caseless": _caseless,  # that nothing is allowed where names are without regard to case
    "view": _view,  # that only what a rule can name exists
}

if __name__ == "__main__":
    DEFENCES[sys.argv.pop(1)]()
    sys.exit(main())
