"""A registered agent as a unit: its key, in nobody's reach, and good for it alone."""

from __future__ import annotations

import pytest

from tests.deploy.deployed import Deployed


def test_no_key_in_the_agents_reach(deployed: Deployed) -> None:
    machine = deployed.machine
    look = "env; cat /run/credentials/*/api-key /etc/safeclaw/keys/*; ls /run/safeclaw"
    deployed.agent("nosy", f'/usr/bin/sh -c "{look}; echo looked"')
    machine.systemctl("start", "--wait", "safeclaw-agent@nosy", check=False)
    said = [entry["MESSAGE"] for entry in machine.journal("--unit=safeclaw-agent@nosy")]
    assert "looked" in said, said
    key = machine.read("/etc/safeclaw/keys/nosy").strip()
    _, _, secret = key.split("_", 2)  # which may have more of them
    assert len(secret) > 40
    assert not any(secret in line for line in said)
    assert not any("broker.sock" in line or "CREDENTIALS" in line for line in said), said


@pytest.mark.parametrize("wrong", ["another's", "revoked", "rotated", "expired"])
def test_a_bad_key_is_refused_and_recorded(deployed: Deployed, wrong: str) -> None:
    machine, name = deployed.machine, f"bad-{wrong.replace(chr(39), '')}"
    deployed.agent(name, "/usr/bin/touch made")
    match wrong:
        case "another's":
            key = deployed.add("somebody")
            machine.write(f"/etc/safeclaw/keys/{name}", key, 0o600)
        case "revoked":
            machine.run("safeclaw", "agent", "revoke", name, "--why", "lost")
        case "rotated":
            machine.run("safeclaw", "agent", "rotate-key", name)
        case _:
            # a key's end is a moment on the wall clock: it is moved, not waited for
            machine.systemctl("stop", "safeclawd.service")
            registry = "/var/lib/safeclaw/agents.json"
            machine.sh(
                f"python3 - <<'E'\nimport json\np = '{registry}'\nd = json.load(open(p))\n"
                "def walk(v):\n"
                "    if isinstance(v, dict):\n"
                f"        if v.get('name') == '{name}':\n"
                "            for k in v['keys']: k['expires'] = 1\n"
                "        for w in v.values(): walk(w)\n"
                "    elif isinstance(v, list):\n"
                "        for w in v: walk(w)\n"
                "walk(d)\nopen(p, 'w').write(json.dumps(d))\nE"
            )
    machine.systemctl("start", "--wait", f"safeclaw-agent@{name}", check=False)
    assert machine.show(f"safeclaw-agent@{name}", "ExecMainStatus") == {"ExecMainStatus": "125"}
    assert machine.sh(f"ls /var/lib/safeclaw-agents/{name}") == ""
    (refusal,) = deployed.records("--agent", name, "--decision", "deny")
    assert (refusal["rule"], refusal["action"]) == ("access-control", "session.start")
