"""A policy in a line or three."""

from __future__ import annotations

import pytest

from safeclaw.policies.gist import gist
from safeclaw.policies.loader import load
from safeclaw.policies.source import PRESETS, load_file, preset_names

POLICY = """\
version: "1.0"
rules:
  - {action: file.read, path: "**/.env", effect: deny}
  - {action: file.read, path: ["src/**", "doc/**"], effect: allow}
  - {action: file.read, path: "etc", effect: allow}
  - {action: shell.execute, command: "git push *", effect: ask}
  - {action: network.connect, host: example.com, port: [443, 8000-8010], effect: allow}
  - {action: network.bind, port: 80, effect: allow}
  - {action: file.write, effect: allow}
  - {action: "*", effect: deny}
"""


def test_each_line_says_what_becomes_of_what() -> None:
    assert gist(load(POLICY, name="p.yaml")) == [
        "may: file.read src/** | doc/** | etc; network.connect example.com:443,8000-8010; "
        "network.bind any host:80; file.write anything",
        "never: file.read **/.env",
        "asks a person before: shell.execute git push *",
    ]


def test_what_is_left_out_is_counted() -> None:
    paths = ", ".join(f'"{letter * 50}/**"' for letter in "abcdefgh")
    text = f"{POLICY}".replace('"src/**", "doc/**"', paths)
    (line,) = [line for line in gist(load(text, name="p.yaml")) if line.startswith("may")]
    assert f"file.read {'a' * 39}… | {'b' * 39}… | {'c' * 39}… and 6 more; network" in line


def test_what_only_observes_says_so_first() -> None:
    lines = gist(load(POLICY + "mode: observe\n", name="p.yaml"))
    assert lines[0].startswith("mode: observe")


def test_what_programs_start_with_is_said() -> None:
    more = "environment: {forbid: [A, 'B*', C, D], pin: {PATH: /usr/bin}}\n"
    lines = gist(load(POLICY + more, name="p.yaml"))
    assert lines[-1] == "programs start with: never A | B* | C and 1 more; always PATH=/usr/bin"


def test_a_policy_of_nothing_may_nothing() -> None:
    text = 'version: "1.0"\nrules:\n  - {action: "*", effect: deny}\n'
    assert gist(load(text, name="p.yaml")) == ["may nothing"]


@pytest.mark.parametrize("name", preset_names())
def test_every_shipped_policy_fits_into_a_few_short_lines(name: str) -> None:
    lines = gist(load_file(PRESETS / f"{name}.yaml"))
    assert 1 <= len(lines) <= 3
    assert all(len(line) <= 800 and line.isprintable() for line in lines)
