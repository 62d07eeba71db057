"""Whether anybody uses the VM: what the companion sees of it, and since when there was nothing.

A VM is in use while a command of vmoat's goes on in it (``fleet.use``) or a run brings it up, while
a connection over one of its tunnels or to its dockerd is open, and while programs in it work.
Times are of the monotonic clock, which stands still while the host sleeps.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from typing import Any

from vmoat import dockercontext, netports
from vmoat.context import Context
from vmoat.errors import VmoatError
from vmoat.fleet import use
from vmoat.netports import Traffic
from vmoat.state import VmLock

LOOK = 5.0
"""Seconds between two looks at this machine; a closed connection is remembered for sixty."""
LOOK_AT_LOAD = 60.0
"""Seconds between two questions to the guest, which cost it a shell."""
LOAD_LIMIT = 2 * LOOK_AT_LOAD
"""Seconds between two answers beyond which they say nothing of now."""
LOAD = 0.25
"""CPUs that programs in the guest use, on average, above which they work."""
GUEST_LIMIT = 15.0
CPU_SCRIPT = 'read -r -a cpu </proc/stat; echo "${cpu[*]}"'
TICKS = 100
"""Of ``/proc/stat`` a second (proc(5), USER_HZ)."""


class Clock:
    """Since when nothing has happened.  Knows nothing of where its facts come from."""

    def __init__(self, now: float) -> None:
        self._used_at = now
        self.why = "it was started"
        self._over: frozenset[str] = frozenset()
        self._users: frozenset[str] = frozenset()
        self._cpu: tuple[float, float] | None = None

    def used(self, now: float, why: str) -> None:
        """The VM is in use."""
        self._used_at, self.why = now, why

    def idle(self, now: float) -> float:
        """Seconds without any use."""
        return now - self._used_at

    def traffic(self, now: float, seen: Traffic) -> None:
        """A connection that is open is a use, and so is one that came and went since."""
        if seen.open or seen.over - self._over:
            self.used(now, "a tunnel")
        self._over = seen.over

    def docker(self, now: float, users: frozenset[str]) -> None:
        """A connection to dockerd that lasts from one look to the next is a use.

        Shorter ones are the questions of `vmoat status` and the like.
        """
        if users & self._users:
            self.used(now, "docker")
        self._users = users

    def load(self, now: float, cpu: float) -> None:
        """``cpu``: seconds of CPU that the guest's programs have used since its boot."""
        before, self._cpu = self._cpu, (now, cpu)
        if before is None or now - before[0] > LOAD_LIMIT:
            return
        if cpu - before[1] > LOAD * (now - before[0]):
            self.used(now, "load")


def guest_cpu(answer: str) -> float | None:
    """Seconds of CPU from the first line of ``/proc/stat``; None for another answer.

    Without what waits (idle, iowait) and what the host did instead (steal); see proc(5).
    """
    words = answer.split()
    if len(words) < 8 or words[0] != "cpu" or not all(word.isdigit() for word in words[1:8]):
        return None
    user, nice, system, _, _, irq, softirq = map(int, words[1:8])
    return (user + nice + system + irq + softirq) / TICKS


class Idleness:
    """The clock of one VM, and its looks at this machine and at the guest."""

    def __init__(
        self, ctx: Context, limit: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        """``limit``: seconds after which the VM is to be stopped; 0 for never."""
        self._ctx = ctx
        self._now = now
        self.clock = Clock(now())
        self.limit = limit
        # Nobody else goes by the load, and the guest has to be asked for it.
        self._asks = bool(limit) or ctx.settings.fleet_evict == "idle"
        self._look_every = min(LOOK, limit / 4) if limit else LOOK
        self._load_every = min(LOOK_AT_LOAD, limit / 2) if limit else LOOK_AT_LOAD
        self._looked = self._asked = now() - LOOK_AT_LOAD
        self._marked = use.last(ctx.instance.folder)
        self._master = 0

    def look(self) -> None:
        """Look again, unless that was done just now."""
        now = self._now()
        if now - self._looked < self._look_every:
            return
        self._looked = now
        self._look_at_commands(now)
        with contextlib.suppress(VmoatError, OSError):
            self.clock.traffic(now, netports.traffic(self._ports()))
            docker = dockercontext.socket_of(self._ctx.instance.vm_id)
            self.clock.docker(now, netports.socket_users(docker))
        if self._asks and now - self._asked >= self._load_every:
            self._asked = now
            self._look_at_load(now)

    def _look_at_commands(self, now: float) -> None:
        folder = self._ctx.instance.folder
        marked = use.last(folder)
        if marked != self._marked or use.held(folder) or VmLock(folder).held():
            self.clock.used(now, "a command")
        self._marked = marked

    def _ports(self) -> Collection[int]:
        """The ports that the master listens on: tunnels, and what a browser goes through."""
        connection = self._ctx.guest.connection
        ports = netports.listening_ports(self._master) if self._master else None
        if ports is None:
            self._master = connection.pid()
            ports = netports.listening_ports(self._master) if self._master else None
        return connection.ports.record.read().keys() if ports is None else ports

    def _look_at_load(self, now: float) -> None:
        """A guest that does not answer is left alone: it may be busy, or in need of a person."""
        try:
            answer = self._ctx.guest.run(CPU_SCRIPT, check=False, timeout=GUEST_LIMIT).out
        except VmoatError:
            self.clock.used(now, "it does not answer")
            return
        cpu = guest_cpu(answer)
        if cpu is not None:
            self.clock.load(now, cpu)

    def is_over(self) -> bool:
        """Whether the VM was idle for as long as it may be."""
        return bool(self.limit) and self.clock.idle(self._now()) >= self.limit

    def state(self) -> dict[str, Any]:
        """For those who ask: since when (unix time), and what was last."""
        idle = self.clock.idle(self._now())
        return {"idle_since": round(time.time() - idle, 1), "last_use": self.clock.why}
