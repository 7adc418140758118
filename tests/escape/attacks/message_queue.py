"""Take from a POSIX message queue that others of the host have made."""

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
queue = libc.mq_open(open("name", "rb").read(), os.O_RDWR | os.O_NONBLOCK)
buffer = ctypes.create_string_buffer(16384)
if queue >= 0 and libc.mq_receive(queue, buffer, 16384, None) > 0:
    print(buffer.value.decode())
