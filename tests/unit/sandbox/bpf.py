"""Runs a classic BPF program over a seccomp_data, as the kernel does (kernel/seccomp.c)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

_INSTRUCTION = struct.Struct("=HBBI")
#: linux/bpf_common.h, as far as seccomp_check_filter() and libseccomp go.
_LD, _ALU_AND, _RET = 0x20, 0x54, 0x06
_JUMPS = {0x05: "ja", 0x15: "jeq", 0x25: "jgt", 0x35: "jge", 0x45: "jset"}
#: linux/audit.h
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003, "arm": 0x40000028}


def run(program: bytes, arch: str, number: int, arguments: Sequence[int] = ()) -> int:
    """Return what the program answers: a SECCOMP_RET_ value."""
    words = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, AUDIT_ARCH[arch], 0, *words)
    code = list(_INSTRUCTION.iter_unpack(program))
    at = accumulator = 0
    while True:
        operation, if_true, if_false, k = code[at]
        at += 1
        if operation == _RET:
            return int(k)
        if operation == _LD:
            accumulator = struct.unpack_from("=I", data, k)[0]
        elif operation == _ALU_AND:
            accumulator &= k
        elif _JUMPS.get(operation) == "ja":
            at += k
        else:
            holds = {
                "jeq": accumulator == k,
                "jgt": accumulator > k,
                "jge": accumulator >= k,
                "jset": bool(accumulator & k),
            }[_JUMPS[operation]]
            at += if_true if holds else if_false
