"""Programs: judged before execve, and compared at the exec stop.

The call is let through with CONTINUE only under ptrace: the new image stops
before its first instruction and is killed unless its executable, argv and
environment are those that were judged (ptrace(2), PTRACE_EVENT_EXEC).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import stat

import msgspec

from safeclaw.policies.model import Attempt, ProgramTarget
from safeclaw.sandbox import linux
from safeclaw.sandbox.caller import read_strings
from safeclaw.sandbox.mediator import Handler, Notification
from safeclaw.sandbox.pinning import path_argument, pin
from safeclaw.sandbox.resolve import Pinned, error

#: musl's is its libc.so; its name as a loader is a link to that.
_LOADER = re.compile(
    r"(?:ld-linux[^/]*|ld-musl[^/]*|ld64|ld)\.so[.\d]*|ld-\d[^/]*\.so|libc\.so|libc\.musl[^/]*"
)
#: Options of a loader that do what a variable does (ld.so(8)).
_LOADER_VARIABLES = {
    "--audit": b"LD_AUDIT",
    "--library-path": b"LD_LIBRARY_PATH",
    "--preload": b"LD_PRELOAD",
}
_LOADER_TAKES_VALUE = frozenset(
    {*_LOADER_VARIABLES, "--inhibit-rpath", "--argv0"}
    | {"--glibc-hwcaps-prepend", "--glibc-hwcaps-mask"}
)
_SHEBANG_MAX = 256
_CHAIN_MAX = 4
_TERMINATOR = re.compile(rb"[ \t\0]")
#: Variables with which no program is started: the loader would run other code than the program's
#: before it, in a namespace of its own that the program cannot see (rtld-audit(7)).
_FORBIDDEN_VARIABLES = (b"LD_AUDIT=",)


class Image:
    """What the exec stop must find: the executable's inode, its argv and environment."""

    __slots__ = ("argv", "environment", "inode")

    def __init__(self, inode: tuple[int, int], argv: list[bytes], environment: list[bytes]) -> None:
        self.inode = inode
        self.argv = argv
        self.environment = environment

    def differs(self, pid: int) -> str | None:
        """Return what is not as approved in the stopped process ``pid``, or None."""
        found = os.stat(f"/proc/{pid}/exe")
        if (found.st_dev, found.st_ino) != self.inode:
            return f"executable is {os.readlink(f'/proc/{pid}/exe')}"
        if _nul_list(f"/proc/{pid}/cmdline") != self.argv:
            return "argv is not what was approved"
        if _nul_list(f"/proc/{pid}/environ") != self.environment:
            return "environment is not what was approved"
        return None


def _nul_list(path: str) -> list[bytes]:
    with open(path, "rb") as source:
        data = source.read()
    return data.split(b"\0")[:-1] if data else []


def _inode(fd: int) -> tuple[int, int]:
    info = os.fstat(fd)
    return info.st_dev, info.st_ino


def _shebang(pinned: Pinned) -> tuple[str, list[bytes]] | None:
    """Return a script's interpreter and its optional argument (execve(2)), or None."""
    fd = pinned.reopen(os.O_RDONLY | os.O_NONBLOCK)
    try:
        head = os.pread(fd, _SHEBANG_MAX, 0)
    finally:
        os.close(fd)
    if not head.startswith(b"#!"):
        return None
    found = shebang(head)
    if found is None:
        raise error(errno.ENOEXEC)
    return found


def shebang(head: bytes) -> tuple[str, list[bytes]] | None:
    """Read a script's first 256 bytes as the kernel does (fs/binfmt_script.c); None: it cannot.

    The name ends at a space, a tab or a NUL.  A line that is longer is cut, in its argument only.
    """
    head = head.ljust(_SHEBANG_MAX, b"\0")
    line, newline, _ = head[2:].partition(b"\n")
    if not newline or b"\0" in line:
        if not _TERMINATOR.search(head[2:].lstrip(b" \t")):
            return None  # the name itself may be cut
        line = head[2:-1]
    line = line.strip(b" \t")
    if not line:
        return None
    end = _TERMINATOR.search(line)
    if end is None or end[0] == b"\0":
        return os.fsdecode(line[: end.start()] if end else line), []
    argument = line[end.start() :].lstrip(b" \t").partition(b"\0")[0]
    return os.fsdecode(line[: end.start()]), [argument]


