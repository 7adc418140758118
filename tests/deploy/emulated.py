"""A Debian with its own stock kernel, under qemu's software emulation.

What this machine's kernel has, those of operators may lack, and the other way round:
Debian 12's Linux 6.1 has an older Landlock, and every cgroup controller.  The image is
made once and kept; a trial is a tar archive that the machine unpacks and runs, with what
it says coming back over a second serial line.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.deploy.booted import base_tree, cache

TOOLS = ("qemu-system-x86_64", "mkfs.ext4", "debootstrap", "systemd-nspawn")
#: The kernel, what boots it from a virtio disk, and the managers of users' own units.
_PACKAGES = ("linux-image-cloud-amd64", "initramfs-tools", "libpam-systemd", "dbus-user-session")
#: Who runs what an ordinary user runs in there.
PERSON = "safeclaw-test"
_SIZE = "3G"
_UNIT = r"""[Unit]
Description=What this machine was booted for
After=multi-user.target systemd-user-sessions.service dbus.socket
OnSuccess=poweroff.target
OnFailure=poweroff.target
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
ExecStart=/bin/sh -euc 'mkdir -p /opt/trial && tar -xf /dev/vdb -C /opt/trial && \
    exec sh /opt/trial/run'
StandardOutput=file:/dev/ttyS1
StandardError=journal+console
TimeoutStartSec=infinity
"""


def image() -> Path:
    """Return the directory with ``vmlinuz``, ``initrd.img`` and ``root.ext4``; made once."""
    tree = base_tree(*_PACKAGES)
    made = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    place = cache() / f"image-{made}-{tree.name}"
    with open(cache() / "image.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            for old in cache().glob("image-*/"):
                shutil.rmtree(old)
            new = Path(tempfile.mkdtemp(dir=cache(), prefix="new.image."))
            root = new / "root"
            _run("cp", "--archive", "--reflink=auto", str(tree), str(root))
            _furnish(root)
            for name in ("vmlinuz", "initrd.img"):
                shutil.copy((root / name).resolve(), new / name)
            _run("mkfs.ext4", "-q", "-d", str(root), "-L", "root", str(new / "root.ext4"), _SIZE)
            shutil.rmtree(root)
            new.rename(place)
    return place


def _furnish(root: Path) -> None:
    """Put into the tree what the trial needs: its unit, and an ordinary user."""
    (root / "etc/systemd/system/trial.service").write_text(_UNIT)
    (root / "etc/fstab").write_text("/dev/vda / ext4 rw,relatime 0 1\n")
    inside = ("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe")
    _run(*inside, f"--directory={root}", "useradd", "--create-home", "--shell=/bin/sh", PERSON)
    lingers = root / "var/lib/systemd/linger"
    lingers.mkdir(parents=True, exist_ok=True)
    (lingers / PERSON).touch()
    wanted = root / "etc/systemd/system/default.target.wants"
    wanted.mkdir(exist_ok=True)
    (wanted / "trial.service").symlink_to("/etc/systemd/system/trial.service")


def _run(*words: str) -> None:
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"


def run(archive: Path, where: Path, *, cpus: int = 2, memory: int = 2048) -> tuple[str, str]:
    """Boot, unpack ``archive``, run its ``run``, switch off; return what it said, and the console.

    The image stays as it is.
    """
    machine = image()
    said, console = where / "said", where / "console"
    disk = "if=virtio,format=raw"
    command = [
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max"),
        *("-smp", str(cpus), "-m", str(memory), "-nodefaults", "-no-user-config"),
        *("-display", "none", "-no-reboot"),
        *("-kernel", str(machine / "vmlinuz"), "-initrd", str(machine / "initrd.img")),
        *("-append", "root=/dev/vda rw console=ttyS0 systemd.show_status=false"),
        *("-drive", f"file={machine / 'root.ext4'},snapshot=on,{disk}"),
        *("-drive", f"file={archive},readonly=on,{disk}"),
        *("-serial", f"file:{console}", "-serial", f"file:{said}"),
    ]
    # snapshot=on keeps what is written in TMPDIR
    subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        check=True,
        env={**os.environ, "TMPDIR": str(where)},
    )
    return said.read_text(errors="replace"), console.read_text(errors="replace")
