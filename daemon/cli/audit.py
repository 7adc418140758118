"""``safeclaw audit``: show the journal, follow it, verify it.  Only reads."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec

from safeclaw.daemon import places
from safeclaw.daemon.cli.lazy import LazyGroup
from safeclaw.daemon.journal import reader
from safeclaw.daemon.journal.filter import Filter
from safeclaw.daemon.journal.record import MAX_INT, Record, RecordType, encode
from safeclaw.daemon.journal.text import safe, summary
from safeclaw.errors import JournalError, UsageError

SYSTEM_STATE: Final = Path("/var/lib/safeclaw")

Command = TypeVar("Command", bound=Callable[..., Any])


def readable(state: Path) -> bool:
    """Whether this user may read the journal of a state directory."""
    return os.access(state / "journal", os.R_OK | os.X_OK)


def default_state() -> Path:
    """Return the system daemon's state where this user may read it, else the user's own.

    Without one of their own it is the system's again, which then says who may.
    """
    if readable(SYSTEM_STATE):
        return SYSTEM_STATE
    own = places.state() / "safeclaw"
    return SYSTEM_STATE if SYSTEM_STATE.is_dir() and not own.is_dir() else own


def _state(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Path:
    return Path(value) if value is not None else default_state()


def common(command: Command) -> Command:
    """Add ``--state`` and ``--json``."""
    state = click.option(
        "--state",
        metavar="DIR",
        callback=_state,
        help=f"The directory that holds journal/ and keys/; else {SYSTEM_STATE} for who may read "
        "it, else one's own.",
    )
    as_json = click.option("--json", "as_json", is_flag=True, help="One JSON value a line.")
    return state(as_json(command))


@contextlib.contextmanager
def progress_bar(what: str) -> Generator[Callable[[int, int], None] | None, None, None]:
    """Draw progress on stderr while it is a terminal; else yield None."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what chooses records; the command gets it as ``wanted``."""

    @functools.wraps(command)
    def gathered(
        *words: Any,
        kind: str | None,
        session: str | None,
        agent: str | None,
        action: str | None,
        decision: str | None,
        **others: Any,
    ) -> Any:
        wanted = Filter(agent=agent, decision=decision, action=action, session=session, type=kind)
        return command(*words, wanted=wanted, **others)

    kinds = click.Choice([str(kind) for kind in RecordType])
    adorned: Callable[..., Any] = gathered
    for option in (
        click.option("--type", "kind", type=kinds, help="Only records of this type."),
        click.option("--session", metavar="ID", help="Only this session."),
        click.option("--agent", metavar="NAME", help="Only this agent."),
        click.option("--action", metavar="ACTION", help="Only this action and those below it."),
        click.option("--decision", type=click.Choice(["allow", "deny"]), help="Only these."),
    ):
        adorned = option(adorned)
    return adorned


