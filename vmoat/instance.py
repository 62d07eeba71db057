"""Which VM belongs to a worktree, and what it is called.

Two small files tie them: the id file in the worktree's own git folder holds the VM's id and name;
the ``owner`` file in the VM's state folder holds the id and the folders.  The first follows
``git worktree move`` and is gone with the worktree; the second makes a name unique on the machine.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from vmoat import paths
from vmoat.errors import Code, VmoatError
from vmoat.locks import in_turn
from vmoat.state import CANCEL_LIMIT, VmLock, cancel_run, read_toml
from vmoat.worktree import Worktree

CLAIMS = ".claims"
"""Beside the VMs' folders: one claim at a time on this machine, as names are looked at, freed and
taken.  While it is held, a VM may have its folder, and its worktree no id file yet."""
NAME_LIMIT = 48
"""Characters of a name: a host name holds 63, and colima's profiles add their own prefix."""

@dataclass(frozen=True)
class Instance:
    """The VM of a worktree; it may not have been created yet."""

    name: str
    vm_id: str
    claimed: bool = True

    @property
    def folder(self) -> Path:
        return paths.vm_dir(self.name)


@dataclass(frozen=True)
class Owner:
    """What a VM's state folder knows of its worktree."""

    vm_id: str
    git_dir: Path
    worktree: Path
    driver: str = ""
    """The driver that the VM was claimed for."""
    mounts: tuple[Path, ...] = ()
    """The mount points that the git folder and the worktree are below, without ``/``: while one of
    them is not mounted, nothing is known of the worktree."""
    repository: str = ""
    """Which repository it is (``_identity``): one that was moved away, with another cloned in its
    place, takes the VM along.  "" where it could not be told."""

    def holds_id(self) -> bool:
        """Whether the worktree still is there and still names this VM."""
        found = _read_id(self.git_dir)
        return found is not None and found[0] == self.vm_id

    def is_gone(self) -> bool:
        """The worktree was removed: its git folder's parent is readable, the id file is not there.

        An unmounted disk is no removal: then the parent is missing as well, or is the empty mount
        point.
        """
        if any(not os.path.ismount(place) for place in self.mounts):
            return False
        return self.git_dir.parent.is_dir() and not self.holds_id()

    def is_replaced(self) -> bool:
        """Whether another repository is where the VM's was."""
        now = _identity(self.git_dir)
        return bool(now and self.repository) and now != self.repository


def common_of(git_dir: Path) -> Path:
    """The repository's folder of a worktree's git folder (git-worktree(1), "DETAILS")."""
    return git_dir.parent.parent if git_dir.parent.name == "worktrees" else git_dir


def home_of(git_dir: Path) -> Path:
    """The git folder that a worktree's, or a submodule's, lies in: the outermost, which is the
    repository's own (gitrepository-layout(5), "worktrees" and "modules").
    """
    for folder in reversed(git_dir.parents):
        below = git_dir.relative_to(folder).parts[0]
        if below in ("worktrees", "modules") and is_repository(folder):
            return folder
    return common_of(git_dir)


def is_repository(folder: Path) -> bool:
    """Whether it is a git folder that is there and can be read; an empty mount point is none."""
    try:
        os.stat(folder / "HEAD")
        some = (folder / "objects").is_dir() or (folder / "commondir").is_file()
        return some and os.access(folder, os.R_OK | os.X_OK)
    except OSError:
        return False


def _identity(git_dir: Path) -> str:
    """What tells a repository from another that is made in its place; "" where there is none.

    The inode of its folder, and when ``description`` was written: git lays that from its template
    as it makes a repository, and never again (git-init(1)).  The inode alone is no proof: ext4 has
    one that was freed for the next folder.  Without the device, whose number changes as disks come
    and go.
    """
    home = home_of(git_dir)
    try:
        inode = home.stat().st_ino
    except OSError:
        return ""
    try:
        return f"{inode} {(home / 'description').stat().st_mtime_ns}"
    except OSError:
        return f"{inode} 0"


