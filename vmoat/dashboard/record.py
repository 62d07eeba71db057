"""Which dashboard of this user runs, and the tickets that let a browser in.

A browser is started with a URL in its arguments, which every user of the machine can read, and
keeps it in its history.  So that URL holds a ticket instead of the token: an empty file that the
server removes when it is used, good for one browser and a minute.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from vmoat import paths
from vmoat.state import VmLock, write_atomically

TICKET_SECONDS = 60.0
"""For the browser to start and ask for the page."""


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


def running(patience: float = 3.0) -> Record | None:
    """The dashboard that runs; waits for one that has just begun to write itself down."""
    deadline = time.monotonic() + patience
    while holder := lock().holder():
        found = read()
        if found is not None and found.pid == holder:
            return found
        if time.monotonic() > deadline:
            return None
        time.sleep(0.05)
    return None


def write(port: int, token: str) -> None:
    """This process's dashboard answers at ``port``."""
    text = json.dumps(asdict(Record(port, token, os.getpid())))
    write_atomically(_file(), text.encode())


def ticket() -> str:
    """A word that opens the page once."""
    word = "once-" + secrets.token_urlsafe(18)
    write_atomically(_ticket_file(word), b"")
    return word


def redeem(word: str) -> bool:
    """Whether the word is a ticket; it is none any more."""
    if not re.fullmatch(r"once-[A-Za-z0-9_-]{20,40}", word):  # it becomes a path
        return False
    try:
        made = _ticket_file(word).stat().st_mtime
        _ticket_file(word).unlink()  # of two who come at once, one fails here
    except OSError:
        return False
    return 0 <= time.time() - made <= TICKET_SECONDS


def sweep() -> None:
    """Remove the tickets that nobody used."""
    for file in paths.dashboard_dir().glob("once-*"):
        file.unlink(missing_ok=True)


def _ticket_file(word: str) -> Path:
    return paths.dashboard_dir() / word