def period_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--since`` and ``--until``, words that ``evidence.period`` reads."""
    until = click.option("--until", metavar="TIME", help="Up to then.")
    since = click.option(
        "--since", metavar="TIME",
        help="From then on, UTC: '30 days', 'quarter', 'yesterday', '2026-03-01'.",
    )  # fmt: skip
    return since(until(command))


def print_record(record: Record, as_json: bool) -> None:
    """Print one record, for a person or as its line."""
    if as_json:
        click.echo(encode(record))
        return
    session = f" {safe(record.session)}" if record.session else ""
    click.echo(f"{record.seq:>7} {safe(record.ts)}{session} {summary(record)}")


#: Subcommands that live elsewhere, and are imported when they are named.
_ELSEWHERE: Final = {
    "evidence": "safeclaw.daemon.cli.audit_evidence:evidence_group",
    "export": "safeclaw.daemon.cli.audit_export:export_command",
    "keys": "safeclaw.daemon.cli.audit_keys:keys_group",
    "prune": "safeclaw.daemon.cli.audit_keys:prune_command",
    "reveal": "safeclaw.daemon.cli.audit_reveal:reveal_command",
    "sample": "safeclaw.daemon.cli.audit_export:sample_command",
    "show": "safeclaw.daemon.cli.audit_show:show_command",
    "summary": "safeclaw.daemon.cli.audit_summary:summary_command",
    "witness": "safeclaw.daemon.cli.audit_witness:witness_group",
}


@click.group(
    name="audit",
    cls=LazyGroup,
    elsewhere=_ELSEWHERE,
    help="Show the journal, and verify that nothing in it was changed.",
)
def audit_group() -> None:
    """Hold the subcommands."""


@audit_group.command(help="Print the newest records, then each new one as it is written.")
@common
@filters
@click.option(
    "--last", type=click.IntRange(0, MAX_INT), default=10, show_default=True, metavar="N",
    help="How many to begin with.",
)  # fmt: skip
def tail(
    state: Path,
    as_json: bool,
    wanted: Filter,
    last: int,
) -> None:
    """Print the newest records and go on until interrupted."""
    for record in reader.follow(state / "journal", wanted, last=last):
        print_record(record, as_json)


@audit_group.command(
    help="Check that the journal is what was written.\n\nExit status: 0 nothing wrong, "
    "1 tampered with, 2 usage, 3 incomplete or unreadable."
)
@common
@click.option(
    "--checkpoint", "checkpoints", multiple=True, metavar="FILE",
    help="A checkpoint kept elsewhere that the chain must agree with.",
)  # fmt: skip
@click.option("--public-key", metavar="FILE", help="The chain's public key, kept elsewhere.")
@click.option(
    "--witness",
    "witnesses",
    multiple=True,
    metavar="URL",
    help="A witness whose last checkpoint of this chain is fetched, and must agree.",
)
@click.option(
    "--witness-key",
    "witness_keys",
    multiple=True,
    metavar="KEY",
    help="A witness's public key, or a file of them; it must have cosigned a checkpoint.",
)
@click.option(
    "--jobs", type=click.IntRange(1, 256), metavar="N",
    help="Walk in N processes; by default as many as there are CPUs, for a large chain.",
)  # fmt: skip
@click.option("--journald", is_flag=True, help="Compare with this host's systemd journal.")
@click.option("--journald-directory", metavar="DIR", help="Compare with the journal files in DIR.")
@click.pass_context
def verify(
    ctx: click.Context,
    state: Path,
    as_json: bool,
    checkpoints: tuple[str, ...],
    public_key: str | None,
    witnesses: tuple[str, ...],
    witness_keys: tuple[str, ...],
    jobs: int | None,
    journald: bool,
    journald_directory: str | None,
) -> None:
    """Print the verdict, what it rests on, and what it cannot exclude."""
    from safeclaw.daemon.journal import verifier
    from safeclaw.daemon.journal.keys import read_public_keys
    from safeclaw.daemon.journal.report import whose
    from safeclaw.daemon.witness.push import fetch, read_witness_keys

    if witnesses and not witness_keys:
        raise UsageError(
            "--witness needs --witness-key: whoever stands between could show an older checkpoint",
            hint="the witness's operator gives it: safeclaw audit witness show",
        )
    directory = state / "journal"
    for name in (*checkpoints, *([public_key] if public_key is not None else [])):
        # SAFETY: who could rewrite the chain could rewrite that: it would be called intact.
        if Path(name).resolve().is_relative_to(state.resolve()):
            raise UsageError(
                f"{name}: lies beside the chain, and says no more than the chain itself",
                hint="give a copy that was kept where this journal's owner cannot write",
            )
    try:
        keys = read_public_keys(Path(public_key)) if public_key is not None else None
        kept = [verifier.read_checkpoint(Path(name)) for name in checkpoints]
        cosigners = [key for name in witness_keys for key in read_witness_keys(name)]
    except JournalError as error:
        raise UsageError(error.message, hint=error.hint) from error
    kept += [(url, fetch(url, verifier.origin_of(directory))) for url in witnesses]
    heard = None
    if journald or journald_directory is not None:
        from safeclaw.daemon.journal.heard import journald_entries

        where = Path(journald_directory) if journald_directory is not None else None
        heard = functools.partial(journald_entries, directory, where)
    with progress_bar("verifying") as progress:
        report = verifier.verify(
            directory, public_key=keys, checkpoints=kept, cosigners=cosigners, heard=heard,
            progress=progress, jobs=jobs,
        )  # fmt: skip
    owner = whose(directory)
    if as_json:
        value = {
            "status": report.status,
            "verdict": report.headline,
            "finding": msgspec.to_builtins(report.finding),
            "chain": report.chain,
            "records": report.records,
            "segments": report.segments,
            "checkpoints": report.checkpoints,
            "pruned": report.pruned,
            "epochs": report.epochs,
            "signed": report.signed,
            "first_ts": report.first_ts,
            "last_ts": report.last_ts,
            "owner": owner,
            "anchors": [anchor.what for anchor in report.anchors],
            "checked": report.checked(),
            "cannot_exclude": report.open_questions(),
            "notes": report.notes,
        }
        click.echo(msgspec.json.encode(value))
    else:
        click.echo(f"{safe(str(directory))}: {report.headline}")
        if report.finding is not None:
            click.echo(f"  first fault: {safe(str(report.finding))}")
        if report.chain:
            click.echo(f"  chain {safe(report.chain)}, {report.first_ts} to {report.last_ts}")
        for heading, lines in (
            ("checked", report.checked()),
            ("whose", [owner] if owner else []),
            ("note", report.notes),
            ("cannot exclude", report.open_questions() if report.finding is None else []),
        ):
            for line in lines:
                click.echo(f"  {heading}: {safe(line)}")
        with contextlib.suppress(PermissionError):  # which the finding says
            if not directory.is_dir():
                hint = "hint: --state DIR is the directory that holds journal/ and keys/"
                click.echo(hint, err=True)
    ctx.exit(report.exit_status)