def sanitise(folder_name: str) -> str:
    """Lower case, only a-z 0-9 and single dashes inside: what the name of a VM may hold."""
    return re.sub(r"-+", "-", re.sub(r"[^a-z0-9-]", "-", folder_name.lower())).strip("-")


def plain_name(worktree: Path, prefix: str) -> str:
    """The name that a worktree gets where it is free; one that says nothing gets a hash."""
    base = sanitise(worktree.name)
    prefix = re.sub(r"-+", "-", prefix.lower())  # names are lower case throughout
    if not base or len(prefix + base) > NAME_LIMIT:
        return _hashed((prefix + base)[: NAME_LIMIT - 7].rstrip("-") or prefix + "vm", worktree)
    return prefix + base


def _hashed(name: str, where: Path) -> str:
    digest = hashlib.sha256(os.fsencode(where)).hexdigest()[:6]
    return f"{name[: NAME_LIMIT - 7].rstrip('-')}-{digest}"


def known(worktree: Worktree, *, follow: bool = True) -> Instance | None:
    """The VM that this worktree owns already, from two small files; None when it owns none.

    A worktree that was moved is followed: its new place is written down (unless ``follow`` is
    false).  Raises USAGE in a copy of a linked worktree's folder.
    """
    found = _read_id(worktree.git_dir)
    if found is None:
        return None
    owner = read_owner(found[1])
    if owner is None and _made_as(found[1]) == found[0]:
        return _known_again(worktree, *found, follow=follow)
    if owner is None or owner.vm_id != found[0]:
        return _known_aside(worktree, *found, follow=follow)
    if (owner.git_dir, owner.worktree) == (worktree.git_dir, worktree.path):
        if follow and owner.is_replaced():  # it came back from a backup, with its id
            _write_owner(found[1], _owner(found[0], worktree, owner.driver))
        return Instance(found[1], found[0])
    if owner.holds_id() and not _is_same(owner.git_dir, worktree.git_dir):
        return None  # a copy of the whole repository brought the id file along
    if worktree.linked and owner.git_dir == worktree.git_dir:
        _refuse_copy(worktree, owner)
    if follow:
        _write_owner(found[1], _owner(found[0], worktree, owner.driver))
    return Instance(found[1], found[0])


def _is_same(one: Path, other: Path) -> bool:
    """Whether both are one folder: a repository has two paths where it is mounted twice."""
    try:
        return one == other or os.path.samefile(one, other)
    except OSError:
        return False


def _known_again(worktree: Worktree, vm_id: str, name: str, *, follow: bool) -> Instance:
    """The VM whose owner file is damaged: the id file and the driver's record agree on it."""
    if follow:
        _write_owner(name, _owner(vm_id, worktree, driver_made(name)))
    return Instance(name, vm_id)


def driver_made(name: str) -> str:
    """The driver of a VM without an owner file, by the record that it keeps."""
    return "colima" if "home" in read_toml(paths.vm_dir(name) / "driver.toml") else "qemu"


def _made_as(name: str) -> str:
    """The id of a VM whose owner file is damaged, by its driver's record; "" for none."""
    record = paths.vm_dir(name) / "driver.toml"
    return str(read_toml(record).get("vm_id", "")) if is_damaged(name) else ""


def _known_aside(
    worktree: Worktree, vm_id: str, name: str, *, follow: bool
) -> Instance | None:
    """The VM of a repository that was moved away, while another took its place and its name."""
    aside = _aside(name, vm_id)
    owner = read_owner(aside)
    if owner is None or owner.vm_id != vm_id:
        return None
    if follow:
        _write_owner(aside, _owner(vm_id, worktree, owner.driver))
        _write_atomically(worktree.git_dir / paths.ID_FILE, f"{vm_id} {aside}\n")
    return Instance(aside, vm_id)


