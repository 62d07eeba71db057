"""Seed files: which they are, and that none is read from or written to outside of its place.

The worktree's side is the branch's: it may hold `config -> /home/me/.ssh` as a symlink.  The
check here is of a moment, and a running VM can change the worktree right after: who copies must
open folders one by one without following symlinks.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from vmoat.config.errors import config_error
from vmoat.config.values import Bad, relative, show

INCLUDE = ".worktreeinclude"

RunGit = Callable[..., str]
"""``run_git(*words) -> stdout``, in the main checkout; raises VmoatError when git fails."""


class Seed(NamedTuple):
    """A checked seed.  ``state``: copy (only in main), there (in the worktree: left alone),
    missing (in neither: a warning)."""

    path: str
    source: Path
    target: Path
    state: Literal["copy", "there", "missing"]


def check_seed(worktree: Path, main: Path, path: str, where: str = "provision.seed") -> Seed:
    """Where the seed is and what is to be done.

    Raises CONFIG, naming the path, when it leaves the worktree or the main checkout (absolute,
    ``..``, a symlink at any place), names a git folder, or can't be read.
    """
    try:
        clean = relative(path)
    except Bad as error:
        raise config_error(where, str(error), _CURE) from error
    if not clean or ".git" in (part.lower() for part in clean.split("/")):
        raise config_error(where, f"the seed {show(path)} names a git folder", _CURE)
    source, target = main / clean, worktree / clean
    _inside(main, source, clean, "the main checkout", where)
    _inside(worktree, target, clean, "the worktree", where)
    if os.path.lexists(target):
        return Seed(clean, source, target, "there")
    if not os.path.lexists(source):
        return Seed(clean, source, target, "missing")
    _readable(source, clean, where)
    return Seed(clean, source, target, "copy")


_CURE = "name files inside the repository that git ignores, for example .env"


def _inside(root: Path, path: Path, seed: str, what: str, where: str) -> None:
    try:
        top = os.path.realpath(root)
        real = os.path.realpath(path)
    except (OSError, ValueError) as error:
        raise config_error(
            where, f"the seed {show(seed)} can't be looked at: {error}", _CURE
        ) from error
    inside = real == top or real.startswith(top.rstrip("/") + "/")
    if not inside or ".git" in real[len(top) :].lower().split("/"):
        raise config_error(
            where,
            f"the seed {show(seed)} leaves {what}: it leads to {real}",
            f"replace the symlink in {path.parent} by a file, or take the seed out",
        )


def _readable(source: Path, seed: str, where: str) -> None:
    cure = f"make {source} readable (chmod), or take the seed out"
    try:
        mode = source.stat().st_mode
        if stat.S_ISDIR(mode):
            os.listdir(source)
        elif stat.S_ISREG(mode):
            os.close(os.open(source, os.O_RDONLY | os.O_NONBLOCK))
        else:
            raise config_error(where, f"the seed {source} is neither file nor folder", cure)
    except OSError as error:
        raise config_error(
            where, f"the seed {source} can't be read: {error.strerror}", cure
        ) from error


def included(main: Path, run_git: RunGit) -> tuple[str, ...]:
    """Files of the main checkout that its ``.worktreeinclude`` names AND that git ignores.

    The file has gitignore's syntax; git itself matches (`man git-ls-files`, --exclude-from).
    Folders that are repositories of their own (nested worktrees) are left out.
    """
    include = main / INCLUDE
    if not include.is_file():
        return ()
    listing = ("ls-files", "-z", "--others", "--ignored")
    wanted = run_git(*listing, f"--exclude-from={include}").split("\0")
    if not any(wanted):
        return ()
    ignored = set(run_git(*listing, "--exclude-standard").split("\0"))
    return tuple(sorted(p for p in wanted if p in ignored and p and not p.endswith("/")))
