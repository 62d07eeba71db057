"""Blobs by digest on disk, shared by every cache process of this user without a daemon.

    sha256/ab/abcd…   whole blobs and manifests, verified before they get this name
    partial/abcd…     one that is being fetched; who fetches holds its lock (flock)
    tags/…            what a registry last said of a tag (JSON)
    registries/…      an empty file for each host that was found to be a registry

A file's mtime is its last use.  Processes that were killed leave a partial file without a lock,
which the next to fetch the same blob takes over and ``trim`` removes.  Nothing is synced to disk:
what a power cut leaves wrong is found when it is served whole, for it is hashed then.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

RESERVE = 2 << 30
"""Bytes that stay free on the disk: a full one pauses the VMs."""

PATIENCE = 20.0
"""Seconds that a fetch of another client's may stand still before this one goes on alone."""

POLL = 0.1
_CHECK_EVERY = 32 << 20  # bytes between two looks at the room on disk
_TRIM_EVERY = 64  # small files
_STALE = 3600.0  # seconds after which a partial file that nobody holds is removed


@dataclass(frozen=True)
class Remembered:
    """What a tag led to when its registry was last there."""

    digest: str
    type: str
    size: int


class Store:
    """The cache's folder; ``limit`` and ``reserve`` are bytes.

    A folder that cannot be written stores nothing and is no error: images still come.
    """

    def __init__(self, folder: Path, limit: int, *, reserve: int = RESERVE) -> None:
        self.folder, self.limit, self.reserve = folder, limit, reserve
        self._small = 0

    def place(self, digest: str) -> Path:
        value = digest.removeprefix("sha256:")
        return self.folder / "sha256" / value[:2] / value

    def open(self, digest: str) -> BinaryIO | None:
        """The whole blob, marked as used; None where it is not here."""
        try:
            file = open(self.place(digest), "rb")  # noqa: SIM115  (the caller closes it)
        except OSError:
            return None
        with contextlib.suppress(OSError):
            os.utime(file.fileno())
        return file

    def read(self, digest: str, most: int) -> bytes:
        """A small blob's content, verified; b"" where it is not here, or longer."""
        file = self.open(digest)
        if file is None:
            return b""
        with file:
            data = file.read(most + 1)
        if len(data) > most:
            return b""
        if digest_of(data) != digest:
            self.drop(digest)
            return b""
        return data

    def drop(self, digest: str) -> None:
        """Remove a blob that turned out not to be what its name says."""
        with contextlib.suppress(OSError):
            self.place(digest).unlink()

    def keep(self, digest: str, data: bytes) -> None:
        """Store a small blob that is at hand."""
        if self.place(digest).exists():
            return
        with self.claim(digest, 0) as writing:
            if writing is not None:
                writing.write(data)
                writing.commit()

    @contextlib.contextmanager
    def claim(self, digest: str, patience: float = PATIENCE) -> Iterator[Writing | None]:
        """The right to fetch this blob, alone.

        Waits while another client's fetch of it goes on.  None: the blob may be here now (look
        again), or that fetch stands still, or nothing can be stored.
        """
        writing = self._claim(digest, patience)
        try:
            yield writing
        finally:
            if writing is not None:
                writing.close()

    def _claim(self, digest: str, patience: float) -> Writing | None:
        path = self.folder / "partial" / digest.removeprefix("sha256:")
        size, since = -1, time.monotonic()
        while not self.place(digest).exists():
            try:
                descriptor = _locked(path)
            except OSError:
                return None
            if descriptor is not None:
                writing = Writing(self, digest, path, descriptor)
                if not self.place(digest).exists():
                    return writing
                writing.close()  # the one before us ended between our two looks
                return None
            now = _size(path)
            if now != size:
                size, since = now, time.monotonic()
            if time.monotonic() - since >= patience:
                return None
            time.sleep(POLL)
        return None

    def has_room(self, size: int) -> bool:
        """Whether so many bytes may be stored."""
        if size > self.limit:
            return False
        try:
            room = os.statvfs(self.folder)
        except OSError:
            return False
        return room.f_bavail * room.f_frsize - size >= self.reserve

    # tags and registries

    def remember(self, key: str, found: Remembered) -> None:
        """Note what a tag led to."""
        self._write("tags", hashlib.sha256(key.encode()).hexdigest(), json.dumps(asdict(found)))

    def recall(self, *keys: str) -> Remembered | None:
        """The newest of what is remembered under these keys and whose content is here."""
        found: list[tuple[float, Remembered]] = []
        for key in keys:
            path = self.folder / "tags" / hashlib.sha256(key.encode()).hexdigest()
            try:
                values = json.loads(path.read_text())
                one = Remembered(str(values["digest"]), str(values["type"]), int(values["size"]))
                changed = path.stat().st_mtime
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if self.place(one.digest).exists():
                found.append((changed, one))
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def note_registry(self, name: str) -> None:
        """Remember that this host is a registry."""
        self._write("registries", name, "")

    def knows_registry(self, name: str) -> bool:
        return (self.folder / "registries" / name).exists()

    def _write(self, kind: str, name: str, text: str) -> None:
        """Write a small file as a whole; quiet where it cannot be."""
        with contextlib.suppress(OSError):
            folder = _folder(self.folder / kind)
            with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
                file.write(text)
            os.replace(file.name, folder / name)
        self._small += 1
        if self._small % _TRIM_EVERY == 0:
            self.trim()

    # room

    def trim(self) -> None:
        """Remove what was used least recently until the limit holds, and partial files that a
        killed process left."""
        kinds = ("sha256", "tags", "registries")
        rows = [row for kind in kinds for row in _rows(self.folder / kind)]
        total = sum(size for _, size, _ in rows)
        for _, size, path in sorted(rows):
            if total <= self.limit:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size
        for used, _, path in _rows(self.folder / "partial"):
            if time.time() - used > _STALE:
                _remove_if_free(path)


