"""A broker's health as OpenMetrics text (openmetrics.io, version 1.0.0).  Pure.

Only totals: what is served may be read by whoever may read the metrics, and names no
session, no person and no target.
"""

from __future__ import annotations

from safeclaw.daemon.health import Snapshot

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


class _Text:
    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, says: str, *, unit: str = "") -> None:
        self._lines.append(f"# TYPE safeclaw_{name} {kind}")
        if unit:
            self._lines.append(f"# UNIT safeclaw_{name} {unit}")
        self._lines.append(f"# HELP safeclaw_{name} {says}")

    def sample(self, name: str, value: float, **labels: str) -> None:
        inside = ",".join(f'{key}="{text.translate(_ESCAPES)}"' for key, text in labels.items())
        shown = f"{{{inside}}}" if labels else ""
        self._lines.append(f"safeclaw_{name}{shown} {value:.17g}")

    def gauge(self, name: str, value: float | None, says: str, *, unit: str = "") -> None:
        self.family(name, "gauge", says, unit=unit)
        if value is not None:  # what is not known has no sample
            self.sample(name, value)

    def counter(self, name: str, value: int, says: str) -> None:
        self.family(name, "counter", says)
        self.sample(f"{name}_total", value)

    def end(self) -> str:
        return "\n".join([*self._lines, "# EOF", ""])


def text(now: Snapshot) -> str:
    """Return the whole exposition."""
    out = _Text()
    at = now.standing
    out.gauge("up_seconds", now.uptime, "Since the broker was started.", unit="seconds")
    out.gauge("fault", now.fault is not None, "1 while nothing is allowed.")
    out.gauge("sessions", now.sessions, "Sessions that run.")
    out.gauge("approvals_pending", now.approvals, "Questions that wait for a person.")
    out.gauge("kill_orders", now.kill_orders, "Orders of the kill switch in force.")
    out.gauge("agents", now.agents, "Registered agents.")
    out.gauge("agents_key_due", len(now.keys_due), "Agents whose key is due for rotation.")
    out.family("decisions", "counter", "Decisions on attempts of agents, by their outcome.")
    out.sample("decisions_total", now.decisions_total - now.denials_total, decision="allow")
    out.sample("decisions_total", now.denials_total, decision="deny")
    out.counter("refusals", now.refusals_total, "Requests and sessions refused for who asked.")
    out.family("records", "counter", "Records that are not decisions, by their type.")
    # what must be seen to be absent has a sample from the start
    counts = {"violation": 0, "fault": 0, "limit": 0, "gap": 0, **now.records_total}
    for kind, count in sorted(counts.items()):
        out.sample("records_total", count, type=kind)
    out.gauge("journal_records", at.head + 1, "Records in the chain.")
    out.gauge("journal_durable_records", at.durable + 1, "Records that are on disk.")
    out.gauge(
        "journal_head_age_seconds", at.age, "Since the newest record was made.", unit="seconds"
    )
    out.gauge("journal_key_epoch", at.epoch, "How often the signing key was rolled.")
    behind = max(0, at.durable - at.forwarded)
    out.gauge("journald_behind_records", behind, "Records on disk that journald does not have.")
    out.family("policy", "info", "The policies in force for registered agents.")
    for ref, sha256 in sorted(now.policies.items()):
        out.sample("policy_info", 1, policy=ref, sha256=sha256)
    waiting = len(now.policies_waiting)
    out.gauge("policies_waiting", waiting, "Policies that wait for two people.")
    out.counter("alerts", now.alerts.raised, "Alerts raised, those that were held included.")
    out.counter("hooks_failed", now.alerts.failed, "Hooks that could not be started, or failed.")
    return out.end()
