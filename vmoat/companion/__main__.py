"""``python -m vmoat.companion WORKTREE``: see the package."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from vmoat import credentials, dockercontext, locks, paths
from vmoat.companion import feed, gitindex, process
from vmoat.companion.idleness import Idleness
from vmoat.companion.tree import Tree
from vmoat.companion.watching import Batch, Journal, Watching, wait_until
from vmoat.companion.ways import Way, Ways
from vmoat.context import Context, load
from vmoat.errors import VmoatError
from vmoat.fleet import stopping
from vmoat.unixserver import LineServer

BEAT = 1.0
"""Seconds between two looks whether everything is connected."""
LOOK = 5.0
"""Seconds between two looks whether the VM is there."""
CONNECT_LIMIT = 60.0
STOP_AGAIN = 60.0
"""Seconds until a VM that was to be stopped, and was not, is tried again."""
SETTLE_LIMIT = 2.0
MANY = 500
"""Changes after which git's index is prepared anew: git looks at each of them again."""


class Companion:
    """All that goes on beside one VM."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.wish = process.services(ctx)
        self.boot = ctx.status.boot
        self.stop = threading.Event()
        self._open = False
        self.watch = Watch(ctx, self.wish["watch"]["without"]) if self.wish["watch"] else None
        self.idleness = Idleness(ctx, self.wish["idle"])
        self._stop_again = 0.0
        self.ways = Ways(_ways(self.wish), paths.runtime_dir(ctx.instance.vm_id))

    def run(self) -> None:
        """Until the VM is gone, or somebody says ``quit``."""
        looked = time.monotonic()
        while not self.stop.wait(BEAT):
            if time.monotonic() - looked > LOOK:
                looked = time.monotonic()
                if not self._vm_is_there():
                    return
            with contextlib.suppress(VmoatError, OSError):
                self._connect()
            self.idleness.look()
            if self.idleness.is_over() and time.monotonic() > self._stop_again:
                self._stop_again = time.monotonic() + STOP_AGAIN
                with contextlib.suppress(OSError):  # it is destroyed just now
                    stopping.begin(self.ctx.instance.name, self.idleness.limit)

    def _vm_is_there(self) -> bool:
        status = self.ctx.driver.status(self.ctx.instance.name)
        # A VM that is paused or slow is still there; another boot has its own companion.
        return status.state in ("running", "paused", "starting") and status.boot == self.boot

    def _connect(self) -> None:
        self.ctx.guest.connect(CONNECT_LIMIT)
        connection, before = self.ctx.guest.connection, self.ways.master
        self._open = self.ways.open(connection)
        if self.ways.master != before:  # so the docker context is there without a command
            connection.channel("docker", dockercontext.GUEST_SOCKET)
        if self.watch:
            self.watch.connect()
            self.watch.prepare_index()

    def settled(self) -> bool:
        """Whether everything is connected."""
        return self._open and (self.watch is None or self.watch.settled())

    def opened(self) -> bool:
        """Whether the guest's ways back are open."""
        return self._open

    def close(self) -> None:
        """End everything."""
        if self.watch:
            self.watch.close()
        self.ways.close()

    def answer(self, word: str) -> str:
        """See ``process``."""
        if word == "hello":
            return process.identity(self.wish, self.boot)
        if word in ("open", "ready"):
            done = self.settled if word == "ready" else self.opened
            wait_until(lambda: done() or self.stop.is_set(), 120)
            return "yes" if done() else "no"
        if word == "state":
            return json.dumps(self.state())
        if word == "quit":
            self.stop.set()
            return "bye"
        return "?"

    def state(self) -> dict[str, Any]:
        """What a person may want to know."""
        watch = self.watch.state() if self.watch else {}
        return {"pid": os.getpid(), "watch": watch, **self.idleness.state()}


