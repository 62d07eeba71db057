"""One row for each VM that the state folder knows: what `ls`, `top`, the dashboard and gc go by.

Only facts of this machine: the drivers' look at their processes, git's files, event logs, proc(5).
Nothing is asked of a guest and nothing is written, so twenty VMs take well under 0.3 s.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vmoat import drivers, instance, netports, paths, ssh
from vmoat.drivers import VmStatus
from vmoat.errors import VmoatError
from vmoat.fleet import history, load, places, use
from vmoat.fleet.history import History, StageRow
from vmoat.forwards import RECORD, SERVICES, Record
from vmoat.state import StageStore, Values, read_toml

UP = ("running", "starting", "paused")
"""States in which a VM holds memory."""
GIB = 1 << 30


@dataclass(frozen=True)
class Url:
    """One tunnel of a VM."""

    service: str
    """The service that publishes the port; "" where that is not known."""
    guest: int
    host: int
    url: str
    open: bool
    """Whether it leads there now; else it comes back with the VM."""


@dataclass(frozen=True)
class Row:
    """One VM."""

    name: str
    """The VM's name (``vmoat name``), unique on this machine."""
    vm_id: str
    """Its id; "" for a folder whose owner file is gone."""
    driver: str
    worktree: str
    """The worktree's folder, followed through ``git worktree move``; where it was, when gone."""
    branch: str
    """The checked-out branch; "" for a detached HEAD, and where it cannot be read."""
    repository: str
    """What people call the repository."""
    state: str
    """``absent`` (claimed, no disk), ``stopped``, ``starting`` (also: a worker is at work on one
    that does not run yet), ``running``, ``paused``, ``broken``."""
    reasons: tuple[str, ...] = ()
    """Why it is paused or broken."""
    working: bool = False
    """Whether a worker (`up`, `provision`) goes on in it now."""
    health: str = "unknown"
    """``healthy`` or ``unhealthy`` as the health stage of this boot said last; ``unknown`` where
    it does not run or was not asked.  No guest is asked for this row."""
    urls: tuple[Url, ...] = ()
    """Its tunnels, by host port."""
    cpus: int = 0
    """CPUs that it was started with; 0 where that is not on record."""
    cpu_seconds: float = 0.0
    """CPU time that its processes on this machine have used since they began."""
    cpu_percent: float | None = None
    """The same since the look before, in percent of one CPU; None without a look before."""
    memory_bytes: int = 0
    """Memory of this machine that its processes hold now."""
    memory_size_bytes: int = 0
    """Memory that the VM was started with, what it can come to hold; 0 where not on record."""
    disk_bytes: int = 0
    """What its disks take on this machine (allocated, holes don't count), without the image."""
    used_at: float = 0.0
    """When it was last used (unix time): now while a session (exec, ssh, test) or a run goes on in
    it; else the last `up`, exec, ssh, cp, test or tunnel.  0 for never."""
    stages: tuple[StageRow, ...] = ()
    """How each stage went last, in the order in which they run."""
    worktree_exists: bool = True
    orphan: str = ""
    """Why the VM is nobody's any more, so that gc may take it; "" for none."""
    left: str = ""
    """Why it is left alone though its worktree is not to be seen (unmounted, locked)."""
    looked: float = field(default=0.0, compare=False)
    """When this was seen (``time.monotonic()``), for the next look's ``cpu_percent``."""

    @property
    def up(self) -> bool:
        """Whether it holds memory now."""
        return self.state in UP

    def idle_seconds(self, now: float) -> float | None:
        """Seconds since it was last used; None where it never was."""
        return max(0.0, now - self.used_at) if self.used_at else None


def as_json(row: Row) -> dict[str, Any]:
    """The row as JSON has it."""
    table = asdict(row)
    del table["looked"]
    return table


def names() -> list[str]:
    """The names of all VMs that the state folder knows."""
    found = (folder.name for folder in paths.vms_dir().glob("[!.]*") if folder.is_dir())
    return sorted(name for name in found if instance.is_name(name))


def rows(before: Sequence[Row] = ()) -> list[Row]:
    """A row for each VM, by repository and name.

    ``before``: an earlier answer; what was used between the two is ``cpu_percent``.  One VM that
    cannot be looked at is a row in the state ``broken``, never an error.
    """
    known = names()
    earlier = {(row.name, row.vm_id): row for row in before}
    if len(known) > 1:
        # A QEMU that hangs is given seconds to answer: the others do not wait for it one by one.
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(look, known))
    else:
        found = [look(name) for name in known]
    return sorted(
        (_since(row, earlier.get((row.name, row.vm_id))) for row in found),
        key=lambda row: (row.repository, row.name),
    )


