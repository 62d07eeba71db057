"""What a VM sees of the host's files: mounts in QEMU's sandbox, and where the guest mounts them.

Inside the sandbox every export has a fixed path, so no character of a host path reaches QEMU's
option parser.  Read-only parts are read-only mounts in QEMU's own mount namespace: nothing that
the guest does reaches those.  A mount point cannot be renamed or removed (EBUSY), but the
folders above it can, and a folder of that name made anew would be writable: so each folder between
an export and a protected path is bound onto itself, which makes it a mount point too.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from vmoat.drivers import VmSpec
from vmoat.drivers.qemu import record
from vmoat.drivers.qemu.sandbox import Bind
from vmoat.errors import Code, VmoatError

ROOT = record.SHARES
GIT = "/vm/git"


@dataclass(frozen=True)
class Export:
    """One export: its tag, its path in the sandbox, and where the guest mounts it."""

    tag: str
    inside: str
    guest: str
    writable: bool
    source: str = ""


@dataclass
class Plan:
    """Exports, and the mounts in the sandbox that make them up, in order."""

    exports: list[Export] = field(default_factory=list)
    binds: list[Bind] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)
    """Mount points without which a wall is open: looked for in a running VM."""
    hidden: dict[str, str] = field(default_factory=dict)
    """The same for nested worktrees, with their host paths: one that was removed needs no wall."""


def _check_path(path: Path) -> None:
    if "\n" in str(path) or "\0" in str(path):
        raise VmoatError(
            f"vmoat cannot share a folder whose path has a line break: {str(path)!r}",
            hint="rename the folder",
            code=Code.CONFIG,
        )


def between(top: Path, path: Path) -> list[Path]:
    """The folders from below ``top`` to above ``path``, outermost first."""
    parts = path.relative_to(top).parts
    return [top.joinpath(*parts[:count]) for count in range(1, len(parts))]


def _mode(path: Path) -> int:
    """The file type bits, 0 for nothing there; symbolic links are not followed."""
    try:
        return stat.S_IFMT(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return 0


def no_links(top: Path, path: Path) -> None:
    """Refuse a path below ``top`` that leads through a symbolic link.

    bubblewrap follows links when it mounts: a link to ``~/.ssh`` that a branch brought would be
    mounted in its place.
    """
    for step in (*between(top, path), path):
        if _mode(step) == stat.S_IFLNK:
            raise VmoatError(
                f"{step} is a symbolic link where vmoat protects {path}",
                hint="replace it by a real file or folder, or remove it",
                code=Code.VM,
            )


def _make(top: Path, path: Path, owner: tuple[int, int]) -> None:
    for step in (*between(top, path), path):
        if not _mode(step):
            step.mkdir()
            if os.getuid() == 0:
                os.chown(step, *owner, follow_symlinks=False)


def worktree_plan(spec: VmSpec, empty: Path, gitlinks: tuple[Path, ...] = ()) -> Plan:
    """The worktree's export: writable but for what the host's git and vmoat trust.

    ``empty``: an empty folder of vmoat's, shown where something is hidden.  ``gitlinks``:
    submodules in the index; one that is not checked out is shown read-only, or the guest would
    make it a repository that the host's ``git status`` enters.
    """
    top = spec.worktree
    _check_path(top)
    inside = f"{ROOT}/worktree"
    plan = Plan([Export("worktree", inside, str(top), True, str(top))])
    plan.binds.append(Bind(str(top), inside, writable=True))
    covers: dict[Path, Bind] = {}

    def target(path: Path) -> str:
        return f"{inside}/{path.relative_to(top)}"

    def cover(path: Path, source: Path, needed: bool) -> None:
        no_links(top, path)
        for step in between(top, path):
            covers.setdefault(step, Bind(str(step), target(step), writable=True))
        covers[path] = Bind(str(source), target(path))
        if needed:
            plan.wanted.append(target(path))

    dot_git = top / ".git"
    if not spec.git_writable or _mode(dot_git) != stat.S_IFDIR:
        cover(dot_git, empty if _mode(dot_git) == stat.S_IFDIR else dot_git, True)
    for link in gitlinks:
        if not _mode(link / ".git"):
            no_links(top, link)
            _make(top, link, (spec.owner.uid, spec.owner.gid))
            cover(link, link, True)
        else:
            cover(link / ".git", link / ".git", True)
    for path in spec.readonly:
        if _mode(path) and path.is_relative_to(top) and path not in (top, dot_git):
            cover(path, path, path.name == ".git")
    for path in spec.masked:
        if _mode(path) == stat.S_IFDIR and path.is_relative_to(top) and path != top:
            cover(path, empty, False)
            plan.hidden[target(path)] = str(path)
    # outer mounts first; nothing is mounted below what is hidden
    hidden = [path for path in spec.masked if path in covers]
    for path in sorted(covers, key=lambda one: (len(one.parts), str(one))):
        if not any(path != other and path.is_relative_to(other) for other in hidden):
            plan.binds.append(covers[path])
    mounted = {bind.target for bind in plan.binds}
    plan.wanted = [target for target in plan.wanted if target in mounted]
    plan.hidden = {target: path for target, path in plan.hidden.items() if target in mounted}
    return plan


def add_shares(spec: VmSpec, plan: Plan) -> None:
    """The user's own shares, at the host's paths."""
    for number, share in enumerate(spec.shares):
        _check_path(share.path)
        if not share.path.is_dir():
            raise VmoatError(
                f"mounts.share names {share.path}, which is not a folder",
                hint="make it, or take it out of your config",
                code=Code.CONFIG,
            )
        export = Export(
            f"share{number}", f"{ROOT}/{number}", str(share.path), share.writable, str(share.path)
        )
        plan.exports.append(export)
        plan.binds.append(Bind(str(share.path), export.inside, writable=share.writable))
