"""When a VM was last used: by a command that went into it, a run, a tunnel that was opened.

Each such command touches ``used`` in the VM's state folder, as it begins and as it ends; a session
that still goes on (an ``ssh`` of a day) counts as used now.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from vmoat import paths

MARK = "used"


def mark(folder: Path) -> None:
    """The VM with this state folder is used now; a full disk loses the mark, never the command."""
    with contextlib.suppress(OSError):
        (folder / MARK).touch(mode=0o600)


@contextlib.contextmanager
def used(folder: Path) -> Iterator[None]:
    """The VM is in use while this lasts."""
    mark(folder)
    try:
        yield
    finally:
        mark(folder)


def last(folder: Path) -> float:
    """When it was last marked (unix time); 0 for never."""
    try:
        return (folder / MARK).stat().st_mtime
    except OSError:
        return 0.0


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
