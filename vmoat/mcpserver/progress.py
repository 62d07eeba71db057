"""What a client is told while a tool runs, from the events of a run or the lines of a command."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio

from vmoat.mcpserver.calls import loads
from vmoat.output import printable
from vmoat.view import HEARTBEAT, clock, plain_line

Report = Callable[[float, str], Awaitable[None]]
"""Takes the seconds since the call began and a line for a person."""

PACE = 0.25
"""Seconds between two looks at what is to be told."""

SILENCE = HEARTBEAT / 4
"""Seconds without a word after which a call says that it is still there: many clients give up
after a minute of silence."""


class Progress:
    """Collects lines and reports them in order, at a pace that a client can bear.

    Stages and notices are all told; of the output between only the newest line.  The progress is
    the time in seconds, since it has to grow with every report; nobody knows the total.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._began = time.monotonic()
        self._spoke = self._began
        self._told: list[str] = []
        self._newest = ""
        self._last = ""

    def event(self, line: str) -> None:
        """A line of `up --json`."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            event = loads(line)
            text = plain_line(event)
            if text is not None:
                self._take(text.strip(), weighty=event["event"] != "line")

    def output(self, line: str) -> None:
        """A line of the user's command."""
        self._take(printable(line).strip(), weighty=False)

    def story(self, line: str) -> None:
        """A line of vmoat's own."""
        self._take(printable(line).strip(), weighty=True)

    def _take(self, text: str, *, weighty: bool) -> None:
        if weighty:
            self._told.append(text)
            self._newest = ""
        elif text:
            self._newest = text

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Report while the block runs, and the rest at its end."""
        failure: Exception | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._pump)
            try:
                yield
            except Exception as error:  # as it is, not as one of a group
                failure = error
            group.cancel_scope.cancel()
        await self._tell()
        if failure:
            raise failure

    async def _pump(self) -> None:
        while True:
            await anyio.sleep(PACE)
            await self._tell()
            if time.monotonic() - self._spoke >= SILENCE:
                since = clock(time.monotonic() - self._began)
                await self._say(f"still at it after {since}: {self._last or 'no output yet'}")

    async def _tell(self) -> None:
        told, newest = self._told, self._newest
        self._told, self._newest = [], ""
        for text in [*told, newest] if newest else told:
            self._last = text
            await self._say(text)

    async def _say(self, text: str) -> None:
        self._spoke = time.monotonic()
        await self._report(self._spoke - self._began, text)
