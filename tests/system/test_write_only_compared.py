"""Deduplication does not tell what a file holds that may be written, and not read."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.system.conftest import ROOT, Person, options_here

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
POLICY = """\
version: "1.0"
rules:
  - {action: file.read, path: "dropped/**", effect: deny}
  - {action: [file.read, file.write], path: "**", effect: allow}
  - {action: shell.execute, effect: allow}
"""
#: struct file_dedupe_range (linux/fs.h), FIDEDUPERANGE: the status is 0 where both hold the same.
AGENT = """\
import fcntl, os, struct
secret, guess = os.open("dropped/pin", os.O_WRONLY), os.open("guess", os.O_RDWR | os.O_CREAT)
for pin in range(4700, 4720):
    os.pwrite(guess, b"pin=%04d" % pin, 0)
    os.fsync(guess)
    head, one = struct.pack("=QQHHI", 0, 8, 1, 0, 0), struct.pack("=qQQiI", secret, 0, 0, 0, 0)
    asked = bytearray(head + one)
    fcntl.ioctl(guess, 0xC0189436, asked)
    if struct.unpack_from("=i", asked, 48)[0] == 0:
        print(pin)
"""


@pytest.fixture
def reflinks(person: Person, own_mounts: None) -> Iterator[None]:
    """A workspace on XFS, which can have two files share what they hold."""
    image = person.base / "xfs.img"
    image.touch()
    os.truncate(image, 320 << 20)
    subprocess.run(["mkfs.xfs", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, person.workspace], check=True)
    yield
    subprocess.run(["umount", "--lazy", person.workspace], check=True)


@pytest.mark.usefixtures("reflinks")
@pytest.mark.parametrize("defence", ["ioctls", ""])
def test_what_may_only_be_written_is_compared_with_nothing(person: Person, defence: str) -> None:
    person.write("dropped/pin", "pin=4711")
    person.write("agent.py", AGENT)
    person.write("policy.yaml", POLICY)
    if defence:
        weakened = person.base / "weakened.py"
        shutil.copy(ROOT / "tests/escape/weakened.py", weakened)
        weakened.chmod(0o644)
        person.program = [person.program[0], str(weakened), defence]
    run = ("run", "--policy", "policy.yaml", *options_here(), "--", "/usr/bin/python3", "agent.py")
    done = person.safeclaw(*run)
    assert done.stdout == ("4711\n" if defence else ""), done.stderr
