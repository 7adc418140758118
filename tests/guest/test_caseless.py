"""Names without regard to case in file systems that are the kernel's own: vfat, casefolded ext4."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.system.conftest import Person, fields, options_here
from tests.system.sticks import DEEDS, POLICY, command, furnish, unaware

AWARE = pytest.mark.parametrize("aware", [True, False], ids=["aware", "unaware"])
#: The rule that leads to the directory by name, which is why it is looked at.
BY_NAME = POLICY.replace("**/secrets/**", "near/usb/secrets/**")
#: What works without this defence.  The kernel's own file systems call a file what it was asked
#: for first: a rule does not even hold for its own spelling then.
ALL = [*DEEDS, "plain"]
#: What a rule names is not moved.
IN_PLACE = [deed for deed in ALL if deed not in ("moved", "read-there", "back")]


@contextlib.contextmanager
def mounted(image: Path, place: Path, kind: str, options: str) -> Generator[None]:
    """What is in ``image``, at ``place``."""
    words = ("mount", "-t", kind, "-o", f"loop,{options}", str(image), str(place))
    subprocess.run(words, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fat(image: Path) -> None:
    """Make a FAT12 with one table, of sectors and clusters of 512 bytes."""
    sectors, table, root = 2048, 6, 16
    # bytes in a sector, sectors in a cluster, reserved, tables, root entries, sectors, media, table
    layout = struct.pack("<HBHBHHBH", 512, 1, 1, 1, root * 16, sectors, 0xF8, table)
    boot = (b"\xeb\x3c\x90safeclaw" + layout).ljust(510, b"\0") + b"\x55\xaa"
    image.write_bytes((boot + b"\xf8\xff\xff").ljust(512 * sectors, b"\0"))


def untouched(place: Path) -> bool:
    """Whether nothing that the rules deny has been changed; one inode has all its spellings."""
    return (place / "secrets/key").read_text() == "key" and os.listdir(place / "secrets") == ["key"]


def run(person: Person, policy: str = POLICY) -> list[str]:
    """Run the agent on near/usb, where the kernel remembers no names; return what it could do."""
    arguments = command(person, "full", "near/usb", "come", policy=policy)
    with person.popen(*arguments) as process:
        # opened when the agent has opened its end: nobody but it asks for names from now on
        with open(person.workspace / "come", "wb"):
            forget()
        out, err = process.communicate()
    assert process.returncode == 0, err
    return out.split()


def forget() -> None:
    """Have the kernel forget the names that it remembers, as it does when memory is short."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("2")


def shut(person: Person) -> object:
    """Return the places that the last session's first record names."""
    start = person.records("--type", "session_start")[-1]
    return fields(fields(start["detail"])["walls"])["caseless"]


@AWARE
def test_nothing_is_allowed_on_vfat(person: Person, aware: bool) -> None:
    place = person.workspace / "near/usb"
    place.mkdir(parents=True)
    fat(person.base / "stick.img")
    os.mkfifo(person.workspace / "come")
    person.own()
    with mounted(person.base / "stick.img", place, "vfat", "umask=000"):
        furnish(place)
        if not aware:
            unaware(person)
        assert run(person) == ([] if aware else ALL)
        assert shut(person) == ([str(place)] if aware else [])
        assert untouched(place) == aware


@contextlib.contextmanager
def folding(person: Person) -> Generator[None]:
    """The person's workspace on an ext4 whose directories can have the casefold attribute."""
    image = person.base / "disk.img"
    image.touch()
    os.truncate(image, 16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "casefold", str(image)], check=True)
    with mounted(image, person.workspace, "ext4", "rw"):
        shutil.rmtree(person.workspace / "lost+found")
        person.own()
        yield


@AWARE
def test_nothing_is_allowed_in_a_casefolded_directory_that_a_rule_leads_to(
    person: Person, aware: bool
) -> None:
    with folding(person):
        place = person.workspace / "near/usb"
        place.mkdir(parents=True)
        subprocess.run(["chattr", "+F", str(place)], check=True)
        furnish(place)
        os.mkfifo(person.workspace / "come")
        person.own()
        if not aware:
            unaware(person)
        assert run(person, BY_NAME) == ([] if aware else IN_PLACE)
        assert shut(person) == ([str(place)] if aware else [])
        assert untouched(place) == aware


@AWARE
def test_a_casefolded_workspace_is_refused(person: Person, aware: bool) -> None:
    with folding(person):
        place = person.workspace / "work"
        place.mkdir()
        subprocess.run(["chattr", "+F", str(place)], check=True)
        furnish(place)
        person.own()
        if not aware:
            unaware(person)
        chosen = person.base / "policy.yaml"
        chosen.write_text(POLICY)
        given = ("run", *options_here(), "--workspace", str(place), "--policy", str(chosen))
        forget()
        done = person.safeclaw(*given, "--", "/usr/bin/rm", "SECRETS/KEY")
        assert done.returncode == (125 if aware else 0), done.stderr
        assert ("without regard to case" in done.stderr) == aware
        assert (place / "secrets/key").exists() == aware
