"""What the supervisor remembers of a caller, and when it must not."""

from __future__ import annotations

import os
import time

from safeclaw.sandbox.caller import Caller


def test_a_caller_that_was_just_looked_at_is_trusted() -> None:
    caller = Caller(os.getpid())
    assert caller.is_current(time.monotonic_ns())


def test_a_caller_that_lives_is_trusted_again() -> None:
    caller = Caller(os.getpid())
    later = caller.trusted_until + 10**12
    assert caller.is_current(later)
    assert caller.trusted_until > later


def test_a_caller_that_has_gone_is_not_trusted_again() -> None:
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go)
        os.read(ready, 1)
        os._exit(0)
    caller = Caller(pid)
    os.close(go)
    os.close(ready)
    os.waitpid(pid, 0)
    assert not caller.is_current(caller.trusted_until)


def test_the_kept_memory_is_closed_with_the_caller() -> None:
    caller = Caller(os.getpid())
    caller.keep_memory()
    number = caller.memory
    assert os.readlink(f"/proc/self/fd/{number}").endswith("/mem")
    before = os.listdir("/proc/self/fd")
    del caller
    assert len(os.listdir("/proc/self/fd")) == len(before) - 1