def _ways(wish: dict[str, Any]) -> list[Way]:
    """What the guest may ask of the host, by the settings."""
    ways = []
    if wish["credentials"]:
        ways.append(
            Way(
                "credentials",
                credentials.GUEST_SOCKET,
                credentials.Credentials(wish["credentials"]).serve,
            )
        )
    if wish["cache"]:
        ways += _cache_ways(*wish["cache"])
    return ways


def _cache_ways(size: int, registries: list[str], open_network: bool) -> list[Way]:
    """dockerd's proxy; none where the guest was not told of one."""
    from vmoat import imagecache
    from vmoat.drivers.qemu import host

    authority = imagecache.usable_authority()
    if authority is None:
        return []
    cache = imagecache.ImageCache(
        paths.image_cache_dir(),
        authority,
        size << 30,
        registries=registries,
        open_network=open_network,
        proxies=host.proxies(),
        certificates=host.extra_certificates(),
    )
    return [Way("images", f"127.0.0.1:{imagecache.GUEST_PORT}", cache.serve)]


class Watch:
    """The watch on the worktree, and its way to the guest."""

    def __init__(self, ctx: Context, without: list[str]) -> None:
        self._ctx = ctx
        self.journal = Journal()
        self.feed = feed.Feed(self._question)
        runtime = paths.runtime_dir(ctx.instance.vm_id)
        tree = Tree(ctx.worktree, without)
        self._top = tree.top
        self._index: tuple[list[int], str] = ([], "")
        self.watching = Watching(tree, runtime / "seen", self._on_batch)
        threading.Thread(target=self.watching.run, daemon=True).start()

    def _on_batch(self, batch: Batch) -> None:
        self.journal.add(batch)
        self.feed.tell(batch)

    def _question(self, token: str) -> tuple[str, list[str] | None]:
        if not self.watching.settle(SETTLE_LIMIT):
            return self.journal.token(), None
        return self.journal.token(), self.journal.since(token)

    def connect(self) -> None:
        """Connect to the guest's helper unless that is done; raises VM where there is no master."""
        if self.feed.connected or self.watching.failure or not self.watching.begun.is_set():
            return
        path = self._ctx.guest.connection.channel("watch", feed.GUEST_SOCKET)
        self.feed.connect(path, self._top, self.watching.snapshot())

    def prepare_index(self) -> None:
        """Give the guest git's index with what is known here, whenever there is another one."""
        settings = self._ctx.settings
        view = settings.walls and not settings.git_writable  # what shows the guest that index
        if not (view and self._ctx.driver.features.git_index):
            return
        tree = self._ctx.worktree
        stamp, token = self._index
        now = gitindex.stamp(gitindex.index_of(tree))
        if now == stamp and len(self.journal.since(token) or ()) < MANY:
            return
        if self.watching.failure or not self.watching.settle(SETTLE_LIMIT):
            return
        token = self.journal.token()
        gitindex.prepare(tree, token, self._ctx.instance.folder)
        self._index = (now, token)  # also where git cannot: not again for the same one

    def settled(self) -> bool:
        """Whether the guest knows what to watch; also where nothing can be watched."""
        return bool(self.watching.failure) or self.feed.listed.is_set()

    def close(self) -> None:
        self.watching.stop()
        self.feed.close()

    def state(self) -> dict[str, Any]:
        return {
            "connected": self.feed.listed.is_set(),
            "folders": len(self.watching.listing.folders),
            "files": len(self.watching.listing.files),
            "failure": self.watching.failure,
        }


def main(argv: list[str]) -> int:
    """Be the companion of the worktree's VM; quiet where there is one already."""
    ctx = load(Path(argv[0]), claim=False, tolerant=True)
    if ctx.status.state not in ("running", "starting", "paused"):
        return 0
    with locks.tried(ctx.instance.folder / "companion.lock", make=True) as mine:
        if not mine:
            return 0
        companion = Companion(ctx)
        signal.signal(signal.SIGTERM, lambda *_: companion.stop.set())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        place = process.socket_of(ctx.instance.vm_id)
        server = LineServer(place, lambda line: companion.answer(line.strip()))
        try:
            companion.run()
        finally:
            companion.close()
            server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
