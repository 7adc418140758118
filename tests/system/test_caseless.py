"""Where names are without regard to case no rule on a name can hold, so nothing is allowed."""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from safeclaw.sandbox import linux
from tests.system.conftest import Person, fields, options_here
from tests.system.sticks import DEEDS, POLICY, command, furnish, stick, unaware, untouched

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
ISOLATIONS = pytest.mark.parametrize("isolation", ["full", "landlock"])
_MS_SHARED, _MNT_FORCE, _FUSE_INIT = 1 << 20, 1, 26
AWARE = pytest.mark.parametrize("aware", [True, False], ids=["aware", "unaware"])


@pytest.fixture(autouse=True)
def _unseen(own_mounts: None) -> None: ...


@pytest.fixture
def near(person: Person) -> Path:
    """Return a mount point two levels below the workspace."""
    place = person.workspace / "near/usb"
    place.mkdir(parents=True)
    person.own()
    return place


def caseless(person: Person) -> list[object]:
    """Return the places that the last session's first record names."""
    start = person.records("--type", "session_start")[-1]
    places = fields(fields(start["detail"])["walls"])["caseless"]
    assert isinstance(places, list)
    return cast("list[object]", places)


@AWARE
@ISOLATIONS
def test_no_other_spelling_on_a_stick_gets_past_a_rule(
    person: Person, near: Path, isolation: str, aware: bool
) -> None:
    with stick(person.base, near):
        furnish(near)
        if not aware:
            unaware(person)
        done = person.safeclaw(*command(person, isolation, "near/usb"))
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ([] if aware else DEEDS), done.stderr
        assert (str(near) in caseless(person)) == aware
        if aware:
            refused = person.records("--decision", "deny")
            assert "without regard to case" in str(refused[0]["reason"])
            assert {record["rule"] for record in refused} == {"protected"}
            assert f"nothing is allowed in {near}" in person.safeclaw("doctor").stdout
    assert untouched(person.base, near) == aware


@pytest.fixture
def shared(person: Person) -> Iterator[None]:
    """Have what is mounted below the person's directory seen in the views of sessions, too."""
    base = str(person.base)
    linux.mount(base, base, None, linux.MS_BIND)
    try:
        linux.mount("none", base, None, _MS_SHARED)
        yield
    finally:
        linux.unmount(base)


@AWARE
@ISOLATIONS
@pytest.mark.usefixtures("shared")
def test_what_is_mounted_later_is_shut_when_it_is_seen(
    person: Person, near: Path, isolation: str, aware: bool
) -> None:
    os.mkfifo(person.workspace / "come")
    person.own()
    if not aware:
        unaware(person)
    with person.popen(*command(person, isolation, "near/usb", "come")) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        # opened when the agent has opened its end, and waits
        with open(person.workspace / "come", "wb") as come, stick(person.base, near):
            furnish(near)
            said = process.stderr.readline() if aware else ""
            come.close()
            did = process.stdout.read().split()
            rest = process.stderr.read()
            assert process.wait() == 0, rest
            assert did == ([] if aware else DEEDS), rest
            if aware:
                assert f"{near} was mounted, where names are" in said
    assert untouched(person.base, near) == aware


@AWARE
@ISOLATIONS
def test_a_workspace_on_a_stick_is_refused(
    person: Person, near: Path, isolation: str, aware: bool
) -> None:
    """The policy in force would be another file's name there: .SAFECLAW/policy.yaml."""
    with stick(person.base, near):
        furnish(near)
        (near / ".safeclaw").mkdir()
        policy = near / ".safeclaw/policy.yaml"
        policy.write_text(POLICY)
        if not aware:
            unaware(person)
        agent = "open('.SAFECLAW/policy.yaml', 'a').write('# mine')"
        run = ("run", *options_here(isolation), "--workspace", str(near))
        done = person.safeclaw(*run, "--", "/usr/bin/python3", "-c", agent)
        assert done.returncode == (125 if aware else 0), done.stderr
        if aware:
            refused(person, near, done.stderr)
    with stick(person.base, near):
        assert policy.read_text() == POLICY + ("" if aware else "# mine")


def refused(person: Person, near: Path, said: str) -> None:
    """Check that a refused run, its record and the doctor say what is the matter."""
    first, hint = said.splitlines()
    assert f"the workspace {near} is where names are" in first
    assert hint.startswith("hint: ")
    (end,) = person.records("--type", "session_end")
    assert "without regard to case" in str(end["reason"])
    told = person.finish(person.start(person.command("doctor", "--json"), near))
    assert told.returncode == 1
    (found,) = (one for one in json.loads(told.stdout)["layers"] if one["layer"] == "names")
    assert found["state"] == "missing"
    assert str(near) in found["found"]


@pytest.fixture
def dead(near: Path) -> Iterator[list[int]]:
    """A FUSE file system that takes requests and answers none but the first; what it was asked."""
    asked: list[int] = []
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    linux.mount("dead", str(near), "fuse.dead", 0, options)

    def serve() -> None:
        while True:
            try:
                # struct fuse_in_header: len, opcode, unique (linux/fuse.h)
                _, opcode, unique = struct.unpack_from("=IIQ", os.read(device, 1 << 20))
            except OSError:
                return  # it is no more
            if opcode == _FUSE_INIT:
                body = struct.pack("=4I2HI", 7, 31, 0, 0, 16, 12, 4096).ljust(64, b"\0")
                os.write(device, struct.pack("=IiQ", 16 + len(body), 0, unique) + body)
            else:
                asked.append(opcode)

    server = threading.Thread(target=serve)
    server.start()
    try:
        yield asked
    finally:
        linux.unmount(str(near), _MNT_FORCE | linux.MNT_DETACH)
        server.join()
        os.close(device)


def test_a_file_system_that_does_not_answer_keeps_nobody_from_starting(
    person: Person, near: Path, dead: list[int]
) -> None:
    done = person.safeclaw("run", *options_here(), "--", "/usr/bin/touch", "made")
    assert done.returncode == 0, done.stderr
    assert (person.workspace / "made").exists()
    assert str(near) in caseless(person)
    assert dead, "it was not asked"
