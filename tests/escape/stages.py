"""What some attacks need to find outside: a victim, a door, somebody else's words.

Each function is called with the attack's directory, the words to be stolen and whose
they are; what it makes lives until the stack is closed.  It returns how to see
afterwards whether the attack has changed anything that the files do not show.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import pty
import pwd
import select
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

Look = Callable[[], list[str]]
_libc = ctypes.CDLL(None, use_errno=True)
#: What the kernel does with a crash (core(5)).
_CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
_IOPRIO_GET = {"x86_64": 252, "aarch64": 31}[os.uname().machine]  # asm/unistd.h


def _nothing() -> list[str]:
    return []


def _abstract_socket(area: Path, _token: str, _uid: int, stack: contextlib.ExitStack) -> Look:
    name = "\0safeclaw-" + hashlib.sha256(str(area).encode()).hexdigest()[:16]
    stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)).bind(name)
    return _nothing


def _host_loopback(area: Path, _token: str, _uid: int, stack: contextlib.ExitStack) -> Look:
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    (area / "port").write_text(str(server.getsockname()[1]))
    return _nothing


def _other_terminal(area: Path, token: str, uid: int, stack: contextlib.ExitStack) -> Look:
    """Open a terminal of this person's, in which the words are being typed."""
    master, slave = pty.openpty()
    for fd in (master, slave):
        stack.callback(os.close, fd)
    os.fchown(slave, uid, -1)
    os.write(master, f"{token}\n".encode())
    number = os.fstat(slave).st_rdev
    (area / "terminal").write_text(os.ttyname(slave))
    (area / "number").write_text(f"{os.major(number)}:{os.minor(number)}")
    return _nothing


def _held_descriptor(area: Path, token: str, uid: int, stack: contextlib.ExitStack) -> Look:
    """Have the words wait in a FIFO that may not be opened, and in a terminal."""
    _fifo(area / "secrets/pipe", token, stack)
    return _other_terminal(area, token, uid, stack)


def _write_only(area: Path, token: str, _uid: int, stack: contextlib.ExitStack) -> Look:
    """Have the words wait where the agent may write, and not read."""
    (area / "dropped").mkdir()
    (area / "dropped/log").touch()
    _fifo(area / "dropped/pipe", token, stack)
    return _nothing


def _fifo(path: Path, token: str, stack: contextlib.ExitStack) -> None:
    os.mkfifo(path, 0o600)
    end = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    stack.callback(os.close, end)
    os.write(end, token.encode())


def _writer(area: Path, _token: str, uid: int, stack: contextlib.ExitStack) -> Look:
    """Have somebody wait to write into a FIFO that may not be opened."""
    place = area / "secrets/pipe"
    os.mkfifo(place, 0o600)
    os.chown(place, uid, -1)
    process = subprocess.Popen(["sh", "-c", 'echo waits >"$0"', place], start_new_session=True)

    def end() -> None:
        process.kill()
        process.communicate()

    stack.callback(end)
    ended = os.pidfd_open(process.pid)
    stack.callback(os.close, ended)

    def look() -> list[str]:
        reader = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
        try:
            select.select([reader, ended], [], [])
            text = os.read(reader, 100)
        finally:
            os.close(reader)
        return [] if text else ["who waited to write has found a reader"]

    return look


def _victim(area: Path, token: str, uid: int, stack: contextlib.ExitStack) -> Look:
    """Start a process of this person's that has nothing to do with the session."""
    own = uid == os.geteuid()
    process = subprocess.Popen(
        ["cat"],
        stdin=subprocess.PIPE,
        env={"KEY": token, "PATH": "/usr/bin:/bin"},
        user=None if own else uid,
        group=None if own else pwd.getpwuid(uid).pw_gid,
        extra_groups=None if own else [],
        start_new_session=True,
    )

    def end() -> None:
        process.kill()
        process.communicate()

    stack.callback(end)
    (area / "pid").write_text(str(process.pid))

    def state() -> tuple[object, ...]:
        if process.poll() is not None:
            return ("gone",)
        status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        return (
            # what ends it is there at once, and it itself goes only when it comes to its turn
            [line for line in status if line.startswith(("SigPnd", "ShdPnd"))],
            Path(f"/proc/{process.pid}/limits").read_text(),
            os.getpriority(os.PRIO_PROCESS, process.pid),
            os.sched_getaffinity(process.pid),
            os.sched_getscheduler(process.pid),
            _libc.syscall(_IOPRIO_GET, 1, process.pid),
        )

    before = state()

    def look() -> list[str]:
        after = state()
        return [] if after == before else [f"the victim: {before} -> {after}"]

    return look


def _kept_names(area: Path, token: str, uid: int, stack: contextlib.ExitStack) -> Look:
    """Make a file with the words where programs keep theirs."""
    name = f"theirs-{hashlib.sha256(str(area).encode()).hexdigest()[:16]}"
    paths = (Path("/tmp", name), Path("/dev/shm", name))
    for path in paths:
        path.write_text(token)
        os.chown(path, uid, -1)
        stack.callback(path.unlink, missing_ok=True)
    (area / "name").write_text(name)

    def kept(path: Path) -> bool:
        return path.exists() and path.read_text() == token and path.stat().st_nlink == 1

    return lambda: [f"{path}: not what it was" for path in paths if not kept(path)]


