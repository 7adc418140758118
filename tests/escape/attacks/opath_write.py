"""Open what may only be read, then reopen its descriptor for writing."""

import os

fd = os.open("frozen/f", os.O_RDONLY)
os.write(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_TRUNC), b"thawed")
