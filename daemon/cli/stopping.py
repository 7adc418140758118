"""``safeclaw kill`` as it is typed: what stops agents does not wait for click to be imported."""

from __future__ import annotations

import os
import sys

import msgspec

from safeclaw.daemon import client, control
from safeclaw.daemon.cli.options import broker_choice
from safeclaw.errors import BrokerGoneError
from safeclaw.policies.model import printable

#: Sessions are given ten seconds to be gone; the broker answers then at the latest.
_PATIENCE = 15.0


class Order(msgspec.Struct, frozen=True):
    """Whom to stop (``None``: everybody), why, by which broker, and how to tell."""

    agent: str | None
    why: str
    broker: str
    as_json: bool


def read(words: list[str]) -> Order | None:
    """Return what the words order; None for what click has to explain.  UsageError."""
    values = {"--why": "", "--broker": "auto"}
    flags: set[str] = set()
    names: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if word in ("--all", "--json"):
            flags.add(word)
        elif name in values:
            given = value if equals else next(rest, None)
            if given is None:
                return None
            values[name] = given
        elif word.startswith("-"):
            return None
        else:
            names.append(word)
    if len(names) + ("--all" in flags) != 1:
        return None
    agent = names[0] if names else None
    return Order(agent, values["--why"], broker_choice(values["--broker"]), "--json" in flags)


def stop(order: Order) -> int:
    """Throw the switch, and wait until the processes are gone.  BrokerError."""
    try:
        if order.broker == "auto":
            client.check_system()
        found = client.Client.choose(order.broker, client.state_directory(dict(os.environ)))
        try:
            stopped = found.ask(control.Kill(order.agent, order.why), _PATIENCE)
        finally:
            found.finish()
    except BrokerGoneError as problem:
        from safeclaw.daemon.cli import lastresort

        return lastresort.kill(order.agent, order.why, problem)
    if order.as_json:
        print(msgspec.json.format(msgspec.json.encode(stopped), indent=2).decode())
    else:
        whom = "every agent" if order.agent is None else printable(order.agent)
        again = "--all" if order.agent is None else printable(order.agent)
        count = len(stopped["sessions"])
        print(f"{whom}: {count} sessions stopped; down until safeclaw resume {again}")
    sys.stdout.flush()
    return 0