def _system_v(area: Path, token: str, uid: int, stack: contextlib.ExitStack) -> Look:
    """Make shared memory and a message queue (shmget(2), msgget(2)) with the words in them."""
    data = token.encode().ljust(64, b"\0")
    _libc.shmat.restype = ctypes.c_void_p
    memory = _libc.shmget(0, 64, 0o1666)
    queue = _libc.msgget(0, 0o1666)
    assert memory >= 0
    assert queue >= 0
    stack.callback(_libc.shmctl, memory, 0, None)
    stack.callback(_libc.msgctl, queue, 0, None)
    at = ctypes.c_void_p(_libc.shmat(memory, None, 0))
    ctypes.memmove(at, data, 64)
    _libc.shmdt(at)
    _libc.msgsnd(queue, ctypes.create_string_buffer(bytes([1, *[0] * 7]) + data), 64, 0)
    del uid
    (area / "ids").write_text(f"{memory} {queue}")
    return _nothing


def _message_queue(area: Path, token: str, uid: int, stack: contextlib.ExitStack) -> Look:
    """Make a POSIX message queue with the words in it (mq_overview(7))."""
    name = f"/theirs-{hashlib.sha256(str(area).encode()).hexdigest()[:16]}".encode()
    queue = _libc.mq_open(name, os.O_RDWR | os.O_CREAT, 0o666, None)
    assert queue >= 0, os.strerror(ctypes.get_errno())
    stack.callback(_libc.mq_unlink, name)
    stack.callback(os.close, queue)
    os.fchmod(queue, 0o666)
    os.fchown(queue, uid, -1)
    _libc.mq_send(queue, token.encode(), len(token), 0)
    (area / "name").write_bytes(name)
    return _nothing


def _attributes(area: Path, token: str, _uid: int, _stack: contextlib.ExitStack) -> Look:
    os.setxattr(area / "secrets/key", "user.safeclaw", token.encode())
    os.setxattr(area / "secrets/key", f"user.{token}", b"")
    return _nothing


def _written_attributes(area: Path, token: str, _uid: int, _stack: contextlib.ExitStack) -> Look:
    (area / "dropped").mkdir()
    (area / "dropped/log").touch()
    os.setxattr(area / "dropped/log", "user.safeclaw", token.encode())
    os.setxattr(area / "dropped/log", f"user.{token}", b"")
    return _nothing


def _kept_secrets(area: Path, token: str, uid: int, _stack: contextlib.ExitStack) -> Look:
    """Put the words where they may not be read, in a directory that may be moved."""
    place = area / "kept/secrets"
    place.mkdir(parents=True)
    (place / "key").write_text(token)
    for path in (place.parent, place, place / "key"):
        os.chown(path, uid, -1)
    return _nothing


def _elf_interpreter(area: Path, _token: str, _uid: int, _stack: contextlib.ExitStack) -> Look:
    """Put a loader, which runs what is given to it, where nothing may be read."""
    for loader in ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"):
        if os.path.exists(loader):
            shutil.copy(loader, area / "secrets/loader")
    (area / "secrets/loader").chmod(0o755)
    return _nothing


def _set_user_id(area: Path, _token: str, uid: int, _stack: contextlib.ExitStack) -> Look:
    path = area / "bin/other"
    path.write_bytes((area / "attack").read_bytes())
    os.chown(path, 0 if uid else 65534, -1)
    path.chmod(0o4755)
    return _nothing


def _core_handler(area: Path, _token: str, _uid: int, stack: contextlib.ExitStack) -> Look:
    """Have the host run a handler, which leaves a file for each crash of the attack's."""
    name = hashlib.sha256(str(area).encode()).hexdigest()[:15]
    (area / "name").write_text(name)
    handler, handled = area / "handler", area / "handled"
    handler.write_text(f'#!/bin/sh\n[ "$1" != {name} ] || echo >{handled}\nexec cat >/dev/null\n')
    handler.chmod(0o755)
    stack.callback(_CORE_PATTERN.write_text, _CORE_PATTERN.read_text())
    _CORE_PATTERN.write_text(f"|{handler} %e")
    return lambda: ["the handler ran"] if handled.exists() else []


#: Each by the source of the attacks that need it.
STAGES: dict[str, Callable[[Path, str, int, contextlib.ExitStack], Look]] = {
    "abstract_socket.py": _abstract_socket,
    "host_loopback.py": _host_loopback,
    "other_terminal.py": _other_terminal,
    "held_descriptor.c": _held_descriptor,
    "write_only.py": _write_only,
    "reader_for_a_moment.py": _writer,
    "victim.c": _victim,
    "victim_memory.py": _victim,
    "kept_names.py": _kept_names,
    "system_v.py": _system_v,
    "message_queue.py": _message_queue,
    "set_user_id.c": _set_user_id,
    "elf_interpreter.py": _elf_interpreter,
    "move_to_spared.py": _kept_secrets,
    "xattr_value.py": _attributes,
    "xattr_names.py": _attributes,
    "xattr_write_only.py": _written_attributes,
    "new_calls.c": _attributes,
    "core_handler.c": _core_handler,
}
#: Sources of attacks that only root can make ready: a program of another user's.
ROOT_STAGES = frozenset({"set_user_id.c"})
