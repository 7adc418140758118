"""The example agents do their work in the walls, and nothing else, as root and as anybody."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.system.conftest import Person, options_here

ROOT = Path(__file__).resolve().parents[2]


def prepare(person: Person, example: str) -> None:
    """Make the person's workspace a copy of the examples', with an agent and its policy."""
    workspace = person.workspace
    shutil.copytree(ROOT / "examples" / "workspace", workspace, dirs_exist_ok=True)
    for directory in (workspace / ".safeclaw", workspace / "secrets", person.base / "outside"):
        directory.mkdir()
    shutil.copy(ROOT / "examples" / f"{example}.yaml", workspace / ".safeclaw" / "policy.yaml")
    shutil.copy(ROOT / "examples" / f"{example}.py", workspace)
    (workspace / "secrets" / "token.txt").write_text("not for agents\n")
    (person.base / "outside" / "keep.txt").write_text("keep me\n")
    person.own()
    # Older than git's index: what git could not tell from what is changed it would read.
    for path in workspace.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    for command in (
        ["init", "-q", "-b", "main"],
        ["config", "user.name", "A Developer"],
        ["config", "user.email", "developer@example.com"],
        ["config", "commit.gpgsign", "false"],
        ["add", "."],
        ["commit", "-q", "-m", "shop: first version"],
    ):
        subprocess.run(["git", "-c", "safe.directory=*", *command], cwd=workspace, check=True)
    person.own()


def test_a_day_at_work_is_held_to_its_policy(person: Person) -> None:
    prepare(person, "day_at_work")
    policy = (person.workspace / ".safeclaw" / "policy.yaml").read_bytes()
    done = person.safeclaw("run", "-v", *options_here(), "--", "day_at_work.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 of 6 done, 10 of 10 refused" in done.stdout
    assert "* basket[item]" in (person.workspace / "src" / "shop.py").read_text()
    assert (person.workspace / ".safeclaw" / "policy.yaml").read_bytes() == policy
    assert (person.base / "outside" / "keep.txt").read_text() == "keep me\n"
    verified = person.safeclaw("audit", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


@pytest.mark.parametrize("example", ["day_at_work", "mini_swe"])
def test_dev_run_ends_with_the_agents_status_and_an_intact_journal(
    example: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [str(ROOT / "dev"), "run", example],
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the agent ended with status 0" in done.stderr
    assert list(tmp_path.iterdir()), "no journal was written where it was expected"
