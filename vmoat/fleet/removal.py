"""Stopping and removing a VM by its name alone, where there may be no worktree to go from."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from vmoat import dockercontext, drivers, instance, paths
from vmoat.browser import profiles
from vmoat.companion import process as companion
from vmoat.errors import VmoatError
from vmoat.fleet import volumes
from vmoat.instance import Instance, Owner

ASK_SECONDS = 20.0
"""For a guest to list its volumes."""
END_SECONDS = 3.0
"""For a process to end before it is killed."""


def ask_volumes(mine: Instance, owner: Owner, *, state: str) -> tuple[str, ...] | None:
    """The named volumes of a VM that lives, in the guest's word; None where it does not answer.

    One whose worktree was removed may count as broken, for its shares are gone: it is asked over
    the connection that there is, and not waited for.
    """
    from vmoat.guest import Guest

    try:
        endpoint = drivers.load(owner.driver).ssh_endpoint(mine.name)
        guest = Guest(endpoint, paths.runtime_dir(mine.vm_id), owner.worktree, {})
        if state != "running" and not guest.connected():
            return None
        guest.connect(ASK_SECONDS)
        done = guest.run(volumes.LIST, root=True, check=False, timeout=ASK_SECONDS)
    except (VmoatError, OSError):
        return None
    return volumes.named(done.out.split()) if done.rc == 0 else None


def halt(mine: Instance, owner: Owner) -> None:
    """Power the VM off and end what serves it; its disks stay.  Its containers are ended as the
    guest goes down: CMD_DOWN is the worktree's, and there may be none.  The VM's lock is held.
    """
    companion.end(mine.vm_id)  # it would connect again
    drivers.load(owner.driver).stop(mine.name)
    end_clients(paths.runtime_place(mine.vm_id))


def remove(mine: Instance, driver: str) -> None:
    """Remove the VM and every byte of it; the VM's lock is held.

    Killed half way, it leaves a VM without disks, or a folder without an owner: gc ends both.  One
    without an id has no owner file, or a damaged one; its driver's record says whose it is.
    """
    if not mine.vm_id:
        _remove_ownerless(mine.name)
        return
    companion.end(mine.vm_id)
    runtime = paths.runtime_place(mine.vm_id)
    drivers.load(driver).delete(mine.name)
    end_clients(runtime)
    dockercontext.remove(mine.name, mine.vm_id)
    profiles.remove(mine.vm_id)
    instance.release(mine)


def _remove_ownerless(name: str) -> None:
    folder = paths.vm_dir(name)
    drivers.load(instance.driver_made(name)).delete(name)
    shutil.rmtree(folder, ignore_errors=True)


def clients(runtime: Path) -> list[int]:
    """The ssh processes, masters above all, that go by the config in a runtime folder."""
    start = (b"-F", os.fsencode(runtime / "ssh_config"))
    return processes(lambda words: os.path.basename(words[0]) == b"ssh" and start == words[1:3])


def end_clients(runtime: Path) -> None:
    """End them: their sockets are gone, or lead nowhere."""
    end(clients(runtime))


def processes(wanted: Callable[[tuple[bytes, ...]], bool]) -> list[int]:
    """The processes whose words are so; none where there is no proc(5)."""
    found = []
    for entry in _pids():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            if wanted(tuple(words)):
                found.append(entry)
    return found


def _pids() -> list[int]:
    try:
        return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    except OSError:
        return []


def end(pids: list[int]) -> None:
    """Terminate, wait, kill."""
    from vmoat.drivers.qemu.process import Process, wait_gone

    left = [Process.of("", pid) for pid in pids]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for one in left:
            one.signal(number)
        if wait_gone(left, END_SECONDS):
            return
