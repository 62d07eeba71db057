"""Seed files: gitignored files that a worktree gets from the main checkout."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from vmoat import worktree
from vmoat.config.seed import Seed, check_seed, included
from vmoat.context import Context
from vmoat.errors import VmoatError


def seeds(ctx: Context) -> list[Seed]:
    """Every seed of this worktree, checked; none in the main checkout itself.

    Raises CONFIG for one that leaves the worktree or cannot be read.
    """
    main = ctx.main
    if main is None or main == ctx.worktree.path:
        return []
    origin = ctx.settings.origins["provision.seed"].where
    names = list(ctx.settings.provision_seed)
    found = [check_seed(ctx.worktree.path, main, name, origin) for name in names]
    for name in included(main, worktree.find(main).git):
        if name not in names:
            found.append(check_seed(ctx.worktree.path, main, name, ".worktreeinclude"))
    return found


def seed_paths(ctx: Context) -> list[str]:
    """The seeds that are there, relative to the worktree."""
    return [seed.path for seed in seeds(ctx) if os.path.lexists(seed.target)]


def differs(seed: Seed) -> bool:
    """Whether the worktree's file is another than the main checkout's."""
    if seed.source.is_file() and seed.target.is_file():
        return not filecmp.cmp(seed.source, seed.target, shallow=False)
    return False


def copy(seed: Seed) -> None:
    """Copy one seed, a file or a folder, whole or not at all; never over one that exists.

    A running VM may write both checkouts meanwhile.  So every folder on the way is opened by
    itself, none through a symlink: what lies outside is neither read nor written.
    """
    *folders, name = seed.path.split("/")
    draft = f".{name}.vmoat-seed"
    try:
        with (
            _walk(_above(seed.source, seed.path), folders) as source,
            _walk(_above(seed.target, seed.path), folders, make=True) as target,
        ):
            _remove(draft, target)
            try:
                _copy(source, name, target, draft)
                if _mode(name, target) is None:
                    os.rename(draft, name, src_dir_fd=target, dst_dir_fd=target)
            finally:
                _remove(draft, target)
    except OSError as error:
        raise VmoatError(
            f"the seed {seed.path} cannot be copied from {seed.source}: {error.strerror or error}",
            hint="make it readable, and the worktree writable",
        ) from error


def _above(path: Path, inner: str) -> Path:
    """The checkout's folder, of which ``inner`` is a path."""
    return path.parents[inner.count("/")]


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def _walk(top: Path, folders: list[str], *, make: bool = False) -> Iterator[int]:
    """A descriptor of the folder below ``top``, made if need be."""
    place = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        owner = os.fstat(place)
        for folder in folders:
            if make and _mode(folder, place) is None:
                os.mkdir(folder, dir_fd=place)
                _own(folder, place, owner)
            inner = os.open(folder, _FOLDER, dir_fd=place)
            os.close(place)
            place = inner
        yield place
    finally:
        os.close(place)


def _mode(name: str, folder: int) -> int | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


def _own(name: str, folder: int, owner: os.stat_result) -> None:
    """As root: what is made belongs to the checkout's owner, not to root."""
    if os.geteuid() == 0:
        os.chown(name, owner.st_uid, owner.st_gid, dir_fd=folder, follow_symlinks=False)


def _copy(source: int, name: str, target: int, new: str) -> None:
    mode = _mode(name, source)
    if mode is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink(name, dir_fd=source), new, dir_fd=target)
    elif stat.S_ISDIR(mode):
        _copy_folder(source, name, target, new)
    elif stat.S_ISREG(mode):
        _copy_file(source, name, target, new)
    else:
        return  # a socket or a pipe in a seed folder holds nothing to copy
    _own(new, target, os.fstat(target))


def _copy_folder(source: int, name: str, target: int, new: str) -> None:
    os.mkdir(new, dir_fd=target)
    inner, made = os.open(name, _FOLDER, dir_fd=source), -1
    try:
        made = os.open(new, _FOLDER, dir_fd=target)
        os.fchmod(made, stat.S_IMODE(os.fstat(inner).st_mode) & 0o777 | 0o700)
        if os.geteuid() == 0:
            above = os.fstat(target)
            os.fchown(made, above.st_uid, above.st_gid)
        for entry in sorted(os.listdir(inner)):
            _copy(inner, entry, made, entry)
    finally:
        os.close(inner)
        if made >= 0:
            os.close(made)


def _copy_file(source: int, name: str, target: int, new: str) -> None:
    reading = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=source)
    with open(reading, "rb") as old:
        info = os.fstat(old.fileno())
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(new, flags, 0o600, dir_fd=target), "wb") as file:
            shutil.copyfileobj(old, file)
            os.fchmod(file.fileno(), stat.S_IMODE(info.st_mode) & 0o777)  # never setuid
            os.utime(file.fileno(), ns=(info.st_atime_ns, info.st_mtime_ns))


def _remove(name: str, folder: int) -> None:
    mode = _mode(name, folder)
    if mode is None:
        return
    if stat.S_ISDIR(mode):
        shutil.rmtree(name, ignore_errors=True, dir_fd=folder)
    else:
        os.unlink(name, dir_fd=folder)
