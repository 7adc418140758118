"""Which figures answer for which SOC 2 criterion, in our own words.  Pure."""

from __future__ import annotations

from typing import Final
from uuid import NAMESPACE_URL, uuid5

from safeclaw.daemon.evidence.summary import Summary

#: Criterion, what it asks here, and where in the package the answer is.
CONTROLS: Final = (
    ("CC6.1", "Agents reach only what a policy allows", "policies/, export.jsonl"),
    ("CC6.2", "Agents are registered before they get access", "export.jsonl (agent_change)"),
    ("CC6.3", "Access follows roles and is taken away", "policies/, export.jsonl (kill)"),
    ("CC7.2", "What agents do is watched, and deviations are seen", "summary.html, export.jsonl"),
    ("CC7.3", "What was seen is evaluated", "summary.html, verification.json"),
    ("CC8.1", "Policies change in a controlled way", "policies.json, policies-git-log.txt"),
    ("PI1.1", "What was decided is what was carried out", "export.jsonl (violation)"),
    ("PI1.4", "Errors deny, and are recorded", "export.jsonl (fault, gap), verification.json"),
)


def figures(criterion: str, summary: Summary) -> dict[str, int]:
    """Return the counts that a criterion rests on."""
    events = summary.events
    match criterion:
        case "CC6.1":
            return {
                "evaluations": summary.evaluations,
                "denied": summary.denied,
                "let through where only observed": summary.observed,
            }
        case "CC6.2":
            return {"agent changes": events.get("agent_change", 0), "agents": len(summary.agents)}
        case "CC6.3":
            return {"policies in force": len(summary.policies), "kills": events.get("kill", 0)}
        case "CC7.2":
            return {"records": summary.records, "sessions": summary.sessions}
        case "CC7.3":
            return {"denied": summary.denied, "findings of drift": len(summary.drift)}
        case "CC8.1":
            return {"policy loads": events.get("policy_load", 0)}
        case "PI1.1":
            return {"violations": events.get("violation", 0)}
        case _:
            return {"faults": events.get("fault", 0), "gaps": events.get("gap", 0)}


def mapping(summary: Summary) -> list[dict[str, object]]:
    """Return the control mapping of a period."""
    return [
        {"criterion": name, "what": what, "where": where, "figures": figures(name, summary)}
        for name, what, where in CONTROLS
    ]


def oscal(summary: Summary, made: str, verdict: str) -> dict[str, object]:
    """Return the mapping as OSCAL assessment results, version 1.1.2."""

    def ident(*words: str) -> str:
        return str(uuid5(NAMESPACE_URL, "/".join(("safeclaw", summary.chain, made, *words))))

    observations: list[dict[str, object]] = [
        {
            "uuid": ident("observation", name),
            "title": what,
            "description": ", ".join(f"{k}: {v}" for k, v in figures(name, summary).items()),
            "methods": ["EXAMINE"],
            "collected": made,
            "relevant-evidence": [{"description": where}],
        }
        for name, what, where in CONTROLS
    ]
    result: dict[str, object] = {
        "uuid": ident("result"),
        "title": "Records of what agents attempted and what was decided",
        "description": f"Chain {summary.chain}: {verdict}",
        "start": summary.first_ts or made,
        "end": summary.last_ts or made,
        "reviewed-controls": {
            "control-selections": [
                {"include-controls": [{"control-id": name.lower()} for name, _, _ in CONTROLS]}
            ]
        },
        "observations": observations,
    }
    return {
        "assessment-results": {
            "uuid": ident(),
            "metadata": {
                "title": "safeclaw evidence",
                "last-modified": made,
                "version": "1.0",
                "oscal-version": "1.1.2",
            },
            "import-ap": {"href": "#none"},
            "results": [result],
        }
    }
