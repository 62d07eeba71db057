"""Ending a VM: Colima's own stop, then force, then signals; and removing it, every byte."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from pathlib import Path

from vmoat import paths, proc
from vmoat.drivers.colima import argv, homes, look, pids, record, words
from vmoat.drivers.colima.homes import Place
from vmoat.errors import Code, VmoatError

GRACE = 60.0
"""Seconds for `colima stop` beyond what the guest is given; it stops dockerd first."""
FORCE_SECONDS = 60.0
DELETE_SECONDS = 120.0
CONTEXT_SECONDS = 20.0
ROUNDS = 5
GONE_SECONDS = 2.0
"""For Lima's agent to end after the VM has."""


def stop(name: str, *, timeout: float = 60) -> None:
    """See ``Driver.stop``."""
    known = record.read(name)
    place = homes.place_of(name)
    if known:
        end_starter(known)
    if not look.agent(place) and not look.machine(place):
        _stopped(name, place, clean=bool(known and known.clean))
        return
    with homes.locked(place):
        clean = _stop(place, timeout)
    _stopped(name, place, clean=clean)


def _stop(place: Place, timeout: float) -> bool:
    """Whether it went down in order."""
    clean = False
    if look.agent(place) and look.machine(place):
        with contextlib.suppress(VmoatError):
            done = proc.run(
                argv.stop(place), env=argv.environment(place), check=False, timeout=timeout + GRACE
            )
            clean = done.rc == 0
    if look.machine(place):
        clean = False
        with contextlib.suppress(VmoatError):
            words_ = argv.stop(place, force=True)
            proc.run(words_, env=argv.environment(place), check=False, timeout=FORCE_SECONDS)
    end_everything(place)
    return clean


def _stopped(name: str, place: Place, *, clean: bool) -> None:
    known = record.read(name)
    if known is None:
        return
    if look.machine(place):
        raise VmoatError(
            f"the VM {name} cannot be stopped",
            hint=f"end its processes by hand: {_told(place)}",
            code=Code.VM,
        )
    known.phase, known.starter, known.clean = "stopped", "", clean
    record.write(name, known)


def _told(place: Place) -> str:
    found = [look.machine(place), look.agent(place)]
    return ", ".join(str(one.pid) for one in found if one)


def end_starter(known: record.Record) -> None:
    """End a `colima start` that is under way, with its limactl."""
    if not look.starting(known):
        return
    pid = int(known.starter.split()[0])
    if living := pids.look(pid, ""):
        pids.end([living], "", gently=True)
    known.starter = ""


def end_everything(place: Place) -> None:
    """No process of the VM is left; in a home of its own, none that names the home."""
    deadline = time.monotonic() + GONE_SECONDS
    # whose VM has ended ends by itself, and frees the disk
    while look.agent(place) and not look.machine(place) and time.monotonic() < deadline:
        time.sleep(0.05)
    mark = place.instance if place.adopted else place.home
    for _ in range(ROUNDS):  # one that is ended may have started another meanwhile
        if not (left := pids.with_mark(mark)):
            break
        pids.end(left, mark)
    for name in (look.AGENT, *look.MACHINES):
        (place.instance / name).unlink(missing_ok=True)
    unlock(place)


def unlock(place: Place) -> None:
    """Take away what says that the data disk is in use, where nothing uses it.

    The link stays when the VM is killed or this machine goes down, and Lima then refuses the disk
    (pkg/store/disk.go; colima#1170).
    """
    link = place.data_folder / "in_use_by"
    if link.is_symlink() and not look.machine(place) and not look.agent(place):
        link.unlink(missing_ok=True)


def delete(name: str) -> None:
    """See ``Driver.delete``."""
    known = record.read(name)
    place = homes.place_of(name)
    if known:
        end_starter(known)
    if place.adopted:
        with homes.locked(place):
            _delete_adopted(place)
    else:
        delete_own(place)
    state = paths.vm_dir(name)
    for vm_id in {known.vm_id if known else "", paths.vm_id(name)} - {""}:
        remove(paths.runtime_dir(vm_id))
    remove(state / "ssh")
    for entry in ("driver.toml", "git-seen", words.LOG):
        (state / entry).unlink(missing_ok=True)


def delete_own(place: Place) -> None:
    """All of it lies in its home, the docker context included."""
    if not place.home.exists():
        return
    end_everything(place)
    remove(place.home)
    with contextlib.suppress(OSError):
        place.home.parent.rmdir()  # where it was the last
    if place.home.exists():
        raise VmoatError(
            f"{place.home} could not be removed", hint="remove it by hand", code=Code.VM
        )


def _delete_adopted(place: Place) -> None:
    """Colima's own delete; then what it leaves: after a first start that failed the data disk, its
    record, a folder without lima.yaml (app/app.go: Delete), and its docker context.
    """
    env = argv.environment(place)
    with contextlib.suppress(VmoatError):
        proc.run(argv.delete(place), env=env, check=False, timeout=DELETE_SECONDS)
    end_everything(place)
    for folder in (place.instance, place.data_folder, place.home / place.profile):
        remove(folder)
    place.store.unlink(missing_ok=True)
    with contextlib.suppress(VmoatError):
        words_ = ["docker", "context", "rm", "--force", place.ident]
        proc.run(words_, check=False, timeout=CONTEXT_SECONDS)
    if place.instance.exists() or place.data_folder.exists():
        raise VmoatError(
            f"{place.instance} could not be removed",
            hint="remove it, and its folder in _disks, by hand",
            code=Code.VM,
        )


def remove(folder: Path) -> None:
    """A folder and all that is in it, read-only files as well; quiet where there is none."""

    def writable(function: object, path: str, _: object) -> None:
        with contextlib.suppress(OSError):
            os.chmod(os.path.dirname(path), stat.S_IRWXU)
            os.unlink(path)

    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder, onerror=writable)
