"""All commands as click sees them: for the shells' completion, and for the manual pages.

``safeclaw`` itself reads its first word by hand and imports what that needs.
Here the same verbs hang below one click group, each still imported only when
it is looked at.
"""

from __future__ import annotations

import re
from importlib import import_module

import click
from click import shell_completion

from safeclaw.daemon.cli.main import VERBS

#: What a shell sets to ask; the scripts that ask are made by ``bash_source`` and the like.
VARIABLE = "_SAFECLAW_COMPLETE"

#: A line of a usage text: ``  -v, --verbose            print the walls``.
_OPTION = re.compile(r"^  (?:(-\w), )?(--[\w-]+)(?: ([A-Z|]+|full))?  +(.*)$", re.M)


def usage_command(name: str, text: str) -> click.Command:
    """Return a command with the options that its usage text names, for what is read by hand."""
    parameters: list[click.Parameter] = [
        click.Option(
            [word for word in (short, long) if word],
            is_flag=not value,
            metavar=value or None,
            help=said,
            type=click.Path() if value in ("DIR", "FILE", "FILE|NAME") else None,
        )
        for short, long, value, said in _OPTION.findall(text)
        if long != "--help"
    ]
    parameters.append(click.Argument(["command"], nargs=-1, type=click.Path()))
    return click.Command(name, params=parameters)


class Verbs(click.Group):
    """The verbs of ``safeclaw``; nothing of a verb is imported before it is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return every verb."""
        return sorted(["run", *VERBS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a verb's command."""
        if cmd_name == "run":
            from safeclaw.daemon.cli.options import USAGE

            return usage_command("run", USAGE)
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name].partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command


def verbs() -> click.Group:
    """Return the whole command line as one group."""
    return Verbs("safeclaw")


class ZshComplete(shell_completion.ZshComplete):
    """click's, with an end that completes every time.

    An autoloaded function is ``loadautofunc`` in its first call only: from the second on, click's
    script would register itself anew and complete nothing.
    """

    source_template = shell_completion.ZshComplete.source_template.replace(
        "$zsh_eval_context[-1] == loadautofunc", "$funcstack[1] == _%(prog_name)s"
    )


def complete(instruction: str) -> int:
    """Answer a shell; ``instruction`` is what it put into ``_SAFECLAW_COMPLETE``."""
    shell_completion.add_completion_class(ZshComplete)
    return shell_completion.shell_complete(verbs(), {}, "safeclaw", VARIABLE, instruction)