def _refuse_copy(worktree: Worktree, owner: Owner) -> None:
    """``cp -r`` of a linked worktree: both folders' ``.git`` name one git folder.

    git takes the two for one checkout with one index; a VM shared by both would show each the
    other's files.
    """
    if _link(owner.worktree) and _link(owner.worktree) == _link(worktree.path):
        raise VmoatError(
            f"{worktree.path} is a copy of the worktree {owner.worktree}: git takes both for one",
            hint="make a worktree of its own with `git worktree add`",
            code=Code.USAGE,
        )


def _link(folder: Path) -> str:
    try:
        return (folder / ".git").read_text(errors="replace").strip()
    except OSError:
        return ""


def claim(worktree: Worktree, prefix: str, driver: str) -> Instance:
    """The worktree's VM; gives it a name of its own, and its driver, when it has none."""
    mine = known(worktree)
    if mine is not None:
        return mine
    with in_turn(paths.make_private(paths.vms_dir()) / CLAIMS):
        return known(worktree) or _claim(worktree, prefix, driver)


def _claim(worktree: Worktree, prefix: str, driver: str) -> Instance:
    vm_id = secrets.token_hex(8)
    owner = _owner(vm_id, worktree, driver)
    plain = plain_name(worktree.path, prefix)
    tail = 0
    name = plain
    while not _take(name, owner):
        # The hash is of the git folder: it stays when the worktree is moved.
        name = _hashed(plain, worktree.git_dir / str(tail) if tail else worktree.git_dir)
        tail += 1
    _write_atomically(worktree.git_dir / paths.ID_FILE, f"{vm_id} {name}\n")
    return Instance(name, vm_id)


def _owner(vm_id: str, worktree: Worktree, driver: str) -> Owner:
    mounts = mounts_of(worktree.git_dir, worktree.path)
    return Owner(
        vm_id, worktree.git_dir, worktree.path, driver, mounts, _identity(worktree.git_dir)
    )  # fmt: skip


def look(worktree: Worktree, prefix: str) -> Instance:
    """As ``claim``, but writes nothing: what ``vmoat plan`` shows."""
    mine = known(worktree, follow=False)
    if mine is not None:
        return mine
    name = plain_name(worktree.path, prefix)
    holder = read_owner(name)
    if holder is not None and not holder.is_gone():
        name = _hashed(name, worktree.git_dir)
    return Instance(name, "0" * 16, claimed=False)


def change_driver(instance: Instance, driver: str) -> None:
    """Another driver will make this VM."""
    owner = read_owner(instance.name)
    if owner is not None:
        _write_owner(instance.name, replace(owner, driver=driver))


def release(instance: Instance) -> None:
    """Forget a destroyed VM: its state folder, and the id file that names it."""
    owner = read_owner(instance.name)
    shutil.rmtree(instance.folder, ignore_errors=True)
    if instance.folder.exists():
        raise VmoatError(
            f"{instance.folder} could not be removed", hint="remove it by hand", code=Code.VM
        )
    if owner is not None and owner.holds_id():
        (owner.git_dir / paths.ID_FILE).unlink(missing_ok=True)


def mounts_of(*folders: Path) -> tuple[Path, ...]:
    """The mount points that these lie on, each once; ``/`` is left out."""
    found: list[Path] = []
    for folder in folders:
        place = next(p for p in (folder, *folder.parents) if os.path.ismount(p) or p == p.parent)
        if place != place.parent and place not in found:
            found.append(place)
    return tuple(found)


def read_owner(name: str) -> Owner | None:
    """Who owns a name; None where nobody does, and where the file is damaged."""
    try:
        rows = (paths.vm_dir(name) / "owner").read_bytes().split(b"\n")
    except OSError:
        return None
    if len(rows) < 3:
        return None
    fields = [os.fsdecode(row) for row in [*rows, b"", b""][:5]]
    vm_id, git_dir, worktree, driver, repository = fields
    if not re.fullmatch(r"[0-9a-f]{16}", vm_id) or not os.path.isabs(git_dir):
        return None
    mounts = tuple(Path(os.fsdecode(row)) for row in rows[5:] if row)
    return Owner(vm_id, Path(git_dir), Path(worktree), driver, mounts, repository)


