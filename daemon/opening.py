"""What a session opens with: the value between the authority and the session."""

from __future__ import annotations

import msgspec

from safeclaw.policies.document import Policy


class Opening(msgspec.Struct, frozen=True):
    """The agent's name as it is recorded, its policy, and the files that has come from.

    ``registered`` says that the agent has shown a key, ``key`` which one (never its secret).
    """

    agent: str
    policy: Policy
    read_only: tuple[str, ...] = ()
    registered: bool = False
    key: str = ""
