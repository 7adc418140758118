"""Names, flags and scripts of every shape: a program inside is told what it is told outside.

One program tries them all and prints what became of each; it is run once outside, and once in
each isolation, where every attempt is allowed.
"""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.system.conftest import Person, options_here

POLICY = """\
version: "1.0"
rules:
  - {action: [file.read, file.write], path: "/**", effect: allow}
  - {action: shell.execute, effect: allow}
"""
PROGRAM = r"""
import ctypes, errno, json, os, shutil, stat, sys

libc = ctypes.CDLL(None, use_errno=True)
HERE = -100
found = {}
home = os.getcwd()
os.makedirs("place", exist_ok=True)


def call(name, *words):
    if getattr(libc, name)(*words) < 0:
        raise OSError(ctypes.get_errno(), name)


def prepare():
    os.chdir(home)
    shutil.rmtree("place")
    os.makedirs("place/d/sub")
    os.chdir("place")
    for name in ("f", "d/g"):
        open(name, "w").write("x")
    for name, leads in (("l", "d"), ("lf", "f"), ("nowhere", "not/there")):
        os.symlink(leads, name)


def attempt(name, do, *words):
    prepare()
    try:
        said = do(*words)
    except OSError as problem:
        said = errno.errorcode[problem.errno]
    os.chdir(home + "/place")
    key = f"{name} {[getattr(word, '__name__', word) for word in words]}"
    below = sorted(os.listdir("d")) if os.path.isdir("d") else []
    found[key] = [said, sorted(os.listdir(".")), below]


def opened(name, flags):
    fd = os.open(name, flags, 0o640)
    mode = oct(os.fstat(fd).st_mode)
    os.close(fd)
    return mode


NAMES = (
    *("f", "f/", "d", "d/", "d/.", "d/sub/", "d/sub/..", "l", "l/", "lf", "lf/", "nowhere"),
    *("nowhere/", "new", "new/", "not/new", "not/new/", "f/new", ".", "./", "..", "/", "//"),
    *("not/.", "f/.", "", "n" * 255, "n" * 256),
)
for name in NAMES:
    attempt("unlink", os.unlink, name)
    attempt("rmdir", os.rmdir, name)
    attempt("mkdir", os.mkdir, name)
    attempt("mknod", os.mknod, name)
    attempt("symlink", os.symlink, "f", name)
    attempt("link to", os.link, "f", name)
    attempt("rename from", os.rename, name, "x")
    attempt("rename from, directory", os.rename, name, "x/")
    attempt("rename to", os.rename, "f", name)
    attempt("rename directory to", os.rename, "d", name)
    if name not in ("/", "//", "f/"):
        attempt("open to make", opened, name, os.O_WRONLY | os.O_CREAT)
        attempt("open to make, for reading", opened, name, os.O_CREAT)
        attempt("open without a name", opened, name, os.O_RDWR | os.O_TMPFILE | os.O_NOFOLLOW)
for name in ("f", "l"):
    attempt("unlinkat, unknown flag", call, "unlinkat", HERE, name.encode(), 0x8000)
    attempt("linkat, unknown flag", call, "linkat", HERE, name.encode(), HERE, b"new", 0x8000)
    attempt("fchownat, unknown flag", call, "fchownat", HERE, name.encode(), -1, -1, 0x8000)
    attempt("utimensat, unknown flag", call, "utimensat", HERE, name.encode(), None, 0x8000)
attempt("utimensat, no name", call, "utimensat", HERE, b"", None, 0)
attempt("fchownat, the directory", call, "fchownat", HERE, b"", -1, -1, 0x1000)


def within(name):
    os.mkdir(name)
    os.chdir(name)
    open("made", "w").write("it")
    return open("made").read()


def removed():
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")
    open("made", "w")


attempt("directory", within, "called (deleted)")
attempt("directory that was removed", removed)
for name in ("/proc/self/status", "///proc/self/status", "/./proc/./self//status"):
    attempt("own entry", lambda name: os.open(name, os.O_RDONLY) > 0, name)

SCRIPT = b"#!/bin/sh\necho $0 $* >out\nexit 7\n"


def run(text, how, *words):
    with open("script", "wb") as out:
        out.write(text)
    os.chmod("script", 0o755)
    child = os.fork()
    if not child:
        null = os.open("/dev/null", os.O_WRONLY)
        os.dup2(null, 2)
        out = os.open("said", os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1)
        try:
            how(*words)
        except OSError as problem:
            os._exit(100 + problem.errno)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return [ended, *(open(name).read() for name in ("out", "said") if os.path.exists(name))]


def by_name(path="./script"):
    os.execv(path, ["script", "word"])


def with_word(length):
    os.execv("/bin/true", ["true", "a" * length])


def by_descriptor(closes):
    os.dup2(os.open("script", os.O_RDONLY), 50, inheritable=not closes)
    os.execve(50, ["script", "word"], {})


def by_directory():
    os.dup2(os.open(".", os.O_RDONLY), 50)
    vector = (ctypes.c_char_p * 3)(b"script", b"word", None)
    call("execveat", 50, b"script", vector, (ctypes.c_char_p * 1)(None), 0)


attempt("script", run, SCRIPT, by_name)
attempt("script by descriptor", run, SCRIPT, by_descriptor, False)
attempt("script by descriptor that closes", run, SCRIPT, by_descriptor, True)
attempt("script by directory", run, SCRIPT, by_directory)
LINES = (
    *(b"#!/bin/echo  a  b \t\n", b"#!/bin/sh", b"#!", b"#! \n", b"#!/bin/sh\r\nexit 3\n"),
    *(b"#!/bin/sh\x0b-e\n", b"#!/bin/sh\0x\nexit 3\n", b"#!/bin/echo a\0b\n"),
    *(b"#!/bin/echo \0b\n", b"#!/bin/echo a  ", b"#!/bin/" + b"a" * 300),
    *(b"#!/bin/echo " + b"a" * 300 + b"\n", b"#!/bin/echo " + b"a" * 242 + b"\n"),
    *(b"#!/bin/echo" + b" " * 300, b"#!" + b" " * 300),
)
for line in LINES:
    attempt("line", run, line, by_name)
for length in (131071, 131072, 200000):
    attempt("word", run, SCRIPT, with_word, length)
print(json.dumps(found))
"""


def outcomes(said: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """Return what the program has printed."""
    assert said.returncode == 0, said.stderr
    found: dict[str, object] = json.loads(said.stdout)
    return found


@pytest.mark.parametrize("isolation", ["full", "landlock"])
def test_a_program_is_told_what_it_is_told_outside(person: Person, isolation: str) -> None:
    person.write("policy.yaml", POLICY)
    person.write("program.py", PROGRAM)
    program = ("/usr/bin/python3", "program.py")
    outside = outcomes(person.finish(person.start([*program], person.workspace)))
    options = options_here(isolation)
    inside = outcomes(person.safeclaw("run", "--policy", "policy.yaml", *options, "--", *program))
    assert len(outside) > 300
    assert {
        key: (outside[key], inside[key]) for key in outside if outside[key] != inside[key]
    } == {}
    assert not person.records("--type", "violation")
