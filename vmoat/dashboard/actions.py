"""The page's buttons: each is a command of vmoat, run as a process in the worktree."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from vmoat import proc
from vmoat.errors import VmoatError
from vmoat.output import printable

VERBS: dict[str, tuple[str, ...]] = {
    "up": ("up", "--detach"),
    "test": ("test",),
    "down": ("down",),
    "open": ("open",),
}
"""What a button runs."""

KEEP_LINES = 2000
"""Lines of an action's output that are kept."""
LONGEST = 8192
"""Bytes of one line: a longer one comes in pieces, or it would fill this machine's memory."""


def lines_of(out: IO[bytes]) -> Iterator[str]:
    """What a program prints, a line at a time, until its end."""
    for line in iter(lambda: out.readline(LONGEST), b""):
        yield printable(line.decode(errors="replace"))


def argv(worktree: str | Path, words: Sequence[str]) -> list[str]:
    """vmoat itself, for a worktree.  -P: a vmoat/ in some folder must not be taken for us."""
    return [sys.executable, "-P", "-m", "vmoat", "-C", os.fspath(worktree), *words]


class Action:
    """One press of a button: the process and what it said."""

    def __init__(self, verb: str, words: Sequence[str]) -> None:
        self.verb = verb
        self.began = time.time()
        self.ended = 0.0
        self.code: int | None = None
        self.lines: deque[dict[str, Any]] = deque(maxlen=KEEP_LINES)
        self.count = 0
        self._stopped = False
        self._process = proc.spawn(words, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        out = self._process.stdout
        assert out is not None
        with out:
            for text in lines_of(out):
                self.count += 1
                self.lines.append(
                    {"n": self.count, "stage": self.verb, "kind": "line", "time": time.time(),
                     "text": text}
                )  # fmt: skip
        code = self._process.wait()
        self.ended = time.time()
        self.code = code

    @property
    def running(self) -> bool:
        return self.code is None

    def stop(self) -> None:
        """Interrupt it as Ctrl-C would; quiet where it has ended."""
        self._stopped = True
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGINT)

    def told(self) -> dict[str, Any]:
        """What the page shows of it: how it ended, and its last words where that was badly."""
        said = [line["text"] for line in list(self.lines)[-6:]]
        return {
            "verb": self.verb, "began": self.began, "ended": self.ended, "code": self.code,
            "stopped": self._stopped, "said": said if self.code else [],
        }  # fmt: skip


class Actions:
    """The last action of each kind in each worktree."""

    def __init__(self, command: Callable[[str, Sequence[str]], list[str]] = argv) -> None:
        self._command = command
        self._lock = threading.Lock()
        self._last: dict[tuple[str, str], Action] = {}

    def start(self, key: str, worktree: str, verb: str) -> None:
        """Run the verb in the worktree; nothing where the same one runs there already."""
        with self._lock:
            last = self._last.get((key, verb))
            if last is not None and last.running:
                return
            with contextlib.suppress(VmoatError):
                self._last[key, verb] = Action(verb, self._command(worktree, VERBS[verb]))

    def stop(self, key: str, verb: str) -> None:
        """Interrupt what runs."""
        action = self._last.get((key, verb))
        if action is not None:
            action.stop()

    def get(self, key: str, verb: str) -> Action | None:
        return self._last.get((key, verb))

    def of(self, key: str) -> dict[str, dict[str, Any]]:
        """The last action of each kind, as the page shows it."""
        return {verb: a.told() for (k, verb), a in list(self._last.items()) if k == key}

    def end(self) -> None:
        """The dashboard ends: what it started and still runs is interrupted."""
        for action in list(self._last.values()):
            action.stop()
