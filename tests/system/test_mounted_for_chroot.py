"""What is mounted in the workspace for a chroot gives nothing of the host's kernel."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.system.conftest import ROOT, Person, options_here

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")

#: Look for the supervisor, have its memory, and its environment, which the agent has not.
AGENT = """\
import os, sys
print("ready", flush=True)
for name in ("self", *sys.stdin.readline().split()):
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
try:
    os.mkdir("chroot/bpf/made")
    os.symlink("/nowhere", "chroot/bpf/link")
    os.unlink("chroot/bpf/kept")
    print("names")
except OSError:
    pass
"""


@pytest.fixture
def chroot(person: Person, own_mounts: None) -> Iterator[Path]:
    """A place in the workspace with proc, sys and a device, as for chroot(8)."""
    person.write("agent.py", AGENT)
    place = person.workspace / "chroot/proc"
    for folder in (place, person.workspace / "chroot/dev"):
        folder.mkdir(parents=True)
    os.mknod(person.workspace / "chroot/dev/loop0", 0o660 | stat.S_IFBLK, os.makedev(7, 0))
    person.own()
    kernel, names = place.parent / "sys", place.parent / "bpf"
    kernel.mkdir()
    names.mkdir()
    subprocess.run(["mount", "-t", "proc", "proc", place], check=True)
    subprocess.run(["mount", "-t", "sysfs", "sysfs", kernel], check=True)
    subprocess.run(["mount", "-t", "bpf", "bpf", names], check=True)
    (names / "kept").symlink_to("/nowhere")
    os.lchown(names / "kept", person.uid, -1)
    yield place
    subprocess.run(["umount", "--lazy", place, kernel, names], check=True)


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
    person.stdin = subprocess.PIPE
    with person.popen(*run, SUPERVISORS="words") as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        # their numbers could be found out: what is tried is what can be done with them
        others = psutil.Process(started.pid).children(recursive=True)
        said, err = started.communicate(
            f"{started.pid} {' '.join(str(one.pid) for one in others)}\n"
        )
    found: set[str] = {"words", "device", "kernel", "names"} if defence else set()
    assert set(said.split()) == found, err
