"""Looks at the machine while somebody watches, and keeps what was seen.

Where no page is open it looks only for the history's sake.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

Vm = dict[str, Any]
Look = Callable[[], list[Vm]]

PERIOD = 0.5
"""Seconds between two looks."""
SAMPLE = 5.0
"""Seconds between two points of the history."""
STREAM_SECONDS = 3.0
"""For streams to see that the dashboard ends."""
POINTS = 720
"""Points that are kept: an hour."""


class Hub:
    """What is known now, and memory and disk over the last hour."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)
        self._wake = threading.Event()
        self.over = False
        """Whether the dashboard ends: streams do then, too."""
        self._watchers = 0
        self._sampled = 0.0
        self.version = 0
        self.vms: list[Vm] = []
        self.trouble = ""
        """Why the last look failed; "" where it did not."""
        self.history: dict[str, deque[tuple[float, int, int]]] = {}
        """Time, bytes of memory, bytes of disk, by the worktree's key."""

    def start(self) -> None:
        threading.Thread(target=self._loop, daemon=True).start()

    def stop(self) -> None:
        """End the looks, and every stream with what it follows; returns when they have ended."""
        self.over = True
        self._wake.set()
        with self._left:
            self._left.wait_for(lambda: not self._watchers, STREAM_SECONDS)

    def _loop(self) -> None:
        while not self.over:
            self.look()
            self._wake.wait(PERIOD if self._watchers else SAMPLE)
            self._wake.clear()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """A page is open."""
        with self._lock:
            self._watchers += 1
        self._wake.set()
        try:
            yield
        finally:
            with self._lock:
                self._watchers -= 1
                self._left.notify_all()

    def nudge(self) -> None:
        """Something was done: look at once."""
        self._wake.set()

    def look(self) -> None:
        """Look now; a new version where something changed."""
        trouble, vms = "", self.vms
        try:
            vms = self._look()
        except Exception as error:  # the page says so and goes on with what it had
            trouble = f"{type(error).__name__}: {error}"
        with self._lock:
            sampled = self._sample(vms)
            if sampled or vms != self.vms or trouble != self.trouble:
                self.vms, self.trouble = vms, trouble
                self.version += 1

    def _sample(self, vms: list[Vm]) -> bool:
        now = time.time()
        if 0 <= now - self._sampled < SAMPLE:
            return False
        self._sampled = now
        for key in self.history.keys() - {vm["key"] for vm in vms}:
            del self.history[key]
        for vm in vms:
            points = self.history.setdefault(vm["key"], deque(maxlen=POINTS))
            points.append((round(now, 1), vm["memory"], vm["disk"]))
        return True

    def past(self) -> dict[str, list[tuple[float, int, int]]]:
        """The whole history, for a page that has just begun to watch."""
        with self._lock:
            return {key: list(points) for key, points in self.history.items()}

    def find(self, key: str) -> Vm | None:
        """The worktree of that key; None where it is gone."""
        return next((vm for vm in self.vms if vm["key"] == key), None)
