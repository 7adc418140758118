"""What the exec stop compares, and what it holds on to until then."""

from __future__ import annotations

import os
import subprocess

import pytest

from safeclaw.sandbox.exec_stop import Image


def _image(path: str, argv: list[bytes], environment: list[bytes]) -> Image:
    fd = os.open(path, os.O_PATH)
    try:
        return Image(fd, argv, environment)
    finally:
        os.close(fd)


@pytest.mark.parametrize("length", [10, 100_000])
def test_a_program_is_what_was_judged_to_the_last_word(length: int) -> None:
    argv = ["cat", "-", *["x" * length] * 5]
    variables = {f"V{number}": "y" * length for number in range(5)}
    with subprocess.Popen(
        argv,
        executable="/usr/bin/cat",
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as running:
        # Popen returns as soon as the kernel has closed the descriptors of the old image, which
        # is before it has written down where the new one's argv is (begin_new_exec).
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(b"\n")
        assert running.stdout.read(1) == b"\n"
        right = [word.encode() for word in argv]
        environment = [f"{name}={value}".encode() for name, value in variables.items()]
        assert _image("/usr/bin/cat", right, environment).differs(running.pid) is None
        for wrong in (right[:-1], [*right, b""], [*right[:-1], right[-1] + b"x"], [], right[::-1]):
            found = _image("/usr/bin/cat", wrong, environment).differs(running.pid)
            assert found == "argv is not what was approved"
            found = _image("/usr/bin/cat", right, wrong).differs(running.pid)
            assert found == "environment is not what was approved"
        found = _image("/usr/bin/true", right, environment).differs(running.pid)
        assert found == f"executable is {os.path.realpath('/usr/bin/cat')}"
        running.kill()
