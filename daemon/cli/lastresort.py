"""The kill switch when the system's broker does not answer: root's own hands.

The order is written where the broker finds it whenever it looks again, and every
supervisor on the host is killed; the kernel takes its agent along (PR_SET_PDEATHSIG).
No record can be made of it here: the chain shows that the supervisors have gone.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from safeclaw.daemon import client
from safeclaw.daemon.killswitch import KillSwitch, Switch
from safeclaw.errors import BrokerError
from safeclaw.policies.model import printable


def kill(agent: str | None, why: str, problem: BrokerError) -> int:
    """Stop everything without the broker; re-raise ``problem`` where that cannot be."""
    state = client.SYSTEM_STATE
    if os.geteuid() != 0 or not state.is_dir():
        raise problem
    for line in problem.diagnostics():
        print(line, file=sys.stderr)
    order = Switch(
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), 0, printable(why), None, agent
    )
    leave(state, order)
    count = 0
    found = supervisors(agent)
    for pid, parent in found.items():
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            count += parent not in found
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)
    whom = "every agent" if agent is None else printable(agent)
    print(
        f"{whom}: {count} supervisors killed without the broker; the order is on file\n"
        "hint: systemctl restart safeclawd; then safeclaw status"
    )
    return 0


def leave(state: Path, order: Switch) -> None:
    """Put an order on file.  BrokerError.

    SAFETY: as the directory's owner: with root's own power, a link that the owner puts in the
    file's place between two steps could have root change any file of the host.
    """
    owner = state.stat()
    user, group = os.geteuid(), os.getegid()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        KillSwitch(state).add(order)
    finally:
        os.seteuid(user)
        os.setegid(group)


def supervisors(agent: str | None) -> dict[int, int]:
    """Return what runs as ``safeclaw run``, of one agent where that can be told, and its parents.

    The first process of a session is its supervisor's child, and looks like it.
    """
    import psutil

    found: dict[int, int] = {}
    for process in psutil.process_iter(["pid", "ppid", "cmdline"]):
        words: list[str] = process.info["cmdline"] or []
        names = [Path(word).name for word in words[:3]]
        if "safeclaw" not in names or words[names.index("safeclaw") + 1 :][:1] != ["run"]:
            continue
        # SAFETY: an agent whose name cannot be told is taken along: this is the last resort.
        named = words[words.index("--agent") + 1 :][:1] if "--agent" in words else []
        if agent is None or named in ([], [agent]):
            found[process.info["pid"]] = process.info["ppid"]
    return found
