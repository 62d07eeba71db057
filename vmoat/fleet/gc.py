"""What nobody needs any more on this machine, and its removal.

Each removal looks again, under the lock of whoever may use the thing, and never waits for one; each
can be killed half way: what is left is found by the next.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vmoat import instance, locks, paths
from vmoat.errors import Code, VmoatError, as_error
from vmoat.fleet import leftovers, places, removal, volumes
from vmoat.fleet.found import is_out_of_sight
from vmoat.fleet.rows import Row
from vmoat.state import VmLock, read_toml, write_toml


@dataclass(frozen=True)
class Item:
    """One thing that gc acts on, or keeps for now."""

    kind: str
    """``vm``, or a leftover's (``found.Leftover.kind``)."""
    name: str
    action: str
    """``remove``; ``stop`` (and keep until then); ``keep`` (it is stopped already)."""
    why: str
    size: int = 0
    """Bytes that it takes on this machine."""
    until: float = 0.0
    """When a later gc removes what this one keeps (unix time)."""
    volumes: tuple[str, ...] = ()
    """Named volumes that the VM is known to have."""
    done: bool = False
    """Whether the action was carried out."""
    note: str = ""
    """Why it was not: somebody works on it, or what went wrong."""
    failed: bool = False


@dataclass(frozen=True)
class Step:
    """An item, and what carries it out: returns why it was left, "" when it is done."""

    item: Item
    act: Callable[[], str]


@dataclass(frozen=True)
class Plan:
    """Everything that a gc would do now."""

    steps: tuple[Step, ...]
    left: tuple[Row, ...]
    """VMs that are left alone though their worktree is not to be seen."""
    again: tuple[str, ...] = ()
    """VMs that are somebody's, and were nobody's at an earlier gc: their grace is over with."""

    @property
    def items(self) -> list[Item]:
        return [step.item for step in self.steps]


def plan(rows: Sequence[Row], *, grace: float, current: str, now: float) -> Plan:
    """What is to be done, with reasons; changes nothing.

    ``rows`` are ``rows.rows()``, ``grace`` is in seconds, ``current`` the digest of the image that
    new VMs are made on ("" for none).
    """
    steps = [_vm_step(row, grace, now) for row in rows if row.orphan]
    going = [row.vm_id for row, step in zip(_orphans(rows), steps, strict=True)
             if step.item.action == "remove"]  # fmt: skip
    for thing in leftovers.find(current=current, grace=grace, going=going, now=now):
        until = thing.since + grace
        action = "keep" if thing.since and until > now else "remove"
        item = Item(thing.kind, thing.name, action, thing.why, thing.size)
        if action == "keep":
            item = replace(item, until=until)
        steps.append(Step(item, thing.remove))
    left = tuple(row for row in rows if row.left)
    found = [row for row in rows if row.worktree_exists and not row.orphan and not row.left]
    again = tuple(row.name for row in found if _since(paths.vm_dir(row.name)))
    return Plan(tuple(steps), left, again)


def _orphans(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.orphan]


# --- VMs -----------------------------------------------------------------------------------------


def _vm_step(row: Row, grace: float, now: float) -> Step:
    folder = paths.vm_dir(row.name)
    known = _volumes(row, folder)
    item = Item("vm", row.name, "remove", row.orphan, row.disk_bytes, volumes=known or ())
    since = _since(folder)
    until = (since or now) + grace
    if known == () or (since and until <= now):
        return Step(item, lambda: _under_lock(row, lambda: _remove(row)))
    what = f"has the volumes {', '.join(known)}" if known else "may have volumes"
    action = "stop" if _lives(row) else "keep"
    item = replace(item, action=action, why=f"{row.orphan}; it {what}", until=until)
    return Step(item, lambda: _under_lock(row, lambda: _keep(row, since or now)))


