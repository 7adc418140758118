"""The ordinary user that other tests run as is one, and can run safeclaw."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Person


def test_the_ordinary_user_is_not_root_and_owns_its_home(person: Person) -> None:
    done = person.run(["sh", "-c", "id -u; touch file && stat -c %u file"])
    assert done.stderr == ""
    assert done.stdout.split() == [str(person.uid)] * 2
    assert person.uid != 0


def test_the_ordinary_user_imports_the_working_tree(person: Person) -> None:
    program = "import safeclaw.policies.model as m, msgspec, systemd.journal; print(m.__file__)"
    done = person.run([person.installed.python, "-c", program])
    assert done.stderr == ""
    assert os.path.isabs(done.stdout.strip())


def test_the_ordinary_user_can_run_safeclaw(person: Person) -> None:
    done = person.safeclaw("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "run" in done.stdout
