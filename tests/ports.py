"""Ports of this machine that nobody else takes between being handed out and being listened on.

A port that the kernel picks (``bind`` to 0) comes from the range that it also takes the near ends
of connections from (ip(7): ``ip_local_port_range``, 32768 to 60999): on a busy machine such a port
is somebody's a moment later.  These lie below that range, in blocks that one process has alone.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

FIRST, LAST, BLOCK = 20000, 31900, 100


def _ports() -> Iterator[int]:
    """The ports of one block after another; a block is ours until this process ends."""
    folder = Path(tempfile.gettempdir()) / f"vmoat-test-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for first in range(FIRST, LAST, BLOCK):
        lock = os.open(folder / str(first), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        # In no order: who had the block before may not have come to listen on what it was given.
        yield from random.sample(range(first, first + BLOCK), BLOCK)


_mine = _ports()


def free_port() -> int:
    """A port of the IPv4 loopback that nobody listens on; never the same one twice."""
    for port in _mine:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("all ports for tests are taken")
