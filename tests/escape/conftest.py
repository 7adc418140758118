"""Who mounts the attacks, and in which isolation."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.escape.compiling import compile_all
from tests.escape.prison import Prison
from tests.system.conftest import ordinary_user, shared_tree

__all__ = ["ordinary_user", "shared_tree"]


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with every attack, and the programs it wants to run, compiled."""
    made = os.environ.get("SAFECLAW_ATTACKS")
    if made is not None:
        return Path(made)  # where they are tried there is no compiler
    out = tmp_path_factory.mktemp("attacks")
    compile_all(out)
    return out


@pytest.fixture(
    scope="session",
    params=[(who, how) for who in ("root", "ordinary") for how in ("full", "landlock")],
    ids=lambda param: "-".join(param),
)
def prison(
    request: pytest.FixtureRequest, ordinary_user: str, shared_tree: Path | None, programs: Path
) -> Prison:
    """Every attack is mounted as root and as an ordinary user, in both isolations."""
    who, how = request.param
    name = "root" if who == "root" else ordinary_user
    if name == "root" and os.geteuid() != 0:
        pytest.skip("not root: the tests as root did not run")
    return Prison(name, how, programs, shared_tree)
