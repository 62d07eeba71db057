"""A headless Chromium, talked to in the Chrome DevTools Protocol over a pipe.

``--remote-debugging-pipe``: the browser reads commands on descriptor 3 and writes answers to 4,
each a JSON text and a NUL byte (content/browser/devtools/devtools_pipe_handler.cc).  No port opens
on the host, no library is needed, and when the pipe ends the browser ends: also after a kill -9 of
this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

from vmoat import proc
from vmoat.errors import Code, VmoatError

START_LIMIT = 60.0
"""Seconds for the first answer: a busy machine's first start reads 300 MB from disk."""
END_LIMIT = 3.0
LARGEST = 128 << 20
"""Bytes of a message that is read: a whole page's picture is smaller, what a page logs may not be.
"""
OVERSIZE = "vmoat.oversize"
"""The event that is told instead of a larger one."""

ON_PIPES = 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null'
"""A shell puts its standard streams where Chromium wants the pipe."""

OnEvent = Callable[[str, dict[str, Any], str], None]
"""Takes an event's method, its parameters and the session that it comes from."""


class Browser:
    """One browser and its pipe; leaves no process behind.

    ``log`` takes what it writes to standard error; ``on_event`` is called while an answer or a
    condition is waited for, and only then.
    """

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        on_event: OnEvent,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._log = log
        self._on_event = on_event
        self._answers: dict[int, dict[str, Any]] = {}
        self._last = 0
        self._parts: list[bytes] = []
        """What has come of the next message."""
        self._size = 0
        with open(log, "wb") as errors:
            self._process = proc.spawn(
                ["sh", "-c", ON_PIPES, "sh", *argv],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """End it: by the pipe's end, else by a signal to its whole group."""
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                cast(BinaryIO, stream).close()
        try:
            self._process.wait(END_LIMIT)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def send(self, method: str, params: dict[str, Any] | None = None, session: str = "") -> int:
        """Send a command whose answer nobody waits for; its number."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params or {}}
        if session:
            message["sessionId"] = session
        pipe = cast(BinaryIO, self._process.stdin)
        try:
            pipe.write(json.dumps(message).encode() + b"\0")
            pipe.flush()
        except OSError as error:
            raise self._gone() from error
        return self._last

    def call(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        session: str = "",
        *,
        limit: float = START_LIMIT,
    ) -> dict[str, Any]:
        """Send a command and wait ``limit`` seconds for its result.

        Raises TIMEOUT, and STAGE where the browser refuses it.
        """
        number = self.send(method, params, session)
        if not self.wait(lambda: number in self._answers, limit):
            raise VmoatError(
                f"the browser did not answer within {limit:g} s ({method})",
                hint="a page whose script never ends does that; --timeout gives it more",
                code=Code.TIMEOUT,
            )
        answer = self._answers.pop(number)
        if "error" in answer:
            raise VmoatError(f"the browser refused {method}: {answer['error'].get('message', '')}")
        result: dict[str, Any] = answer.get("result", {})
        return result

    def answer(self, number: int) -> dict[str, Any] | None:
        """What came back for a command that was sent; None as long as nothing did."""
        return self._answers.get(number)

    def wait(self, true: Callable[[], bool], limit: float) -> bool:
        """Take what the browser says until ``true()``; False after ``limit`` seconds."""
        deadline = time.monotonic() + limit
        while not true():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._take(min(left, 0.1))
        return True

    def _take(self, patience: float) -> None:
        pipe = cast(BinaryIO, self._process.stdout).fileno()
        if not select.select([pipe], [], [], patience)[0]:
            return
        data = os.read(pipe, 1 << 20)
        if not data:
            raise self._gone()
        first, *others = data.split(b"\0")
        self._add(first)
        for part in others:
            self._finish()
            self._add(part)

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= LARGEST:
            self._parts.append(part)
        else:
            self._parts.clear()

    def _finish(self) -> None:
        size, text = self._size, b"".join(self._parts)
        self._size, self._parts = 0, []
        if size <= LARGEST:
            self._dispatch(json.loads(text))
        else:
            self._on_event(OVERSIZE, {"size": size}, "")

    def _dispatch(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
        else:
            self._on_event(message["method"], message.get("params", {}),
                           message.get("sessionId", ""))  # fmt: skip

    def _gone(self) -> VmoatError:
        said = self._log.read_text(errors="replace").splitlines()
        return VmoatError(
            "the browser ended by itself",
            hint="its last lines say why; `browser.command` of your config.toml names another",
            code=Code.MISSING,
            details=said[-8:],
        )
