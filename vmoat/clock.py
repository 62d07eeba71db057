"""The guest's clock: it stands still while the host sleeps or the VM is paused.

Every command that goes to the guest brings the host's time along; comparing costs no program there.
"""

from __future__ import annotations

BEHIND = 4
"""Seconds; a clock that is late by more is stepped."""
AHEAD = 60
"""Seconds; many, because a command that was long under way makes the guest seem ahead."""


def step(now: float) -> str:
    """A line of bash that sets a clock which is far from ``now`` (seconds since the epoch)."""
    return (
        f"_late=$(({int(now)} - EPOCHSECONDS)); "
        f"[ $_late -le {BEHIND} ] && [ $_late -ge -{AHEAD} ] || "
        f"sudo -n date -s @{int(now)} >/dev/null 2>&1; "
    )
