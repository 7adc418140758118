"""Programs: judged before execve, and compared at the :mod:`~safeclaw.sandbox.exec_stop`.

What is copied of the caller's is its path, argv and envp, once, each exec in a thread of its own.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import stat

import msgspec

from safeclaw.policies.model import Attempt, ProgramTarget
from safeclaw.sandbox import exec_stop, linux, vectors
from safeclaw.sandbox.budget import Budget, Share
from safeclaw.sandbox.exec_stop import Image
from safeclaw.sandbox.mediator import Handler, Notification
from safeclaw.sandbox.pinning import path_argument, pin
from safeclaw.sandbox.resolve import Pinned, error
from safeclaw.sandbox.vectors import Vectors

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
#: How many bytes of argv and envp an exec may have without a share of the budget, and how many
#: all the others may have at once, from the first copy to the exec stop.  Until it is judged each
#: has a share for the most, and hence its turn: records of megabytes would wait for each other,
#: and all others for them.  What a person is asked about keeps its own size, and no turn
#: (docs/adr/exec-words-by-turns.md).
_FREE = 32 * 1024
_BUDGET = Budget(vectors.MOST + 2 * 1024 * 1024)
#: Variables with which no program is started: the loader would run other code than the program's
#: before it, in a namespace of its own that the program cannot see (rtld-audit(7)).
_FORBIDDEN_VARIABLES = (b"LD_AUDIT=",)


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


def _exec(note: Notification) -> None:
    path = path_argument(note, 0 if note.name == "execve" else 1)
    # A thread of its own: ptrace belongs to a thread, and to copy megabytes takes its time.
    note.mediator.background(note, functools.partial(_run, note, path))


def _copied(
    note: Notification, first: int, stack: contextlib.ExitStack
) -> tuple[Vectors, Share | None]:
    """Copy argv and envp, from the arguments ``first`` on; a share of the budget is ``stack``'s."""
    argv, envp = note.args[first : first + 2]
    try:
        return vectors.read(note.pid, argv, envp, _FREE), None
    except OSError as problem:
        if problem.errno != errno.E2BIG:
            raise
    share = stack.enter_context(_BUDGET.share(note, vectors.MOST))
    return vectors.read(note.pid, argv, envp, vectors.bound(note.pid)), share


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


def _run(note: Notification, path: str) -> None:
    if note.name == "execve":
        dirfd, vectors_at, flags = linux.AT_FDCWD, 1, 0
    else:
        dirfd, vectors_at, flags = note.int_arg(0), 2, note.int_arg(4)
    note.check_alive()
    with contextlib.ExitStack() as stack:
        program = stack.enter_context(_pin_program(note, dirfd, path, flags))
        copied, share = _copied(note, vectors_at, stack)
        # SAFETY: while it waited, and was copied, the caller may have ended and its number become
        # another's; then so are the words.
        note.check_alive()
        argv, environment = copied.argv or [b""], copied.environment
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
        command = note.mediator.first_program
        note.mediator.first_program = None
        action = "session.start" if command == target.argv else "shell.execute"
        if share is not None and note.mediator.gate.may_wait(Attempt(action, target)):
            share.shrink(copied.size)
        target = _judge(note, action, target, variables)
        if share is not None:
            share.shrink(copied.size)
        _require_plain(note, target, variables, unsure)
        exec_stop.go_on(note, Image(chain.image.fd, chain.argv, environment), target)


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


def handlers() -> dict[str, Handler]:
    """Return the handlers of execve and execveat."""
    return {"execve": _exec, "execveat": _exec}
