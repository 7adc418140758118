"""argv and envp are copied as the kernel would copy them, and no more than it would take."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeclaw.sandbox import vectors

PAGE = mmap.PAGESIZE
ME = os.getpid()


class Memory:
    """A vector of strings, each in memory of its own, as long as this lives."""

    def __init__(self, words: list[bytes]) -> None:
        self._words = [ctypes.create_string_buffer(word) for word in words]
        pointers = [ctypes.addressof(word) for word in self._words]
        self._vector = (ctypes.c_void_p * (len(words) + 1))(*pointers, None)
        self.address = ctypes.addressof(self._vector)


def _size(*lists: list[bytes]) -> int:
    return sum(len(word) + 9 for words in lists for word in words)


def _refused(argv: int, envp: int, limit: int = vectors.MOST) -> int | None:
    with pytest.raises(OSError, match=r"\S") as raised:
        vectors.read(ME, argv, envp, limit)
    return raised.value.errno


WORDS = st.lists(st.binary(max_size=3 * PAGE).map(lambda word: word.replace(b"\0", b"_")))


@given(WORDS, WORDS)
def test_both_are_copied_whole_and_counted(argv: list[bytes], environment: list[bytes]) -> None:
    first, second = Memory(argv), Memory(environment)
    size = _size(argv, environment)
    found = vectors.read(ME, first.address, second.address, max(size, 1))
    assert (found.argv, found.environment, found.size) == (argv, environment, size)
    if size:
        assert _refused(first.address, second.address, size - 1) == errno.E2BIG


@pytest.mark.parametrize("count", [31, 32, 33, 600, 9000])
def test_a_vector_is_read_to_its_end_however_long(count: int) -> None:
    words = [str(number).encode() for number in range(count)]
    memory = Memory(words)
    assert vectors.read(ME, memory.address, 0, vectors.MOST).argv == words
    assert vectors.read(ME, 0, memory.address, vectors.MOST).environment == words


@pytest.mark.parametrize("length", [PAGE, 5 * PAGE, 32 * PAGE - 1])
def test_a_string_may_have_as_many_bytes_as_the_kernel_allows(length: int) -> None:
    word = os.urandom(length).replace(b"\0", b"_")
    memory = Memory([word])
    assert vectors.read(ME, memory.address, 0, vectors.MOST).argv == [word]


def test_a_string_of_one_byte_more_is_too_long() -> None:
    memory = Memory([b"x" * 32 * PAGE])
    assert _refused(memory.address, 0) == errno.E2BIG


def test_what_is_not_mapped_is_a_fault_and_what_ends_before_it_is_not() -> None:
    libc = ctypes.CDLL(None)
    pages = mmap.mmap(-1, 2 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    assert libc.mprotect(ctypes.c_void_p(start + PAGE), PAGE, 0) == 0
    try:
        end = start + PAGE
        to_string = (ctypes.c_uint64 * 2)(end - 4, 0)
        pages[PAGE - 4 : PAGE] = b"end\0"
        assert vectors.read(ME, ctypes.addressof(to_string), 0, vectors.MOST).argv == [b"end"]
        pages[PAGE - 4 : PAGE] = b"endx"
        assert _refused(ctypes.addressof(to_string), 0) == errno.EFAULT
        word = ctypes.create_string_buffer(b"word")
        pages[PAGE - 16 : PAGE] = bytes((ctypes.c_uint64 * 2)(ctypes.addressof(word), 0))
        assert vectors.read(ME, 0, end - 16, vectors.MOST).environment == [b"word"]
        pages[PAGE - 16 : PAGE] = bytes((ctypes.c_uint64 * 2)(*[ctypes.addressof(word)] * 2))
        for nowhere in (end - 16, end - 4, end, 8):
            assert _refused(nowhere, 0) == _refused(0, nowhere) == errno.EFAULT
    finally:
        libc.mprotect(ctypes.c_void_p(start + PAGE), PAGE, mmap.PROT_READ | mmap.PROT_WRITE)


def test_pointers_to_one_string_count_each() -> None:
    word = ctypes.create_string_buffer(b"x" * (16 * PAGE))
    count = vectors.MOST // (16 * PAGE)
    vector = (ctypes.c_void_p * (count + 1))(*[ctypes.addressof(word)] * count, None)
    assert _refused(ctypes.addressof(vector), 0) == errno.E2BIG


def test_words_that_lie_far_apart_take_little_more_memory_than_what_is_read_of_them() -> None:
    count, limit = 2048, 32 * 1024
    pages = mmap.mmap(-1, count * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    vector = (ctypes.c_uint64 * (count + 1))(*range(start, start + count * PAGE, PAGE), 0)
    tracemalloc.start()
    try:
        found = vectors.read(ME, ctypes.addressof(vector), 0, limit)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.argv == [b""] * count
    assert most < 16 * limit


@pytest.mark.parametrize("stack", [256 * 1024, 2 * 1024 * 1024, resource.RLIM_INFINITY])
def test_what_the_kernel_takes_is_read_and_little_more(stack: int) -> None:
    word, name = b"x" * 1023, "/bin/true"
    # with the program's name, which the kernel counts, and the supervisor does not
    most = (_bound(stack) - len(name) - 1) // (len(word) + 9)
    assert _kernel_takes(name, [word] * (most - 1), stack)
    assert not _kernel_takes(name, [word] * (most + 1), stack)
    memory = Memory([word] * (most - 1))
    assert len(vectors.read(ME, memory.address, 0, _bound(stack)).argv) == most - 1
    memory = Memory([word] * (most + 2))
    assert _refused(memory.address, 0, _bound(stack)) == errno.E2BIG


def _limited(stack: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    resource.setrlimit(resource.RLIMIT_STACK, (stack, hard))


def _bound(stack: int) -> int:
    """Return what is said of a process with that limit."""
    ready, go = os.pipe()
    said, says = os.pipe()
    child = os.fork()
    if not child:
        os.close(go)
        _limited(stack)
        os.write(says, b"+")
        os.read(ready, 1)
        os._exit(0)
    os.read(said, 1)
    found = vectors.bound(child)
    for fd in (ready, go, said, says):
        os.close(fd)
    os.waitpid(child, 0)
    return found


def _kernel_takes(name: str, argv: list[bytes], stack: int) -> bool:
    child = os.fork()
    if not child:
        _limited(stack)
        try:
            os.execve(name, argv, {})
        except OSError as problem:
            os._exit(problem.errno or 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, errno.E2BIG)
    return code == 0