def is_damaged(name: str) -> bool:
    """Whether a VM has an owner file that tells nothing: it is cut off, or cannot be read."""
    try:
        os.lstat(paths.vm_dir(name) / "owner")
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR)
    return read_owner(name) is None


def ids() -> set[str]:
    """The ids of all VMs that the state folder knows; with "" where one cannot be told."""
    found = set()
    for folder in paths.vms_dir().glob("[!.]*"):
        if owner := read_owner(folder.name):
            found.add(owner.vm_id)
        elif is_damaged(folder.name):
            found.add(_made_as(folder.name))
    return found


def _read_id(git_dir: Path) -> tuple[str, str] | None:
    try:
        words = (git_dir / paths.ID_FILE).read_text(errors="replace").split()
    except OSError:
        return None
    # The name becomes a path: take nothing but what `claim` writes.
    if len(words) != 2 or not re.fullmatch(r"[0-9a-f]{16}", words[0]):
        return None
    return (words[0], words[1]) if is_name(words[1]) else None


def is_name(text: str) -> bool:
    """Whether this can be the name of a VM; it becomes a path."""
    return re.fullmatch(r"[a-z0-9][a-z0-9-]*", text) is not None


def _take(name: str, owner: Owner) -> bool:
    """Make the VM's state folder, whole, in one rename; False where the name is taken."""
    holder = read_owner(name)
    if holder is not None:
        if not holder.is_gone():
            return False
        _set_aside(name, holder)
    draft = paths.make_private(paths.vms_dir() / f".{owner.vm_id}")
    _write_owner(draft.name, owner)
    try:
        os.rename(draft, paths.vm_dir(name))
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise paths.unwritable(paths.vms_dir(), error) from error
    return True


def _set_aside(name: str, holder: Owner) -> None:
    """Free the name of a VM whose worktree was removed; the VM stays, under a name of its own."""
    if set(os.listdir(paths.vm_dir(name))) <= {"owner", "lock"}:
        # A claim that was killed half way, or a VM that was never made.
        shutil.rmtree(paths.vm_dir(name))
        return
    lock = _end_work(name)
    try:
        # Under its lock: a gc that found it to be nobody's must not come to act on the next.
        with contextlib.suppress(FileNotFoundError):  # `vmoat gc` was first, and removed it
            os.rename(paths.vm_dir(name), paths.vm_dir(_aside(name, holder.vm_id)))
    finally:
        lock.free()


def _aside(name: str, vm_id: str) -> str:
    return f"{name[: NAME_LIMIT - 9].rstrip('-')}-{vm_id[:8]}"


def _end_work(name: str) -> VmLock:
    """The VM's lock: a worker that still brings up the removed worktree knows its folder by this
    name.
    """
    lock = VmLock(paths.vm_dir(name))
    cancel_run(paths.vm_dir(name))
    if not lock.take(wait=CANCEL_LIMIT):
        raise VmoatError(
            f"the VM {name} of a worktree that was removed is still worked on",
            hint=f"end the process {lock.holder()}, or wait for it",
            code=Code.BUSY,
        )
    return lock


def _write_owner(name: str, owner: Owner) -> None:
    rows: list[str | Path] = [owner.vm_id, owner.git_dir, owner.worktree, owner.driver]
    rows += [owner.repository, *owner.mounts]
    data = b"".join(os.fsencode(row) + b"\n" for row in rows)
    _write_atomically(paths.vm_dir(name) / "owner", data)


def _write_atomically(target: Path, content: str | bytes) -> None:
    data = content.encode() if isinstance(content, str) else content
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(draft, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    except OSError as error:
        raise paths.unwritable(target.parent, error) from error
