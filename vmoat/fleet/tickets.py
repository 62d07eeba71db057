"""The queue of those that wait for room: one file for each, held with a lock by who waits.

Numbers are drawn under one lock, so the order is that of asking; a waiter that is killed lets go of
its file, and whoever looks next removes it.  No process stands beside the queue.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from vmoat import locks, paths
from vmoat.locks import in_turn


def folder() -> Path:
    """Where the queue and its lock lie."""
    return paths.state_home() / "fleet"


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """One decision at a time on this machine: who is first, what runs, who may start."""
    paths.make_private(_queue())
    with in_turn(folder() / "lock"):
        yield


class Held:
    """A small file that this process holds: others see its text, and whether we live."""

    def __init__(self, file: Path, text: str) -> None:
        """Take it, in ``turn``.  Only those who ask ``held`` can be in the way, for a moment.

        Raises MISSING where it cannot be written: nothing is held then.
        """
        self.file = file
        self._fd = locks.opened(file)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            self.write(text)
        except BaseException:
            self.free()
            raise

    def write(self, text: str) -> None:
        """Replace the text.  A kill -9 in between leaves one with a number, never an empty one."""
        data = text.encode()
        try:
            if os.pwrite(self._fd, data, 0) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.ftruncate(self._fd, len(data))
        except OSError as error:
            raise paths.unwritable(self.file.parent, error) from error

    def mine(self) -> bool:
        """Whether this process still holds it."""
        return self._fd >= 0

    def free(self) -> None:
        """Let go of it, if that was not done; the file stays."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class Ticket:
    """A place in the queue."""

    def __init__(self, name: str) -> None:
        """Draw the next number for the VM ``name``, at the queue's end; in ``turn``."""
        number = max((_number(file) for file in _files()), default=0) + 1
        self._held = Held(_queue() / f"{number:08d}-{name}", "")

    def ahead(self) -> list[str]:
        """The VMs that wait before this one, first come first; in ``turn``."""
        return [_name(file) for file in living() if file.name < self._held.file.name]

    def leave(self) -> None:
        """Give the place up, if that was not done."""
        if self._held.mine():
            self._held.file.unlink(missing_ok=True)
            self._held.free()


def waiting() -> list[str]:
    """The VMs that wait for room, first come first; changes nothing."""
    return [_name(file) for file in _files() if locks.held(file)]


def living() -> list[Path]:
    """The tickets whose waiters live; the others are removed.  In ``turn``: a new one is held
    only a moment after it is there.
    """
    found = []
    for file in _files():
        if locks.held(file):
            found.append(file)
        else:
            with contextlib.suppress(OSError):  # what cannot be removed is in nobody's way
                file.unlink(missing_ok=True)
    return found


_TICKET = re.compile(r"[0-9]{8}-[a-z0-9-]+")
"""A number, and the VM's name; nothing else in the folder is one."""


def _queue() -> Path:
    return folder() / "queue"


def _files() -> list[Path]:
    try:
        names = sorted(name for name in os.listdir(_queue()) if _TICKET.fullmatch(name))
    except OSError:
        return []
    return [_queue() / name for name in names]


def _number(file: Path) -> int:
    return int(file.name[:8])


def _name(file: Path) -> str:
    return file.name[9:]
