"""How a run looks: live on a terminal, plain lines elsewhere, NDJSON for programs.

Each view takes the events of ``vmoat.state.RunLog``; none of them knows how the work is done.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmoat.errors import Code, VmoatError, as_fields
from vmoat.output import Output, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

Event = dict[str, Any]

HEARTBEAT = 60.0
"""Seconds of silence after which a plain view says that it is still there."""

TAIL = 6
"""Last lines of the running stage that the live view shows."""

_MARKS = {"done": "✓", "skipped": "·", "failed": "✗", "running": "▸", "waiting": " "}


@dataclass
class Row:
    """One stage as a view knows it."""

    name: str
    state: str = "waiting"
    reason: str = ""
    began: float = 0.0
    seconds: float = 0.0


class Progress:
    """The stages of a run, kept up to date from its events."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.tail: deque[str] = deque(maxlen=TAIL)

    def take(self, event: Event) -> None:
        kind, name = event["event"], event.get("stage", "")
        if kind == "stage_start":
            self.rows[name] = Row(name, "running", event["reason"], event["time"])
            self.tail.clear()
        elif kind == "stage_end":
            row = self.rows.setdefault(name, Row(name))
            row.state, row.seconds = event["outcome"], event["seconds"]
        elif kind == "line":
            self.tail.append(printable(event["text"]))

    @property
    def running(self) -> Row | None:
        return next((row for row in self.rows.values() if row.state == "running"), None)


def clock(seconds: float) -> str:
    """``4.2 s``, ``1 m 05 s``: how long something took, for a person."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} m {rest:02d} s"


def event(kind: str, run: str, **fields: Any) -> Event:
    """An event that no run has written: the command's own."""
    return {"time": round(time.time(), 3), "event": kind, "run": run, **fields}


def no_run(message: str) -> Event:
    """The end of a run that was not needed."""
    return event("run_end", "", **{**as_fields(VmoatError("", code=Code.OK)), "message": message})


def make(
    out: Output, *, as_json: bool, tail: int | None = None
) -> JsonView | PlainView | LiveView:
    """The view that fits where the output goes; ``tail`` as ``PlainView`` has it."""
    if as_json:
        return JsonView(out)
    if out.colours and tail is None:
        return LiveView(out)
    return PlainView(out, tail)


class JsonView:
    """The events as they are, one a line, on stdout."""

    def __init__(self, out: Output) -> None:
        self._out = out

    def show(self, event: Event) -> None:
        self._out.json_line({"schema": "vmoat.event/1", **event})

    def tick(self) -> None: ...

    def close(self) -> None: ...


class PlainView:
    """A line for whatever happens, and one a minute when nothing does.

    With ``tail``, of the stages' own output no more than the running one's last lines are shown,
    when the watching ends: who asks again and again would read all of it each time.
    """

    def __init__(self, out: Output, tail: int | None = None) -> None:
        self._out = out
        self._kept: deque[str] | None = None if tail is None else deque(maxlen=tail)
        self._progress = Progress()
        self._last = time.monotonic()

    def show(self, event: Event) -> None:
        self._progress.take(event)
        text = plain_line(event)
        if self._kept is not None and event["event"] in ("line", "stage_start", "stage_end"):
            if event["event"] == "line":
                self._kept.append(text or "")
                return
            self._kept.clear()  # an error brings its stage's last lines with it
        if text is not None:
            self._last = time.monotonic()
            self._out.say(text)

    def tick(self) -> None:
        row = self._progress.running
        if row and time.monotonic() - self._last >= HEARTBEAT:
            self._last = time.monotonic()
            last = self._progress.tail[-1] if self._progress.tail else "no output yet"
            self._out.say(f"{row.name}: still at it after {clock(time.time() - row.began)}: {last}")

    def close(self) -> None:
        for text in self._kept or ():
            self._out.say(text)


def plain_line(event: Event) -> str | None:
    """An event as a line for a person; None for one that says nothing."""
    kind = event["event"]
    if kind == "stage_start":
        return f"▸ {event['stage']}: {event['reason']}"
    if kind == "stage_end" and event["outcome"] == "done":
        return f"✓ {event['stage']} ({clock(event['seconds'])})"
    if kind == "stage_end" and event["outcome"] == "failed":
        return f"✗ {event['stage']} ({clock(event['seconds'])})"
    if kind in ("line", "notice"):
        return f"  {printable(event['text'])}"
    if kind == "call":
        return f"+ {event['text']}"
    return None


class LiveView:
    """The stages with their clocks, and the running one's last lines, redrawn in place."""

    def __init__(self, out: Output) -> None:
        from rich.console import Console
        from rich.live import Live

        self._progress = Progress()
        self._over = False
        console = Console(file=out.stderr, highlight=False)
        self._live = Live(
            console=console, refresh_per_second=8, get_renderable=self._draw, transient=False
        )
        self._live.start()

    def show(self, event: Event) -> None:
        self._progress.take(event)
        if event["event"] == "call":
            self._live.console.print(f"+ {event['text']}", style="dim", markup=False)
        elif event["event"] == "notice":
            self._live.console.print(f"[vmoat] {printable(event['text'])}", markup=False)

    def tick(self) -> None: ...

    def close(self) -> None:
        self._over = True
        self._live.stop()

    def _draw(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1))
        for row in self._progress.rows.values():
            style = {"done": "green", "failed": "bold red", "running": "bold cyan"}
            seconds = time.time() - row.began if row.state == "running" else row.seconds
            skipped = row.state == "skipped"
            grid.add_row(
                Text(_MARKS.get(row.state, " "), style.get(row.state, "dim")),
                Text(row.name, style.get(row.state, "dim")),
                Text("" if skipped else f"{clock(seconds):>8}", "dim"),
                Text("up to date" if skipped else row.reason, "dim", overflow="ellipsis",
                     no_wrap=True),
            )  # fmt: skip
        if self._over and not self._progress.running:
            return grid
        lines = (Text(f"    {t}", "dim", overflow="ellipsis", no_wrap=True)
                 for t in self._progress.tail)  # fmt: skip
        return Group(grid, *lines)