def _loaded(argv: list[bytes]) -> tuple[int | None, list[bytes]]:
    """Return the index in argv of the program that a loader is asked to run.

    And what its options would be as variables: glibc's take a word of their own, musl's may
    have the value behind a ``=``.
    """
    index, variables = 1, list[bytes]()
    while index < len(argv):
        word, equals, value = argv[index].partition(b"=")
        option = os.fsdecode(word)
        if not option.startswith("--"):
            return index, variables
        if argv[index] == b"--":  # musl's end of options; an error to glibc's
            return (index + 1 if index + 1 < len(argv) else None), variables
        if not equals and option in _LOADER_TAKES_VALUE:
            index += 1
            value = argv[index] if index < len(argv) else b""
        if option in _LOADER_VARIABLES:
            variables.append(_LOADER_VARIABLES[option] + b"=" + value)
        index += 1
    return None, variables


def _only_lists(argv: list[bytes], loader: str, environment: list[bytes]) -> bool:
    """Whether a loader, glibc's, runs nothing of the program: ldd(1), ld.so(8)."""
    return os.path.basename(loader).startswith("ld-linux") and (
        argv[1] in (b"--list", b"--verify") or b"LD_TRACE_LOADED_OBJECTS=1" in environment
    )


def _exec(note: Notification) -> int | None:
    if note.name == "execve":
        dirfd, path = linux.AT_FDCWD, path_argument(note, 0)
        vectors, flags = note.args[1:3], 0
    else:
        dirfd, path = note.int_arg(0), path_argument(note, 1)
        vectors, flags = note.args[2:4], note.int_arg(4)
    argv = read_strings(note.pid, vectors[0]) or [b""]
    environment = read_strings(note.pid, vectors[1])
    note.check_alive()
    # A thread of its own: ptrace belongs to a thread, and an exec takes its time.
    note.mediator.background(note, lambda: _run(note, dirfd, path, flags, argv, environment))
    return None


def _pin_program(note: Notification, dirfd: int, path: str, flags: int) -> Pinned:
    if not path and flags & linux.AT_EMPTY_PATH:
        pinned = note.mediator.resolver.pin_descriptor(note.caller, dirfd)
    else:
        follow = not flags & linux.AT_SYMLINK_NOFOLLOW
        pinned = pin(note, "shell.execute", dirfd, path, follow=follow)
    nameless = not pinned.path.startswith("/") or pinned.path.startswith(("/proc/", "/memfd:"))
    if nameless or not os.fstat(pinned.fd).st_nlink:
        # memfd_create and unlinked programs have no name a rule could judge
        _refuse(note, pinned)
    return pinned


def _refuse(note: Notification, pinned: Pinned) -> None:
    with pinned:
        note.judge(Attempt("shell.execute", ProgramTarget(pinned.path, ())))
        raise error(errno.EACCES)


def _run(
    note: Notification,
    dirfd: int,
    path: str,
    flags: int,
    argv: list[bytes],
    environment: list[bytes],
) -> int | None:
    with contextlib.ExitStack() as stack:
        program = stack.enter_context(_pin_program(note, dirfd, path, flags))
        chain = _chain(note, program, _name(dirfd, path), argv, stack)
        target = ProgramTarget(
            program.path,
            tuple(os.fsdecode(word) for word in argv),
            tuple(pinned.path for pinned in chain.interpreters),
            tuple(os.fsdecode(word) for word in chain.arguments),
        )
        variables = environment
        unsure = ""
        if _LOADER.fullmatch(os.path.basename(chain.image.path)):
            index, options = _loaded(chain.argv)
            variables = [*environment, *options]
            if index is not None:
                target = _behind_loader(note, chain.image, chain.argv, index)
                # SAFETY: the loader opens the name anew, and a link or the working directory may
                # lead elsewhere by then.  The canonical name does not, where the agent cannot
                # write; and where it can, what the name stands for is the agent's own anyway.
                if target.argv[0] != target.program and not _only_lists(
                    chain.argv, chain.image.path, environment
                ):
                    unsure = f"a loader has to be given the program's whole path, {target.program}"
        # the person's own command is the session's start, judged as that, once
        first = note.mediator.first_program
        note.mediator.first_program = None
        action = "session.start" if first == target.argv else "shell.execute"
        target = _judge(note, action, target, variables)
        _require_plain(note, target, variables, unsure)
        image = Image(_inode(chain.image.fd), chain.argv, environment)
    _continue_to_exec_stop(note, image, target)
    return None


def _judge(
    note: Notification, action: str, target: ProgramTarget, variables: list[bytes]
) -> ProgramTarget:
    """Have a program judged with the variables that the policy does not start it with."""
    while True:
        refused = note.mediator.gate.variables(variables)
        whole = msgspec.structs.replace(target, variables=refused)
        note.judge(Attempt(action, whole), enforced_by="exec-stop")
        # SAFETY: another policy may have come in between; it is the last one's to decide.
        if note.mediator.gate.variables(variables) == refused:
            return whole


