"""The lines of one worktree for one page: its stages', its stack's, its tests', its console's."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from vmoat import proc
from vmoat.dashboard.actions import Action, lines_of
from vmoat.dashboard.timeline import Timeline

Line = dict[str, Any]

FOLLOWED = {
    "stack": ("logs", "--follow", "--tail", "300"),
    "console": ("logs", "--console", "--follow", "--tail", "300"),
}
"""What is asked of `vmoat logs`."""

AT_ONCE = 1000
"""Lines that one message holds at most."""


class Source(Protocol):
    """Where a page's lines come from."""

    def new(self) -> list[Line]:
        """What there is since the last call."""

    def close(self) -> None: ...


class Awaited:
    """A source that is opened once there is such a thing: a page may ask before the first look."""

    def __init__(self, find: Callable[[], Source | None]) -> None:
        self._find = find
        self._found: Source | None = None

    def new(self) -> list[Line]:
        self._found = self._found or self._find()
        return self._found.new() if self._found else []

    def close(self) -> None:
        if self._found:
            self._found.close()


class Stages:
    """The event log, as the timeline has read it."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._seen = 0

    def new(self) -> list[Line]:
        if self._timeline.count == self._seen:
            return []
        lines = [line for line in list(self._timeline.lines) if line["n"] > self._seen]
        self._seen = lines[-1]["n"] if lines else self._seen
        return lines

    def close(self) -> None: ...


class Output:
    """What the last action of a kind says; a new one's follows the old one's."""

    def __init__(self, action: Callable[[], Action | None]) -> None:
        self._action = action
        self._of: Action | None = None
        self._seen = 0

    def new(self) -> list[Line]:
        action = self._action()
        if action is not self._of:
            self._of, self._seen = action, 0
        if action is None or action.count == self._seen:
            return []
        lines = [line for line in list(action.lines) if line["n"] > self._seen]
        self._seen = lines[-1]["n"] if lines else self._seen
        return lines

    def close(self) -> None: ...


class Followed:
    """What a program prints, until nobody looks any more."""

    def __init__(self, words: Sequence[str]) -> None:
        self._lines: queue.Queue[Line] = queue.Queue(20 * AT_ONCE)
        self._process = proc.spawn(words, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        out = self._process.stdout
        assert out is not None
        with out:
            for text in lines_of(out):
                with contextlib.suppress(queue.Full):  # a page that does not keep up loses lines
                    self._lines.put_nowait(
                        {"n": 0, "stage": "", "kind": "line", "time": time.time(), "text": text}
                    )
        self._process.wait()

    def new(self) -> list[Line]:
        lines: list[Line] = []
        with contextlib.suppress(queue.Empty):
            while len(lines) < AT_ONCE:
                lines.append(self._lines.get_nowait())
        return lines

    def close(self) -> None:
        if self._process.poll() is not None:
            return  # its number may be another's by now
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGTERM)
