"""Calls that change a process's ids: there is nothing they could change to.

The agent has no capability, so it may take no id but its own (setuid(2)), and an
ordinary user's namespace has no other (EINVAL there).  Answered here, so that a
program is told what it would be told outside: EPERM.
"""

from __future__ import annotations

import errno
import os

from safeclaw.sandbox.mediator import Handler, Notification
from safeclaw.sandbox.resolve import error

_UNCHANGED = 0xFFFFFFFF
_USER_CALLS = {"setuid": 1, "setreuid": 2, "setresuid": 3}
_GROUP_CALLS = {"setgid": 1, "setregid": 2, "setresgid": 3}


def _set_id(note: Notification) -> int:
    count = _USER_CALLS.get(note.name) or _GROUP_CALLS[note.name]
    own = os.geteuid() if note.name in _USER_CALLS else os.getegid()
    for value in note.args[:count]:
        wanted = value & 0xFFFFFFFF
        # for the calls with one id, -1 is no "leave it"
        if wanted == _UNCHANGED and count == 1:
            raise error(errno.EINVAL)
        if wanted not in (own, _UNCHANGED):
            raise error(errno.EPERM)
    # INVARIANT: real, effective and saved ids are all the agent's own, so nothing changes.
    return 0


def handlers() -> dict[str, Handler]:
    """Return the handler of every call that sets ids, by name."""
    return dict.fromkeys((*_USER_CALLS, *_GROUP_CALLS), _set_id)
