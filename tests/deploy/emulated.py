"""A Debian with its own stock kernel, under qemu's software emulation.

What this machine's kernel has, those of operators may lack, and the other way round:
Debian 12's Linux 6.1 has an older Landlock, and every cgroup controller; and there are
machines with another processor.  An image is made once and kept; a trial is a tar
archive that the machine unpacks and runs, with what it says coming back over a second
serial line.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.booted import SUITE, base_tree, cache

#: What boots the kernel from a virtio disk, and the managers of users' own units.
_PACKAGES = ("initramfs-tools", "libpam-systemd", "dbus-user-session")
_TOOLS = ("mkfs.ext4", "debootstrap", "systemd-nspawn")
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
StandardOutput=file:{said}
StandardError=journal+console
TimeoutStartSec=infinity
"""


@dataclass(frozen=True)
class Machine:
    """A kind of machine: what emulates it, and what of Debian runs there.

    ``kernel`` is a package of ``suite``, ``architecture`` Debian's name where it is not this
    machine's own; ``console`` and ``said`` are the two serial lines' devices.
    """

    emulator: tuple[str, ...]
    kernel: str
    console: str
    said: str
    lines: tuple[str, ...]
    suite: str = SUITE
    architecture: str = ""
    compiler: str = "gcc"
    packages: tuple[str, ...] = ()
    #: What this machine needs for it.
    tools: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """What is needed for it and not installed here."""
        needed = (self.emulator[0], self.compiler, *_TOOLS, *self.tools)
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        return [tool for tool in needed if shutil.which(tool, path=path) is None]


STOCK = Machine(
    emulator=("qemu-system-x86_64", "-cpu", "max,la57=off"),
    kernel="linux-image-cloud-amd64",
    console="ttyS0",
    said="/dev/ttyS1",
    lines=("-serial", "file:{console}", "-serial", "file:{said}"),
)
#: Debian's newer kernel for the stable suite: Linux 6.12, with the whole floor.
AARCH64 = Machine(
    emulator=("qemu-system-aarch64", "-machine", "virt", "-cpu", "neoverse-n1"),
    kernel="linux-image-cloud-arm64",
    suite=f"{SUITE}-backports",
    console="ttyAMA0",
    # the board has one serial line
    said="/dev/hvc0",
    lines=(
        *("-serial", "file:{console}", "-device", "virtio-serial-pci"),
        *("-chardev", "file,id=said,path={said}", "-device", "virtconsole,chardev=said"),
    ),
    architecture="arm64",
    compiler="aarch64-linux-gnu-gcc",
    # there is no wheel of it
    packages=("python3-systemd",),
    tools=("qemu-aarch64-static", "update-binfmts"),
)


def image(machine: Machine) -> Path:
    """Return the directory with ``vmlinuz``, ``initrd.img`` and ``root.ext4``; made once."""
    if machine.architecture:
        # programs of the other architecture are run by qemu-user: nothing to do where systemd did
        _run("update-binfmts", "--enable", machine.tools[0].removesuffix("-static"))
    kernel = (machine.kernel,) if machine.suite == SUITE else ()
    tree = base_tree(*_PACKAGES, *machine.packages, *kernel, architecture=machine.architecture)
    kind = f"image{machine.architecture}"
    recipe = f"{machine.kernel} {machine.suite} {_UNIT} {_SIZE} {inspect.getsource(_furnish)}"
    made = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    place = cache() / f"{kind}-{made}-{tree.name}"
    with open(cache() / f"{kind}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            for old in cache().glob(f"{kind}-*/"):
                shutil.rmtree(old)
            new = Path(tempfile.mkdtemp(dir=cache(), prefix=f"new.{kind}."))
            root = new / "root"
            _run("cp", "--archive", "--reflink=auto", str(tree), str(root))
            _furnish(root, machine)
            for name in ("vmlinuz", "initrd.img"):
                shutil.copy((root / name).resolve(), new / name)
            _run("mkfs.ext4", "-q", "-d", str(root), "-L", "root", str(new / "root.ext4"), _SIZE)
            shutil.rmtree(root)
            new.rename(place)
    return place


def _furnish(root: Path, machine: Machine) -> None:
    """Put into the tree what the trial needs: its unit, its kernel, and an ordinary user."""
    (root / "etc/systemd/system/trial.service").write_text(_UNIT.format(said=machine.said))
    (root / "etc/fstab").write_text("/dev/vda / ext4 rw,relatime 0 1\n")
    # a line that tests speak on is nobody's to log in on
    (root / "etc/systemd/system/serial-getty@.service").symlink_to("/dev/null")
    inside = (
        "systemd-nspawn",
        "--quiet",
        "--register=no",
        "--keep-unit",
        "--pipe",
        "-D",
        str(root),
    )
    _run(*inside, "useradd", "--create-home", "--shell=/bin/sh", PERSON)
    if machine.suite != SUITE:
        sources = root / "etc/apt/sources.list"
        more = sources.read_text().replace(f" {SUITE} ", f" {machine.suite} ")
        (sources.parent / "sources.list.d/kernel.list").write_text(more)
        apt = (*inside, "--setenv=DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet")
        # all modules there are would be looked through one by one, by programs that are emulated
        settings = root / "etc/initramfs-tools"
        (settings / "conf.d/few").write_text("MODULES=list\n")
        (settings / "modules").write_text("virtio_pci\nvirtio_blk\next4\n")
        _run(*apt, "update")
        options = ("--yes", "--no-install-recommends", f"--target-release={machine.suite}")
        _run(*apt, *options, "install", machine.kernel)
        _run(*apt, "clean")
        shutil.rmtree(root / "var/lib/apt/lists")
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


def run(machine: Machine, archive: Path, where: Path) -> tuple[str, str]:
    """Boot, unpack ``archive``, run its ``run``, switch off; return what it said, and the console.

    The image stays as it is.  One processor, because others of an emulated machine mostly wait
    for the first, which on a busy host never ends.
    """
    made = image(machine)
    said, console = where / "said", where / "console"
    disk = "if=virtio,format=raw"
    command = [
        *machine.emulator,
        *("-accel", "tcg"),
        *("-smp", "1", "-m", "2048", "-nodefaults", "-no-user-config"),
        *("-display", "none", "-no-reboot"),
        *("-kernel", str(made / "vmlinuz"), "-initrd", str(made / "initrd.img")),
        "-append",
        # what is emulated speculates on nothing
        f"root=/dev/vda rw console={machine.console} systemd.show_status=false mitigations=off",
        *("-drive", f"file={made / 'root.ext4'},snapshot=on,{disk}"),
        *("-drive", f"file={archive},readonly=on,{disk}"),
        *(word.format(console=console, said=said) for word in machine.lines),
    ]
    # snapshot=on keeps what is written in TMPDIR
    subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        check=True,
        env={**os.environ, "TMPDIR": str(where)},
    )
    return said.read_text(errors="replace"), console.read_text(errors="replace")
