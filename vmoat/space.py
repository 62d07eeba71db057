"""A guest whose disk is full: said with the culprit and the command that frees room.

dockerd dies of a full disk and does not start again, and what waits for it waits for ever: so a
stack's start is watched.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmoat import culprits
from vmoat.context import Context
from vmoat.errors import Code, VmoatError
from vmoat.facts import Facts, Probe

if TYPE_CHECKING:
    from vmoat.guest import Guest

LOW = 32 << 20
"""Bytes; with less dockerd does not start."""

POLL = 10.0
"""Seconds between two looks at a guest whose stack starts."""

LOOK_LIMIT = 150.0
"""Seconds for a look that has begun when the unit ends."""

CURE = (
    "`vmoat ssh 'docker system prune -af'` frees images and build cache, `vmoat ssh sudo rm …` a "
    "file; a larger vm.disk holds from the next `vmoat up` on"
)


FULL = VmoatError("the VM's disk is full", hint=CURE, code=Code.STAGE)


def full(facts: Facts) -> list[str]:
    """The mounts without room."""
    return [name for name, (_, free) in facts.space.items() if name[:1] == "/" and free < LOW]


def complaint(guest: Guest) -> VmoatError | None:
    """The error of a guest without room; None where there is some."""
    facts = guest.facts(Probe(space=True))
    mounts = full(facts)
    if not mounts:
        return None
    found: list[culprits.Culprit] = []
    with contextlib.suppress(VmoatError):  # looking takes long on a large disk
        answer = guest.run(culprits.script(mounts), root=True, check=False, timeout=120).out
        found = culprits.parse(answer)
    free = min(facts.space[name][1] for name in mounts)
    first = f"`{found[0].cure}` frees {found[0].mib} MiB; " if found and found[0].cure else ""
    return VmoatError(
        f"the VM's disk is full: {free >> 20} MiB are free in {' and '.join(mounts)}",
        hint=first + CURE,
        code=Code.STAGE,
        details=[one.told() for one in found],
    )


def suspicion(guest: Guest) -> VmoatError | None:
    """As ``complaint``, where it may be why something else failed: never in the way of telling."""
    with contextlib.suppress(VmoatError):
        return complaint(guest)
    return None


def require(ctx: Context) -> None:
    """Raise STAGE where the guest has no room."""
    error = complaint(ctx.guest)
    if error is not None:
        raise error


@contextlib.contextmanager
def watched(ctx: Context, unit: str) -> Iterator[None]:
    """End a unit that waits for a dockerd which a full disk has killed; raises STAGE then."""
    over = threading.Event()
    found: list[VmoatError] = []
    guest = ctx.guest

    def look() -> None:
        missed = 0
        while not over.wait(POLL) and not found:
            with contextlib.suppress(VmoatError):
                facts = guest.facts(Probe(docker=True, space=True))
                missed = missed + 1 if full(facts) and not facts.docker else 0
                if missed > 1:
                    # First the end of what waits for ever; then who filled the disk.
                    guest.stop_stage(unit)
                    found.append(suspicion(guest) or FULL)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    except VmoatError as error:
        over.set()
        watcher.join(LOOK_LIMIT)
        if found:
            ctx.store.attempt_failed(unit, "the VM's disk was full")
            raise found[0] from error
        raise
    finally:
        over.set()
