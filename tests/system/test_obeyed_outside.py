"""What git or a coding agent would run outside the walls later cannot be put there inside them."""

from __future__ import annotations

import pytest

from tests.system.conftest import Person

#: A second repository, whose settings have git start a program when it is asked for the status.
PREPARE = r"""
mkdir -p evil/objects evil/refs evil/hooks
echo 'ref: refs/heads/main' >evil/HEAD
printf '[core]\nrepositoryformatversion = 0\nfsmonitor = "touch ran; false"\n' >evil/config
"""
WIDE = """\
version: "1.0"
rules:
  - {action: [file.read, file.write], path: "**", effect: allow}
  - {action: shell.execute, command: "/usr/bin/* *", effect: allow}
"""
WAYS = {
    "commondir": "echo ../evil >.git/commondir",
    "link": "ln -s evil .git",
    "file": "echo 'gitdir: evil' >.git",
}


@pytest.mark.parametrize("policy", ["wide.yaml", "default", "coding-agent"])
@pytest.mark.parametrize("way", WAYS)
def test_git_outside_is_not_led_to_settings_of_the_agents_own(
    person: Person, policy: str, way: str
) -> None:
    (person.base / "wide.yaml").write_text(WIDE)
    chosen = str(person.base / policy) if policy == "wide.yaml" else policy
    if way == "commondir":
        made = person.finish(person.start(["git", "init", "-q"], person.workspace))
        assert made.returncode == 0, made.stderr
    person.safeclaw("run", "-q", "--policy", chosen, "--", "sh", "-c", PREPARE + WAYS[way])
    assert (person.workspace / "evil/config").is_file()
    person.finish(person.start(["git", "status"], person.workspace))
    assert (person.workspace / "ran").exists() is (policy == "wide.yaml")


@pytest.mark.parametrize("policy", ["wide.yaml", "default", "coding-agent"])
@pytest.mark.parametrize("way", [".profile", ".bash_profile", ".bashrc", ".local/bin/ls", "bin/ls"])
def test_a_workspace_that_is_the_home_gives_no_login_outside_what_to_run(
    person: Person, policy: str, way: str
) -> None:
    (person.base / "wide.yaml").write_text(WIDE)
    chosen = str(person.base / policy) if policy == "wide.yaml" else policy
    home = {"HOME": str(person.workspace)}
    script = (
        f"mkdir -p .local/bin bin; echo 'touch ran' >{way}; chmod +x {way}; mkdir aside; "
        "echo work >work; mv .local aside"
    )
    person.safeclaw("run", "-q", "--policy", chosen, "--", "sh", "-c", script, **home)
    assert (person.workspace / "work").read_text() == "work\n"
    login = "PATH=$HOME/bin:$HOME/.local/bin:$HOME/aside/.local/bin:$PATH; . ~/.bashrc; ls; true"
    person.finish(person.start(["bash", "-lc", login], person.workspace, **home))
    assert (person.workspace / "ran").exists() is (policy == "wide.yaml")


LINKS = {
    "link": "ln -s own .local",
    "hard link": "ln -s ../own aside/l; ln -P aside/l .local; rm -f aside/l",
    "moved": "ln -s own aside/l; mv aside/l .local",
}


@pytest.mark.parametrize("policy", ["wide.yaml", "default", "coding-agent"])
@pytest.mark.parametrize("way", LINKS)
def test_what_a_login_runs_is_not_made_where_a_link_leads(
    person: Person, policy: str, way: str
) -> None:
    (person.base / "wide.yaml").write_text(WIDE)
    chosen = str(person.base / policy) if policy == "wide.yaml" else policy
    home = {"HOME": str(person.workspace)}
    script = "mkdir -p own/bin aside; echo 'touch ran' >own/bin/ls; chmod +x own/bin/ls; "
    script += LINKS[way].replace("../own", str(person.workspace / "own"))
    person.safeclaw("run", "-q", "--policy", chosen, "--", "sh", "-c", script, **home)
    assert (person.workspace / "own/bin/ls").is_file()
    login = "PATH=$HOME/.local/bin:$PATH; ls; true"
    person.finish(person.start(["bash", "-lc", login], person.workspace, **home))
    assert (person.workspace / "ran").exists() is (policy == "wide.yaml")


@pytest.mark.parametrize("policy", ["wide.yaml", "claude-code", "codex"])
@pytest.mark.parametrize("name", [".claude", ".codex"])
def test_a_coding_agents_directory_is_not_a_link_to_another(
    person: Person, policy: str, name: str
) -> None:
    (person.base / "wide.yaml").write_text(WIDE)
    chosen = str(person.base / policy) if policy == "wide.yaml" else policy
    script = f"mkdir own; echo {{}} >own/settings.json; ln -s own {name}"
    person.safeclaw("run", "-q", "--policy", chosen, "--", "sh", "-c", script)
    held = (policy, name) in (("claude-code", ".claude"), ("codex", ".codex"))
    assert (person.workspace / "own/settings.json").is_file()
    assert (person.workspace / name / "settings.json").exists() is not held
