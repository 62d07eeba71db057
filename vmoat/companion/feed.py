"""Tells the guest what changed: records over a channel of the ssh master.

The other end is ``templates/guest/rootfs/usr/lib/vmoat/watch``, which says what the records mean.
A connection that is lost is made again, with the whole list, and with what changed meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vmoat.companion.tree import Listing
from vmoat.companion.watching import Batch, Change

GUEST_SOCKET = "/run/vmoat/watch"
WINDOW = 4
"""Batches that may be under way; what changes meanwhile is kept, the last state of each name."""
SEND_LIMIT = 120.0
"""Seconds that a guest may take to read: a busy one is slow, a dead one is found otherwise."""


def listing_records(top: str, listing: Listing) -> Iterator[bytes]:
    """The whole list.  Pure."""
    yield b"R " + os.fsencode(top)
    yield from (b"D " + _name(name) for name in sorted(listing.folders) if name)
    yield from (b"F " + _name(name) for name in listing.files)
    yield b"E"


def change_record(change: Change) -> bytes:
    """One change.  Pure."""
    if change.state is None:
        return b"X " + _name(change.name)
    mtime, size = change.state
    return b"M %d %d " % (mtime, size) + _name(change.name)


def answer_record(number: str, token: str, names: Iterable[str] | None) -> bytes:
    """git's answer (githooks(5), fsmonitor-watchman, version 2); None: anything may have changed.

    NUL ends a record, so line breaks stand for it; a name that holds one makes it "anything".
    """
    listed = ["/"] if names is None else list(names)
    if any("\n" in name for name in listed):
        listed = ["/"]
    text = "".join(f"{row}\n" for row in [token, *listed])
    return f"A {number} ".encode() + text.encode("utf-8", "surrogateescape")


def _name(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


class Feed:
    """The connection to the guest's helper.

    ``question(token)`` answers git: the new token and the names, or None for anything.
    """

    def __init__(self, question: Callable[[str], tuple[str, list[str] | None]]) -> None:
        self._question = question
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._waiting: dict[str, Change] = {}
        self._sent: dict[int, Batch] = {}
        self._number = 0
        self.listed = threading.Event()
        """Set while the guest holds what is on the list."""

    @property
    def connected(self) -> bool:
        return self._socket is not None

    def connect(self, path: Path, top: str, listing: Listing) -> bool:
        """Connect and send everything; False where the guest has no helper (yet)."""
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(SEND_LIMIT)
        try:
            link.connect(os.fspath(path))
            link.sendall(b"".join(record + b"\0" for record in listing_records(top, listing)))
        except OSError:
            link.close()
            return False
        with self._lock:
            self._socket = link
        threading.Thread(target=self._read, args=(link,), daemon=True).start()
        self.tell([])
        return True

    def tell(self, batch: Batch) -> None:
        """Send changes; keep them while the guest is busy, or not there."""
        with self._lock:
            self._waiting |= {change.name: change for change in batch}
            self._send_waiting()

    def _send_waiting(self) -> None:
        if self._socket is None or not self._waiting or len(self._sent) >= WINDOW:
            return
        batch, self._waiting = list(self._waiting.values()), {}
        self._number += 1
        self._sent[self._number] = batch
        records = [*map(change_record, batch), b"S %d" % self._number]
        try:
            self._socket.sendall(b"".join(record + b"\0" for record in records))
        except OSError:
            self._drop()

    def _done(self, number: int) -> None:
        with self._lock:
            for sent in [n for n in self._sent if n <= number]:
                del self._sent[sent]
            self._send_waiting()

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
        self._socket = None
        self.listed.clear()
        # Whatever was not confirmed is said again, unless it has changed since.
        unsure = {change.name: change for batch in self._sent.values() for change in batch}
        self._waiting = unsure | self._waiting
        self._sent = {}

    def _read(self, link: socket.socket) -> None:
        link.settimeout(None)
        rest = b""
        with contextlib.suppress(OSError):
            while chunk := link.recv(65536):
                *records, rest = (rest + chunk).split(b"\0")
                for record in records:
                    self._record(link, record.decode("utf-8", "surrogateescape"))
        with self._lock:
            if self._socket is link:
                self._drop()

    def _record(self, link: socket.socket, record: str) -> None:
        if record == "E":
            self.listed.set()
        elif record.startswith("S "):
            self._done(int(record[2:]))
        elif record.startswith("Q "):
            _, number, token = (record + " ").split(" ", 2)
            threading.Thread(
                target=self._answer, args=(link, number, token.strip()), daemon=True
            ).start()

    def _answer(self, link: socket.socket, number: str, token: str) -> None:
        fresh, names = self._question(token)
        with self._lock, contextlib.suppress(OSError):
            if self._socket is link:
                link.sendall(answer_record(number, fresh, names) + b"\0")
