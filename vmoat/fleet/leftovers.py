"""What was left behind by VMs that are gone: disks, sockets, processes, contexts, images, drafts.

Other state folders may use the same data folder, the same ``/tmp`` and the same docker config
(tests, another user's environment under sudo).  So a thing counts as left behind only where it is
proven to be of *this* state folder, or can be of no other: what cannot be told apart stays.

Facts about races: a VM's owner file is there before anything else of it is made, so what was seen
before the owners were read, and has none, is nobody's.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from vmoat import dockercontext, instance, locks, paths, ssh
from vmoat.drivers.qemu import disks
from vmoat.errors import VmoatError
from vmoat.fleet import oldimages, removal
from vmoat.fleet.found import (
    KNOWN,
    WORKED_ON,
    Leftover,
    clear,
    folders,
    locked_remover,
    newest,
    weight,
)
from vmoat.state import VmLock


def unknown(short: str, known: Collection[str] | None = None) -> bool:
    """Whether no VM has an id that begins so; not while there is one whose id cannot be told.

    ``known`` are the ids of all VMs as they were read a moment ago; without them they are read.
    """
    known = instance.ids() if known is None else known
    return bool(short) and "" not in known and not any(one.startswith(short) for one in known)


def _unless_known(short: str, remove: Callable[[], object]) -> Callable[[], str]:
    """A remover that looks once more whether a VM has come by that id."""

    def act() -> str:
        if not unknown(short):
            return KNOWN
        remove()
        return ""

    return act


def find(*, current: str, grace: float, going: Collection[str], now: float) -> list[Leftover]:
    """All that is left behind.

    ``current`` is the digest of the image that new VMs are made on, ``going`` the ids of the VMs
    that are removed before this, ``grace`` the seconds for which an unused image is kept.
    """
    if not paths.vms_dir().is_dir():
        return []  # a state folder that is not there (a disk that is not mounted) proves nothing
    ids = instance.ids()
    found = [*_disks(ids), *_colima_homes(ids), *_processes(), *_runtimes(ids), *_contexts(ids)]
    found += [*_claims(), *_half_made(), *_records_half_written()]
    # Disks that are kept keep their image; those that go now do not.
    gone = {Path(f.name).name for f in found if f.kind == "disks" and f.since + grace <= now}
    before = now - grace
    found += oldimages.find(current=current, before=before, going={*going, *gone}, now=now)
    return found


# --- what VMs leave ------------------------------------------------------------------------------


def _disks(ids: Collection[str]) -> Iterator[Leftover]:
    """Disks of a VM whose state is gone: only half made, or whole."""
    for folder in folders(paths.data_home() / "disks"):
        vm_id = folder.name
        if disks.read_record(folder).get("state") != str(paths.state_home()):
            continue  # another state folder's, whose VMs are not seen from here
        if not unknown(vm_id, ids) or (paths.vms_dir() / vm_id).exists() or _runs_elsewhere(vm_id):
            continue
        whole = (folder / disks.DATA).exists()
        why = "no VM knows these disks" if whole else "half made, and their VM is gone"
        since = newest(folder) if whole else 0.0
        yield Leftover("disks", str(folder), why, weight(folder), _checked(folder, vm_id), since)


def _runs_elsewhere(vm_id: str) -> bool:
    """Whether a QEMU of this id runs: then its VM is known in another state folder."""
    from vmoat.drivers.qemu import process, record

    return bool(process.strays(record.mark(vm_id)))


def _colima_homes(ids: Collection[str]) -> Iterator[Leftover]:
    for folder in folders(paths.data_home() / "colima"):
        if not re.fullmatch(r"[0-9a-f]{12}", folder.name) or not _made_here(folder):
            continue
        if unknown(folder.name, ids):
            yield Leftover(
                "home", str(folder), "no VM knows this Colima home", weight(folder),
                _colima_remover(folder), newest(folder),
            )  # fmt: skip


def _made_here(home: Path) -> bool:
    """Whether a Colima home is of this state folder: the VMs of others are not seen from here."""
    from vmoat.drivers.colima.homes import PROFILE, Place

    try:
        return Place(home, PROFILE).state.read_bytes() == os.fsencode(paths.state_home())
    except OSError:
        return False


def _colima_remover(folder: Path) -> Callable[[], str]:
    def remove() -> None:
        from vmoat.drivers.colima import ending, homes

        ending.delete_own(homes.Place(folder, homes.PROFILE))

    return _unless_known(folder.name, remove)


def _processes() -> Iterator[Leftover]:
    """Processes of VMs whose folder is gone: their log, open as standard error, is in it."""
    vms = os.fsencode(paths.vms_dir()) + b"/"
    for pid, log in _deleted_logs():
        if not log.startswith(vms):
            continue
        name = os.fsdecode(log[len(vms) :].split(b"/")[0])
        if paths.vm_dir(name).exists():
            continue  # it may be its own log that somebody removed
        why = f"its VM {name} is gone"
        label = f"{pid} ({_program(pid)})"
        yield Leftover("process", label, why, 0, _ender(pid, log))


def _deleted_logs() -> Iterator[tuple[int, bytes]]:
    """(pid, path) of processes whose standard error is a file that was removed (proc(5))."""
    for pid in removal.processes(lambda words: True):
        with contextlib.suppress(OSError):
            target = os.readlink(b"/proc/%d/fd/2" % pid)
            if target.endswith(b" (deleted)"):
                yield pid, target.removesuffix(b" (deleted)")


def _ender(pid: int, log: bytes) -> Callable[[], str]:
    def end() -> str:
        if (pid, log) in list(_deleted_logs()):
            removal.end([pid])
        return "it does not end" if (pid, log) in list(_deleted_logs()) else ""

    return end


def _program(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "?"
    if b"-m" in words[:-1]:  # python -P -m vmoat.companion
        return os.fsdecode(words[words.index(b"-m") + 1])
    return os.fsdecode(os.path.basename(words[0]))


def _runtimes(ids: Collection[str]) -> Iterator[Leftover]:
    """Sockets of VMs that are gone, and the ssh masters that still hold their tunnels."""
    from vmoat import netports

    for folder in folders(paths.runtime_home()):
        if not re.fullmatch(r"[0-9a-f]{12}", folder.name) or not unknown(folder.name, ids):
            continue
        if not _is_ours(folder):
            continue
        pids = removal.clients(folder)
        ports = sorted(set[int]().union(*(netports.listening_ports(pid) or () for pid in pids)))
        held = f"; its ssh master still holds the tunnels {ports}" if ports else ""
        yield Leftover(
            "sockets", str(folder), f"its VM is gone{held}", weight(folder),
            _runtime_remover(folder),
        )  # fmt: skip


def _is_ours(runtime: Path) -> bool:
    """Whether a runtime folder is of this state folder; in ``/tmp`` its ssh config says so."""
    if runtime.parent == paths.state_home() / "run":
        return True
    try:
        text = os.fsdecode((runtime / "ssh_config").read_bytes())
        quoted = ssh.quote(f"{paths.vms_dir()}/", tokens=True)[:-1]
    except (OSError, VmoatError):
        return False
    # From its begin: another state folder's path may end with the whole of ours.
    return f" {quoted}" in text or f" {paths.vms_dir()}/" in text


def _runtime_remover(folder: Path) -> Callable[[], str]:
    def remove() -> None:
        removal.end_clients(folder)
        clear(folder)

    return _unless_known(folder.name, remove)


def _contexts(ids: Collection[str]) -> Iterator[Leftover]:
    """Docker contexts of VMs that are gone; one whose socket's folder is there may be another's."""
    for file in dockercontext.config_folder(os.environ).glob("contexts/meta/*/meta.json"):
        vm_id = dockercontext.owner(file)
        if not unknown(vm_id, ids):
            continue
        folder = _socket_folder(file)
        if folder and folder.parent != paths.state_home() / "run" and folder.exists():
            continue
        name = str(dockercontext.read(file).get("Name", file.parent.name))
        yield Leftover("context", name, "its VM is gone", 0, _context_remover(file, vm_id))


def _socket_folder(file: Path) -> Path | None:
    try:
        host = dockercontext.read(file)["Endpoints"]["docker"]["Host"]
        return Path(str(host).removeprefix("unix://")).parent
    except (KeyError, TypeError):
        return None


def _context_remover(file: Path, vm_id: str) -> Callable[[], str]:
    def remove() -> None:
        if dockercontext.owner(file) == vm_id:
            clear(file.parent)

    return _unless_known(vm_id, remove)


def _checked(folder: Path, vm_id: str) -> Callable[[], str]:
    remove = _unless_known(vm_id, lambda: disks.discard(folder))
    return lambda: KNOWN if _runs_elsewhere(vm_id) else remove()


def _vm_names() -> list[str]:
    return [f.name for f in folders(paths.vms_dir()) if instance.is_name(f.name)]


# --- what was only half made ---------------------------------------------------------------------


def _claims() -> Iterator[Leftover]:
    """Folders of claims that were killed before they had a name."""
    claims = paths.vms_dir() / instance.CLAIMS
    for folder in paths.vms_dir().glob(".*"):
        if re.fullmatch(r"\.[0-9a-f]{16}", folder.name) and not locks.held(claims):
            yield Leftover(
                "draft", str(folder), "a VM's first start was killed before it had a name",
                weight(folder), locked_remover(folder, claims),
            )  # fmt: skip


def _half_made() -> Iterator[Leftover]:
    """Disks of a known VM that were being made when their maker was killed."""
    for name in _vm_names():
        folder = paths.disks_dir(name)
        drafts = [*folder.glob(".new-*"), *_colima_drafts(paths.vm_id(name))]
        for file in drafts if drafts and not VmLock(paths.vm_dir(name)).held() else ():
            yield Leftover(
                "draft", str(file), f"a disk of {name} that was never finished", weight(file),
                _vm_draft_remover(file, name),
            )  # fmt: skip


def _colima_drafts(vm_id: str) -> Iterator[Path]:
    if vm_id:
        yield from (paths.data_home() / "colima" / vm_id[:12]).glob("_lima/_disks/*/.new-*")


def _records_half_written() -> Iterator[Leftover]:
    """``.vm.toml.4711``: a record whose writer was killed before it took its place."""
    for name in _vm_names():
        for file in paths.vm_dir(name).glob(".*"):
            match = re.fullmatch(r"\.[a-z]+(?:\.[a-z]+)?\.([0-9]+)", file.name)
            if match and not os.path.exists(f"/proc/{match[1]}") and _old(file):
                yield Leftover(
                    "draft", str(file), f"a record of {name} that was never finished",
                    weight(file), _vm_draft_remover(file, name),
                )  # fmt: skip


def _old(file: Path) -> bool:
    """Where there is no proc(5), nobody takes a minute to write a record."""
    return time.time() - newest(file) > 60


def _vm_draft_remover(file: Path, name: str) -> Callable[[], str]:
    def remove() -> str:
        lock = VmLock(paths.vm_dir(name))
        if not paths.vm_dir(name).is_dir():
            return ""  # gone with its VM
        if not lock.take():
            return WORKED_ON
        try:
            clear(file)
        finally:
            lock.free()
        return ""

    return remove
