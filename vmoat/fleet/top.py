"""`vmoat top`: the table again and again, on the terminal's other screen, until `q` or Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from vmoat.fleet import table
from vmoat.fleet.rows import Row

EVERY = 1.0
"""Seconds between two looks."""
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""The other screen without a cursor, and back (xterm's private modes)."""
HOME, CLEAR_LINE, CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"

Look = Callable[[Sequence[Row]], list[Row]]
"""``rows.rows``: takes the look before."""


def frame(
    rows: Sequence[Row], width: int, height: int, now: float, memory: int, paint: table.Paint
) -> list[str]:
    """The lines of one screen; what doesn't fit is counted."""
    clock = time.strftime("%H:%M:%S", time.localtime(now))
    head = table.cut(f"vmoat  {clock}  {table.totals(rows, memory)}", width)
    if not rows:
        return [head, "", "there is no VM: `vmoat up` in a worktree makes one"]
    found = [head, "", *table.lines(by_load(rows), width, now, paint)]
    if len(found) > height:
        found = [*found[: height - 1], f"… {len(found) - height + 1} more lines"]
    return found


def by_load(rows: Sequence[Row]) -> list[Row]:
    """Those that are up first, the busiest of them before all others."""
    return sorted(rows, key=lambda r: (not r.up, -(r.cpu_percent or 0), r.repository, r.name))


def run(look: Look, memory: int, stdin: TextIO, stdout: TextIO, paint: table.Paint) -> None:
    """Show it live until `q` or Ctrl-C; the terminal is left as it was."""
    rows = look(())
    with _screen(stdin, stdout):
        while True:
            # each time: the window may have another size by now
            width, height = shutil.get_terminal_size()
            lines = frame(rows, width, height, time.time(), memory, paint)
            text = (CLEAR_LINE + "\r\n").join(lines)
            stdout.write(HOME + text + CLEAR_LINE + CLEAR_REST)
            stdout.flush()
            if _quits(stdin, EVERY):
                return
            rows = look(rows)


def _quits(stdin: TextIO, seconds: float) -> bool:
    """Whether `q` (or end of file) comes within this time."""
    if not select.select([stdin], [], [], seconds)[0]:
        return False
    data = os.read(stdin.fileno(), 64)
    return not data or b"q" in data.lower()


@contextlib.contextmanager
def _screen(stdin: TextIO, stdout: TextIO) -> Iterator[None]:
    before = termios.tcgetattr(stdin)
    stdout.write(ENTER)
    try:
        tty.setcbreak(stdin)  # keys come at once; Ctrl-C stays Ctrl-C
        yield
    except KeyboardInterrupt:
        pass
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)
        stdout.write(LEAVE)
        stdout.flush()


def is_terminal(stdin: TextIO | None = sys.stdin) -> bool:
    """Whether there is one to show it on and to quit it from."""
    return stdin is not None and stdin.isatty() and sys.stdout.isatty()
