"""Who is let in, when there is hardly a descriptor left."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

from safeclaw.daemon import channel
from safeclaw.daemon.doors import Doors
from safeclaw.daemon.peer import Access


def test_who_finds_no_descriptor_waits_and_the_broker_does_not_spin(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    listener = channel.listen(directory, "s")
    doors = Doors(listener, Access(os.getuid(), None))
    number = listener.fileno()
    client = channel.connect(directory, "s")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    fill = [os.dup(number)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (fill[0] + 16, limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                fill.append(os.dup(number))
        assert doors.select(0) == [(number, 1)]
        doors.accept()
        assert doors.select(0) == [], "it is looked for again a moment later, not at once"
        assert doors.connected() == []
    finally:
        for one in fill:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert doors.select(None) == [(number, 1)]
    doors.accept()
    assert len(doors.connected()) == 1
    for session in doors.connected():
        doors.close(session)
    client.close()
    listener.close()
    os.close(directory)
