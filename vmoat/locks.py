"""Locks on files (flock(2)): the kernel frees them when their holder dies, however it does."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vmoat import paths

ASKED = 0.005
"""Seconds between two tries while others ask who holds a lock."""


@contextlib.contextmanager
def in_turn(file: Path, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock ``file``, one process at a time; ``waits`` is called before it has to wait.

    Raises MISSING where the file cannot be made.
    """
    fd = _hold(file, waits)
    try:
        yield
    finally:
        os.close(fd)


def _hold(file: Path, waits: Callable[[], None]) -> int:
    while True:
        fd = opened(file)
        try:
            if not take(fd):
                waits()
                fcntl.flock(fd, fcntl.LOCK_EX)
        except BaseException:
            os.close(fd)
            raise
        if same_file(fd, file):
            return fd
        os.close(fd)  # its last holder removed it: what others hold by now is another one


@contextlib.contextmanager
def tried(file: Path, *, make: bool = False) -> Iterator[bool]:
    """Whether the lock is ours while this lasts; never waited for.

    One that nobody ever took is ours, and made only with ``make``.  Raises MISSING where it is to
    be made and cannot be.
    """
    try:
        fd = opened(file) if make else os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        yield True
        return
    try:
        yield take(fd)
    finally:
        os.close(fd)


def held(file: Path) -> bool:
    """Whether somebody holds the lock; asks with a shared one, which other askers do not mind."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def same_file(fd: int, file: Path) -> bool:
    """Whether the name still is that of the open file: it may have been removed meanwhile."""
    try:
        there = os.stat(file)
    except OSError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def take(fd: int) -> bool:
    """Take the lock on an open file; False where another holds it.

    Who only asks (``held``) shares it for a moment, which a busy machine may draw out: that is no
    reason to give up.
    """
    while not _try(fd, fcntl.LOCK_EX):
        if not _try(fd, fcntl.LOCK_SH):
            return False
        fcntl.flock(fd, fcntl.LOCK_UN)
        time.sleep(ASKED)
    return True


def _try(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def opened(file: Path) -> int:
    """A lock's file, made if need be; raises MISSING where it cannot be."""
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise paths.unwritable(file.parent, error) from error
