"""``safeclaw audit``, run in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from safeclaw.daemon.cli.audit import audit_group


def run(*arguments: str) -> Result:
    return CliRunner().invoke(audit_group, list(arguments))
