"""A command that follows a log ends with who reads it, also where nothing comes any more."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from vmoat import reader


def test_it_is_told_that_a_pipe_is_read_no_more() -> None:
    for theirs, ours in (os.pipe(), [end.detach() for end in socket.socketpair()]):
        gone = threading.Event()
        reader.when_gone(ours, gone.set)
        os.write(ours, b"a line")
        assert os.read(theirs, 100) == b"a line"
        assert not gone.is_set()
        os.close(theirs)
        assert gone.wait(20)
        os.close(ours)


def test_a_file_has_no_reader_that_could_go(tmp_path: Path) -> None:
    before = threading.active_count()
    with open(tmp_path / "out", "wb") as stream:
        reader.when_gone(stream.fileno(), stream.close)
    reader.when_gone(stream_that_is_closed(), lambda: None)
    assert threading.active_count() == before


def stream_that_is_closed() -> int:
    ours, theirs = os.pipe()
    os.close(ours)
    os.close(theirs)
    return ours


def test_a_quiet_log_is_followed_no_longer_than_it_is_read() -> None:
    """As in `vmoat logs -f | head -1`."""
    program = (
        "import time; from vmoat.commands import inspect\n"
        "inspect._end_with_the_reader(); print('a line', flush=True); time.sleep(600)"
    )
    follower = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert follower.stdout is not None
    assert follower.stdout.readline() == b"a line\n"
    follower.stdout.close()
    assert follower.wait(20) == -signal.SIGTERM
