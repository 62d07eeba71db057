"""Where a VM's worktree is now, and whether the VM still belongs to anybody.

From git's own files, without git: a look at twenty VMs must not start forty processes.  Facts from
gitrepository-layout(5) and git-worktree(1): a linked worktree's git folder is
``COMMON/worktrees/NAME``; its ``gitdir`` names the worktree's ``.git`` file (and follows ``git
worktree move``), its ``locked`` is there while it is locked; git removes ``COMMON/worktrees`` with
the last of them.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from vmoat import instance, paths
from vmoat.instance import Owner


@dataclass(frozen=True)
class Place:
    """The worktree of one VM."""

    worktree: Path
    """Where it is now; where it was last, when it is gone."""
    branch: str
    """Its checked-out branch; "" for a detached HEAD, and where that cannot be read."""
    repository: str
    """What people call the repository: the folder of its main checkout, or the bare one's."""
    exists: bool
    """Whether the worktree's folder is there, with its ``.git``."""
    orphan: str
    """Why the VM is nobody's any more; "" where it is somebody's, or where that is not proven."""
    left: str
    """Why nothing is concluded from a worktree that is not there; "" where it is there."""


def find(owner: Owner) -> Place:
    """The place of a VM's worktree."""
    worktree = _worktree(owner)
    exists = os.path.lexists(worktree / ".git")
    orphan, left = _verdict(owner, worktree, exists)
    return Place(
        worktree, branch(owner.git_dir), repository(owner.git_dir), exists, orphan, left
    )  # fmt: skip


def _worktree(owner: Owner) -> Path:
    text = _text(owner.git_dir / "gitdir")
    if not text:
        return owner.worktree
    place = Path(os.path.normpath(owner.git_dir / text))  # may be relative to the git folder
    return place.parent


def branch(git_dir: Path) -> str:
    """The branch that ``HEAD`` names."""
    head = _text(git_dir / "HEAD")
    name = head.removeprefix("ref: refs/heads/")
    # of a reftable repository: the real one is in a table that only git reads
    return "" if name in (head, ".invalid") else name


def repository(git_dir: Path) -> str:
    """What people call the repository of a git folder."""
    common = instance.common_of(git_dir)
    if common.name == ".git":
        return common.parent.name
    return common.name.removesuffix(".git") or common.parent.name


def _verdict(owner: Owner, worktree: Path, exists: bool) -> tuple[str, str]:
    """(why it is an orphan, why nothing is concluded)."""
    if missing := [place for place in owner.mounts if not os.path.ismount(place)]:
        return "", f"{missing[0]} is not mounted"
    home = instance.home_of(owner.git_dir)
    if not any(map(instance.is_repository, (owner.git_dir, home))):
        return "", f"the repository at {_home(owner.git_dir)} is not there, or cannot be read"
    if os.path.lexists(owner.git_dir / "locked"):
        return "", "" if exists else "the worktree is locked (`git worktree lock`)"
    try:
        words = (owner.git_dir / paths.ID_FILE).read_text(errors="replace").split()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            return "", f"its id file cannot be read ({error.strerror})"
        linked = _names(worktree, owner.git_dir)
        if owner.is_replaced() and not linked:
            return f"another repository is at {_home(owner.git_dir)}", ""
        if os.path.isdir(owner.git_dir):
            return f"nothing in {worktree} names this VM any more", ""
        if linked:
            return "", f"{worktree} is there, but no repository knows it (`git worktree repair`)"
        return f"the worktree {worktree} was removed", ""
    if words[:1] == [owner.vm_id]:
        return "", "" if exists else _unpruned(worktree)
    if len(words) == 2 and instance.is_name(words[1]):
        return f"the worktree {worktree} was made anew and has another VM", ""
    return "", "its id file is damaged"


def _unpruned(worktree: Path) -> str:
    return (
        f"{worktree} is gone, but git still lists it: `git worktree repair` where it was moved to, "
        "else `git worktree prune`"
    )


def _home(git_dir: Path) -> Path:
    common = instance.common_of(git_dir)
    return common.parent if common.name == ".git" else common


def _names(worktree: Path, git_dir: Path) -> bool:
    """Whether the worktree's ``.git`` file names the git folder: by a path that may be relative
    (``--relative-paths``, submodules), or go through links.
    """
    kind, _, path = _text(worktree / ".git").partition("gitdir: ")
    return not kind and bool(path) and os.path.realpath(worktree / path) == str(git_dir)


def _text(file: Path) -> str:
    try:
        return os.fsdecode(file.read_bytes()).rstrip("\r\n")
    except OSError:
        return ""
