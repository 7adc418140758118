"""Make the manual pages' sources: ``reference.py OUTPUT``.

The prose is in ``man/*.scd``.  What can be said on the command line is taken
from the program itself: in a page, ``@OPTIONS run@`` stands for the options of
a verb that is read by hand, ``@COMMANDS audit@`` for a verb with all its
subcommands, ``@VERBS@`` for the list of all verbs.  A verb without a page of
its own gets one from its help.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from pathlib import Path

import click

from safeclaw.daemon.cli.completion import usage_command, verbs

MAN = Path(__file__).resolve().parent / "man"


def escaped(text: str) -> str:
    """Return text so that scdoc (5) takes no character of it for a mark."""
    text = re.sub(r"([\\*_~])", r"\\\1", " ".join(text.replace("\b", "").split()))
    return "\\" + text if text[:1] in "#-.;|[]`@" else text


def options(command: click.Command, context: click.Context) -> str:
    """Return a command's options as a definition list."""
    lines: list[str] = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None or not isinstance(parameter, click.Option):
            continue
        names, said = record
        shown = re.sub(r"(-[-\w]+)", r"*\1*", escaped(names).lstrip("\\"))
        shown = re.sub(r"(?<![\w*-])([A-Z][A-Z|]*)\b", r"_\1_", shown)
        lines += [shown, f"\t{escaped(said)}", ""]
    return "\n".join(lines)


def commands(command: click.Command, name: str, level: str = "#") -> str:
    """Return a command, and all below it, each with what it does and its options."""
    context = click.Context(command, info_name=name)
    if not isinstance(command, click.Group):
        return f"{options(command, context)}\n"
    parts: list[str] = []
    for word in command.list_commands(context):
        below = command.get_command(context, word)
        assert below is not None
        path = f"{name} {word}"
        usage = " ".join(below.collect_usage_pieces(click.Context(below, info_name=path)))
        parts.append(f"{level}# {path} {usage}\n")
        parts += [f"{escaped(piece)}\n" for piece in (below.help or "").split("\n\n") if piece]
        if isinstance(below, click.Group):
            parts.append(commands(below, path))
        else:
            parts.append(options(below, click.Context(below, info_name=path)))
    return "\n".join(parts)


def first_sentence(text: str) -> str:
    """Return what a command does, as the NAME section has it."""
    sentence = " ".join(text.replace("\b", "").split()).partition(". ")[0].rstrip(".")
    return sentence[:1].lower() + sentence[1:]


def by_default(verb: str, command: click.Command) -> str:
    """Return the page of a verb that has no prose of its own."""
    usage = " ".join(command.collect_usage_pieces(click.Context(command, info_name=verb)))
    paragraphs = (command.help or "").split("\n\n")
    described = "\n\n".join(escaped(each) for each in paragraphs)
    kind = "COMMANDS" if isinstance(command, click.Group) else "OPTIONS"
    return (
        f"safeclaw-{verb}(1)\n\n# NAME\n\n"
        f"safeclaw-{verb} - {first_sentence(command.help or verb)}\n\n"
        f"# SYNOPSIS\n\n*safeclaw {verb}* {escaped(usage)}\n\n# DESCRIPTION\n\n{described}\n\n"
        f"# {kind}\n\n@COMMANDS {verb}@\n\n# SEE ALSO\n\n*safeclaw*(1), *safeclawd*(8)\n"
    )


def filled(text: str, root: click.Group) -> str:
    """Return a page with what stands between at signs put in."""
    context = click.Context(root, info_name="safeclaw")

    def verb(match: re.Match[str]) -> str:
        name = match[1]
        command = root.get_command(context, name)
        assert command is not None, name
        return commands(command, f"safeclaw {name}")

    def by_hand(match: re.Match[str]) -> str:
        if match[1] == "safeclawd":
            from safeclaw.daemon.cli.safeclawd import USAGE

            return options(usage_command("safeclawd", USAGE), context)
        command = root.get_command(context, match[1])
        assert command is not None, match[1]
        return options(command, click.Context(command, info_name=match[1]))

    def listed(_: re.Match[str]) -> str:
        lines: list[str] = []
        for name in root.list_commands(context):
            command = root.get_command(context, name)
            assert command is not None
            said = "Run an agent in walls, under a policy, with a record." if name == "run" else ""
            said = said or f"{first_sentence(command.help or '').capitalize()}."
            lines += [f"*{name}*", f"\t{escaped(said)} See *safeclaw-{name}*(1).", ""]
        return "\n".join(lines)

    text = re.sub(r"^@COMMANDS (\w+)@$", verb, text, flags=re.M)
    text = re.sub(r"^@OPTIONS (\w+)@$", by_hand, text, flags=re.M)
    return re.sub(r"^@VERBS@$", listed, text, flags=re.M)


def main(output: Path) -> None:
    """Write every page's source below ``output``, as NAME.SECTION.scd."""
    output.mkdir(parents=True, exist_ok=True)
    root = verbs()
    pages = {path.name: path.read_text() for path in sorted(MAN.glob("*.scd"))}
    context = click.Context(root, info_name="safeclaw")
    for verb in root.list_commands(context):
        command = root.get_command(context, verb)
        assert command is not None
        pages.setdefault(f"safeclaw-{verb}.1.scd", by_default(verb, command))
    for name, text in pages.items():
        # scdoc's first line: name(section) "left footer"
        first, _, rest = text.partition("\n")
        text = f'{first} "safeclaw {version("safeclaw")}"\n{rest}'
        (output / name).write_text(filled(text, root))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