def _since(row: Row, earlier: Row | None) -> Row:
    from dataclasses import replace

    if earlier is None or row.looked <= earlier.looked or row.cpu_seconds < earlier.cpu_seconds:
        return row
    used = (row.cpu_seconds - earlier.cpu_seconds) / (row.looked - earlier.looked)
    return replace(row, cpu_percent=round(100 * used, 1))


def look(name: str) -> Row:
    """The row of one VM."""
    try:
        return _look(name)
    except Exception as error:  # records may be damaged in ways that nobody thought of
        owner = instance.read_owner(name)
        return Row(
            name, owner.vm_id if owner else "", owner.driver if owner else "",
            str(owner.worktree) if owner else "", "", "", "broken",
            (f"its records are damaged ({type(error).__name__}: {error})",),
        )  # fmt: skip


def _look(name: str) -> Row:
    folder = paths.vm_dir(name)
    owner = instance.read_owner(name)
    looked = time.monotonic()
    if owner is None:
        lost = "" if instance.is_damaged(name) else _LOST
        return Row(
            name, "", "", "", "", "", "broken", ("it has no owner file",), worktree_exists=False,
            orphan=lost, left="" if lost else _DAMAGED.format(name=name), looked=looked,
            disk_bytes=_allocated(folder),
        )  # fmt: skip
    place = places.find(owner)
    past = history.read(folder)
    status, disk = _asked(owner.driver, name)
    seconds, memory = load.measure(status.pids.values())
    started = StageStore(folder).values("vm")
    spec = _spec(started)
    state = status.state
    if past.working and state in ("absent", "stopped", "broken"):
        state = "starting"
    return Row(
        name=name,
        vm_id=owner.vm_id,
        driver=owner.driver or drivers.default(),
        worktree=str(place.worktree),
        branch=place.branch,
        repository=place.repository,
        state=state,
        reasons=() if state == "starting" else status.reasons,
        working=past.working,
        health=_health(past, status, started),
        urls=tuple(_urls(folder, owner.vm_id, state)),
        cpus=int(spec.get("cpus", 0)),
        cpu_seconds=round(seconds, 2),
        memory_bytes=memory,
        memory_size_bytes=int(float(spec.get("memory", 0)) * GIB),
        disk_bytes=disk,
        used_at=_used(folder, past),
        stages=past.stages,
        worktree_exists=place.exists,
        orphan=place.orphan,
        left=place.left,
        looked=looked,
    )


_LOST = "its owner file is gone: a removal was cut short"
_DAMAGED = (
    "its owner file is damaged: `vmoat up` in its worktree mends it, `vmoat destroy {name}` "
    "removes it"
)


def _asked(driver: str, name: str) -> tuple[VmStatus, int]:
    """What the driver says of a VM, and what its disks weigh."""
    try:
        found = drivers.load(driver)
        return found.status(name), found.weight(name)
    except (VmoatError, OSError) as error:
        why = error.message if isinstance(error, VmoatError) else str(error)
        return VmStatus("broken", (why,)), 0


def _spec(started: Values) -> dict[str, Any]:
    """What the VM was last started with, by the `vm` stage's record."""
    found = started.get("spec")
    return found if isinstance(found, dict) else {}


def _health(past: History, status: VmStatus, started: Values) -> str:
    if status.state != "running" or started.get("boot") != status.boot:
        return "unknown"  # what was said of another boot says nothing
    states = {stage.name: stage.state for stage in past.stages}
    if "failed" in (states.get("stack"), states.get("health")):
        return "unhealthy"
    return "healthy" if states.get("health") == "done" else "unknown"


def _urls(folder: Path, vm_id: str, state: str) -> list[Url]:
    wanted = Record(folder / RECORD).read()
    if not wanted:
        return []
    services = read_toml(folder / SERVICES)
    master = state == "running" and ssh.listening(paths.runtime_place(vm_id) / "ssh")
    return [
        Url(
            str(services.get(str(guest), "")), guest, host, f"http://localhost:{host}",
            master and not netports.free("127.0.0.1", host),
        )
        for host, guest in sorted(wanted.items())
    ]  # fmt: skip


def _used(folder: Path, past: History) -> float:
    if past.working or use.held(folder):
        return time.time()
    return max(use.last(folder), past.ended)


def _allocated(folder: Path) -> int:
    try:
        return sum(file.lstat().st_blocks * 512 for file in folder.rglob("*"))
    except OSError:
        return 0
