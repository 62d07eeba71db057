"""The named Docker volumes of a VM: what a person may miss when it is removed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from vmoat.state import read_toml, write_toml

RECORD = "volumes.toml"
LIST = "docker volume ls -q"

_ANONYMOUS = re.compile(r"[0-9a-f]{64}")
"""dockerd's own name for a volume that nobody named."""

KEPT = "orphan.toml"
"""In a VM's state folder, from when gc first found it to be nobody's and kept it, until its next
start."""


def record(folder: Path, names: Iterable[str]) -> None:
    """Write down what a VM has, as it is stopped; ``folder`` is its state folder."""
    write_toml(folder / RECORD, {"names": list(names)})


def begin(folder: Path) -> None:
    """The VM is started: it is somebody's, and may come to have other volumes than are on record.

    Not told by times alone: a clock may be set back in between.
    """
    (folder / KEPT).unlink(missing_ok=True)
    if found := read_toml(folder / RECORD):
        write_toml(folder / RECORD, {**found, "outdated": True})


def recorded(folder: Path) -> tuple[str, ...]:
    """Those that it had when it was stopped last; () also where nothing was recorded."""
    found = read_toml(folder / RECORD).get("names")
    return tuple(map(str, found)) if isinstance(found, list) else ()


def known(folder: Path) -> tuple[str, ...] | None:
    """The named ones of a VM that does not run; None where it may have others than are on record:
    it has run since, and was not stopped by vmoat.
    """
    try:
        at = (folder / RECORD).stat().st_mtime_ns
    except OSError:
        return None
    table = read_toml(folder / RECORD)
    if table.get("outdated") or not isinstance(table.get("names"), list):
        return None
    runs = [folder / "stages.toml", *(folder / "runs").glob("*.ndjson")]
    if any(_written(file) > at for file in runs):
        return None
    return named(recorded(folder))


def named(names: Iterable[str]) -> tuple[str, ...]:
    """Without those that dockerd named itself."""
    return tuple(name for name in names if not _ANONYMOUS.fullmatch(name))


def _written(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0