class Writing:
    """One blob on its way into the store.  Use ``Store.claim``."""

    def __init__(self, store: Store, digest: str, path: Path, descriptor: int) -> None:
        self.store, self.digest, self.path = store, digest, path
        self.size = 0
        self._hash = hashlib.sha256()
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._keeps = True
        self._next_look = 0
        self._done = False

    def refuse(self) -> None:
        """Do not store this one; it is still hashed."""
        self._keeps = False
        with contextlib.suppress(OSError):
            self._file.truncate(0)

    def write(self, data: bytes) -> None:
        """Take the next piece; a disk without room for it ends the storing, not the pull."""
        self._hash.update(data)
        self.size += len(data)
        if not self._keeps:
            return
        if self.size >= self._next_look:
            self._next_look = self.size + _CHECK_EVERY
            if self.size > self.store.limit or not self.store.has_room(0):
                self.refuse()
                return
        try:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        except OSError:
            self.refuse()

    def right(self) -> bool:
        """Whether what came is what the digest says."""
        return "sha256:" + self._hash.hexdigest() == self.digest

    def commit(self) -> bool:
        """Give the blob its name; whether it is in the store now."""
        if not self._keeps or not self.right():
            return False
        try:
            place = self.store.place(self.digest)
            _folder(place.parent)
            os.replace(self.path, place)
        except OSError:
            return False
        self._done = True
        self.store.trim()
        return True

    def close(self) -> None:
        """End it; what was not committed is gone."""
        if not self._done:
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._file.close()


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


_making = threading.Lock()


def _folder(path: Path) -> Path:
    with _making:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _locked(path: Path) -> int | None:
    """An empty file under our lock, as a descriptor; None where somebody else holds it."""
    _folder(path.parent)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.fstat(descriptor)
            with contextlib.suppress(FileNotFoundError):
                there = os.stat(path)
                if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                    os.ftruncate(descriptor, 0)
                    return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last owner finished and took the name away: once more


def _remove_if_free(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _rows(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Last use, bytes on disk and path of every file below."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _rows(Path(entry.path))
                continue
            info = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        yield info.st_mtime, max(info.st_blocks * 512, 4096), Path(entry.path)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
