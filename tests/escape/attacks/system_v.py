"""Attach to shared memory, and take from a message queue, that others of the host have made."""

import ctypes

libc = ctypes.CDLL(None, use_errno=True)
memory, queue = (int(word) for word in open("ids").read().split())
libc.shmat.restype = ctypes.c_void_p
at = libc.shmat(memory, None, 0o10000)  # SHM_RDONLY
if at not in (None, ctypes.c_void_p(-1).value):
    print(ctypes.string_at(at, 64).decode("latin-1"))
buffer = ctypes.create_string_buffer(256)
if libc.msgrcv(queue, buffer, 200, 0, 0o4000) > 0:  # IPC_NOWAIT
    print(buffer.raw[8:100].decode("latin-1"))
