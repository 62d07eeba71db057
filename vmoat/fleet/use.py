"""When a VM was last used: by a command that went into it, a run, a tunnel that was opened.

Each such command touches ``used`` in the VM's state folder, as it begins and as it ends, and shares
a lock on it meanwhile: a session that still goes on (an ``ssh`` of a day) counts as used now, and
one that is killed does not.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

MARK = "used"
ASKERS = 1.0
"""Seconds for which those who only ask (``held``) may be in the way: they take the lock to ask."""
AGAIN = 0.002
"""Seconds between two tries."""


def mark(folder: Path) -> None:
    """The VM with this state folder is used now; a full disk loses the mark, never the command."""
    with contextlib.suppress(OSError):
        (folder / MARK).touch(mode=0o600)


@contextlib.contextmanager
def used(folder: Path, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
    """The VM is in use while this lasts.

    Where it is just being stopped for being idle, ``waits`` is called, and this begins when the
    stop is over.
    """
    with _opened(folder) as file:
        if file >= 0:
            _share(file, waits)
        mark(folder)
        try:
            yield
        finally:
            mark(folder)


def _share(file: int, waits: Callable[[], None]) -> None:
    if not _soon(file, fcntl.LOCK_SH, ASKERS):
        waits()
        fcntl.flock(file, fcntl.LOCK_SH)


@contextlib.contextmanager
def unused(folder: Path) -> Iterator[bool]:
    """Whether nobody uses the VM; where that is so, whoever wants to waits until this is over."""
    with _opened(folder) as file:
        yield file >= 0 and _soon(file, fcntl.LOCK_EX, ASKERS)


def held(folder: Path) -> bool:
    """Whether a command uses the VM now, or it is just being stopped for being idle.

    Two that ask at once are no use: one that found the lock taken looks once more.
    """
    with _opened(folder, create=False) as file:
        return file >= 0 and not _soon(file, fcntl.LOCK_EX, AGAIN)


def last(folder: Path) -> float:
    """When it was last marked (unix time); 0 for never."""
    try:
        return (folder / MARK).stat().st_mtime
    except OSError:
        return 0.0


def _soon(file: int, kind: int, seconds: float) -> bool:
    """Take the lock, within that time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(AGAIN)
            continue
        return True


@contextlib.contextmanager
def _opened(folder: Path, *, create: bool = True) -> Iterator[int]:
    """The mark, opened; -1 where there is none and none can be made."""
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    try:
        file = os.open(folder / MARK, flags, 0o600)
    except OSError:
        file = -1
    try:
        yield file
    finally:
        if file >= 0:
            os.close(file)
