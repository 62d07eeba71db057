"""What the driver remembers of a VM that it started: ``driver.toml`` in the VM's state folder."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vmoat import paths
from vmoat.drivers import SshEndpoint
from vmoat.drivers.qemu.process import Process, host_boot
from vmoat.errors import Code, VmoatError
from vmoat.state import write_toml

SHARES = "/vm/share"
"""In the sandbox: the folder of the shares' mount points."""

SHARING = "virtiofsd-"
"""How the names of the processes that serve a share begin."""


@dataclass
class Record:
    """One VM; ``phase`` is ``starting``, ``running`` or ``stopped``."""

    vm_id: str
    phase: str = "stopped"
    boot: str = ""
    accel: str = ""
    spec_digest: str = ""
    ssh_port: int = 0
    user: str = ""
    host_boot: str = ""
    walls: bool = True
    mount: str = "9p"
    """How the worktree is shared: ``9p`` or ``virtiofs``."""
    wanted: list[str] = field(default_factory=list)
    """Mount points without which a wall is open."""
    hidden: dict[str, str] = field(default_factory=dict)
    """The same over nested worktrees, with their paths on the host."""
    processes: list[Process] = field(default_factory=list)

    def of_this_boot(self) -> bool:
        """Whether the host has run since: pids of an earlier boot say nothing."""
        return self.host_boot == host_boot()

    def process(self, name: str) -> Process | None:
        """One of its processes by name; None for those of an earlier boot of the host."""
        if not self.of_this_boot():
            return None
        return next((process for process in self.processes if process.name == name), None)

    def living(self) -> list[Process]:
        """Its processes that still run."""
        if not self.of_this_boot():
            return []
        return [process for process in self.processes if process.alive()]


def mark(vm_id: str) -> str:
    """QEMU's name: finds the processes of a start that was killed before it was recorded."""
    return f"vmoat-{vm_id}"


def path(name: str) -> Path:
    return paths.vm_dir(name) / "driver.toml"


def read(name: str) -> Record | None:
    """The record; None where there is none that can be read."""
    try:
        found: dict[str, Any] = tomllib.loads(path(name).read_text())
        processes = [Process(str(n), int(p), int(s)) for n, p, s in found.pop("processes", [])]
        known = {f.name for f in fields(Record)}  # a newer vmoat may have written more
        return Record(**{k: v for k, v in found.items() if k in known}, processes=processes)
    except (OSError, ValueError, TypeError):
        return None


def write(name: str, record: Record) -> None:
    """Write it atomically and sync it."""
    rows = [[process.name, process.pid, process.started] for process in record.processes]
    values = {key: value for key, value in vars(record).items() if key != "processes"}
    write_toml(path(name), {**values, "processes": rows})


def ssh_endpoint(name: str) -> SshEndpoint:
    """See ``Driver.ssh_endpoint``."""
    found = read(name)
    if found is None or not found.ssh_port:
        raise VmoatError(
            f"the VM {name} was never started", hint="`vmoat up` starts it", code=Code.VM
        )
    keys = paths.vm_dir(name) / "ssh"
    return SshEndpoint(
        "127.0.0.1", found.ssh_port, found.user, keys / "id_ed25519", keys / "known_hosts"
    )
