"""Which hosts are registries: only their TLS is ended in the cache."""

from __future__ import annotations

import http.client
import threading
import time
from collections import defaultdict

from vmoat.imagecache.protocol import looks_like_registry
from vmoat.imagecache.store import Store
from vmoat.imagecache.upstream import Upstream
from vmoat.imagecache.walls import Origin

AGAIN = 600.0
"""Seconds until a host that was no registry is asked once more."""

_KNOWN_LIMIT = 1024


class Registries:
    """Asks each host once, without credentials, and remembers on disk which are registries: with
    the network gone, their images still come from the store."""

    def __init__(self, upstream: Upstream, store: Store) -> None:
        self.upstream, self.store = upstream, store
        self._known: dict[str, tuple[bool, float]] = {}
        self._asking: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._lock = threading.Lock()

    def has(self, origin: Origin) -> bool:
        """Whether this host is a registry.

        Raises Refused where a VM may not go there, OSError or HTTPException where it cannot be
        asked and was never seen.
        """
        name = origin.authority
        if self.upstream.walls.has(origin.host, origin.port):
            return True
        with self._lock:
            if len(self._asking) >= _KNOWN_LIMIT:
                self._asking.clear()
            asking = self._asking[name]
        with asking:
            known, since = self._known.get(name, (False, -AGAIN))
            if known or time.monotonic() - since < AGAIN:
                return known
            found = self.store.knows_registry(name) or self._ask(origin)
            self._note(name, found)
            return found

    def _ask(self, origin: Origin) -> bool:
        with self.upstream.ask(origin, "GET", "/v2/", [("User-Agent", "vmoat")]) as answer:
            if answer.down:
                raise http.client.HTTPException(f"{origin.authority} answers {answer.status}")
            found = looks_like_registry(answer.status, answer.response.headers)
        if found:
            self.store.note_registry(origin.authority)
        return found

    def _note(self, name: str, found: bool) -> None:
        with self._lock:
            if len(self._known) >= _KNOWN_LIMIT:
                self._known.clear()
            self._known[name] = (found, time.monotonic())
