"""The doctor says whether a run will work, as root and as anybody, wherever it is asked."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.system.conftest import Person

LAYERS = (
    "machine", "python", "modules", "libseccomp", "names", "namespaces", "view", "temporary",
    "landlock", "seccomp", "exec stop", "cgroup", "disk", "clock", "journald",
)  # fmt: skip
#: In a user namespace of its own, in which no further one may be made.
NO_NAMESPACES = (
    *("unshare", "--user", "--map-current-user", "--keep-caps", "--"),
    *("sh", "-c", 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"', "sh"),
)


def behind(
    person: Person, before: tuple[str, ...], *words: str
) -> subprocess.CompletedProcess[str]:
    """Run ``safeclaw WORDS…`` behind another command."""
    command = [*before, *person.command(*words)]
    return person.finish(person.start(command, person.workspace))


def states(person: Person, *before: str) -> tuple[int, dict[str, str], dict[str, str]]:
    """Return the doctor's exit status, and each layer's state and hint."""
    done = behind(person, before, "doctor", "--json")
    assert done.stderr == ""
    value = json.loads(done.stdout)
    assert value["full_isolation"] == (done.returncode == 0)
    absent = {layer["layer"] for layer in value["layers"] if layer["state"] == "missing"}
    assert value["full_isolation"] == (absent <= {"temporary"})
    assert value["landlock_isolation"] == (absent <= {"namespaces", "view"})
    assert all(layer["hint"] for layer in value["layers"] if layer["state"] != "ok")
    return (
        done.returncode,
        {layer["layer"]: layer["state"] for layer in value["layers"]},
        {layer["layer"]: layer["hint"] for layer in value["layers"]},
    )


def test_a_healthy_host_gets_0_and_a_run_works(person: Person) -> None:
    status, found, _ = states(person)
    assert status == 0
    assert tuple(found) == LAYERS
    assert "missing" not in found.values()
    assert person.safeclaw("run", "--", "true").returncode == 0


def test_the_table_has_a_line_for_each_layer(person: Person) -> None:
    done = person.safeclaw("doctor")
    assert done.returncode == 0
    assert all(f" {layer} " in done.stdout for layer in LAYERS)
    assert done.stdout.endswith(
        "safeclaw run works here in full isolation\nsafeclaw run --isolation landlock works here\n"
    )


def test_without_user_namespaces_it_says_which_setting_and_a_run_fails_too(person: Person) -> None:
    status, found, hints = states(person, *NO_NAMESPACES)
    assert status == 1
    assert {name for name, state in found.items() if state == "missing"} == {"namespaces", "view"}
    assert "user.max_user_namespaces" in hints["namespaces"]
    ran = behind(person, NO_NAMESPACES, "run", "--", "true")
    assert ran.returncode == 125
    assert "doctor" in ran.stderr
    assert "--isolation landlock" in ran.stderr
    without = behind(person, NO_NAMESPACES, "run", "--isolation", "landlock", "--", "true")
    assert without.returncode == 0, without.stderr


@pytest.fixture
def new_root() -> Iterator[Path]:
    """A directory to be a new root."""
    directory = Path(tempfile.mkdtemp(prefix="safeclaw-root-"))
    directory.chmod(0o755)
    yield directory
    directory.rmdir()


def test_in_a_chroot_it_says_so_and_a_run_fails_too(person: Person, new_root: Path) -> None:
    chroot = f'mount --rbind / {new_root} && exec chroot {new_root} sh -c \'cd "$0"; exec "$@"\''
    inside = f'{chroot} {shlex.quote(str(person.workspace))} "$@"'
    namespaces = ("unshare", "--mount", "--user", "--map-current-user", "--keep-caps")
    before = (*namespaces, "sh", "-c", inside, "sh")
    status, found, hints = states(person, *before)
    assert status == 1
    assert found["namespaces"] == "missing"
    assert "chroot" in hints["namespaces"]
    assert behind(person, before, "run", "--", "true").returncode == 125


def test_with_a_tmp_that_cannot_be_written_only_full_isolation_works(person: Person) -> None:
    base = shlex.quote(str(person.base))
    mounts = (
        f"mount --rbind /tmp /tmp && mount --bind {base} {base} && "
        f'mount -o remount,bind,ro /tmp && cd {base}/workspace && exec "$@"'
    )
    read_only = (
        *("unshare", "--mount", "--user", "--map-current-user", "--keep-caps"),
        *("sh", "-c", mounts, "sh"),
    )
    status, found, hints = states(person, *read_only)
    assert status == 0
    assert {name for name, state in found.items() if state == "missing"} == {"temporary"}
    assert "/tmp" in hints["temporary"]
    assert behind(person, read_only, "run", "--", "true").returncode == 0
    without = behind(person, read_only, "run", "--isolation", "landlock", "--", "true")
    assert (without.returncode, "/tmp" in without.stderr) == (125, True)


def test_under_another_listener_there_can_be_no_second_one(person: Person) -> None:
    # A listener above: the kernel allows one only, so the walls' own cannot be put up.
    person.write(
        "listening.py",
        "import os, struct, sys\n"
        "from safeclaw.sandbox import linux\n"
        "linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)\n"
        "flags = linux.SECCOMP_FILTER_FLAG_NEW_LISTENER\n"
        "fd = linux.load_filter(struct.pack('=HBBI', 6, 0, 0, 0x7FFF0000), flags)\n"
        "os.set_inheritable(fd, True)\n"
        "os.execvp(sys.argv[1], sys.argv[1:])\n",
    )
    status, found, hints = states(person, person.command()[0], "listening.py")
    assert status == 1
    assert found["seccomp"] == "missing"
    assert "listens" in hints["seccomp"]


def test_a_state_directory_that_cannot_be_written_is_missing(person: Person) -> None:
    done = person.safeclaw("doctor", "--json", XDG_STATE_HOME="/proc")
    layers = {layer["layer"]: layer for layer in json.loads(done.stdout)["layers"]}
    assert done.returncode == 1
    assert layers["disk"]["state"] == "missing"
    assert "XDG_STATE_HOME" in layers["disk"]["hint"]


def test_unknown_words_are_a_usage_error(person: Person) -> None:
    done = person.safeclaw("doctor", "please")
    assert done.returncode == 2
    assert done.stdout == ""


def _mounts(own: Path) -> list[str]:
    """Return what is mounted, but for what other tests have mounted for themselves meanwhile."""
    temporary = f"{tempfile.gettempdir()}/"
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return [one for one in points if not one.startswith(temporary) or one.startswith(f"{own}/")]


def _processes(person: Person) -> list[int]:
    """Return the processes of this person's, and of no other test's: by the state's directory."""
    found: list[int] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("XDG_STATE_HOME") == str(person.state):
                found.append(process.pid)
    return found


def test_the_probes_leave_nothing_behind(person: Person) -> None:
    before = _mounts(person.base), sorted(os.listdir(person.state))
    person.safeclaw("doctor", TMPDIR=str(person.workspace))
    assert (_mounts(person.base), sorted(os.listdir(person.state))) == before
    assert not os.listdir(person.workspace)
    assert _processes(person) == []
