"""argv and envp of an exec: copied from the caller in bulk, never more than execve(2) takes.

What is read is counted as the kernel counts it (fs/exec.c, ``bprm_stack_limits``): eight bytes
for each pointer, and each string with its NUL.
"""

from __future__ import annotations

import errno
import mmap
import resource
from array import array

import msgspec

from safeclaw.sandbox import linux
from safeclaw.sandbox.resolve import error

#: What the kernel allows of any caller, and what it allows at most.
LEAST, MOST = 128 * 1024, 6 * 1024 * 1024
#: What is read at a time of a string: no kernel's pages are smaller, so it is all there or not.
_PAGE = 4096
#: MAX_ARG_STRLEN (linux/binfmts.h), with the NUL.
_STRING_MAX = 32 * mmap.PAGESIZE
#: How many strings are looked for at a time, and in how many pages: each may begin in one of its
#: own, and those are no part of what is counted.  A call takes 1024 parts at most (IOV_MAX).
_BATCH, _PAGES_MAX = 256, 32
#: How much of a vector, and of a long string, is read first, and at most at a time, in bytes.
_FIRST_POINTERS, _POINTERS_MAX = 256, 64 * 1024
_FIRST_REST = 4 * _PAGE


class Vectors(msgspec.Struct, frozen=True):
    """A private copy of both, and its size in the kernel's count."""

    argv: list[bytes]
    environment: list[bytes]
    size: int


def bound(pid: int) -> int:
    """Return how many bytes the two may have: a quarter of the stack's limit, within bounds."""
    try:
        stack = resource.prlimit(pid, resource.RLIMIT_STACK)[0]
    except OSError:
        return MOST
    return MOST if stack == resource.RLIM_INFINITY else max(LEAST, min(MOST, stack // 4))


def read(pid: int, argv: int, envp: int, limit: int) -> Vectors:
    """Copy the two vectors; an address of 0 is an empty one.

    Raises:
        OSError: E2BIG past ``limit`` bytes, or for a string that is too long; EFAULT.

    """
    places = [address for address in (argv, envp) if address]
    sizes = [min(_FIRST_POINTERS, _PAGE - address % _PAGE) for address in places]
    begin = _parts(pid, list(zip(places, sizes, strict=True)))
    words, first = array("Q"), 0
    if argv:
        words += _pointers(pid, argv, begin[: sizes[0]], limit)
        first = len(words)
    if envp:
        words += _pointers(pid, envp, begin[-sizes[-1] :], limit)
    left = limit - 8 * len(words)
    found = list[bytes]()
    for start in range(0, len(words), _BATCH):
        if left <= 0:
            raise error(errno.E2BIG)
        strings = _strings(pid, words[start : start + _BATCH], left)
        left -= sum(map(len, strings)) + len(strings)
        found += strings
    if left < 0:
        raise error(errno.E2BIG)
    return Vectors(found[:first], found[first:], limit - left)


def _memory(pid: int, address: int, size: int) -> bytes:
    """Return what is there, up to the first page that is not; EFAULT when that is nothing."""
    try:
        return linux.read_memory(pid, address, size)
    except OSError:
        raise error(errno.EFAULT) from None


def _parts(pid: int, parts: list[tuple[int, int]]) -> bytes:
    """Return what is at (address, size) of each; EFAULT unless all is there."""
    try:
        data = linux.read_memory_parts(pid, parts) if parts else b""
    except OSError:
        raise error(errno.EFAULT) from None
    if len(data) != sum(size for _, size in parts):
        raise error(errno.EFAULT)
    return data


def _pointers(pid: int, address: int, data: bytes, limit: int) -> array[int]:
    """Return the pointers up to the null one; ``data`` is how the vector begins."""
    found, size = array("Q"), _FIRST_POINTERS
    while True:
        some = array("Q", data[: len(data) & ~7])
        try:
            return found + some[: some.index(0)]
        except ValueError:
            found += some
        if 8 * len(found) > limit:
            raise error(errno.E2BIG)
        address += 8 * len(some)
        size = min(8 * size, _POINTERS_MAX)
        data = _memory(pid, address, size)
        if len(data) < 8:
            raise error(errno.EFAULT)


def _strings(pid: int, pointers: array[int], left: int) -> list[bytes]:
    """Return the strings, or as many as are more than ``left`` bytes.

    Each page in which one begins is read, up to ``_PAGES_MAX`` of them by one call.
    """
    pages = sorted({pointer & -_PAGE for pointer in pointers})
    if len(pages) > _PAGES_MAX:
        half = len(pointers) // 2
        found = _strings(pid, pointers[:half], left)
        left -= sum(map(len, found)) + len(found)
        return found if left < 0 else found + _strings(pid, pointers[half:], left)
    runs, where, total = list[tuple[int, int]](), dict[int, tuple[int, int]](), 0
    for index, page in enumerate(pages):
        if not index or page != pages[index - 1] + _PAGE:
            runs.append((page, _PAGE))
        else:
            runs[-1] = runs[-1][0], runs[-1][1] + _PAGE
    for address, size in runs:
        end = total + size
        for place in range(0, size, _PAGE):
            where[address + place] = total + place, end
        total = end
    data = _parts(pid, runs)  # in each page of them a string begins
    words = list[bytes]()
    for pointer in pointers:
        page, end = where[pointer & -_PAGE]
        begin = page + (pointer & (_PAGE - 1))
        stop = data.find(b"\0", begin, end)
        word = data[begin:stop] if stop >= 0 else _long(pid, pointer, data[begin:end])
        if len(word) >= _STRING_MAX:
            raise error(errno.E2BIG)
        words.append(word)
        left -= len(word) + 1
        if left < 0:
            break
    return words


def _long(pid: int, address: int, begin: bytes) -> bytes:
    """Return a string whose end is not among what has been read of it."""
    parts, length, size = [begin], len(begin), _FIRST_REST
    while length < _STRING_MAX:
        part = _memory(pid, address + length, min(size, _STRING_MAX - length))
        end = part.find(b"\0")
        if end >= 0:
            parts.append(part[:end])
            return b"".join(parts)
        parts.append(part)
        length += len(part)
        size = _STRING_MAX
    raise error(errno.E2BIG)
