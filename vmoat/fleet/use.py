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

from vmoat import paths

MARK = "used"


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
    """Whether a command uses the VM now, or it is just being stopped for being idle."""
    with _opened(folder, create=False) as file:
        return file >= 0 and not _take(file)


def last(folder: Path) -> float:
    """When it was last marked (unix time); 0 for never."""
    try:
        return (folder / MARK).stat().st_mtime
    except OSError:
        return 0.0


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


def sessions() -> frozenset[Path]:
    """The runtime folders of the VMs that a session goes on in: ``exec``, ``ssh``, ``test``, a
    stage.  Found by the command line of its ssh client (``ssh.Connection.argv``); none where
    there is no proc(5).
    """
    found = set()
    for entry in _numbers("/proc"):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if len(words) > 3 and os.path.basename(words[0]) == b"ssh" and words[1] == b"-F":
            options = words[3 : words.index(b"--")] if b"--" in words else words[3:]
            if b"-M" not in options and b"-O" not in options:  # a master, a word to one
                found.add(Path(os.fsdecode(os.path.dirname(words[2]))))
    return frozenset(found)


def _numbers(folder: str) -> list[str]:
    try:
        return [entry for entry in os.listdir(folder) if entry.isdigit()]
    except OSError:
        return []


def in_session(vm_id: str, found: frozenset[Path]) -> bool:
    """Whether one of these sessions is in the VM."""
    return paths.runtime_place(vm_id) in found
