"""Layouts and calls are those of the kernel headers."""

from __future__ import annotations

import ctypes
import os

import pytest

from safeclaw.sandbox import linux
from safeclaw.sandbox.caller import Caller, read_string


def test_layouts_have_the_sizes_of_the_headers() -> None:
    assert linux.NOTIF.size == 80
    assert linux.NOTIF_RESP.size == 24
    assert linux.NOTIF_ADDFD.size == 24
    assert ctypes.sizeof(linux.OpenHow) == 24
    assert ctypes.sizeof(linux.RulesetAttr) == 24
    assert ctypes.sizeof(linux.PathBeneathAttr) == 12
    assert ctypes.sizeof(linux.Iovec) == 16


def test_openat2_refuses_to_leave_its_root(tmp_path: os.PathLike[str]) -> None:
    root = os.open(tmp_path, os.O_PATH)
    try:
        os.symlink("/etc", os.path.join(tmp_path, "out"))
        with pytest.raises(FileNotFoundError):
            linux.openat2(root, b"out/passwd", os.O_RDONLY, 0, linux.RESOLVE_IN_ROOT)
        with pytest.raises(FileNotFoundError):
            linux.openat2(root, b"../../etc/passwd", os.O_RDONLY, 0, linux.RESOLVE_IN_ROOT)
    finally:
        os.close(root)


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 4000])
def test_a_string_is_read_whole_whatever_its_length(length: int) -> None:
    buffer = ctypes.create_string_buffer(b"x" * length)
    assert read_string(os.getpid(), ctypes.addressof(buffer), 8192) == b"x" * length


def test_a_string_without_an_end_is_too_long() -> None:
    buffer = ctypes.create_string_buffer(b"x" * 9000)
    with pytest.raises(OSError, match="too long"):
        read_string(os.getpid(), ctypes.addressof(buffer))


def test_an_address_that_is_not_mapped_is_a_fault() -> None:
    with pytest.raises(OSError, match="Bad address"):
        read_string(os.getpid(), 8)


def test_a_caller_knows_its_umask_now() -> None:
    caller = Caller(os.getpid())
    old = os.umask(0o027)
    try:
        assert caller.umask() == 0o027
    finally:
        os.umask(old)
