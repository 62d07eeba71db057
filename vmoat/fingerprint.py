"""What a stage's inputs hold, cheaply: content counts, a look at size and times saves reading it.

A file whose size, times and inode are those of last time is not read again (as git's index does
it); the cache of digests is a file in the VM's state folder and may vanish at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vmoat import paths
from vmoat.errors import VmoatError
from vmoat.worktree import Worktree, find

RACY = 2.0
"""Seconds: a file written this short before the look may change again within one time stamp."""


class Fingerprints:
    """Digests of files below one worktree."""

    def __init__(self, root: Path, cache: Path) -> None:
        self._top = os.fspath(root)
        self._cache_file = cache
        self._old = self._load()
        self._new: dict[str, str] = {}

    def of(self, names: Iterable[str]) -> dict[str, str]:
        """Each existing name's digest: of its content, mode and kind; folders are walked."""
        found: dict[str, str] = {}
        # There may be twenty thousand names: one lstat each, and strings, no Path.
        for name in sorted(set(names)):
            info = self._look(name)
            if info is not None and stat.S_ISDIR(info.st_mode):
                for inner in self._below(name):
                    self._add(found, inner, self._look(inner))
            else:
                self._add(found, name, info)
        self._save()
        return found

    def _look(self, name: str) -> os.stat_result | None:
        try:
            return os.lstat(f"{self._top}/{name}")
        except (OSError, ValueError):
            return None

    def _below(self, name: str) -> Iterator[str]:
        for folder, inner, files in os.walk(os.path.join(self._top, name)):
            # Links to folders are in `inner`, and not walked.
            links = [d for d in inner if os.path.islink(os.path.join(folder, d))]
            inner[:] = sorted(d for d in inner if d != ".git")
            for file in sorted([*files, *links]):
                yield os.path.relpath(os.path.join(folder, file), self._top)

    def _add(self, found: dict[str, str], name: str, info: os.stat_result | None) -> None:
        if info is None:
            return
        look = (
            f"{info.st_size} {info.st_mtime_ns} {info.st_ctime_ns} {info.st_ino} {info.st_mode} "
        )
        known = self._old.get(name)
        if isinstance(known, str) and known.startswith(look):
            found[name] = known[len(look) :]
            return
        digest = _read(f"{self._top}/{name}", info)
        if not digest:
            return
        found[name] = digest
        if time.time() - max(info.st_mtime, info.st_ctime) > RACY:
            self._new[name] = look + digest

    def _load(self) -> dict[str, object]:
        try:
            table = json.loads(self._cache_file.read_bytes())
        except (OSError, ValueError):
            return {}
        return table if isinstance(table, dict) else {}

    def _save(self) -> None:
        if not self._new:
            return
        self._old.update(self._new)
        self._new = {}
        draft = self._cache_file.with_name(f".{self._cache_file.name}.{os.getpid()}")
        try:
            paths.make_private(draft.parent)
            draft.write_text(json.dumps(self._old))
            os.replace(draft, self._cache_file)
        except (OSError, VmoatError):
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)


def _read(path: str, info: os.stat_result) -> str:
    hasher = hashlib.sha1(usedforsecurity=False)
    hasher.update(b"x" if info.st_mode & 0o100 else b"-")
    try:
        if stat.S_ISLNK(info.st_mode):
            hasher.update(b"link" + os.fsencode(os.readlink(path)))
        elif stat.S_ISREG(info.st_mode):
            # O_NOFOLLOW: the VM may swap a file for a link to something of the host's.
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                while chunk := file.read(1 << 20):
                    hasher.update(chunk)
        else:
            return ""  # a socket or a pipe holds nothing to compare
    except OSError:
        return "unreadable"
    return hasher.hexdigest()


def tracked_and_new(tree: Worktree) -> tuple[list[str], list[str]]:
    """What git tracks, and what it neither tracks nor ignores, below the worktree."""
    names: list[str] = []
    new: list[str] = []
    # With -s, tracked files stand behind "MODE OBJECT STAGE<tab>", others alone.
    rows = tree.git("ls-files", "-z", "-s", "--cached", "--others", "--exclude-standard")
    for row in rows.split("\0"):
        tracked = _TRACKED.match(row)
        name = row[tracked.end() :] if tracked else row
        if tracked and tracked[1] == "160000":
            for known, found in zip((names, new), _submodule(tree.path / name), strict=True):
                known += [f"{name}/{sub}" for sub in found]
        # "folder/" is another repository inside the worktree: none of this one's inputs
        elif name and not name.endswith("/"):
            (names if tracked else new).append(name)
    return names, new


_TRACKED = re.compile(r"([0-7]{6}) [0-9a-f]{40,64} [0-3]\t")


def _submodule(folder: Path) -> tuple[list[str], list[str]]:
    if not (folder / ".git").exists():
        return [], []
    try:
        return tracked_and_new(find(folder))
    except VmoatError:
        return [], []


def globbed(root: Path, patterns: Sequence[str]) -> list[str]:
    """The files that the patterns name, relative to the worktree; a folder stands for all in it."""
    names: list[str] = []
    for pattern in patterns:
        if pattern == ".":
            names.append(".")
            continue
        found = (path.relative_to(root) for path in root.glob(pattern))
        names += [str(path) for path in found if ".git" not in path.parts]
    return names
