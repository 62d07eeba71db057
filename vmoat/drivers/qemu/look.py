"""What is true of a VM now: from its processes, QEMU's word and its disks' files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from vmoat import paths
from vmoat.drivers import VmStatus
from vmoat.drivers.qemu import console, disks, process, qmp, record
from vmoat.errors import VmoatError

STATUS_SECONDS = 10.0
"""A busy host may keep QEMU's main loop from answering for seconds, and "broken" restarts a VM."""
ROOM = 512 << 20
"""Bytes free on the host's disk before a VM that a full disk paused goes on."""


def qmp_path(found: record.Record) -> Path:
    """QEMU's control socket."""
    return paths.runtime_dir(found.vm_id) / "qmp"


def free_bytes(folder: Path) -> int:
    """Room for this user on the file system of ``folder``."""
    try:
        facts = os.statvfs(folder)
    except OSError:
        return 0
    return facts.f_bavail * facts.f_frsize


def _disk_reasons(folder: Path, live: bool) -> list[str]:
    reasons = []
    for name in (disks.SYSTEM, disks.DATA):
        if not (folder / name).exists():
            reasons.append(f"{name} is gone")
        elif why := disks.damage(folder / name, tables=not live, deep=not live):
            reasons.append(why)
    return reasons


def status(name: str) -> VmStatus:
    """See ``Driver.status``."""
    folder = paths.disks_dir(name)
    found = record.read(name)
    there = [name for name in (disks.SYSTEM, disks.DATA) if (folder / name).exists()]
    disk = disks.read_record(folder).get("system", "") if disks.SYSTEM in there else ""
    some = bool(there)
    if found is None:
        return VmStatus("stopped" if some else "absent", disk=disk)
    facts = VmStatus(
        "stopped",
        accel=found.accel,
        mount=found.mount,
        boot=found.boot,
        disk=disk,
        spec_digest=found.spec_digest,
        ssh_port=found.ssh_port,
        pids={one.name: one.pid for one in found.living()},
    )
    qemu = found.process("qemu")
    live = qemu is not None and qemu.alive()
    reasons = _disk_reasons(folder, live)
    if found.phase == "stopped":
        if not some:
            return replace(facts, state="absent")
        return replace(facts, state="broken" if reasons else "stopped", reasons=tuple(reasons))
    if qemu is None or not live:
        return _ended(name, found, facts, reasons)
    return _alive(name, found, qemu, facts, reasons)


def _ended(name: str, found: record.Record, facts: VmStatus, reasons: list[str]) -> VmStatus:
    """QEMU should run and does not."""
    if not found.of_this_boot():
        why = "the host was restarted under it"
    elif found.phase == "starting":
        why = "its start was interrupted"
    elif "reboot: Power down" in console.text(name)[-4000:]:
        return replace(facts, state="broken" if reasons else "stopped", reasons=tuple(reasons))
    else:
        why = "QEMU ended: it was killed, or it failed"
    return replace(facts, state="broken", reasons=(why, *reasons))


def _alive(
    name: str,
    found: record.Record,
    qemu: process.Process,
    facts: VmStatus,
    reasons: list[str],
) -> VmStatus:
    if qemu.stopped():
        why = f"a signal stopped its QEMU (process {qemu.pid})"
        return replace(facts, state="paused", reasons=(why, *reasons))
    try:
        with qmp.connect(qmp_path(found), STATUS_SECONDS) as monitor:
            state = str(monitor.command("query-status")["status"])
    except VmoatError:
        return replace(facts, state="broken", reasons=("QEMU does not answer", *reasons))
    living = {one.name for one in found.living()}
    if found.walls:
        reasons += [
            f"its network process `{one}` ended" for one in ("guard", "passt") if one not in living
        ]
        shares = [one for one in found.processes if one.name.startswith(record.SHARING)]
        reasons += [f"its share process `{o.name}` ended" for o in shares if o.name not in living]
        nested = [target for target, path in found.hidden.items() if os.path.isdir(path)]
        server = next((one for one in shares if one.name == record.SHARING + "worktree"), qemu)
        reasons += [
            f"the wall over {path.removeprefix(record.SHARES)} is gone: "
            "the host replaced what it stood on"
            for path in missing_mounts(server.pid, [*found.wanted, *nested])
        ]
    if state == "io-error":
        free = free_bytes(paths.disks_dir(name))
        why = (
            f"the host's disk is full ({free >> 20} MiB free)"
            if free < ROOM
            else ("a write to its disk failed")
        )
        return replace(facts, state="paused", reasons=(why, *reasons))
    if state in ("paused", "suspended"):
        return replace(facts, state="paused", reasons=("it was paused", *reasons))
    if state not in ("running", "prelaunch", "inmigrate"):
        reasons.append(f"QEMU says `{state}`")
    if reasons:
        return replace(facts, state="broken", reasons=tuple(reasons))
    return replace(facts, state="starting" if found.phase == "starting" else "running")


def weights(name: str) -> dict[str, int]:
    """See ``Driver.weights``."""
    folder = paths.disks_dir(name)
    found = record.read(name)
    image = disks.read_record(folder).get("image", "")
    living = found.living() if found else []
    return {
        "system": disks.weight_of(folder / disks.SYSTEM),
        "data": disks.weight_of(folder / disks.DATA),
        "image": disks.weight(paths.images_dir() / image) if image else 0,
        "memory": sum(process.resident(one.pid) for one in living),
    }


def missing_mounts(pid: int, wanted: list[str]) -> list[str]:
    """Which of the mount points are not there (any more) in that process's namespace.

    The kernel drops a mount when the host replaces the file under it by another (rename).
    """
    try:
        text = Path(f"/proc/{pid}/mountinfo").read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        return []
    there = {_unescape(line.split(" ", 5)[4]) for line in text.splitlines()}
    return [path for path in wanted if path not in there]


def _unescape(path: str) -> str:
    for code, char in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        path = path.replace("\\" + code, char)
    return path
