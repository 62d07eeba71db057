"""Since when a VM is idle, as others see it.

Its companion knows (``companion.idleness``); without one, the mark that each command leaves.
"""

from __future__ import annotations

import time

from vmoat import paths
from vmoat.companion import process
from vmoat.fleet import use
from vmoat.state import VmLock


def since(name: str) -> float | None:
    """When the VM was used last (unix time); None while it is in use."""
    folder = paths.vm_dir(name)
    if use.held(folder) or VmLock(folder).held():
        return None
    found = process.state(paths.vm_id(name)).get("idle_since")
    return float(found) if isinstance(found, (int, float)) else use.last(folder)


def words(when: float | None) -> str:
    """For a person: ``in use``, ``idle since 14:05``."""
    if when is None:
        return "in use"
    if not when:
        return "idle"
    if time.time() - when < 60:
        return "in use until just now"
    far = time.time() - when > 86_400 / 2
    return time.strftime("idle since %Y-%m-%d %H:%M" if far else "idle since %H:%M",
                         time.localtime(when))  # fmt: skip
