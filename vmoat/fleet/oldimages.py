"""Golden images that nobody needs any more, and what killed builds and imports left of some."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from vmoat import locks, paths
from vmoat.drivers.qemu import disks
from vmoat.fleet.found import (
    KNOWN,
    WORKED_ON,
    Leftover,
    folders,
    is_out_of_sight,
    locked_remover,
    newest,
    weight,
)

DRAFT_SECONDS = 86_400.0
"""An import that lasts longer was given up: its draft has no lock."""


def find(*, current: str, before: float, going: Collection[str], now: float) -> Iterator[Leftover]:
    """Images of other recipes than ``current`` that are older than ``before`` and that no disk
    stands on, but for the disks of the VMs ``going``; drafts and locks that nobody holds.
    """
    if paths.images_dir().is_symlink():
        return  # shared with another data folder, whose disks are not seen from here
    yield from _images(current, before, going)
    yield from _image_drafts(now)
    yield from _image_locks(current)


def _images(current: str, before: float, going: Collection[str]) -> Iterator[Leftover]:
    """Images of other recipes that no disk stands on; a new one may be about to get its first."""
    from vmoat.drivers.qemu import image

    if any(map(is_out_of_sight, paths.vms_dir().glob("[!.]*"))):
        return  # nobody knows on which images they stand
    used = image_users(without=going)
    for folder in folders(paths.images_dir()):
        if not folder.name.isalnum() or folder.name in used or newest(folder) > before:
            continue
        if not image.ready(folder.name):
            why = "its removal was cut short, and no disk stands on it"
        elif folder.name != current:
            why = "it is of an older recipe, and no disk stands on it"
        else:
            continue
        yield Leftover("image", folder.name, why, weight(folder), _image_remover(folder))


def image_users(*, without: Collection[str] = ()) -> dict[str, list[str]]:
    """Digest → ids of the VMs whose system disk is an overlay on it."""
    found: dict[str, list[str]] = {}
    for folder in folders(paths.data_home() / "disks"):
        used = disks.read_record(folder).get("image")
        if used and folder.name not in without:
            found.setdefault(used, []).append(folder.name)
    return found


def _image_remover(folder: Path) -> Callable[[], str]:
    def remove() -> str:
        from vmoat.drivers.qemu import image

        with locks.tried(folder.with_name(f".{folder.name}.lock")) as mine:
            if not mine:
                return WORKED_ON
            if folder.name in image_users():
                return KNOWN
            if folder.is_dir():
                image.remove(folder.name)
        return ""

    return remove


def _image_drafts(now: float) -> Iterator[Leftover]:
    for folder in paths.images_dir().glob(".*.draft"):
        name = folder.name.split(".")[1]
        lock = folder.with_name(f".{name}.lock")
        stale = now - newest(folder) > DRAFT_SECONDS if name == "import" else not locks.held(lock)
        if stale:
            yield Leftover(
                "draft", str(folder), "an image whose build or import was killed",
                weight(folder), locked_remover(folder, lock),
            )  # fmt: skip


def _image_locks(current: str) -> Iterator[Leftover]:
    for lock in paths.images_dir().glob(".*.lock"):
        name = lock.name[1:].removesuffix(".lock")
        some = (paths.images_dir() / name).exists() or any(lock.parent.glob(f".{name}.*.draft"))
        if name != current and not some and not locks.held(lock):
            yield Leftover("lock", str(lock), "its image is gone", 0, locked_remover(lock, lock))
