"""A socket that somebody has locked: a thread that sends from memory which does not come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

#: Run by itself: where one thread keeps all others waiting, nobody is left to say so.
_PROGRAM = """\
import ctypes, fcntl, mmap, os, signal, socket, struct, sys, threading
from safeclaw.sandbox import outside

signal.alarm(int(sys.argv[1]))
libc = ctypes.CDLL(None)
# linux/userfaultfd.h: UFFDIO_API, UFFDIO_REGISTER (MISSING), UFFDIO_ZEROPAGE
faults = libc.syscall({"x86_64": 323, "aarch64": 282}[os.uname().machine], os.O_CLOEXEC)
if faults < 0:
    print("no userfaultfd")
    sys.exit()
fcntl.ioctl(faults, 0xC018AA3F, struct.pack("=QQQ", 0xAA, 0, 0))
page = mmap.mmap(-1, mmap.PAGESIZE)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
fcntl.ioctl(faults, 0xC020AA00, struct.pack("=QQQQ", address, mmap.PAGESIZE, 1, 0))

listener = socket.create_server(("127.0.0.1", 0))
locked = socket.create_connection(listener.getsockname())
sends = threading.Thread(target=libc.write, args=(locked.fileno(), ctypes.c_void_p(address), 8))
sends.start()
os.read(faults, 32)  # its memory is asked for: it has the socket locked

duplicates = []
take = {"ours": outside._of, "python": lambda fd: socket.socket(fileno=fd)}[sys.argv[2]]
taken = threading.Thread(target=lambda: duplicates.append(take(os.dup(locked.fileno()))))
taken.start()
taken.join()
print(duplicates[0].family.name, duplicates[0].type.name, duplicates[0].proto)

fcntl.ioctl(faults, 0xC020AA04, struct.pack("=QQQq", address, mmap.PAGESIZE, 0, 0))
sends.join()
print(duplicates[0].getpeername() == listener.getsockname())
"""


def run(seconds: int, how: str) -> subprocess.CompletedProcess[str]:
    """Take the socket up in a program that ends itself after so many seconds."""
    command = [sys.executable, "-W", "ignore", "-c", _PROGRAM, str(seconds), how]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_is_taken_up_while_it_is_locked() -> None:
    if os.geteuid() != 0:
        pytest.skip("not root: memory that the kernel waits for cannot be had (userfaultfd(2))")
    done = run(60, "ours")
    if done.stdout == "no userfaultfd\n":
        pytest.skip("no userfaultfd here: memory that the kernel waits for cannot be had")
    assert done.returncode == 0, done.stderr
    said = ["AF_INET SOCK_STREAM 6", "True"]
    assert done.stdout.splitlines() == said
    # no other thread of that program runs meanwhile
    assert run(2, "python").returncode == -signal.SIGALRM
