"""Which Git commit a file stands at: asks git(1), which only reads."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

_GIT_SECONDS = 5


def commit_of(file: str) -> str:
    """Return the Git commit that a policy file stands at; "" without one, or when it differs."""
    path = Path(file)
    # SAFETY: whoever owns the repository must not choose what runs here: nothing is fetched,
    # verified or filtered, which the repository's own configuration could name programs for.
    git = ["git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-C", str(path.parent)]
    environment = {**os.environ, "GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1"}

    def said(*words: str) -> str:
        done = subprocess.run(
            [*git, *words],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=False,
            env=environment,
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        commit = said("log", "-1", "--no-show-signature", "--format=%H", "--", path.name)
        if not commit:
            return ""
        there = said("rev-parse", f"HEAD:./{path.name}")
        here = said("hash-object", "--no-filters", "--", path.name)
        return commit if here and here == there else f"{commit}-dirty"
    return ""
