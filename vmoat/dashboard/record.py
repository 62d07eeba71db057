"""Which dashboard of this user runs."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from vmoat import paths
from vmoat.state import VmLock, write_atomically


@dataclass(frozen=True)
class Record:
    """What a second `vmoat dashboard` has to know of the first."""

    port: int
    token: str
    pid: int


def _file() -> Path:
    return paths.dashboard_dir() / "running.json"


def lock() -> VmLock:
    """Held while a dashboard of this user runs."""
    return VmLock(paths.dashboard_dir())


def read() -> Record | None:
    """What the last dashboard wrote down, whether it runs or not; None where none did."""
    try:
        found = json.loads(_file().read_text())
        return Record(int(found["port"]), str(found["token"]), int(found["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def running(patience: float = 20.0) -> Record | None:
    """The dashboard that runs; waits for one that has just begun to write itself down.

    None where none runs any more, and where the one that does says nothing within ``patience``
    seconds.
    """
    deadline = time.monotonic() + patience
    while lock().held():  # who has it just taken is not in it yet
        found = read()
        if found is not None and found.pid == lock().holder():
            return found
        if time.monotonic() > deadline:
            return None
        time.sleep(0.05)
    return None


def write(port: int, token: str) -> None:
    """This process's dashboard answers at ``port``."""
    text = json.dumps(asdict(Record(port, token, os.getpid())))
    write_atomically(_file(), text.encode())
