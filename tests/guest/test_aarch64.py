"""What is of this processor alone: pointers that carry a tag."""

from __future__ import annotations

import os

import pytest

from tests.system.conftest import Person, options_here

#: Opens a file by pointers with every tag (prctl(2), PR_SET_TAGGED_ADDR_CTRL), and says for how
#: many that worked; it does so twice by each, since the second time is answered another way.
AGENT = """\
import ctypes, os
libc = ctypes.CDLL(None)
assert libc.prctl(55, *(ctypes.c_ulong(word) for word in (1, 0, 0, 0))) == 0
path = ctypes.create_string_buffer(b"agent.py")
done = 0
for tag in (*range(256), *range(256)):
    fd = libc.open(ctypes.c_void_p(ctypes.addressof(path) | tag << 56), os.O_RDONLY)
    if fd >= 0:
        done += 1
        os.close(fd)
print(done)
"""


@pytest.mark.skipif(os.uname().machine != "aarch64", reason="the tags are aarch64's")
@pytest.mark.parametrize("isolation", ["full", "landlock"])
def test_a_pointer_with_a_tag_is_read_as_the_kernel_reads_it(
    person: Person, isolation: str
) -> None:
    person.write("agent.py", AGENT)
    command = ("/usr/bin/python3", "agent.py")
    outside = person.finish(person.start(list(command), person.workspace))
    assert outside.stdout == "512\n", outside.stderr
    inside = person.safeclaw("run", *options_here(isolation), "--", *command)
    assert inside.stdout == "512\n", inside.stderr
