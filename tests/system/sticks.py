"""File systems without regard to case, and what an agent tries on them that rules deny by name."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

from tests.system.conftest import ROOT, Person, options_here

POLICY = """\
version: "1.0"
rules:
  - {action: [file.read, file.write], path: "**/secrets/**", effect: deny}
  - {action: shell.execute, command: "./**/tool *", effect: deny}
  - {action: [file.read, file.write], path: "**", effect: allow}
  - {action: shell.execute, effect: allow}
"""
#: It prints what it was able to do.
AGENT = """\
import os, subprocess, sys

above, place = os.path.split(sys.argv[1])

def attempt(name, deed):
    try:
        deed()
    except OSError as problem:
        print(name, problem, file=sys.stderr)
    else:
        print(name)

if len(sys.argv) > 2:
    open(sys.argv[2]).read()  # it ends when what is waited for has come
attempt("read", lambda: open(f"{above}/{place}/SECRETS/key").read())
attempt("changed", lambda: open(f"{above}/{place}/SECRETS/key", "a").write("more"))
attempt("made", lambda: open(f"{above}/{place}/Secrets/new", "x").close())
attempt("run", lambda: subprocess.run([f"{above}/{place}/TOOL"], check=True))
attempt("moved", lambda: os.rename(above, "moved"))
attempt("read-there", lambda: open(f"moved/{place}/SECRETS/key").read())
attempt("back", lambda: os.rename("moved", above))
attempt("plain", lambda: open(f"{above}/{place}/secrets/key").read())
"""
#: What works by another spelling where nobody knows of it.
DEEDS = ["read", "changed", "made", "run", "moved", "read-there", "back"]


def furnish(place: Path) -> None:
    """Put there what the rules deny."""
    (place / "secrets").mkdir()
    (place / "secrets/key").write_text("key")
    shutil.copy("/usr/bin/true", place / "tool")
    (place / "tool").chmod(0o755)
    assert (place / "SECRETS/KEY").read_text() == "key"


def untouched(base: Path, place: Path) -> bool:
    """Whether nothing that the rules deny has been changed on the stick.

    It is put in anew: the kernel keeps what it knows of a FUSE file under each of its spellings.
    """
    with stick(base, place):
        return (place / "secrets/key").read_text() == "key" and os.listdir(place / "secrets") == [
            "key"
        ]


@contextlib.contextmanager
def stick(base: Path, place: Path) -> Generator[None]:
    """An exFAT of its own at ``place``, by FUSE, where everybody may do all."""
    image = base / "stick.img"
    if not image.exists():
        image.touch()
        os.truncate(image, 16 << 20)
        subprocess.run(["mkfs.exfat", str(image)], check=True, capture_output=True)
    shown = subprocess.run(
        ["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True
    )
    device = shown.stdout.strip()
    # who serves it holds the other end, so that its end can be waited for
    ended, serving = os.pipe()
    try:
        subprocess.run(
            ["mount.exfat-fuse", "-o", "allow_other,umask=000", device, str(place)],
            check=True,
            capture_output=True,
            pass_fds=(serving,),
        )
        yield
    finally:
        os.close(serving)
        subprocess.run(["umount", "--lazy", device], check=False)
        with open(ended, "rb") as until:
            until.read()
        subprocess.run(["losetup", "--detach", device], check=True)


def unaware(person: Person) -> None:
    """Have a person's safeclaw not know where names are without regard to case."""
    weakened = person.base / "weakened.py"
    shutil.copy(ROOT / "tests/escape/weakened.py", weakened)
    weakened.chmod(0o644)
    person.program = [person.program[0], str(weakened), "caseless"]


def command(
    person: Person, isolation: str, place: str, *more: str, policy: str = POLICY
) -> tuple[str, ...]:
    """Return the arguments of a run of the agent, outside its workspace's mounts."""
    chosen = person.base / "policy.yaml"
    chosen.write_text(policy)
    options = (*options_here(isolation), "--policy", str(chosen))
    return ("run", *options, "--", "/usr/bin/python3", "-c", AGENT, place, *more)
