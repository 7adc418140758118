"""What every call that names a file begins with: the name read once, the file pinned, judged.

A name that leads nowhere is recorded, too: that it was tried is part of the story.
"""

from __future__ import annotations

import errno
import os
import stat

from safeclaw.policies.model import Attempt, Decision, FileTarget
from safeclaw.sandbox.caller import read_string
from safeclaw.sandbox.caseless import within
from safeclaw.sandbox.gate import HELD_BACK
from safeclaw.sandbox.mediator import Notification
from safeclaw.sandbox.resolve import HeldBackError, Nameless, Pinned, error

#: The errors of a name that is not there.
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
#: As many symbolic links on one way as the kernel follows (path_resolution(7)).
_LINKS_MAX = 40
SET_ID = stat.S_ISUID | stat.S_ISGID


def path_argument(note: Notification, index: int) -> str:
    """Return the path that an argument points to."""
    return os.fsdecode(read_string(note.pid, note.args[index]))


def judge_missing(note: Notification, action: str, dirfd: int, path: str) -> None:
    """Record an attempt on a name that is not in the view; the errno is the caller's affair."""
    where = note.mediator.resolver.where(note.caller, dirfd, path)
    mediator = note.mediator
    others = () if any(within(where, place) for place in mediator.view) else mediator.others
    hidden = not where.startswith(("/proc/", "/tmp/")) and _is_unseen(where, others)
    note.decide(Attempt(action, FileTarget(where)), "view" if hidden else "absent")


def _is_unseen(where: str, others: tuple[str, ...]) -> bool:
    """Whether a name that is not there for the agent is there on the host.

    SAFETY: the agent has chosen it, and who serves what is mounted at ``others`` would be told:
    what is there, if only by a link, counts as the host's and is not looked for.
    """
    here, left, links = "", where.split("/"), 0
    while left:
        name = left.pop(0)
        if name in ("", "."):
            continue
        here = os.path.dirname(here) if name == ".." else f"{here.rstrip('/')}/{name}"
        if any(within(here, place) for place in others):
            return True
        try:
            if not stat.S_ISLNK(os.lstat(here).st_mode) or not left:
                continue
            leads = os.readlink(here)
        except OSError:
            return False
        links += 1
        if links > _LINKS_MAX:
            return False
        here = "" if leads.startswith("/") else os.path.dirname(here)
        left = [*leads.split("/"), *left]
    return True


def pin(note: Notification, action: str, dirfd: int, path: str, *, follow: bool = True) -> Pinned:
    """Pin a file that is to be there; a missing one is recorded under ``action``."""
    try:
        return note.mediator.resolver.pin(note.caller, dirfd, path, follow=follow)
    except OSError as problem:
        if problem.errno in ABSENT or problem.errno == errno.EACCES:
            judge_missing(note, action, dirfd, path)
        raise


def parent(
    note: Notification, action: str, dirfd: int, path: str, nameless: Nameless = Nameless.MADE
) -> tuple[Pinned, str]:
    """Pin the parent of a name; a missing parent is recorded under ``action``."""
    try:
        return note.mediator.resolver.pin_parent(note.caller, dirfd, path, nameless)
    except HeldBackError as problem:
        note.judge(Attempt(action, FileTarget(str(problem.filename))), enforced_by=HELD_BACK)
        raise
    except OSError as problem:
        if problem.errno in ABSENT or problem.errno == errno.EACCES:
            judge_missing(note, action, dirfd, path)
        raise


def judge(
    note: Notification, action: str, path: str, to: str | None = None, *, link: bool = False
) -> None:
    """Have an attempt on a path judged and recorded; EACCES unless it is allowed."""
    note.judge(Attempt(action, FileTarget(path, to, link)))


def judge_with_read(note: Notification, action: str, path: str) -> None:
    """Have a change judged through which the file can be read as well: both are recorded.

    The read first where it may be refused or a person has to be asked, and once in any case.
    """
    read = Attempt("file.read", FileTarget(path))
    allowed = note.mediator.gate.peek(read).decision is Decision.ALLOW
    if not allowed:
        note.judge(read)
    judge(note, action, path)
    if allowed:
        note.judge(read)


def require_flags(flags: int, known: int) -> None:
    """Raise EINVAL for a flag that the call has not: it would be carried out without it."""
    if flags & ~known:
        raise error(errno.EINVAL)


def require_read(note: Notification, path: str) -> None:
    """Refuse, and record, a write that would also expose what may not be read."""
    attempt = Attempt("file.read", FileTarget(path))
    if note.mediator.gate.peek(attempt).decision is not Decision.ALLOW:
        note.judge(attempt)


def new_mode(note: Notification, mode: int) -> int:
    """Return the mode of a new file.

    SAFETY: never set-user-ID or set-group-ID: outside the walls it would give away the
    person's rights.
    """
    return mode & 0o7777 & ~SET_ID & ~note.caller.umask()
