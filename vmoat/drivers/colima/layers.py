"""A new VM's data disk begins as a copy of another VM's of the same repository.

Images and build cache come along, so that the second VM need not pull and build again.  Taken is
the disk of a VM that was shut down in order, of the same git folder and of vmoat's making; where
none is, nothing happens.  Containers, volumes and networks are the other worktree's: none of them
starts in the new VM, and all are removed at its first boot (``equip``).

A copy costs no room where the file system shares blocks (APFS, btrfs, xfs); elsewhere, what the
disk holds.  Colima does not format a disk that its record calls formatted (createRuntimeDisk in
environment/vm/lima/disk.go).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from vmoat import paths, proc
from vmoat.drivers import Say, VmSpec
from vmoat.drivers.colima import homes, look, record
from vmoat.drivers.colima.homes import Place
from vmoat.errors import Code, VmoatError

COPY_SECONDS = 900.0
RESIZE_SECONDS = 120.0
ROOM = 2 << 30
"""Bytes that stay free on the host's disk when a copy takes room."""
MARK = "copied-from"
"""In the data disk's folder, until the other VM's containers are gone."""


def begin(spec: VmSpec, place: Place, say: Say) -> None:
    """Copy the best disk there is; what goes wrong leaves the VM with an empty one."""
    found = best(spec)
    if found is None:
        return
    name, source, gib = found
    size = os.stat(source).st_blocks * 512
    facts = os.statvfs(place.home)
    if facts.f_bavail * facts.f_frsize < size + ROOM:
        say(f"no room for a copy of the disk of {name}: this VM begins with an empty one")
        return
    place.data_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = place.data_folder / ".new-datadisk"
    try:
        proc.run(copy_argv(source, draft), timeout=COPY_SECONDS, code=Code.VM)
    except VmoatError as error:
        draft.unlink(missing_ok=True)
        say(f"the disk of {name} could not be copied ({error.message}): this one begins empty")
        return
    if not still_good(name):
        draft.unlink(missing_ok=True)
        return
    (place.data_folder / MARK).write_text(name + "\n")
    place.store.write_text(json.dumps({"disk_formatted": True, "disk_runtime": "docker"}))
    draft.replace(place.data_disk)
    known = record.read(spec.name)
    if known:
        known.disk_gib = gib
        record.write(spec.name, known)
    say(f"its images and build cache begin as those of {name}")


def copy_argv(source: Path, target: Path) -> list[str]:
    """A copy that shares blocks where it can, and keeps holes."""
    if sys.platform == "darwin":
        return ["cp", "-c", str(source), str(target)]
    return ["cp", "--reflink=auto", "--sparse=always", str(source), str(target)]


def best(spec: VmSpec) -> tuple[str, Path, int] | None:
    """The VM whose disk is taken: its name, the disk, its size in GiB.  The newest counts."""
    found = []
    for folder in paths.vms_dir().glob("[!.]*"):
        known = record.read_file(folder / "driver.toml")
        if folder.name == spec.name or known is None or not known.home or known.adopted:
            continue
        disk = Place(Path(known.home), known.profile).data_disk
        if known.common_dir != str(spec.common_dir) or not 0 < known.disk_gib <= spec.disk_gib:
            continue
        if disk.is_file() and still_good(folder.name):
            found.append((disk.stat().st_mtime_ns, folder.name, disk, known.disk_gib))
    if not found:
        return None
    _, name, disk, gib = max(found, key=lambda row: row[:2])
    return name, disk, gib


def still_good(name: str) -> bool:
    """Whether the VM was shut down in order and has not started since."""
    known = record.read(name)
    place = homes.place_of(name)
    if known is None or known.phase != "stopped" or not known.clean or copied(place):
        return False
    return not look.agent(place) and not look.machine(place) and not look.starting(known)


def copied(place: Place) -> bool:
    """Whether the data disk still holds another VM's containers."""
    return (place.data_folder / MARK).exists()


def done(place: Place) -> None:
    """They are gone."""
    (place.data_folder / MARK).unlink(missing_ok=True)


def grow(spec: VmSpec, place: Place, known: record.Record) -> None:
    """Give a copied disk the size asked for, before its first start: Colima itself resizes when
    it starts a VM again, by the size on its own record (syncDiskSize)."""
    if not copied(place) or (place.instance / "lima.yaml").exists():
        return
    if known.disk_gib >= spec.disk_gib:
        return
    words = ["qemu-img", "resize", "-q", str(place.data_disk), f"{spec.disk_gib}G"]
    if proc.which("qemu-img"):
        proc.run(words, timeout=RESIZE_SECONDS, code=Code.VM)
