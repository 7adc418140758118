"""The auditor's verifier under docs/, which knows nothing of safeclaw."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

PATH = Path(__file__).parent.parent / "docs" / "verify_journal.py"


@cache
def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_journal", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def standalone(
    directory: Path,
    *,
    public_key: Path | None = None,
    checkpoint: Path | None = None,
    witness_key: Path | None = None,
) -> int:
    """Return the exit status of the verifier as it is run by hand."""
    arguments = [str(PATH), str(directory)]
    if public_key is not None:
        arguments += ["--public-key", str(public_key)]
    if checkpoint is not None:
        arguments += ["--checkpoint", str(checkpoint)]
    if witness_key is not None:
        arguments += ["--witness-key", str(witness_key)]
    with patch.object(sys, "argv", arguments), contextlib.redirect_stdout(io.StringIO()):
        status: object = _module().main()
    assert isinstance(status, int)
    return status
