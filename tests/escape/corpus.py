"""The attacks: each with the one defence that holds it, which its control switches off."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Attack:
    """One attack.

    ``source`` is a file under ``attacks/``; ``defence`` a name of
    ``weakened.DEFENCES``, or ``outside``: the same program without any walls.
    ``goal`` is how often a race must win in the control; the same number of tries
    is then made inside.  ``alone`` attacks get a session of their own.  ``gap`` says why it is
    known to work in landlock isolation: there it must win, or the list of differences is wrong.
    ``machine`` and ``isolation`` are the only ones that can be attacked so.  ``guest`` attacks are
    made ready by changing what the whole machine has: mounted where one was booted for tests.
    """

    name: str
    source: str
    defence: str
    goal: int = 1
    word: str = ""
    root_only: bool = False
    alone: bool = False
    supervisor: bool = False
    terminal: bool = False
    gap: str = ""
    machine: str = ""
    isolation: str = ""
    guest: bool = False


def _each(
    prefix: str,
    source: str,
    defence: str,
    words: Iterable[str],
    *,
    root_only: bool = False,
    supervisor: bool = False,
) -> list[Attack]:
    """Return the attacks of one program, which takes the word that tells them apart."""
    return [
        Attack(
            f"{prefix}_{word}",
            source,
            defence,
            word=word,
            root_only=root_only,
            supervisor=supervisor,
        )
        for word in words
    ]


def _files() -> list[Attack]:
    by_verdict = (
        *("symlink", "dotdot", "hard_link", "link_descriptor", "rename_out", "rename_parent"),
        *("opath_reopen", "opath_write", "truncate", "metadata", "tmpfile_link", "dangling_link"),
        *("delete", "policy_file", "parent_environment", "unix_door", "unix_door_moved"),
        *("wrappers", "shebang", "descriptor_exec", "short_way"),
        *("xattr_value", "xattr_names", "xattr_write_only", "inotify_names", "write_only"),
    )
    others = ("victim_memory", "system_v", "message_queue", "core_limit")
    return [
        *(Attack(name, f"{name}.py", "verdict") for name in by_verdict),
        *(Attack(name, f"{name}.py", "outside") for name in others),
        Attack("tmp_names", "kept_names.py", "outside", word="/tmp"),
        Attack("shm_names", "kept_names.py", "outside", word="/dev/shm"),
        Attack("new_calls", "new_calls.c", "outside"),
        Attack("set_user_id", "set_user_id.c", "outside"),
        Attack("core_handler", "core_handler.c", "core", alone=True, guest=True),
        Attack("core_unlimited", "core_handler.c", "refusals", alone=True, guest=True),
        Attack("inode_version", "inode_version.py", "ioctls"),
        Attack("address_change", "address_change.py", "outside", root_only=True),
        Attack("address_named", "address_change.py", "outside", root_only=True, word="named"),
        Attack("reader_for_a_moment", "reader_for_a_moment.py", "literal-names"),
        Attack("link_in_place", "link_in_place.py", "links-in-rules"),
        Attack("move_to_spared", "move_to_spared.py", "spared"),
        Attack("magic_root", "magic_root.py", "outside"),
        # map_files wants a capability, so only root's control can work
        Attack("map_files", "map_files.py", "outside", root_only=True),
        Attack("file_flags", "file_flags.py", "ioctls"),
        Attack("outside_view", "outside_view.py", "view", gap="no mount namespace: stat(2) tells"),
        Attack("outside_read", "outside_read.py", "outside"),
        Attack("other_terminal", "other_terminal.py", "outside"),
        *_each("held", "held_descriptor.c", "verdict", ("table", "race")),
        Attack("held_terminal", "held_descriptor.c", "outside", word="terminal"),
        Attack("bind_upward", "bind_upward.py", "upward"),
        Attack("inherited", "inherited.py", "closing"),
        Attack("broker_socket", "broker_socket.py", "outside"),
        Attack("abstract_socket", "abstract_socket.py", "outside"),
        Attack("host_loopback", "host_loopback.py", "outside"),
        Attack("memfd", "memfd.py", "outside"),
        Attack("loader", "loader.py", "loader"),
        Attack("elf_interpreter", "elf_interpreter.py", "interpreter"),
        Attack("nested_filter", "nested_filter.c", "outside"),
        Attack("int80", "int80.c", "outside", machine="x86_64"),
        Attack("aarch32", "aarch32.py", "outside", machine="aarch64"),
        Attack("tagged_pointer", "tagged_pointer.py", "verdict", machine="aarch64"),
        Attack(
            *("supervisor_pidfd", "supervisor_pidfd.c", "landlock"),
            alone=True,
            isolation="landlock",
        ),
        Attack("kill_group", "kill_group.c", "landlock", alone=True),
        Attack("own_directory", "own_directory.py", "links", alone=True, isolation="landlock"),
        Attack("tiocsti", "tiocsti.c", "refusals", alone=True, terminal=True),
        Attack("lock_terminal", "lock_terminal.c", "refusals", alone=True, terminal=True),
    ]


def _races() -> list[Attack]:
    # Enough to see that each can be won, and is not: test_races.py goes on with them for longer.
    return [
        Attack("race_open", "race_open.c", "pinned", goal=250),
        Attack("race_symlink", "race_symlink.c", "pinned", goal=75),
        Attack("race_parent", "race_parent.c", "pinned", goal=50),
        Attack("race_rename", "race_rename.c", "pinned", goal=40),
        Attack("race_bind", "race_bind.c", "pinned", goal=10),
        Attack("race_chdir", "race_chdir.c", "pinned", goal=25),
        Attack("race_connect", "race_connect.c", "pinned", goal=125),
        Attack("race_exec_path", "race_exec_path.c", "exec-stop", goal=30),
        Attack("race_exec_argv", "race_exec_argv.c", "exec-stop", goal=15),
        Attack("race_exec_vfork", "race_exec_vfork.c", "exec-stop", goal=15),
        Attack("race_exec_variable", "race_exec_variable.c", "exec-stop", goal=15),
        Attack("race_exec_pointer", "race_exec_pointer.c", "exec-stop", goal=50),
        Attack("race_loader", "race_loader.c", "loader-name", goal=5),
    ]


def _variables() -> list[Attack]:
    forbidden = "forbidden_variable.py"
    ways = ("given", "env", "shell", "script", "descriptor", "loader", "preload", "loader-preload")
    audits = ("audit", "loader-audit")
    return [
        *_each("variable", forbidden, "variables", ways),
        *_each("variable", forbidden, "loader-code", audits),
        *_each("pinned", "pinned_variable.py", "variables", ("changed", "absent", "cleared")),
        *_each("pinned", "pinned_twice.c", "variables", ("first", "last")),
    ]


def _calls() -> list[Attack]:
    # What an ordinary user cannot do outside either proves nothing for him.
    anybody = (
        *("ptrace", "traceme", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp"),
        *("unshare", "unshare-files", "clone-newuser", "clone3", "io_uring_setup", "keyctl"),
        *("add_key", "request_key", "name_to_handle_at", "userfaultfd", "personality"),
        *("fanotify_init", "seccomp-listener", "set-mm", "set-ptracer"),
        *("open_tree", "mptcp-socket", "netlink-audit", "vsock", "flow-label", "whiteout"),
    )
    root = ("chroot", "fsopen", "setns", "bpf", "mknod-device", "raw-socket", "packet-socket")
    source = "refused_call.c"
    return [
        *_each("call", source, "outside", anybody),
        *_each("call", source, "outside", root, root_only=True),
        Attack("call_modify_ldt", source, "outside", word="modify_ldt", machine="x86_64"),
        # the argument's high half is not the kernel's, and must not be the filter's
        Attack("call_ioctl", source, "ioctls", word="high-bits-ioctl"),
    ]


def _victims() -> list[Attack]:
    ways = (
        *("kill", "kill-group", "tkill", "tgkill", "sigqueue", "pidfd", "sigio", "prlimit"),
        *("priority", "io-priority", "scheduler", "affinity", "robust-list", "move-pages"),
    )
    return _each("victim", "victim.c", "outside", ways)


def _sessions() -> list[Attack]:
    agent, supervisor, source = "other_agent", "other_supervisor", "other_session.c"
    ways = ("trace", "copy", "memory", "descriptor")
    return [
        *_each(agent, source, "outside", ("kill", *ways)),
        # a supervisor is not dumpable: but for signals it is root's alone already outside
        *_each(supervisor, source, "outside", ("kill",), supervisor=True),
        *_each(supervisor, source, "outside", ways, root_only=True, supervisor=True),
    ]


#: The attacks on every machine.
CORPUS = (*_files(), *_races(), *_variables(), *_calls(), *_victims(), *_sessions())
#: SAFECLAW_CORPUS leaves those whose names match: where all would take too long.
_CHOSEN = re.compile(os.environ.get("SAFECLAW_CORPUS", ""))
#: Those to mount here.
ATTACKS = tuple(
    one
    for one in CORPUS
    if _CHOSEN.match(one.name)
    and one.machine in ("", os.uname().machine)
    and (not one.guest or "SAFECLAW_RESULTS" in os.environ)
)

POLICY = """\
version: "1.0"
rules:
  - {action: file.read, path: "**/spared/**/key", effect: allow, reason: no secret there}
  - {action: [file.read, file.write], path: "**/secrets/**", effect: deny, reason: secret}
  - {action: [file.read, file.write], path: "*/held/deep/**", effect: deny, reason: held}
  - {action: file.read, path: "**/dropped/**", effect: deny, reason: for writing}
  - {action: file.write, path: "**/frozen/**", effect: deny, reason: for reading}
  - {action: file.write, path: "**/settings/login/**", effect: deny, reason: obeyed outside}
  - {action: shell.execute, command: ["./**/xd *", "./**/xd-dynamic *", "./**/xa d *"],
     effect: deny, reason: no such program}
  - {action: network.connect, path: "**/door-a", effect: allow}
  - {action: network.bind, path: "*/src/**", effect: allow}
  - {action: [file.read, file.write], path: ["**", "/tmp/**"], effect: allow}
  - {action: shell.execute, command: ["/usr/** *", "/bin/** *", "/lib*/** *", "./** *"],
     effect: allow}
  - {action: "*", effect: deny}
environment:
  forbid: ["LOOT_*", LD_PRELOAD]
  pin: {PINNED: "yes"}
"""
