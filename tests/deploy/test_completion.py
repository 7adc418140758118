"""Completion as it is installed: in the shells themselves, on a terminal."""

from __future__ import annotations

import os
import select
import subprocess

import pytest

from tests.deploy.booted import Booted

#: Each shell, and what it reads so that it completes as its users have it.
SHELLS = {
    "bash": ("bash --noprofile --rcfile /root/rc -i", ". /etc/bash_completion\n"),
    "zsh": ("env ZDOTDIR=/root/zsh zsh -i", "autoload -Uz compinit; compinit -u\n"),
    "fish": ("fish --interactive", ""),
}
#: What is typed before the key (its last letter once), what the key adds, and what the whole then
#: says with --help.
TYPED = (
    ("safeclaw aud", "it", "Usage: safeclaw audit [OPTIONS]"),
    ("safeclaw audit rev", "eal", "Usage: safeclaw audit reveal"),
    ("safeclaw policy diff --not", "-wider", "Usage: safeclaw policy diff"),
)
#: A shell that is ready to edit a line says so to its terminal (bracketed paste).
_READY = "\x1b[?2004h"
_PATIENCE = 60.0


class Terminal:
    """A shell in the machine, on a terminal of its own (script(1))."""

    def __init__(self, machine: Booted, shell: str) -> None:
        script = ["script", "--quiet", "--command", shell, "/dev/null"]
        command = machine.command(["env", "TERM=xterm", "HOME=/root", *script])
        # --no-fork: what is killed at the end is script itself, and not who waits for it.
        command.insert(1, "--no-fork")
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._seen = ""

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._in, text.encode())

    def until(self, word: str) -> None:
        """Wait until this stands on the terminal, after what was waited for before."""
        while word not in self._seen:
            assert select.select([self._out], [], [], _PATIENCE)[0], repr(self._seen)
            read = os.read(self._out, 65536).decode(errors="replace")
            assert read, f"the shell has ended: {self._seen!r}"
            self._seen += read
        self._seen = self._seen.partition(word)[2]

    def close(self) -> None:
        """Hang up."""
        self._process.kill()
        self._process.communicate()


@pytest.mark.parametrize("shell", SHELLS)
def test_the_tab_key_completes(machine: Booted, shell: str) -> None:
    command, rc = SHELLS[shell]
    machine.write("/root/rc", rc)
    machine.write("/root/zsh/.zshrc", rc)
    # where it is missing, fish begins by reading every manual page, in the background
    machine.run("mkdir", "-p", "/root/.local/share/fish/generated_completions")
    terminal = Terminal(machine, command)
    try:
        for text, added, said in TYPED:
            # one after the other: a shell that has more to read does not complete
            terminal.until(_READY)
            terminal.type(text)
            terminal.until(text[-1])
            terminal.type("\t")
            terminal.until(added)
            terminal.type("--help\r")
            terminal.until(said)
    finally:
        terminal.close()
