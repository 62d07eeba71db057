"""What a busy machine may take for a thing that must happen, and for one that must be quick."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT = 60.0
"""Seconds for what takes one on a machine that has nothing else to do."""


def until(what: Callable[[], object], limit: float = LIMIT) -> None:
    """Wait until it is true."""
    deadline = time.monotonic() + limit
    while not what():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def quickest(do: Callable[[], object], limit: float, rounds: int = 10) -> float:
    """Seconds of the first round below ``limit``, else of the quickest: what else the machine does
    makes a round slower and none quicker.
    """
    best = float("inf")
    for _ in range(rounds):
        began = time.monotonic()
        do()
        best = min(best, time.monotonic() - began)
        if best < limit:
            break
    print(f"{best:.2f} s, of at most {limit:g} s")
    return best