def _volumes(row: Row, folder: Path) -> tuple[str, ...] | None:
    """The named volumes of an orphan; None where it may have some."""
    if not row.vm_id:
        return ()
    if row.state == "absent":
        return None if is_out_of_sight(folder) else ()
    owner = instance.read_owner(row.name)
    if owner is not None and owner.is_replaced():
        return None  # its own repository may have been moved: it has the grace to say so
    if _lives(row) and owner is not None:
        mine = instance.Instance(row.name, row.vm_id)
        return removal.ask_volumes(mine, owner, state=row.state)
    return volumes.known(folder)


def _lives(row: Row) -> bool:
    """Whether it may have processes: a broken one may hold its memory as well."""
    return row.state not in ("stopped", "absent")


def _since(folder: Path) -> float:
    found = read_toml(folder / volumes.KEPT).get("since", 0)
    return float(found) if isinstance(found, (int, float)) else 0.0


def _under_lock(row: Row, act: Callable[[], None]) -> str:
    """Act on an orphan while its lock is ours; why not, where that is not so."""
    folder = paths.vm_dir(row.name)
    if not folder.is_dir():
        return ""
    lock = VmLock(folder)
    if not lock.take():
        return f"process {lock.holder() or '?'} works on it"
    try:
        owner = instance.read_owner(row.name)
        if (owner.vm_id if owner else "") != row.vm_id or instance.is_damaged(row.name):
            return "another VM has its name by now"
        if owner is not None and (why := _not_gone(owner)):
            return why
        act()
    finally:
        lock.free()
    return ""


def _not_gone(owner: instance.Owner) -> str:
    """Why the VM is somebody's after all: it may have been claimed just now."""
    with locks.tried(paths.vms_dir() / instance.CLAIMS) as mine:
        if not mine:
            return "a VM gets its name just now"
        return "" if places.find(owner).orphan else "its worktree is there again"


def _remove(row: Row) -> None:
    removal.remove(instance.Instance(row.name, row.vm_id), row.driver)


def _keep(row: Row, since: float) -> None:
    folder = paths.vm_dir(row.name)
    owner = instance.read_owner(row.name)
    if _lives(row) and owner is not None:
        mine = instance.Instance(row.name, row.vm_id)
        found = removal.ask_volumes(mine, owner, state=row.state)
        removal.halt(mine, owner)
        if found is not None:
            volumes.record(folder, found)
    write_toml(folder / volumes.KEPT, {"since": since})


# --- carrying it out -----------------------------------------------------------------------------


def carry_out(plan: Plan, tell: Callable[[Item], None] = lambda item: None) -> list[Item]:
    """Do it all, one after the other; what fails stops nothing else.  ``tell`` is given each item
    as it is done.
    """
    for name in plan.again:
        with contextlib.suppress(OSError):
            (paths.vm_dir(name) / volumes.KEPT).unlink(missing_ok=True)
    ended = []
    for step in plan.steps:
        item = step.item
        try:
            if item.action == "keep" and item.kind != "vm":
                done = item
            else:
                note = step.act()
                done = replace(item, done=not note and item.action != "keep", note=note)
        except Exception as error:
            done = replace(item, note=as_error(error).message, failed=True)
        ended.append(done)
        tell(done)
    return ended


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One gc at a time; raises BUSY where another is at work."""
    paths.make_private(paths.state_home())
    with locks.tried(paths.state_home() / "gc.lock", make=True) as mine:
        if not mine:
            raise VmoatError(
                "another gc is at work",
                hint="it does the same; `vmoat ls` shows what is left",
                code=Code.BUSY,
            )
        yield


def freed(items: Sequence[Item]) -> int:
    """Bytes that were freed, or would be."""
    return sum(item.size for item in items if item.action == "remove" and not item.note)


def remaining(until: float, now: float | None = None) -> str:
    """How long something is kept, for a person: ``71 h``."""
    seconds = max(0.0, until - (time.time() if now is None else now))
    return f"{seconds / 3600:.0f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min"
