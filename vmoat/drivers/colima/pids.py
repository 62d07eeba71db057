"""Processes of Lima, found by its pid files and known by their command lines.

A pid file outlives a crash, and its number may be another program's by then: a process counts when
its command line names the VM's folder.  Linux tells by proc(5), macOS by ps(1).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vmoat.drivers.qemu import process

PROC = sys.platform.startswith("linux")
KILL_SECONDS = 5.0


@dataclass(frozen=True)
class Living:
    """A process that runs."""

    pid: int
    started: str
    """When, as this system tells it: another process of that pid has another one."""


def read(file: Path, mark: Path) -> Living | None:
    """The process that a pid file names, where it runs and its command line holds ``mark``."""
    try:
        pid = int(file.read_text().strip())
    except (OSError, ValueError):
        return None
    return look(pid, mark)


def look(pid: int, mark: Path | str) -> Living | None:
    """The process of that pid, where its command line holds ``mark``."""
    started, line = _facts(pid)
    return Living(pid, started) if started and os.fsencode(mark) in line else None


def _facts(pid: int) -> tuple[str, bytes]:
    if PROC:
        started = process.start_time(pid)
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return "", b""
        return (str(started), line) if started else ("", b"")
    words = ["ps", "-ww", "-o", "lstart=,command=", "-p", str(pid)]
    try:
        out = subprocess.run(words, capture_output=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "", b""
    # `Wed Nov 25 07:51:05 2026     /path/of/program …`
    return " ".join(out[:24].decode(errors="replace").split()), out[24:]


def with_mark(mark: Path | str) -> list[Living]:
    """Every process of this user's whose command line holds ``mark``."""
    others = (look(pid, mark) for pid in _all() if pid != os.getpid())
    return [living for living in others if living]


def _all() -> list[int]:
    if PROC:
        return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    out = subprocess.run(["ps", "-x", "-o", "pid="], capture_output=True, timeout=10).stdout
    return [int(word) for word in out.split()]


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    if PROC:
        return process.resident(pid)
    words = ["ps", "-o", "rss=", "-p", str(pid)]
    out = subprocess.run(words, capture_output=True, timeout=10).stdout.split()
    return int(out[0]) * 1024 if out else 0


def end(living: Iterable[Living], mark: Path | str, *, gently: bool = False) -> None:
    """Kill them (TERM first where ``gently``), and wait until they are gone."""
    left = list(living)
    for number in (signal.SIGTERM, signal.SIGKILL) if gently else (signal.SIGKILL,):
        for one in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(one.pid, number)
        deadline = time.monotonic() + KILL_SECONDS
        while left and time.monotonic() < deadline:
            for one in left:
                with contextlib.suppress(ChildProcessError, OSError):
                    os.waitpid(one.pid, os.WNOHANG)
            left = [one for one in left if look(one.pid, mark) == one]
            time.sleep(0.02)
        if not left:
            return
