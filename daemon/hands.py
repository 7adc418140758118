"""Whose hands may change a policy's file."""

from __future__ import annotations

import grp
import os
import stat
from pathlib import Path

import msgspec

from safeclaw.daemon.peer import user_name
from safeclaw.errors import PolicyError
from safeclaw.policies import source


class Hands(msgspec.Struct, frozen=True):
    """Whose hands may change a policy that others are held to: root's, and a group's."""

    group: str

    def check(self, path: str) -> None:
        """Raise PolicyError when somebody else may change or replace a file (cf. sshd_config(5)).

        SAFETY: whoever may write to any directory above may put another file in its place; so
        may who can replace a symbolic link on the way, wherever that one lies.
        """
        ways = (path, *source.links(path), os.path.realpath(path))
        for place in dict.fromkeys(step for way in ways for step in (way, *_above(way))):
            try:
                found = os.lstat(place)
            except OSError as problem:
                raise PolicyError.of(problem, place) from problem
            whose = ""
            if found.st_uid not in (0, os.geteuid()):
                whose = f"user {user_name(found.st_uid)}"
            elif not stat.S_ISLNK(found.st_mode) and not found.st_mode & stat.S_ISVTX:
                if found.st_mode & stat.S_IWOTH:
                    whose = "everybody"
                elif found.st_mode & stat.S_IWGRP and found.st_gid not in self._trusted():
                    whose = f"group {found.st_gid}"
            if whose:
                raise PolicyError(
                    f"{place} may be changed by {whose}: no policy for registered agents",
                    hint=f"chown root {place} && chmod go-w {place}",
                )

    def _trusted(self) -> tuple[int, ...]:
        try:
            return 0, grp.getgrnam(self.group).gr_gid
        except KeyError:
            return (0,)


def _above(path: str) -> tuple[str, ...]:
    return tuple(str(parent) for parent in Path(path).parents)
