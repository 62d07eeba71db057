"""Watches the worktree on the host, and tells what changed in batches.

``watchfiles`` (Rust's notify) is used through its backend, which its documentation describes,
because the folders to watch change while it runs: a new set is watched before the old one is let
go, and what the new folders hold is listed after that, so nothing falls in between.

A batch ends when nothing came for ``STEP``.  The kernel's queue may overflow under a change of
thousands of files (inotify(7): ``max_queued_events``), and the backend does not say so: after a
large batch the whole tree is compared with what was known.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmoat.companion.tree import Listing, State, Tree, differences, state_of

STEP = 40
"""Milliseconds of quiet that end a batch, and between two looks of the backend."""
LONGEST = 400
"""Milliseconds after which a batch ends in any case."""
SWITCH_LIMIT = 2.0
"""Seconds for the old watch to give up what it has."""
IDLE = 5000
LARGE = 1000
"""Changes in one batch after which the tree is listed again."""
IGNORE_FILES = (".gitignore", ".gitmodules")


@dataclass(frozen=True)
class Change:
    """One name, relative to the worktree; ``state`` is None where it is gone."""

    name: str
    state: State | None


Batch = list[Change]
Changes = set[tuple[int, str]]
"""What the backend says: kinds (``watchfiles.Change``) and paths."""
DELETED = 3


class Watching:
    """The watch on one tree; ``on_batch`` is called in the watching thread."""

    def __init__(self, tree: Tree, cookies: Path, on_batch: Callable[[Batch], None]) -> None:
        self._tree = tree
        self._cookies = cookies
        self._on_batch = on_batch
        self._lock = threading.Lock()
        self._awaited: dict[str, threading.Event] = {}
        self._stop = threading.Event()
        self._watched: set[str] = set()
        self._deleted: set[str] = set()
        self.listing = Listing()
        self.begun = threading.Event()
        """Set when the list is complete."""
        self.failure = ""
        cookies.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in cookies.iterdir():
            old.unlink(missing_ok=True)

    def run(self) -> None:
        """Watch until ``stop``; a failure is kept in ``failure``."""
        try:
            self.listing = self._tree.list()
            notify = self._again(self._backend(), set())
            self.begun.set()
            while not self._stop.is_set():
                answer = notify.watch(LONGEST, STEP, IDLE, self._stop)
                if isinstance(answer, set):
                    with self._lock:
                        notify = self._batch(notify, answer)
        except Exception as error:  # whatever it was, nobody is to wait for a watch that has ended
            self.failure = _told(error)
            for event in self._awaited.values():
                event.set()

    def stop(self) -> None:
        self._stop.set()

    def snapshot(self) -> Listing:
        """What is known now."""
        with self._lock:
            return Listing(set(self.listing.folders), dict(self.listing.files))

    def settle(self, timeout: float) -> bool:
        """Wait until all that was changed before this call has been handed on.

        A file of our own is made in a folder that is watched as well; when it is seen, so was all
        before it.  False where that takes longer than ``timeout`` seconds.
        """
        name = secrets.token_hex(8)
        event = self._awaited[name] = threading.Event()
        file = self._cookies / name
        try:
            file.touch()
            return event.wait(timeout) and not self.failure
        except OSError:
            return False
        finally:
            self._awaited.pop(name, None)
            file.unlink(missing_ok=True)

    def _backend(self) -> Any:
        """Watch the folders that are known now."""
        from watchfiles._rust_notify import RustNotify

        top = self._tree.top
        self._watched = set(self.listing.folders)
        paths = [f"{top}/{name}" if name else top for name in sorted(self._watched)]
        return RustNotify([*paths, str(self._cookies)], False, False, 0, False, True)

    def _batch(self, notify: Any, changes: Changes) -> Any:
        seen, names = self._sorted(changes)
        self._drop_gone(names)
        fresh = self._new_folders(names)
        if any(name.rpartition("/")[2] in IGNORE_FILES for name in names) or len(names) > LARGE:
            notify = self._again(notify, names)
        elif fresh:
            notify = self._grow(notify, names, fresh)
        else:
            self._hand_on(names)
        for name in seen:
            if event := self._awaited.get(name):
                event.set()
        return notify

    def _drop_gone(self, names: set[str]) -> None:
        """Forget folders that went, also where there is another one of that name by now: the
        kernel's watch went with the first."""
        gone = {name for name in names & self.listing.folders if not self._is_folder(name)}
        for name in gone | (self._deleted & self.listing.folders):
            below = {f for f in self.listing.folders if f"{f}/".startswith(name + "/")}
            self.listing.folders -= below
            self._watched -= below
        self._deleted = set()

    def _new_folders(self, names: set[str]) -> set[str]:
        return {name for name in names - self.listing.folders if self._is_folder(name)}

    def _grow(self, notify: Any, names: set[str], fresh: set[str]) -> Any:
        """Folders came: watch the new set, then list what the new ones hold."""
        found = self._list(fresh)
        while found.folders - self._watched:
            self.listing.folders |= found.folders
            notify = self._switch(notify, names)
            self._drop_gone(names)
            fresh |= self._new_folders(names)
            found = self._list(fresh)  # what came while nobody watched
        self._hand_on(names | found.folders | found.files.keys())
        return notify

    def _list(self, tops: set[str]) -> Listing:
        found = Listing()
        for top in tops:
            inner = self._tree.list(top)
            found.folders |= inner.folders
            found.files |= inner.files
        return found

    def _switch(self, notify: Any, names: set[str]) -> Any:
        """Watch the folders that there are now; what the old watch still holds goes to names."""
        fresh = self._backend()
        mark = self._cookies / f"switch-{secrets.token_hex(4)}"
        mark.touch()
        deadline = time.monotonic() + SWITCH_LIMIT
        changes: Changes = set()
        while str(mark) not in (path for _, path in changes) and time.monotonic() < deadline:
            last = notify.watch(LONGEST, 1, 100, self._stop)
            if isinstance(last, set):
                changes |= last
        mark.unlink(missing_ok=True)
        own, others = self._sorted(changes)
        names |= others
        for name in own:  # seen too early: show them to the new watch
            with contextlib.suppress(OSError):
                os.utime(self._cookies / name)
        return fresh

    def _sorted(self, changes: Changes) -> tuple[set[str], set[str]]:
        """Our own marks, and names below the worktree."""
        mine, top = str(self._cookies) + "/", self._tree.top
        own = {path.removeprefix(mine) for _, path in changes if path.startswith(mine)}
        rows = [(k, os.path.relpath(path, top)) for k, path in changes if not path.startswith(mine)]
        rows = [(k, name) for k, name in rows if name != "." and ".git" not in name.split("/")]
        self._deleted |= {name for kind, name in rows if kind == DELETED}
        return own, {name for _, name in rows}

    def _again(self, notify: Any, names: set[str]) -> Any:
        """List everything anew: git ignores other folders now, or changes may have been lost."""
        before = Listing(set(self.listing.folders), self.listing.files)
        now = self._tree.list()
        while now.folders != self._watched:
            self.listing.folders = set(now.folders)
            notify = self._switch(notify, names)
            self._drop_gone(names)
            now = self._tree.list()
        self.listing = now
        self._hand_on(names | set(differences(before, now)))
        return notify

    def _hand_on(self, names: set[str]) -> None:
        batch: Batch = []
        for name in sorted(names):
            try:
                info = os.lstat(self._at(name))
            except (OSError, ValueError):
                self.listing.files.pop(name, None)
                batch.append(Change(name, None))
                continue
            if name not in self.listing.folders:
                if stat.S_ISDIR(info.st_mode):
                    continue  # one that git ignores
                self.listing.files[name] = state_of(info)
            batch.append(Change(name, state_of(info)))
        if batch:
            self._on_batch(batch)

    def _is_folder(self, name: str) -> bool:
        return os.path.isdir(self._at(name)) and not os.path.islink(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self._tree.top}/{name}"


def _told(error: Exception) -> str:
    text = str(error)
    if "limit" in text.lower() or "space left" in text.lower():
        return (
            "the kernel's limit of watched folders is reached: "
            "`sudo sysctl -w fs.inotify.max_user_watches=524288`"
        )
    return text or type(error).__name__


class Journal:
    """Which names changed when, for git's question: what changed since then?"""

    def __init__(self) -> None:
        self.session = secrets.token_hex(4)
        self._at: dict[str, int] = {}
        self._number = 0
        self._lock = threading.Lock()

    def add(self, batch: Batch) -> None:
        with self._lock:
            self._number += 1
            for change in batch:
                self._at[change.name] = self._number

    def token(self) -> str:
        return f"vmoat:{self.session}:{self._number}"

    def since(self, token: str) -> list[str] | None:
        """The names that changed after ``token``; None where that was not this session."""
        with self._lock:
            kind, _, rest = token.partition(":")
            session, _, number = rest.partition(":")
            if kind != "vmoat" or session != self.session or not number.isdigit():
                return None
            return [name for name, at in self._at.items() if at > int(number)]


def wait_until(check: Callable[[], bool], timeout: float, pause: float = 0.05) -> bool:
    """Whether it came true within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True
