"""The coding agents that people use, as they are published, in the walls under their presets.

Their models are scripted; the programs, their shells and git are real.  Each does the same work
outside the walls first: there the secret is read, and the file in the home is made.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.system.conftest import Person, fields, somebody
from tests.system.scripted_model import ScriptedModel, scripted_model

STEPS = [
    "cat secrets/token.txt",
    "echo escaped >~/safeclaw-escaped",
    "sed -i s/wrong/right/ src/answer.py && python3 src/answer.py",
    "git -c user.name=Agent -c user.email=agent@example.com commit -qam mended && git status -s",
]


class Agent(NamedTuple):
    """A published program: how it is installed, set up and started."""

    package: str
    preset: str
    home: str
    home_variable: str
    command: tuple[str, ...]
    settings: dict[str, str]
    environment: dict[str, str]


CLAUDE = Agent(
    package="@anthropic-ai/claude-code",
    preset="claude-code",
    home=".claude-safeclaw",
    home_variable="CLAUDE_CONFIG_DIR",
    command=("claude", "--dangerously-skip-permissions", "-p", "mend it"),
    settings={},
    environment={
        "ANTHROPIC_BASE_URL": "{url}",
        "ANTHROPIC_API_KEY": "a key",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
    },
)
CODEX = Agent(
    package="@openai/codex",
    preset="codex",
    home=".codex-safeclaw",
    home_variable="CODEX_HOME",
    command=("codex", "exec", "--dangerously-bypass-approvals-and-sandbox", "mend it"),
    settings={
        "config.toml": 'model = "scripted"\nmodel_provider = "here"\n[model_providers.here]\n'
        'name = "here"\nbase_url = "{url}/v1"\nenv_key = "OPENAI_API_KEY"\nwire_api = "responses"\n'
    },
    environment={"OPENAI_API_KEY": "a key"},
)


@pytest.fixture(scope="module", params=[CLAUDE, CODEX], ids=lambda agent: agent.preset)
def agent(request: pytest.FixtureRequest) -> Iterator[Agent]:
    """An agent, installed for all users as npm does it with -g."""
    found: Agent = request.param
    name = found.command[0]
    place = Path("/opt/safeclaw-test-agents") / name
    if os.geteuid() != 0:
        pytest.skip("not root: the agents were not installed")
    install = ["npm", "install", "--no-audit", "--no-fund", "--silent", "-g"]
    environment = {**os.environ, "npm_config_prefix": str(place)}
    subprocess.run([*install, found.package], check=True, env=environment)
    late = place / "lib/node_modules" / found.package / "install.cjs"
    if late.exists():  # npm may leave what a package does after it to the person
        subprocess.run(["node", str(late)], check=True, cwd=late.parent)
    subprocess.run(["chmod", "-R", "a+rX", str(place.parent)], check=True)
    yield found._replace(command=(str(place / "bin" / name), *found.command[1:]))
    shutil.rmtree(place)


@pytest.fixture
def user(ordinary_user: str, shared_tree: Path | None, agent: Agent) -> Iterator[Person]:
    """An ordinary user: such agents refuse to go unasked as root."""
    with somebody(ordinary_user, shared_tree) as found:
        home = Path(pwd.getpwnam(found.name).pw_dir) / agent.home
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        os.chown(home, found.uid, -1)
        yield found
        shutil.rmtree(home)


def prepare(user: Person, agent: Agent, model: ScriptedModel) -> dict[str, str]:
    """Lay out the workspace; return the agent's environment."""
    shutil.rmtree(user.workspace)
    user.workspace.mkdir()
    user.write("src/answer.py", 'print("wrong")\n')
    user.write("secrets/token.txt", "not for agents\n")
    user.write(".gitignore", "secrets\n")
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@example.com"]
    for command in (
        ["git", "init", "-q", "-b", "main"],
        ["git", "add", "."],
        [*git, "commit", "-q", "-m", "first"],
    ):
        done = user.finish(user.start(command, user.workspace))
        assert done.returncode == 0, done.stderr
    user.write(
        ".safeclaw/policy.yaml",
        f'version: "1.0"\nextends: {agent.preset}\nrules:\n'
        "  - action: [network.connect, network.send]\n"
        f'    host: "127.0.0.1"\n    port: {model.server_port}\n    effect: allow\n',
    )
    home = Path(pwd.getpwnam(user.name).pw_dir) / agent.home
    for name, text in agent.settings.items():
        (home / name).write_text(text.replace("{url}", model.url))
    variables = {name: text.replace("{url}", model.url) for name, text in agent.environment.items()}
    return {**variables, agent.home_variable: str(home)}


@pytest.mark.soak
def test_a_published_agent_does_its_work_and_no_more(user: Person, agent: Agent) -> None:
    outside = Path(pwd.getpwnam(user.name).pw_dir) / "safeclaw-escaped"

    with scripted_model(STEPS) as model:
        variables = prepare(user, agent, model)
        done = user.finish(user.start(list(agent.command), user.workspace, **variables))
        assert done.returncode == 0, done.stderr
        secret, _, answer, _ = model.results
        assert "not for agents" in secret
        assert "right" in answer
        assert outside.read_text() == "escaped\n"
    outside.unlink()

    with scripted_model(STEPS) as model:
        variables = prepare(user, agent, model)
        done = user.safeclaw("run", "--", *agent.command, **variables)
        assert done.returncode == 0, done.stderr
        secret, _, answer, status = model.results
        assert "not for agents" not in secret
        assert "Permission denied" in secret
        assert "right" in answer
        assert "src/answer.py" not in status
    assert not outside.exists()
    assert (user.workspace / "src/answer.py").read_text() == 'print("right")\n'
    log = user.finish(user.start(["git", "log", "--format=%s"], user.workspace))
    assert log.stdout == "mended\nfirst\n"
    denied = {
        (record["action"], fields(record["target"]).get("path"))
        for record in user.records("--decision", "deny")
    }
    assert ("file.read", str(user.workspace / "secrets/token.txt")) in denied
    assert ("file.write.create", str(outside)) in denied
    assert user.safeclaw("audit", "verify").returncode == 0
