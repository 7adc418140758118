#!/usr/bin/env python3
"""mini-swe-agent (from PyPI) mends a small project, with a model that needs no network.

The agent is the published one; only the model is scripted: mini-swe-agent's own
deterministic model, which answers with the next command of a list.  Run it where
a copy of ``examples/workspace`` is a git repository::

    safeclaw run --policy mini_swe.yaml -- python mini_swe.py

It ends with 0 when the agent submitted and its test passes.
"""

# mini-swe-agent is published without types.
# pyright: basic

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# mini-swe-agent makes its configuration directory when it is imported, under the home
# directory unless it is told otherwise: the workspace is all this agent has.
os.environ["MSWEA_GLOBAL_CONFIG_DIR"] = str(Path.cwd() / ".mini-swe-agent")
os.environ["MSWEA_SILENT_STARTUP"] = "1"

from minisweagent.agents.default import DefaultAgent
from minisweagent.environments.local import LocalEnvironment
from minisweagent.models.test_models import DeterministicModel, make_output

TASK = "The shop's total forgets how many of each thing were bought. Mend it; the test must pass."
TEST = "python3 -B -m unittest tests/test_shop.py"
STEPS = (
    ("I look around first.", "git status --short && ls src tests"),
    ("I read the code.", "cat src/shop.py"),
    ("I see the test fail.", TEST),
    ("I mend it.", r"sed -i 's/prices\[item\] for/prices[item] * basket[item] for/' src/shop.py"),
    ("The test has to pass now.", TEST),
    ("I commit.", "git commit -q -a -m 'shop: count how many were bought' && git log --oneline -1"),
    ("Done.", "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT && git show --stat --format=%s HEAD"),
)


def main() -> int:
    """Run the agent on the task; print every command and its status."""
    agent = DefaultAgent(
        DeterministicModel(
            outputs=[make_output(thought, [{"command": command}]) for thought, command in STEPS],
            cost_per_call=0.0,
        ),
        LocalEnvironment(cwd=os.getcwd()),
        system_template="You mend programs.",
        instance_template="{{task}}",
        step_limit=len(STEPS),
        cost_limit=0,
    )
    result: dict[str, Any] = agent.run(TASK)
    for message in agent.messages:
        for action in message.get("extra", {}).get("actions", []):
            print(f"mini-swe-agent: $ {action['command']}")
        if "returncode" in message.get("extra", {}):
            print(f"mini-swe-agent: status {message['extra']['returncode']}")
    print(f"mini-swe-agent: {result.get('exit_status')}: {result.get('submission', '').strip()}")
    return 0 if result.get("exit_status") == "Submitted" else 1


if __name__ == "__main__":
    sys.exit(main())
