"""Who reads what a command prints, and may go before it ends."""

from __future__ import annotations

import os
import select
import stat
import threading
from collections.abc import Callable


def when_gone(stream: int, then: Callable[[], None]) -> None:
    """Call ``then``, in another thread, when nobody reads this descriptor's pipe any more.

    A program that follows a quiet log would learn of it with its next line, or never.  poll(2)
    tells of it unasked: POLLERR at Linux' end of a pipe, POLLHUP at a socket's.  Nothing where
    the descriptor is a file or a terminal, which sends SIGHUP.
    """
    try:
        mode = os.fstat(stream).st_mode
    except OSError:
        return
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        threading.Thread(target=_watch, args=(stream, then), daemon=True).start()


def _watch(stream: int, then: Callable[[], None]) -> None:
    poll = select.poll()
    poll.register(stream, 0)
    poll.poll()
    then()
