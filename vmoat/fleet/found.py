"""One thing that was left behind, and the small tools to find and remove such."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vmoat import locks, paths
from vmoat.errors import Code, VmoatError
from vmoat.state import read_toml

WORKED_ON = "somebody works with it"
KNOWN = "a VM has it by now"
"""Why something is left after all."""


@dataclass(frozen=True)
class Leftover:
    """One thing that was left behind."""

    kind: str
    """``disks``, ``home`` (Colima's), ``sockets``, ``process``, ``context``, ``image``, ``draft``
    (something half made), ``lock``."""
    name: str
    """A path, a pid with its program, or a name."""
    why: str
    size: int
    """Bytes that it takes on this machine."""
    remove: Callable[[], str]
    """Removes it, if it still is what it was, and returns why it was left, "" when it is gone.
    Raises VM where it cannot be removed."""
    since: float = 0.0
    """When it was last written (unix time), for what may hold volumes: kept for the grace from then
    on.  0 for what holds none."""


def locked_remover(thing: Path, lock: Path) -> Callable[[], str]:
    """Removes while it holds the lock of whoever makes such things."""

    def remove() -> str:
        with locks.tried(lock) as mine:
            if mine:
                clear(thing)
        return "" if mine else WORKED_ON

    return remove


def clear(thing: Path) -> None:
    """Remove a file, or a folder with all in it; quiet where there is none.  Raises VM where some
    of it stays.
    """
    if thing.is_dir():
        shutil.rmtree(thing, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            thing.unlink()
    if os.path.lexists(thing):
        raise VmoatError(f"{thing} could not be removed", hint="remove it by hand", code=Code.VM)


def is_out_of_sight(folder: Path) -> bool:
    """Whether a VM with this state folder was made, and no VM's disks are to be seen where its own
    would be: the folder of them all may lie on a disk of this machine that is not mounted now.
    """
    record = read_toml(folder / "driver.toml")
    place = paths.data_home() / ("colima" if "home" in record else "disks")
    return bool(record) and not folders(place)


def folders(place: Path) -> list[Path]:
    try:
        return sorted(
            Path(entry.path) for entry in os.scandir(place) if entry.is_dir(follow_symlinks=False)
        )
    except OSError:
        return []


def newest(place: Path) -> float:
    """When anything in a folder, or a file, was last written."""
    newest = 0.0
    for path in (place, *place.rglob("*")):
        with contextlib.suppress(OSError):
            newest = max(newest, path.lstat().st_mtime)
    return newest


def weight(place: Path) -> int:
    total = 0
    for path in (place, *place.rglob("*")):
        with contextlib.suppress(OSError):
            total += path.lstat().st_blocks * 512
    return total
