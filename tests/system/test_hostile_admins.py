"""One administrator who wants to be two, against a real daemon with the two-person rule.

Each attack is mounted for real: by users the kernel vouches for, with texts whose hashes were
searched for.  What would have worked without the defence is shown beside it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safeclaw.daemon import control
from safeclaw.daemon.client import Client
from safeclaw.daemon.peer import peer_of
from safeclaw.errors import BrokerError
from safeclaw.sandbox import linux
from tests.system.admins import ANN, BOB, DEMO, NEWS, WIDE, as_admin, in_force, making, ruled
from tests.system.conftest import Person
from tests.system.system_broker import Making

__all__ = ["making"]

#: A uid of the kind that subuid(5) hands out.
SUBORDINATE = 3_000_000_000
#: Two policies whose hashes begin with the same 12 digits: 2**24 tries each, under a minute.
HARMLESS = """\
version: "1.0"
rules:
  - {action: file.write, path: "later/**", effect: deny}
  - {action: [file.read, file.write], path: "**", effect: allow}
  - {action: shell.execute, command: "/usr/** *", effect: allow}
  - {action: network.connect, host: docs.example.org, effect: allow}
# 14245980
"""
EVERYTHING = """\
version: "1.0"
rules:
  - {action: "*", effect: allow}
# 06465919
"""


def as_subordinate(owner: int, uid: int, work: Callable[[], Any]) -> Any:
    """Do something as an administrator who takes one of her subordinate uids.

    She makes a user namespace, newuidmap(1) maps what /etc/subuid gives her, she changes to
    it: and nothing of that takes a group from her.
    """
    made, ready = os.pipe()
    mapped, go = os.pipe()
    answer, said = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([NEWS])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(owner, owner, owner)
            linux.unshare(linux.CLONE_NEWUSER)
            os.write(ready, b"x")
            os.read(mapped, 1)
            os.setresuid(1, 1, 1)
            os.write(said, repr(work()).encode())
        finally:
            os._exit(0)
    os.close(said)
    os.close(ready)
    os.read(made, 1)
    Path(f"/proc/{child}/uid_map").write_text(f"0 {owner} 1\n1 {uid} 1\n")
    os.write(go, b"x")
    with open(answer, "rb") as stream:
        text = stream.read().decode()
    os.waitpid(child, 0)
    for descriptor in (made, mapped, go):
        os.close(descriptor)
    return text


def test_one_administrator_is_not_as_many_as_she_has_subordinate_uids(
    making: Making, ordinary_user: str
) -> None:
    broker = ruled(making, ordinary_user)
    before = in_force(broker)
    broker.policy("demo", WIDE)
    waiting = broker.reload()["pending"]["demo"]
    yes = ("policy", "approve", "demo", waiting)
    assert as_admin(broker, ANN, *yes) == 0

    def again() -> str:
        client = Client.at(broker.socket)
        try:
            return str(client.ask(control.ApprovePolicy("demo", waiting)))
        except BrokerError as problem:
            return problem.message
        finally:
            client.finish()

    # To the kernel she is another user, and in the group still.
    ours = str(broker.base / "run" / "ours.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(ours)
        os.chmod(ours, 0o666)
        listener.listen()

        def show() -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.connect(ours)

        as_subordinate(ANN, SUBORDINATE, show)
        with listener.accept()[0] as accepted:
            peer = peer_of(accepted)
    assert (peer.uid, NEWS in peer.groups) == (SUBORDINATE, True)
    assert "not permitted" in as_subordinate(ANN, SUBORDINATE, again)
    assert in_force(broker) == before
    # The same from a process of a user of this system's is the second yes.
    assert as_admin(broker, BOB, *yes) == 0
    assert in_force(broker) == waiting


def test_a_yes_is_for_the_text_that_was_shown_not_for_one_that_begins_alike(
    making: Making, ordinary_user: str
) -> None:
    shown, swapped = (hashlib.sha256(text.encode()).hexdigest() for text in (HARMLESS, EVERYTHING))
    assert shown != swapped
    assert shown[:12] == swapped[:12]
    broker = ruled(making, ordinary_user)
    before = in_force(broker)
    broker.policy("demo", HARMLESS)
    assert broker.reload()["pending"]["demo"] == shown
    # Bob has looked at what waits; Ann puts the other in its place, and says yes to that.
    broker.policy("demo", EVERYTHING)
    assert broker.reload()["pending"]["demo"] == swapped
    assert as_admin(broker, ANN, "policy", "approve", "demo", swapped) == 0
    assert as_admin(broker, BOB, "policy", "approve", "demo", shown[:12]) == 125
    assert as_admin(broker, BOB, "policy", "approve", "demo", shown) == 125
    assert in_force(broker) == before
    # Nothing but the digits stood between.
    assert as_admin(broker, BOB, "policy", "approve", "demo", swapped) == 0
    assert in_force(broker) == swapped


def test_who_runs_a_registered_agent_does_not_decide_whether_its_policy_binds(
    making: Making, person: Person
) -> None:
    broker = making()
    key = broker.add("demo")
    (person.workspace / "later").mkdir()
    words = ("--agent", "demo", "--", "/usr/bin/mkdir", "later/one")
    refused = person.finish(broker.run(person, "--observe", *words, key=key))
    assert refused.returncode == 125
    assert "whether it is only observed says its policy" in refused.stderr
    assert not (person.workspace / "later/one").exists()
    # For an agent that nobody has registered it is the user's own to say.
    file = person.write("demo.yaml", DEMO)
    own = ("--observe", "--policy", str(file), "--agent", "mine", *words[2:])
    assert person.finish(broker.run(person, *own)).returncode == 0
    assert (person.workspace / "later/one").is_dir()
    # For this one it is its policy's.
    broker.policy("demo", DEMO.replace("rules:", "mode: observe\nrules:"))
    broker.reload()
    (person.workspace / "later/one").rmdir()
    assert person.finish(broker.run(person, "--observe", *words, key=key)).returncode == 0
    assert (person.workspace / "later/one").is_dir()


def test_a_link_on_the_way_that_its_owner_may_turn_is_no_way_to_a_policy(
    making: Making, ordinary_user: str
) -> None:
    broker = making()
    theirs = broker.base / "theirs"
    theirs.mkdir()
    shutil.chown(theirs, ordinary_user)
    real = broker.config / "policies" / "real.yaml"
    real.write_text(WIDE)
    (theirs / "link").symlink_to(real)
    os.lchown(theirs / "link", 0, 0)
    # root's, to root's, by way of a directory in which somebody may put another link
    (broker.config / "policies" / "through.yaml").symlink_to(theirs / "link")
    words = ("agent", "add", "through", "--policy", "through", "--owner", "o")
    refused = broker.safeclaw(*words, "--environment", "e")
    assert refused.returncode == 125
    assert f"{theirs} may be changed by user {ordinary_user}" in refused.stderr
    shutil.chown(theirs, "root")
    assert broker.safeclaw(*words, "--environment", "e").returncode == 0
