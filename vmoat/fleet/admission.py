"""Room for a VM: an `up` that would take this machine past its memory limit waits, first come
first served.

What a VM takes stands in the file ``room`` of its state folder (GiB).  It counts while the process
that starts the VM holds the file, and from then on while the VM lives, by its driver's look at its
processes: a start that fails, a worker that is killed and a VM that stops give it back without
doing anything.  Who waits stands in the queue (``tickets``); only the first of it looks.

Who waits holds nothing: two VMs that grow and kept what they have would wait for each other.  So a
VM that runs and is to have more than it has

- is refused before anything is ended, where it is larger than the limit, or where nobody wants to
  wait and there is no room;
- takes the whole room at once where there is as much besides the others, and is ended then;
- else is ended, which gives back what it had, and waits at the place that it had in the queue from
  before its end.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmoat import drivers, instance, locks, paths, view
from vmoat.config import amounts
from vmoat.config.settings import user_file
from vmoat.context import Context, host_size, load
from vmoat.errors import Code, VmoatError
from vmoat.fleet import idle, stopping, tickets
from vmoat.fleet.tickets import Held, Ticket
from vmoat.state import StageStore

ROOM = "room"
POLL, LONGEST = 0.5, 5.0
"""Seconds between two looks of one that waits, at least and at most."""
SHARE_OF_TIME = 10
"""A look at many VMs takes long, and is repeated only after so many times as long."""
EVICT_AFTER = 60.0
"""Seconds that a VM must have been idle before it is stopped for another one."""
SHOWN = 8
"""VMs that are named to one that waits."""


@dataclass(frozen=True)
class Taken:
    """What one VM takes of the memory."""

    name: str
    memory: float
    """GiB."""
    starts: bool
    """Whether it is being started now; else it runs."""


def taken(besides: str = "", *, forget: bool = False) -> list[Taken]:
    """The VMs that run or start now, but for one.

    ``forget``, in ``turn`` only: the room of those that have ended is looked at no more.
    """
    found = []
    for file in sorted(paths.vms_dir().glob(f"[!.]*/{ROOM}")):
        name = file.parent.name
        if name == besides:
            continue
        starts = locks.held(file)
        if starts or lives(name):
            found.append(Taken(name, _size(file), starts))
        elif forget:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
    return found


def lives(name: str) -> bool:
    """Whether a VM takes memory: also one that is paused, or broken with processes left, or one
    that cannot be looked at.
    """
    owner = instance.read_owner(name)
    if owner is None and not instance.is_damaged(name):
        return False
    try:
        driver = drivers.load(owner.driver if owner else instance.driver_made(name))
    except VmoatError:  # it is no more
        return False
    try:
        status = driver.status(name)
    except (VmoatError, OSError):
        return True
    return status.state in ("running", "starting", "paused") or bool(status.pids)


def limit(portion: str) -> float:
    """``[fleet] memory`` in GiB of this host; a VM of 1 GiB can run on the smallest."""
    return max(1.0, amounts.part(portion, host_size().memory_gib))


class Room:
    """The room of one VM, while it is started: ``with Room(ctx) as room: … room.take()``."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._name = ctx.instance.name
        self._need = ctx.spec.memory_gib
        self._portion = ctx.settings.fleet_memory
        self._limit = limit(self._portion)
        self._config = _written(user_file())
        self._file = ctx.instance.folder / ROOM
        self._held: Held | None = None
        self._ticket: Ticket | None = None
        self._queue = Queue((), ())
        self._pause = POLL
        self._stopping: subprocess.Popen[bytes] | None = None
        self._tried: dict[str, float] = {}
        self.grows = ""
        """Why a VM that runs must be ended before this; "" where it need not be."""

    def __enter__(self) -> Room:
        """Keeps what a VM that runs has already: its restart needs no place in the queue.

        For one that is to have more than it has (``grows``) see the module; raises as ``take``.
        """
        try:
            self._begin()
        except BaseException:  # with nothing entered, nothing is left
            self.__exit__()
            raise
        return self

    def _begin(self) -> None:
        with tickets.turn():
            had = _size(self._file) if lives(self._name) else 0.0
            if had >= self._need:
                self._hold(had)  # until it is ended, if it is
            elif had:
                self.grows = f"its memory changed: {had:g} → {self._need:g}"
                self._join()
        if self._ticket and self._ctx.no_wait:
            self._wait()

    def __exit__(self, *_: object) -> None:
        self._leave()
        if self._held:
            self._held.free()

    def take(self) -> None:
        """Return once there is room, and it is this VM's.

        Raises CONFIG for a VM that is larger than the limit, BUSY where nobody wants to wait.
        """
        with tickets.turn():
            if self._held or lives(self._name):  # `colima start` may have been first
                self._hold(self._need)
                self._leave()
            elif not self._ticket:
                self._join()
        if self._ticket:
            self._wait()

    def _join(self) -> None:
        """Stand at the queue's end, or be let in at once; in ``turn``."""
        if self._need > self._limit:
            raise self._too_large()
        self._ticket = Ticket(self._name)
        self._look()

    def _leave(self) -> None:
        if self._ticket:
            self._ticket.leave()
        self._ticket = None

    def _look(self) -> None:
        """See who is ahead; the first sees what runs as well, and takes the room if it is there.

        In ``turn``, as is leaving the queue: nobody takes one that is let in for one that waits.
        """
        assert self._ticket is not None
        ahead = tuple(self._ticket.ahead())
        if ahead and ahead == self._queue.ahead:
            return
        self._queue = Queue(ahead, tuple(taken(self._name, forget=True)))
        if not ahead and self._need <= self._free():
            self._hold(self._need)
            self._leave()

    def _wait(self) -> None:
        began = time.monotonic()
        told: object = None
        while not self._held:
            makes_room = self._evict()
            if self._ctx.no_wait and not makes_room:
                raise self._no_room()
            if told != self._queue.key():
                told = self._queue.key()
                for line in self._waiting_lines():
                    self._ctx.say(line)
            time.sleep(self._pause)
            looking = time.monotonic()
            self._look_at_limit()
            with tickets.turn():
                self._look()
            self._pause = min(LONGEST, max(POLL, SHARE_OF_TIME * (time.monotonic() - looking)))
        self._ctx.say(f"there is room, after {view.clock(time.monotonic() - began)}")

    def _look_at_limit(self) -> None:
        """What a person gives to the VMs, or takes, counts for those that wait as well."""
        config, self._config = self._config, _written(user_file())
        if config != self._config:
            with contextlib.suppress(VmoatError):  # half written; it counts when it is whole
                self._portion = load(self._ctx.worktree.path, claim=False).settings.fleet_memory
        self._limit = limit(self._portion)
        if self._need > self._limit:
            raise self._too_large()

    def _evict(self) -> bool:
        """Have the VM stopped that was idle for longest, where such stops make room enough.

        Whether one is being stopped, or was a moment ago.
        """
        if self._ctx.settings.fleet_evict != "idle" or self._queue.ahead:
            return False
        if self._stopping:
            code = self._stopping.poll()
            if code is None:
                return True
            self._stopping = None
            if code == 0:
                return True  # what it took is looked at once more
        now = time.monotonic()
        others = [one for one in self._queue.others if self._tried.get(one.name, 0) <= now]
        name = longest_idle(others, self._need - self._free(), time.time())
        if not name:
            return False
        self._ctx.say(f"{name} is stopped: nobody uses it")
        self._tried[name] = now + EVICT_AFTER
        with contextlib.suppress(OSError):  # it was destroyed meanwhile
            self._stopping = stopping.begin(name, EVICT_AFTER, self._name)
        return True

    def _free(self) -> float:
        return self._limit - sum(one.memory for one in self._queue.others)

    def _hold(self, memory: float) -> None:
        text = f"{memory:g}\n"
        if self._held:
            self._held.write(text)
        else:
            self._held = Held(self._file, text)

    # --- what is said

    def _waiting_lines(self) -> list[str]:
        """The reason last: a heartbeat repeats it."""
        first = f"; before it: {', '.join(self._queue.ahead)}" if self._queue.ahead else ""
        return [*told_of(self._queue.others), f"waiting for room: {self._shortage()}{first}"]

    def _shortage(self) -> str:
        free = max(0.0, self._free())
        return (
            f"{self._name} needs {self._need:g} GiB, and {free:g} of the {self._limit:g} GiB for "
            "VMs are free ([fleet] memory)"
        )

    def _no_room(self) -> VmoatError:
        return VmoatError(
            f"there is no room: {self._shortage()}",
            hint="`vmoat down` in one of these worktrees makes room; without --no-wait, `up` waits",
            code=Code.BUSY,
            details=[
                *told_of(self._queue.others),
                *(f"{name} waits for room" for name in self._queue.ahead),
            ],
        )

    def _too_large(self) -> VmoatError:
        return VmoatError(
            f"{self._name} needs {self._need:g} GiB, more than all VMs may have together "
            f"({self._limit:g} GiB)",
            hint="lower [vm] memory, or raise [fleet] memory in your own config.toml",
            code=Code.CONFIG,
        )


