"""How targets are written for people: nothing is hidden, and nothing looks like something else."""

from __future__ import annotations

import sys

from safeclaw.policies.model import FileTarget, ProgramTarget, describe, printable


def test_what_nobody_sees_is_written_as_bytes() -> None:
    assert printable("a\u3164b") == r"a\xe3\x85\xa4b"
    assert printable("a\ufe00") == r"a\xef\xb8\x80"
    assert printable("a\u2800\U000e0100") == r"a\xe2\xa0\x80\xf3\xa0\x84\x80"
    # controls, marks of direction and separators, as before
    assert printable("\u202e\u200b\u00a0\x1b") == r"\xe2\x80\xae\xe2\x80\x8b\xc2\xa0\x1b"
    assert printable("größe 文字 שלום") == "größe 文字 שלום"


def test_no_two_names_are_written_alike() -> None:
    # but for surrogates: of those only what stands for a byte comes from a name (os.fsdecode)
    codes = (*range(0x20, 0xD800), *range(0xDC80, 0xDD00), *range(0xE000, sys.maxunicode))
    names = [chr(code) for code in codes]
    assert len({printable(name) for name in names}) == len(names)


def test_what_a_program_is_called_is_shown_where_it_is_not_its_name() -> None:
    def shown(*argv: str) -> str:
        return describe(ProgramTarget("/usr/bin/systemctl", argv))

    assert shown("systemctl", "status") == "/usr/bin/systemctl status"
    assert shown("/usr/bin/systemctl", "status") == "/usr/bin/systemctl status"
    assert shown("poweroff", "status") == "/usr/bin/systemctl status (as poweroff)"
    assert shown("./systemctl", "status") == "/usr/bin/systemctl status (as ./systemctl)"
    assert shown() == "/usr/bin/systemctl"
    # and no argument says it for another
    assert shown("systemctl", "(as", "x)") == "/usr/bin/systemctl '(as' 'x)'"
    assert shown("x) y", "z") == "/usr/bin/systemctl z (as 'x) y')"


def test_no_two_moves_are_shown_alike() -> None:
    one, other = FileTarget("/a -> /b", "/c"), FileTarget("/a", "/b -> /c")
    assert describe(one) == "'/a -> /b' -> /c"
    assert describe(other) == "/a -> '/b -> /c'"
