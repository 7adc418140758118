"""Where the host has another machine's file system, nobody there hears what an agent asks for."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from safeclaw.sandbox import linux
from tests.system.conftest import ROOT, Person, options_here

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
_MNT_FORCE, _LOOKUP, _FORGET, _BATCH_FORGET, _INIT, _ENOENT = 1, 1, 2, 42, 26, 2


@pytest.fixture
def nas(own_mounts: None) -> Iterator[tuple[Path, list[bytes]]]:
    """A FUSE file system of the host's in which nothing is; and the names it was asked for."""
    asked: list[bytes] = []
    place = Path(tempfile.mkdtemp(prefix="safeclaw-", dir="/mnt"))
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    linux.mount("nas", str(place), "fuse.nas", 0, options)

    def serve() -> None:
        while True:
            try:
                request = os.read(device, 1 << 20)
            except OSError:
                return  # it is no more
            # struct fuse_in_header: len, opcode, unique (linux/fuse.h)
            _, opcode, unique = struct.unpack_from("=IIQ", request)
            if opcode == _INIT:
                body = struct.pack("=4I2HI", 7, 31, 0, 0, 16, 12, 4096).ljust(64, b"\0")
                os.write(device, struct.pack("=IiQ", 16 + len(body), 0, unique) + body)
            elif opcode not in (_FORGET, _BATCH_FORGET):
                if opcode == _LOOKUP:
                    asked.append(request[40:].rstrip(b"\0"))
                os.write(device, struct.pack("=IiQ", 16, -_ENOENT, unique))

    server = threading.Thread(target=serve)
    server.start()
    try:
        yield place, asked
    finally:
        linux.unmount(str(place), _MNT_FORCE | linux.MNT_DETACH)
        server.join()
        os.close(device)
        place.rmdir()


@pytest.mark.parametrize("defence", ["others-names", ""])
def test_a_name_outside_the_view_is_not_told_to_others(
    person: Person, nas: tuple[Path, list[bytes]], defence: str
) -> None:
    place, asked = nas
    if defence:
        weakened = person.base / "weakened.py"
        shutil.copy(ROOT / "tests/escape/weakened.py", weakened)
        weakened.chmod(0o644)
        person.program = [person.program[0], str(weakened), defence]
    script = f"cat {place}/words; echo done"
    done = person.safeclaw("run", *options_here(), "--", "/bin/sh", "-c", script)
    assert done.stdout == "done\n", done.stderr
    assert (b"words" in asked) is bool(defence)
