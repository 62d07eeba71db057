"""Which folders of a worktree are watched: all that git does not ignore.

A worktree with its dependencies may hold hundreds of thousands of folders, of which git ignores
nearly all; each watched one costs the kernel a watch (inotify(7), ``max_user_watches``).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vmoat.errors import VmoatError
from vmoat.worktree import Worktree, find

State = tuple[int, int]
"""Modification time (nanoseconds) and size: what tells one content from the next."""


@dataclass
class Listing:
    """Folders and files below the worktree, by their names relative to it."""

    folders: set[str] = field(default_factory=set)
    files: dict[str, State] = field(default_factory=dict)


def state_of(info: os.stat_result) -> State:
    return info.st_mtime_ns, info.st_size


class Tree:
    """The watched part of one worktree."""

    def __init__(self, worktree: Worktree, left_out: Iterable[str] = ()) -> None:
        self._worktree = worktree
        self.top = os.fspath(worktree.path)
        self._left_out = frozenset(name.strip("/") for name in left_out)

    def list(self, below: str = "") -> Listing:
        """What there is now, at ``below`` and under it; raises CONFIG where git fails."""
        found = Listing()
        if below and self._ignores(below):
            return found
        ignored = _ignored(self._worktree, below)
        links = {os.path.relpath(path, self.top) for path in self._worktree.gitlinks()}
        self._walk(below, ignored, links, found)
        return found

    def _ignores(self, folder: str) -> bool:
        """Whether one of the folders on the way to this one is ignored or left out."""
        names = folder.split("/")
        ways = {"/".join(names[: n + 1]) for n in range(len(names))}
        if ways & self._left_out or ".git" in names:
            return True
        rows = _ignored(self._worktree, folder)
        return bool(ways & rows)

    def _walk(self, top: str, ignored: set[str], links: set[str], found: Listing) -> None:
        todo = [top]
        while todo:
            folder = todo.pop()
            try:
                with os.scandir(f"{self.top}/{folder}" if folder else self.top) as entries:
                    rows = list(entries)
            except OSError:
                continue
            if folder and any(row.name == ".git" for row in rows):
                if folder in links:
                    self._submodule(folder, found)
                continue  # another repository, or a worktree that the guest does not see
            found.folders.add(folder)
            for row in rows:
                name = f"{folder}/{row.name}" if folder else row.name
                if row.name == ".git" or name in self._left_out:
                    continue
                if row.is_dir(follow_symlinks=False):
                    if name not in ignored:
                        todo.append(name)
                    continue
                try:
                    info = row.stat(follow_symlinks=False)
                except OSError:
                    continue
                if stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode):
                    found.files[name] = state_of(info)

    def _submodule(self, folder: str, found: Listing) -> None:
        try:
            inner = Tree(find(Path(self.top, folder))).list()
        except VmoatError:
            return
        found.folders |= {f"{folder}/{name}" if name else folder for name in inner.folders}
        found.files |= {f"{folder}/{name}": state for name, state in inner.files.items()}


def _ignored(worktree: Worktree, below: str) -> set[str]:
    """Folders that git ignores; those inside an ignored one are not named."""
    words = ["ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory"]
    rows = worktree.git(*words, "--", *([f":(literal){below}"] if below else []))
    return {row.rstrip("/") for row in rows.split("\0") if row.endswith("/")}


def differences(before: Listing, now: Listing) -> Iterator[str]:
    """The names that are new, gone or changed."""
    for name in before.files.keys() | now.files.keys():
        if before.files.get(name) != now.files.get(name):
            yield name
    yield from before.folders ^ now.folders
