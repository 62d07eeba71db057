"""CPU time and memory of processes with all their children (QEMU is a child of its sandbox)."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

PROC = sys.platform.startswith("linux")


def measure(pids: Collection[int]) -> tuple[float, int]:
    """(seconds of CPU used since they began, bytes of memory held now); one that has gone counts
    for nothing.  proc(5) on Linux, ps(1) on macOS.
    """
    if not PROC:
        return _by_ps(pids)
    ticks = pages = 0
    for pid in _with_children(pids):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # utime, stime
            pages += int(fields[21])  # rss
    return ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE")


def _with_children(pids: Collection[int]) -> set[int]:
    found: set[int] = set()
    left = list(pids)
    while left:
        pid = left.pop()
        if pid in found:
            continue
        found.add(pid)
        with contextlib.suppress(OSError, ValueError):
            for task in os.scandir(f"/proc/{pid}/task"):
                left += map(int, Path(task.path, "children").read_text().split())
    return found


def _by_ps(pids: Collection[int]) -> tuple[float, int]:
    if not pids:
        return 0.0, 0
    words = ["ps", "-o", "rss=,time=", "-p", ",".join(map(str, pids))]
    try:
        out = subprocess.run(words, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0.0, 0
    return parse_ps(out)


def parse_ps(out: str) -> tuple[float, int]:
    """The sums of lines ``RSS TIME`` (KiB; ``[[HH:]MM:]SS.CC``)."""
    seconds, kib = 0.0, 0
    for match in re.finditer(r"^\s*(\d+)\s+([\d:.]+)\s*$", out, re.MULTILINE):
        kib += int(match[1])
        parts = [float(part) for part in match[2].split(":")]
        seconds += sum(part * 60**power for power, part in enumerate(reversed(parts)))
    return seconds, kib * 1024
