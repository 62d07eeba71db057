"""A VM's two disks: the system (an overlay on the golden image) and Docker's data.

Both are written under another name, synced and renamed, so a disk that exists is whole.  Facts:
qemu-img(1); the qcow2 header (QEMU's docs/interop/qcow2.txt): magic, version, … size at byte 24.
"""

from __future__ import annotations

import os
import secrets
import shutil
import struct
import sys
import tomllib
from array import array
from pathlib import Path
from typing import BinaryIO

from vmoat import paths, proc
from vmoat.drivers import Say
from vmoat.errors import Code, VmoatError

GIB = 1 << 30
SYSTEM = "system.qcow2"
DATA = "data.qcow2"
_RECORD = "disks.toml"
_IMG_SECONDS = 300.0


def virtual_size(path: Path) -> int:
    """Bytes of the disk as the guest sees it; 0 when the file is no whole qcow2 header."""
    try:
        with open(path, "rb") as file:
            header = file.read(32)
    except OSError:
        return 0
    if len(header) < 32 or header[:4] != b"QFI\xfb":
        return 0
    size: int = struct.unpack_from(">Q", header, 24)[0]
    return size


def damage(path: Path, *, tables: bool = True, deep: bool = False) -> str:
    """What is wrong with a disk's file, "" when nothing shows.

    Everything that a qcow2 table points at must lie inside the file, so a truncated disk is found
    before QEMU uses it.  ``tables``: look at the first level (not while QEMU writes it: a new table
    may not be in the file yet); ``deep``: at the second too (tens of milliseconds).
    """
    if not virtual_size(path):
        return f"{path.name} is not a whole qcow2 file"
    with open(path, "rb") as file:
        header = file.read(72)
        end = file.seek(0, os.SEEK_END)
        if len(header) < 72 or not _tables_fit(file, header, end, tables, deep):
            return f"{path.name} is truncated"
    return ""


_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62


def _tables_fit(file: BinaryIO, header: bytes, end: int, tables: bool, deep: bool) -> bool:
    (bits,) = struct.unpack_from(">I", header, 20)
    l1_size, l1_at, refs_at, refs_clusters = struct.unpack_from(">IQQI", header, 36)
    if not 9 <= bits <= 21 or l1_at + 8 * l1_size > end or l1_size > 1 << 22:
        return False
    # the last cluster of a file may be shorter than a whole one
    if refs_at + (refs_clusters << bits) > end + (1 << bits):
        return False
    if not tables:
        return True
    for entry in _entries(file, l1_at, 8 * l1_size):
        table = entry & _OFFSET
        if table >= end:
            return False
        if deep and table:
            for one in _entries(file, table, 1 << bits):
                if one & _OFFSET >= end and not one & _COMPRESSED:
                    return False
    return True


def _entries(file: BinaryIO, at: int, size: int) -> array[int]:
    file.seek(at)
    data = file.read(size)
    entries = array("Q", data[: len(data) // 8 * 8])
    if sys.byteorder == "little":
        entries.byteswap()
    return entries


def _sync(path: Path) -> None:
    for place in (path, path.parent):
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _temporary(folder: Path, name: str) -> Path:
    for old in folder.glob(f".new-*-{Path(name).stem}.*"):
        old.unlink(missing_ok=True)  # of one that was killed: the VM's lock is ours
    return folder / f".new-{secrets.token_hex(4)}-{name}"


def make_system(folder: Path, image: Path) -> None:
    """The system disk: an empty overlay, as large as the image."""
    new = _temporary(folder, SYSTEM)
    proc.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "qcow2", new],
        timeout=_IMG_SECONDS,
        code=Code.VM,
    )
    _sync(new)
    new.rename(folder / SYSTEM)


def make_data(folder: Path, gib: int) -> None:
    """Docker's disk: ext4 made on the host, without root or loop devices, in about a second."""
    new = _temporary(folder, DATA)
    raw = new.with_suffix(".raw")
    try:
        with open(raw, "wb") as file:
            file.truncate(gib * GIB)
        words = ["mke2fs", "-q", "-F", "-t", "ext4", "-L", "vmoat-data", "-m", "0", "-J", "size=64"]
        words += ["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", str(raw)]
        proc.run(words, timeout=_IMG_SECONDS, code=Code.VM)
        proc.run(
            ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, new],
            timeout=_IMG_SECONDS,
            code=Code.VM,
        )
    finally:
        raw.unlink(missing_ok=True)
    _sync(new)
    new.rename(folder / DATA)


def read_record(folder: Path) -> dict[str, str]:
    """Ids of the disks (``system``, ``data``) and the image (``image``) of the first."""
    try:
        found = tomllib.loads((folder / _RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in found.items()}


def write_record(folder: Path, record: dict[str, str]) -> None:
    import tomli_w

    new = folder / f".new-{_RECORD}"
    new.write_text(tomli_w.dumps(record))
    _sync(new)
    new.rename(folder / _RECORD)


def whole(folder: Path) -> bool:
    """Whether both disks and their record are there."""
    record = read_record(folder)
    return all(
        (folder / name).exists() and record.get(key)
        for name, key in ((SYSTEM, "system"), (DATA, "data"))
    )


def create(folder: Path, image: Path, digest: str, gib: int, say: Say) -> None:
    """Make what is missing; a disk that is there is kept."""
    record = read_record(folder)
    if not (folder / SYSTEM).exists() or not record.get("system"):
        (folder / SYSTEM).unlink(missing_ok=True)
        say("making the system disk")
        make_system(folder, image)
        record |= {"system": secrets.token_hex(16), "image": digest,
                   "state": str(paths.state_home())}  # fmt: skip
        write_record(folder, record)
    if not (folder / DATA).exists() or not record.get("data"):
        (folder / DATA).unlink(missing_ok=True)
        say(f"making the data disk ({gib} GiB, grows as it is used)")
        make_data(folder, gib)
        record |= {"data": secrets.token_hex(16), "filled": str(gib * GIB)}
        write_record(folder, record)


def grow(folder: Path, gib: int) -> bool:
    """Make the data disk as large as asked; it never shrinks.  Whether the guest must grow too."""
    disk = folder / DATA
    if virtual_size(disk) < gib * GIB:
        proc.run(
            ["qemu-img", "resize", "-q", "-f", "qcow2", disk, f"{gib}G"],
            timeout=_IMG_SECONDS,
            code=Code.VM,
        )
    return read_record(folder).get("filled") != str(virtual_size(disk))


def filled(folder: Path) -> None:
    """The guest's file system is as large as its disk: it has booted since."""
    entry = read_record(folder)
    size = str(virtual_size(folder / DATA))
    if entry and entry.get("filled") != size:
        write_record(folder, entry | {"filled": size})


def discard(folder: Path) -> None:
    """Remove every byte."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        raise VmoatError(f"{folder} could not be removed", hint="remove it by hand", code=Code.VM)


def weight(folder: Path) -> int:
    """Bytes on the host."""
    try:
        return sum(entry.stat().st_blocks * 512 for entry in os.scandir(folder))
    except OSError:
        return 0


def weight_of(file: Path) -> int:
    """Bytes of one file on the host; holes do not count."""
    try:
        return file.stat().st_blocks * 512
    except OSError:
        return 0
