"""A summary for people: on a terminal with small charts, and as a page that prints."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from safeclaw.daemon.evidence.summary import Share, Summary
from safeclaw.daemon.journal.text import safe

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH: Final = 24
#: What a reviewer looks for first, besides decisions.
_NOTABLE: Final = ("approval", "violation", "fault", "gap", "kill", "clock_step", "recovery",
                   "prune", "key_change", "policy_load", "agent_change")  # fmt: skip


def headline(summary: Summary) -> str:
    """Return the figures in one line."""
    if not summary.records:
        return "no records in this period"
    return (
        f"{summary.evaluations} evaluations in {summary.sessions} sessions: "
        f"{summary.allowed} allowed ({summary.allowed / summary.evaluations:.1%}), "
        f"{summary.denied} denied ({summary.deny_ratio:.1%})"
        + (f", {summary.observed} only observed and let through" if summary.observed else "")
        if summary.evaluations
        else f"no evaluations, {summary.records} other records"
    )


def _targets(summary: Summary) -> str:
    few = "" if summary.targets_complete else ", counts may be too low: there were too many"
    return "Top denied targets" + few


def _columns(summary: Summary) -> tuple[str, ...]:
    """Return the outcomes there are, the third where it is one: so that rows add up."""
    return ("allowed", "denied", *(("observed",) if summary.observed else ()))


def _counts(share: Share, summary: Summary) -> tuple[int, ...]:
    return (share.allowed, share.denied, *((share.observed,) if summary.observed else ()))


def draw(summary: Summary, console: Console) -> None:
    """Draw the summary on a terminal, or plainly into a file."""
    from rich.table import Table
    from rich.text import Text

    console.print(Text(headline(summary), style="bold"))
    if not summary.records:
        return
    console.print(Text(f"chain {safe(summary.chain)}, {summary.first_ts} to {summary.last_ts}"))

    def table(title: str, columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
        if not rows:
            return
        drawn = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for name in columns:
            drawn.add_column(name, justify="left" if name in (columns[0], "") else "right")
        for row in rows:
            # As Text: what an agent chose is never markup.
            drawn.add_row(*(Text(safe(str(cell))) for cell in row))
        console.print()
        console.print(drawn)

    counts = summary.top_denied_actions
    largest = counts[0][1] if counts else 1
    table("Top denied actions", ("action", "denied", ""),
          [(name, count, _bar(count, largest)) for name, count in counts])  # fmt: skip
    table(_targets(summary), ("target", "denied"), list(summary.top_denied_targets))
    for title, shares in (("Agents", summary.agents), ("Rules", summary.rules)):
        more = f", the first 20 of {len(shares)}" if len(shares) > 20 else ""
        table(title + more, ("name", *_columns(summary), ""),
              [(s.name, *_counts(s, summary), _split(s)) for s in shares[:20]])  # fmt: skip
    busiest = max((share.denied for share in summary.days), default=1)
    table("Denied by day", ("day", "denied", ""),
          [(s.name, s.denied, _bar(s.denied, busiest)) for s in summary.days[-31:]])  # fmt: skip
    notable = [(kind, summary.events[kind]) for kind in _NOTABLE if kind in summary.events]
    table("Events", ("event", "count"), list(notable))
    table("Policies in force", ("policy", "version", "sha256", "from", "to", "decisions"),
          [(p.name, p.version, p.sha256[:12], p.first[:19], p.last[:19], p.decisions)
           for p in summary.policies])  # fmt: skip
    table("Policy drift", ("what",), [(line,) for line in summary.drift])


def _bar(count: int, largest: int) -> str:
    return "█" * max(1, round(count / max(1, largest) * _WIDTH)) if count else ""


def _split(share: Share) -> str:
    """Return allowed and denied as one bar."""
    total = share.allowed + share.denied
    denied = round(share.denied / total * _WIDTH) if total else 0
    return "█" * (_WIDTH - denied) + "░" * denied


_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .2rem .6rem;
  border-bottom: 1px solid #ddd; overflow-wrap: anywhere } td.n, th.n { text-align: right }
.bar { display: inline-block; height: .7rem; background: #b3261e; min-width: 1px }
.meta { color: #555 }
@media print { body { max-width: none; margin: 0; font-size: 10pt } h2 { break-after: avoid }
  tr { break-inside: avoid } @page { margin: 2cm } }
"""


def html(summary: Summary) -> str:
    """Return the summary as one page without anything from elsewhere."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>safeclaw audit summary</title>",
        f"<style>{_STYLE}</style><h1>Audit summary</h1>",
        f"<p>{escape(headline(summary))}</p>",
        f"<p class=meta>Chain {escape(summary.chain)}, {escape(summary.first_ts)} to "
        f"{escape(summary.last_ts)}, {summary.records} records</p>",
    ]

    def table(title: str, columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
        if not rows:
            return
        parts.append(f"<h2>{escape(title)}</h2><table><tr>")
        parts.extend(f"<th>{escape(name)}" for name in columns)
        for row in rows:
            parts.append("<tr>")
            for cell in row:
                number = " class=n" if isinstance(cell, int) else ""
                parts.append(f"<td{number}>{escape(safe(str(cell)))}")
        parts.append("</table>")

    table("Top denied actions", ("action", "denied"), list(summary.top_denied_actions))
    table(_targets(summary), ("target", "denied"), list(summary.top_denied_targets))
    for title, shares in (("Agents", summary.agents), ("Rules", summary.rules)):
        table(title, ("name", *_columns(summary)),
              [(s.name, *_counts(s, summary)) for s in shares])  # fmt: skip
    busiest = max((share.denied for share in summary.days), default=1) or 1
    if summary.days:
        parts.append("<h2>Denied by day</h2><table>")
        parts.extend(
            f"<tr><td>{escape(s.name)}<td class=n>{s.denied}<td style='width:60%'>"
            f"<span class=bar style='width:{s.denied / busiest:.0%}'></span>"
            for s in summary.days
        )
        parts.append("</table>")
    table("Events", ("event", "count"), list(summary.events.items()))
    table("Policies in force", ("policy", "version", "sha256", "from", "to", "decisions"),
          [(p.name, p.version, p.sha256, p.first, p.last, p.decisions)
           for p in summary.policies])  # fmt: skip
    table("Policy drift", ("what",), [(line,) for line in summary.drift])
    parts.append("</html>\n")
    return "".join(parts)
