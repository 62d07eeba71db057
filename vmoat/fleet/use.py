"""When a VM was last used: by a command that went into it, a run, a tunnel that was opened.

Each such command touches ``used`` in the VM's state folder, as it begins and as it ends, and holds
it meanwhile: a session that still goes on (an ``ssh`` of a day) counts as used now.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

MARK = "used"


def mark(folder: Path) -> None:
    """The VM with this state folder is used now; a full disk loses the mark, never the command."""
    with contextlib.suppress(OSError):
        (folder / MARK).touch(mode=0o600)


def last(folder: Path) -> float:
    """When it was last marked (unix time); 0 for never."""
    try:
        return (folder / MARK).stat().st_mtime
    except OSError:
        return 0.0


@contextlib.contextmanager
def using(folder: Path, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
    """The VM is in use while this lasts.  ``waits`` is called where it is just being stopped for
    idleness: this returns when that is over.
    """
    mark(folder)
    with _opened(folder) as file:
        if file >= 0:
            _share(file, waits)
        try:
            yield
        finally:
            mark(folder)


def _share(file: int, waits: Callable[[], None]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        waits()
        fcntl.flock(file, fcntl.LOCK_SH)


@contextlib.contextmanager
def unused(folder: Path, wait: float = 1.0) -> Iterator[bool]:
    """Whether nobody uses the VM; where that is so, whoever wants to waits until this is over.

    Who only asks (``held``) may be in the way for a moment: it is tried for ``wait`` seconds.
    """
    with _opened(folder) as file:
        deadline = time.monotonic() + wait
        while not (mine := file >= 0 and _take(file)) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield mine


def held(folder: Path) -> bool:
    """Whether a command uses the VM now, or it is just being stopped."""
    with _opened(folder, create=False) as file:
        return file >= 0 and not _take(file)


def _take(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
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
