"""Where a user's own files are: the home, and the XDG Base Directory Specification's places."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def home(environment: Mapping[str, str] = os.environ) -> Path:
    """Return $HOME, else what the user database says, else a directory that is not there.

    A relative one is none: it would be another one in each working directory.
    """
    named = environment.get("HOME", "")
    if named.startswith("/"):
        return Path(named)
    import pwd

    try:
        found = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        found = ""
    # never "/" for want of one: that would widen "~/**" to everything
    return Path(found if found.startswith("/") else "/nonexistent")


def state(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the directory for state, of whatever program."""
    return _base("XDG_STATE_HOME", ".local/state", environment)


def config(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the directory for settings, of whatever program."""
    return _base("XDG_CONFIG_HOME", ".config", environment)


def _base(variable: str, otherwise: str, environment: Mapping[str, str]) -> Path:
    named = environment.get(variable, "")
    # relative ones are to be ignored
    return Path(named) if named.startswith("/") else home(environment) / otherwise
