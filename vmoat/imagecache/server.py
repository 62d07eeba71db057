"""The cache of a user, and its server for one VM, on a Unix socket."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from vmoat.imagecache.authority import Authority
from vmoat.imagecache.bodies import Broken
from vmoat.imagecache.handler import Handler
from vmoat.imagecache.registries import Registries
from vmoat.imagecache.store import Store
from vmoat.imagecache.upstream import Upstream
from vmoat.imagecache.walls import Walls
from vmoat.unixserver import UnixServer

CONNECTIONS = 256
"""How many a VM may hold open at once."""

Log = Callable[[str], None]


class ImageCache:
    """The cache of one user; ``serve`` starts a server for one VM.

    ``limit_bytes`` bounds the store; ``registries`` are the user's ``host:port`` exceptions from
    the walls; ``proxies`` and ``certificates`` are the host's (``vmoat.drivers.qemu.host``);
    ``log`` takes one line for each thing served, without credentials.
    """

    def __init__(
        self,
        folder: Path,
        authority: Authority,
        limit_bytes: int,
        *,
        registries: Iterable[str] = (),
        open_network: bool = False,
        proxies: Mapping[str, str] | None = None,
        certificates: Iterable[str] = (),
        log: Log = lambda _: None,
    ) -> None:
        self.store = Store(folder, limit_bytes)
        self.authority = authority
        self.upstream = Upstream(
            Walls(registries, open_network=open_network), proxies, certificates
        )
        self.registries = Registries(self.upstream, self.store)
        self.log = log

    def serve(self, socket_path: Path) -> Server:
        """Listen on a Unix socket (0600) in a thread of its own, until ``close``.

        Raises OSError where the socket cannot be made, MISSING without ``openssl``.
        """
        self.authority.certificate()
        return Server(self, socket_path)


class Server(UnixServer):
    """One VM's way to the cache."""

    def __init__(self, cache: ImageCache, place: Path) -> None:
        self.cache = cache
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(place, Handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        with self._lock:
            return len(self._open) < CONNECTIONS

    def opened(self, sock: socket.socket) -> None:
        with self._lock:
            self._open.add(sock)

    def closed(self, sock: socket.socket) -> None:
        with self._lock:
            self._open.discard(sock)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news; anything else is said, and ends one connection."""
        import sys

        error = sys.exception()
        if not isinstance(error, OSError | Broken):
            self.cache.log(f"failed: {type(error).__name__}")

    def close(self) -> None:
        """Stop listening and hang up on everybody; the socket's name is free then."""
        super().close()
        with self._lock:
            connections = list(self._open)
        for one in connections:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
