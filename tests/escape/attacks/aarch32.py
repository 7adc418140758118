"""Open the secret by a program for 32-bit ARM, which the same kernel runs (ELF, Arm ARM A32)."""

import os
import struct
import subprocess

CODE = (
    *(0xE24DD080, 0xE28F0034, 0xE3A01000, 0xE3A07005, 0xEF000000),  # open(path, 0)
    *(0xE1A0100D, 0xE3A02040, 0xE3A07003, 0xEF000000),  # read(fd, sp, 64)
    *(0xE1A02000, 0xE3A00001, 0xE3A07004, 0xEF000000),  # write(1, sp, what was read)
    *(0xE3A00000, 0xE3A07001, 0xEF000000),  # exit(0)
)
BASE, HEAD = 0x10000, 52 + 32
body = struct.pack(f"<{len(CODE)}I", *CODE) + b"secrets/key\0"
header = struct.pack(
    "<16sHHIIIIIHHHHHH",
    *(b"\x7fELF\1\1\1", 2, 40, 1, BASE + HEAD, 52, 0, 0x05000000, 52, 32, 1, 0, 0, 0),
)
size = HEAD + len(body)
segment = struct.pack("<8I", 1, 0, BASE, BASE, size, size, 5, 0x1000)
with open("src/program", "xb") as out:
    out.write(header + segment + body)
os.chmod("src/program", 0o755)
subprocess.run(["./src/program"], check=False)
