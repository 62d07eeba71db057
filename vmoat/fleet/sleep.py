"""A VM that was stopped for being idle sleeps: the next command that wants to go there starts it.

What says so is a file in its state folder; a VM that a person stopped, or that runs, has none.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from vmoat.state import read_toml, write_toml

FILE = "asleep.toml"


@dataclass(frozen=True)
class Sleep:
    """When a VM was stopped for being idle, and for whom."""

    at: float
    room_for: str = ""
    """The VM that needed its room; "" where ``[vm] idle`` had it stopped."""

    def words(self) -> str:
        """For a person; reads on after "the VM "."""
        when = time.strftime("%H:%M", time.localtime(self.at))
        why = f"to make room for {self.room_for}" if self.room_for else "for being idle"
        return f"was stopped at {when} {why}"


def of(folder: Path) -> Sleep | None:
    """Why the VM with this state folder was stopped; None where it does not sleep."""
    found = read_toml(folder / FILE)
    at = found.get("at")
    return Sleep(float(at), str(found.get("room_for", ""))) if isinstance(at, float | int) else None


def begin(folder: Path, room_for: str) -> None:
    """The VM was stopped because nobody used it."""
    write_toml(folder / FILE, {"at": time.time(), "room_for": room_for})


def end(folder: Path) -> None:
    """The VM is started, or a person wants it to stay as it is."""
    (folder / FILE).unlink(missing_ok=True)
