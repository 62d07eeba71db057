"""Processes that outlive the command that started them, known by pid and start time.

A pid alone may be somebody else's by now; the kernel's start time (field 22 of
``/proc/PID/stat``, proc(5), in clock ticks since the host booted) together with the host's boot
id tells them apart.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


def host_boot() -> str:
    """The host's boot id; start times count from there."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """``/proc/PID/stat`` from its third field on, the state; empty for no process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # the name before it may hold anything


def start_time(pid: int) -> int:
    """When the process started; 0 for none, and for one that has ended but was not waited for."""
    fields = _stat(pid)
    if len(fields) < 20 or fields[0] in "ZX":
        return 0
    return int(fields[19])


def resident(pid: int) -> int:
    """Bytes of memory that a process and its children hold (QEMU is a child of its sandbox)."""
    total = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]  # proc(5): resident
        total = int(pages) * os.sysconf("SC_PAGE_SIZE")
        for task in os.scandir(f"/proc/{pid}/task"):
            for child in Path(task.path, "children").read_text().split():
                total += resident(int(child))
    return total


@dataclass(frozen=True)
class Process:
    """One process of a VM."""

    name: str
    pid: int
    started: int

    @classmethod
    def of(cls, name: str, pid: int) -> Process:
        return cls(name, pid, start_time(pid))

    def alive(self) -> bool:
        return self.started > 0 and start_time(self.pid) == self.started

    def stopped(self) -> bool:
        """Whether a signal (STOP, or a debugger) holds it."""
        return self.alive() and _stat(self.pid)[:1] in (["T"], ["t"])

    def signal(self, number: int) -> None:
        """Send a signal; quiet when it has gone."""
        if not self.alive():
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(self.pid, number)


def strays(mark: str) -> list[Process]:
    """Processes of the VM with this name (QEMU's ``-name``), recorded or not."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"guest={mark}".encode() in words and start_time(int(entry)):
                found.append(Process.of("stray", int(entry)))
    return found


def wait_gone(processes: Iterable[Process], timeout: float) -> bool:
    """Wait until none of them lives; False when time is up."""
    left = [process for process in processes if process.alive()]
    deadline = time.monotonic() + timeout
    pause = 0.005
    while left:
        reap(left)
        left = [process for process in left if process.alive()]
        if left and time.monotonic() > deadline:
            return False
        if left:
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1)
    return True


def reap(processes: Iterable[Process]) -> None:
    """Collect those that are our own children, or they stay zombies of a long-lived worker."""
    for process in processes:
        with contextlib.suppress(ChildProcessError, OSError):
            os.waitpid(process.pid, os.WNOHANG)


TERMINATE_SECONDS = 5.0


def end(processes: Iterable[Process]) -> None:
    """Terminate, wait, kill, wait."""
    every = list(processes)
    for process in every:
        process.signal(signal.SIGTERM)
    if wait_gone(every, TERMINATE_SECONDS):
        return
    for process in every:
        process.signal(signal.SIGKILL)
    wait_gone(every, TERMINATE_SECONDS)
