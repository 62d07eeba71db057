"""What the driver remembers of a VM: ``driver.toml`` in the VM's state folder."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vmoat import paths
from vmoat.drivers.colima.homes import PROFILE
from vmoat.state import write_toml


@dataclass
class Record:
    """One VM; ``phase`` is ``made`` (never started), ``starting``, ``running`` or ``stopped``."""

    vm_id: str
    home: str = ""
    profile: str = PROFILE
    adopted: bool = False
    phase: str = "made"
    token: str = ""
    """Of the boot that this driver last saw through: what the guest calls its boot."""
    agent: str = ""
    """Lima's host agent of that boot: pid and start time."""
    starter: str = ""
    """The `colima start` that is under way: pid and start time."""
    accel: str = ""
    mount: str = ""
    spec_digest: str = ""
    disk_gib: int = 0
    data_id: str = ""
    """Of the data disk: another one for each that is made or copied."""
    common_dir: str = ""
    """The repository's git folder: whose images another VM may begin with."""
    clean: bool = False
    """Whether the VM was shut down in order since it last ran."""
    walled: bool = False
    """Whether its QEMU runs behind walls (``walled``)."""
    told: bool = False
    """Whether it was said once which walls stay open."""


def path(name: str) -> Path:
    return paths.vm_dir(name) / "driver.toml"


def read(name: str) -> Record | None:
    """The record; None where there is none that can be read."""
    return read_file(path(name))


def read_file(file: Path) -> Record | None:
    try:
        found: dict[str, Any] = tomllib.loads(file.read_text())
        known = {f.name for f in fields(Record)}  # a newer vmoat may have written more
        return Record(**{key: value for key, value in found.items() if key in known})
    except (OSError, ValueError, TypeError):
        return None


def write(name: str, record: Record) -> None:
    """Write it atomically and sync it."""
    write_toml(path(name), vars(record))
