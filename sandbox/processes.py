"""Calls on another process, where no PID namespace keeps them inside the session.

Signals are kept in by Landlock's scope.  What Landlock does not know (priority,
scheduling, limits) an agent may change of itself only.  Forks are asked about, so
that they end with the session: no PID namespace ends what forks faster than it
can be killed.  When the supervisor has gone, the kernel answers them with ENOSYS.
And groups are asked about: who is in one can have all of it stopped by reading a
terminal in the background (setpgid(2), termios(3)), which no scope keeps in.
"""

from __future__ import annotations

import errno
import os

from safeclaw.sandbox import linux, tree
from safeclaw.sandbox.filters import FORK_CALLS, PROCESS_CALLS
from safeclaw.sandbox.mediator import Handler, Notification
from safeclaw.sandbox.resolve import error


def _own_only(note: Notification) -> None:
    whom = note.int_arg(PROCESS_CALLS[note.name])
    if whom not in (note.pid, note.caller.tgid):
        raise error(errno.EPERM)
    # SAFETY: the id is a register, and that of the caller itself, which waits: nobody else can
    # come to have it.  Whole groups and users are refused by the first program.
    note.reply(flags=linux.SECCOMP_USER_NOTIF_FLAG_CONTINUE)


def handlers(ended: int, keeper: int) -> dict[str, Handler]:
    """Return the handlers by the names of their calls, for the session of ``keeper``.

    ``ended`` hangs up when the session ends.
    """
    os.set_blocking(ended, False)

    def fork(note: Notification) -> None:
        try:
            os.read(ended, 1)
        except BlockingIOError:
            pass
        else:
            raise error(errno.EAGAIN)
        # SAFETY: the flags, a register, were judged by the first program already; nothing is
        # decided here but whether there may be a further process at all.
        note.reply(flags=linux.SECCOMP_USER_NOTIF_FLAG_CONTINUE)

    def join(note: Notification) -> None:
        group = note.int_arg(PROCESS_CALLS[note.name])
        if group < 0:
            raise error(errno.EINVAL)  # setpgid(2)
        # the supervisor's is the one that the agent was started in: a shell goes back to it
        if group != os.getpgrp() and not tree.descends(keeper, group):
            raise error(errno.EPERM)
        # SAFETY: the id is a register, and a process's of the session, whose group has it for as
        # long as anybody is in it.
        note.reply(flags=linux.SECCOMP_USER_NOTIF_FLAG_CONTINUE)

    return {
        **dict.fromkeys(PROCESS_CALLS, _own_only),
        **dict.fromkeys(FORK_CALLS, fork),
        "setpgid": join,
    }