def require_none_waits(ctx: Context) -> None:
    """Raises BUSY where the run that works on this VM waits for room: joining it is waiting too."""
    if ctx.instance.name in tickets.waiting():
        raise VmoatError(
            f"{ctx.instance.name} waits for room already",
            hint="`vmoat wait` follows it, `vmoat down` ends it",
            code=Code.BUSY,
        )


@dataclass(frozen=True)
class Queue:
    """What one that waits has seen last."""

    ahead: tuple[str, ...]
    others: tuple[Taken, ...]

    def key(self) -> object:
        """Changes when there is something new to say."""
        return self.ahead, [(one.name, one.memory) for one in self.others]


def longest_idle(others: Sequence[Taken], missing: float, now: float) -> str:
    """Whom to stop so that ``missing`` GiB get free; "" where all idle ones are not enough."""
    sleepy = [
        (since, one)
        for one in others
        if not one.starts
        and (since := idle.since(one.name)) is not None
        and now - since >= EVICT_AFTER
    ]
    if not sleepy or sum(one.memory for _, one in sleepy) < missing:
        return ""
    return min(sleepy, key=lambda pair: pair[0])[1].name


def told_of(others: Sequence[Taken]) -> list[str]:
    """A line for each VM that takes room; a few of many."""
    lines = [f"{one.name} {_state(one)} ({one.memory:g} GiB)" for one in others[:SHOWN]]
    return lines + ([f"and {len(others) - SHOWN} more"] if len(others) > SHOWN else [])


def _state(one: Taken) -> str:
    if one.starts:
        return "starts"
    return f"runs, {idle.words(idle.since(one.name))}"


def _size(file: Path) -> float:
    """The GiB that a VM takes, by its room file; by what it was last started with, where that is
    damaged (a full disk); 0 where neither tells.
    """
    try:
        size = float(file.read_text())
    except (OSError, ValueError):
        size = math.nan
    return size if 0 < size < math.inf else started_with(file.parent)


def started_with(folder: Path) -> float:
    """The GiB on record in a VM's state folder, from the last time that its start was finished."""
    spec = StageStore(folder).values("vm").get("spec")
    memory = spec.get("memory") if isinstance(spec, dict) else None
    return float(memory) if isinstance(memory, (int, float)) else 0.0


def _written(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0
