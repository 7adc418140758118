"""What is mounted in the workspace for a chroot gives nothing of the host's kernel."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.conftest import ROOT, Person, options_here

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")

#: Look for the supervisor, have its memory, and its environment, which the agent has not.
AGENT = """\
import os, sys
own = int(os.readlink("chroot/proc/self"))
for name in ("self", *range(max(1, own - 500), own)):
    place = f"chroot/proc/{name}"
    try:
        held = os.open(place + "/" + sys.argv[1], os.O_PATH)
        for name in (place + "/" + sys.argv[1], f"/proc/self/fd/{held}"):
            text = open(name, "rb").read()
            if b"SUPERVISORS=words" in text:
                os.close(os.open(place + "/mem", os.O_RDWR))
                print("words")
    except OSError:
        pass
try:
    os.close(os.open("chroot/dev/loop0", os.O_RDWR))
    print("device")
except OSError:
    pass
try:
    open("chroot/sys/kernel/uevent_seqnum").read()
    print("kernel")
except OSError:
    pass
"""


@pytest.fixture
def chroot(person: Person) -> Iterator[Path]:
    """A place in the workspace with proc, sys and a device, as for chroot(8)."""
    person.write("agent.py", AGENT)
    place = person.workspace / "chroot/proc"
    for folder in (place, person.workspace / "chroot/dev"):
        folder.mkdir(parents=True)
    os.mknod(person.workspace / "chroot/dev/loop0", 0o660 | stat.S_IFBLK, os.makedev(7, 0))
    person.own()
    kernel = place.parent / "sys"
    kernel.mkdir()
    subprocess.run(["mount", "-t", "proc", "proc", place], check=True)
    subprocess.run(["mount", "-t", "sysfs", "sysfs", kernel], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place, kernel], check=True)


@pytest.mark.parametrize("isolation", ["full", "landlock"])
@pytest.mark.parametrize("defence", ["hosts-files", ""])
def test_no_process_device_or_interface_of_the_host_is_opened(
    person: Person, chroot: Path, isolation: str, defence: str
) -> None:
    assert (chroot / "1").exists()
    if defence:
        weakened = person.base / "weakened.py"
        shutil.copy(ROOT / "tests/escape/weakened.py", weakened)
        weakened.chmod(0o644)
        person.program = [person.program[0], str(weakened), defence]
    run = ("run", *options_here(isolation), "--", "/usr/bin/python3", "agent.py", "environ")
    done = person.safeclaw(*run, SUPERVISORS="words")
    assert set(done.stdout.split()) == ({"words", "device", "kernel"} if defence else set()), (
        done.stderr
    )
