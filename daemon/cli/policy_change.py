"""``safeclaw policy pending``, ``approve``, ``refuse``, ``rollback`` and ``text``."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import stat
import time
from typing import Any

import click
import msgspec

from safeclaw.daemon import client, control
from safeclaw.daemon.archive import Version
from safeclaw.daemon.cli import asking, difference
from safeclaw.daemon.peer import user_name
from safeclaw.errors import BrokerError, PolicyError
from safeclaw.policies.document import Parent
from safeclaw.policies.loader import load
from safeclaw.policies.model import printable

#: How long the broker may take to read all policies again, in seconds.
_READING = 120.0
_WHY = click.option("--why", default="", metavar="TEXT", help="The reason, for the record.")


@click.command(name="pending", help="Policies that wait for two people, and what they change.")
@asking.common
def pending_command(broker: str, as_json: bool) -> int:
    """Print what waits, each with its difference in meaning."""
    with asking.connected(broker) as found:
        waiting: list[dict[str, Any]] = found.ask(control.PendingPolicies())
        for one in waiting:
            one["difference"] = _difference(found, one)
    if as_json:
        asking.echo_json(waiting)
        return 0
    if not waiting:
        click.echo("nothing waits")
    for one in waiting:
        for line in _lines(one):
            click.echo(line)
    return 0


def _lines(one: dict[str, Any]) -> list[str]:
    sha256, since = one["pending"]["sha256"], _moment(one["since"])
    lines = [f"{printable(one['policy'])} {sha256}, since {since}"]
    if one["commit"]:
        lines.append(f"  commit {one['commit']}")
    lines += [f"  yes: {user_name(yes['uid'])}, {_moment(yes['at'])}" for yes in one["yes"]]
    if one["refused"]:
        no = one["refused"]
        lines.append(f"  refused: {user_name(no['uid'])}, {_moment(no['at'])}")
    if one["difference"] is None:
        return [*lines, "  nothing was in force before"]
    return [*lines, *(f"  {line}" for line in difference.lines(one["difference"]))]


def _difference(found: client.Client, one: dict[str, Any]) -> difference.Difference | None:
    """Return what comes with a policy that waits; None where nothing was in force."""
    if one["in_force"] is None:
        return None
    old, new = (_version(found, word, one[word]) for word in ("in_force", "pending"))
    return difference.difference(old, new, None)


def _version(found: client.Client, ref: str, fields: dict[str, Any]) -> difference.Version:
    version = msgspec.convert(fields, Version)
    parents = tuple(
        Parent(part.child, part.ref, part.name, _text(found, part.text)) for part in version.parents
    )
    policy = load(_text(found, version.text), name=version.name, parents=parents)
    return difference.Version(ref.replace("_", " "), policy, ())


def _text(found: client.Client, sha256: str) -> bytes:
    text = base64.b64decode(found.ask(control.PolicyText(sha256))["text"])
    if hashlib.sha256(text).hexdigest() != sha256:
        raise PolicyError(
            f"the broker's text is not the one with the hash {sha256}",
            hint="what the broker keeps was changed: restore its state from a backup",
        )
    return text


@click.command(
    name="approve",
    help="Say yes to a policy that waits; with the second person's yes it is in force.\n\n"
    "SHA256 is what 'policy pending' shows, all of it.",
)
@click.argument("policy")
@click.argument("sha256")
@_WHY
@asking.common
def approve_command(policy: str, sha256: str, why: str, broker: str, as_json: bool) -> int:
    """Approve one policy."""
    found = asking.ask(broker, control.ApprovePolicy(policy, sha256.lower(), why))
    if as_json:
        asking.echo_json(found)
    elif found["in_force"]:
        click.echo(f"{printable(policy)}: in force")
    else:
        click.echo(f"{printable(policy)}: one yes of two; another administrator's is needed")
    return 0


@click.command(name="refuse", help="Say no to a policy that waits: this text stays out.")
@click.argument("policy")
@click.argument("sha256")
@_WHY
@asking.common
def refuse_command(policy: str, sha256: str, why: str, broker: str, as_json: bool) -> int:
    """Refuse one policy."""
    found = asking.ask(broker, control.RefusePolicy(policy, sha256.lower(), why))
    return asking.tell(found, f"{printable(policy)}: refused; put the file right", as_json)


@click.command(name="text", help="Print a policy's file as it was, by its SHA-256.")
@click.argument("sha256")
@asking.common
def text_command(sha256: str, broker: str, as_json: bool) -> int:
    """Print a text that the broker has kept."""
    with asking.connected(broker) as found:
        text = _text(found, sha256.lower())
    if as_json:
        asking.echo_json({"sha256": sha256.lower(), "text": text.decode("utf-8", "replace")})
    else:
        click.echo(text, nl=False)
    return 0


@click.command(
    name="rollback",
    help="Put an earlier text of a policy's file back; the broker then reads it as any change.\n\n"
    "NAME is the policy's name; the file is written by who runs this, mostly root.\n\n"
    "Exit status: 0 the earlier policy is in force, 1 it waits for two people.",
)
@click.argument("name")
@click.option(
    "--to",
    default="previous",
    show_default=True,
    metavar="SHA256|previous",
    help="Which policy; 'policy history' lists them, and 12 digits will do.",
)
@click.option("--why", required=True, metavar="TEXT", help="The reason, for the record.")
@asking.common
def rollback_command(name: str, to: str, why: str, broker: str, as_json: bool) -> int:
    """Write the file, and wait until the broker has read it."""
    with asking.connected(broker) as found:
        plan: dict[str, Any] = found.ask(control.RollBack(name, to.lower(), why))
        _replace(plan["file"], _text(found, plan["text"]))
        told: dict[str, dict[str, str]] = found.ask(control.Reload(), _READING)
    ref = plan["policy"]
    there = told["in_force"].get(ref) == plan["to"]
    waits = told["pending"].get(ref) == plan["to"]
    if not there and not waits:
        why_not = told["problems"].get(ref, "its file has changed again meanwhile")
        raise BrokerError(
            f"{plan['file']} was written, but is not in force: {why_not}",
            hint=f"safeclaw policy check {plan['file']}; what was in force before still is",
        )
    if as_json:
        asking.echo_json({**plan, "in_force": there})
    elif there:
        click.echo(f"{printable(ref)}: {plan['from'][:12]} -> {plan['to'][:12]}, in force")
    else:
        click.echo(f"{printable(ref)}: written, but waits for two people: it may be wider")
        click.echo(f"hint: safeclaw policy approve {ref} {plan['to']}", err=True)
    return 0 if there else 1


def _replace(path: str, text: bytes) -> None:
    """Put a text in a file's place whole, with its owner and mode.  BrokerError."""
    real = os.path.realpath(path)
    fresh = f"{os.path.dirname(real)}/.{os.path.basename(real)}.{os.getpid()}"
    try:
        with contextlib.ExitStack() as stack:
            descriptor = os.open(
                fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            out = stack.enter_context(open(descriptor, "wb"))
            stack.callback(_unlink, fresh)
            try:
                was = os.stat(real)
            except FileNotFoundError:
                os.fchmod(descriptor, 0o644)
            else:
                os.fchown(descriptor, was.st_uid, was.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(was.st_mode))
            out.write(text)
            out.flush()
            os.fsync(descriptor)
            os.rename(fresh, real)
    except OSError as problem:
        raise BrokerError(
            f"{path}: cannot be written: {problem.strerror}",
            hint="who may write it, mostly root, runs this; nothing has changed",
        ) from problem


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(seconds))