def _require_plain(
    note: Notification, target: ProgramTarget, variables: list[bytes], unsure: str
) -> None:
    """Refuse, and record, what a rule has allowed but what would run other code than that."""
    found = [one for one in _FORBIDDEN_VARIABLES for entry in variables if entry.startswith(one)]
    if found:
        unsure = f"{os.fsdecode(found[0][:-1])} would have other code run in it"
    if unsure:
        note.mediator.gate.violation(
            Attempt("shell.execute", target),
            pid=note.pid,
            exe=note.caller.exe,
            reason=f"refused: {unsure}",
        )
        raise error(errno.EACCES)


class _Chain:
    """What the kernel will really start: the image, the shebangs on the way, its argv."""

    __slots__ = ("arguments", "argv", "image", "interpreters")

    def __init__(self, image: Pinned, argv: list[bytes]) -> None:
        self.image = image
        self.argv = argv
        self.interpreters: list[Pinned] = []
        #: For each interpreter, the argument that its shebang line gives it, or nothing.
        self.arguments: list[bytes] = []


def _name(dirfd: int, path: str) -> bytes:
    """Return what the kernel calls a program, for the interpreter of a script (execveat(2))."""
    if dirfd == linux.AT_FDCWD or path.startswith("/"):
        return os.fsencode(path)
    return b"/dev/fd/%d" % dirfd + (b"/" + os.fsencode(path) if path else b"")


def _chain(
    note: Notification,
    program: Pinned,
    name: bytes,
    argv: list[bytes],
    stack: contextlib.ExitStack,
) -> _Chain:
    """Follow the shebangs (execve(2)); what is pinned on the way belongs to ``stack``."""
    chain = _Chain(program, list(argv))
    for _ in range(_CHAIN_MAX + 1):
        mode = os.fstat(chain.image.fd).st_mode
        if not stat.S_ISREG(mode) or not mode & 0o111:
            raise error(errno.EACCES)
        found = _shebang(chain.image)
        if found is None:
            return chain
        interpreter, extra = found
        if not interpreter:
            raise error(errno.EACCES)  # the kernel takes it for the directory it is in
        chain.argv = [os.fsencode(interpreter), *extra, name, *chain.argv[1:]]
        name = os.fsencode(interpreter)
        chain.image = stack.enter_context(pin(note, "shell.execute", linux.AT_FDCWD, interpreter))
        chain.interpreters.append(chain.image)
        chain.arguments.append(extra[0] if extra else b"")
    raise error(errno.ELOOP)


def _behind_loader(
    note: Notification, loader: Pinned, argv: list[bytes], index: int
) -> ProgramTarget:
    """Judge ``ld.so [options] program args`` as the program that it loads."""
    with pin(note, "shell.execute", linux.AT_FDCWD, os.fsdecode(argv[index])) as program:
        words = tuple(os.fsdecode(word) for word in argv[index:])
        return ProgramTarget(program.path, words, (loader.path,))


def _continue_to_exec_stop(note: Notification, image: Image, target: ProgramTarget) -> None:
    pid = note.pid
    tgid = note.caller.tgid
    # SAFETY: EXITKILL, so that a thread which ends before it has compared lets nothing run.
    linux.ptrace(linux.PTRACE_SEIZE, pid, linux.PTRACE_O_TRACEEXEC | linux.PTRACE_O_EXITKILL)
    linux.ptrace(linux.PTRACE_INTERRUPT, pid)
    # SAFETY: CONTINUE reads argv again, from memory another thread may have changed;
    # the exec stop below compares what the kernel made of it before it can run.
    note.reply(flags=linux.SECCOMP_USER_NOTIF_FLAG_CONTINUE)
    while True:
        try:
            found, status = os.waitpid(-1, linux.WALL | linux.WNOTHREAD)
        except ChildProcessError:
            return  # killed meanwhile
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if found == pid:
                return
            continue
        event = status >> 16
        if event == linux.PTRACE_EVENT_EXEC:
            break
        # SAFETY: an exec that succeeds stops at its event before it could return to user
        # mode, so any other stop means that it failed.  A signal is passed on, not lost.
        linux.ptrace(linux.PTRACE_DETACH, found, 0 if event else os.WSTOPSIG(status))
        return
    note.mediator.forget(pid)
    note.mediator.forget(tgid)
    try:
        difference = image.differs(tgid)
    except OSError as problem:
        difference = f"cannot be compared: {problem}"
    if difference is not None:
        os.kill(tgid, signal.SIGKILL)
        note.mediator.gate.violation(
            Attempt("shell.execute", target), pid=pid, exe=target.program, reason=difference
        )
        return
    linux.ptrace(linux.PTRACE_DETACH, tgid)


def handlers() -> dict[str, Handler]:
    """Return the handlers of execve and execveat."""
    return {"execve": _exec, "execveat": _exec}
