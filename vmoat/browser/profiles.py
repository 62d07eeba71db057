"""Where the profiles of a VM's browsers are, and how they go with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from vmoat import locks, paths, proc
from vmoat.browser import find

END_LIMIT = 5.0
"""Seconds for a browser to write its profile and go."""


def home(vm_id: str, command: Sequence[str]) -> Path:
    """The folder of this VM's profiles for a browser, made if need be, 0700.

    A snap's browser writes no hidden folder of the home folder, so its profile is the snap's own
    (snapcraft's `home` interface leaves dot files out).
    """
    place = paths.browser_dir(vm_id)
    if command and (snap := find.snap(command[0])):
        place = Path(os.path.expanduser("~")) / "snap" / snap / "common" / "vmoat" / vm_id
    return paths.make_private(place)


def window(vm_id: str, command: Sequence[str]) -> Path:
    """The profile of `vmoat open`; it stays until the VM is destroyed."""
    return home(vm_id, command) / "window"


@contextlib.contextmanager
def throwaway(vm_id: str, command: Sequence[str]) -> Iterator[Path]:
    """A profile for one screenshot, removed behind it.

    Those whose maker was killed are removed by the next: nobody holds their lock.
    """
    folder = home(vm_id, command)
    for lock in folder.glob("shot-*.lock"):
        with locks.tried(lock) as stale:
            if stale:
                _clear(lock.with_suffix(""))
                lock.unlink(missing_ok=True)
    mine = folder / f"shot-{os.getpid()}-{time.monotonic_ns()}"
    with locks.in_turn(Path(f"{mine}.lock")):
        try:
            yield paths.make_private(mine)
        finally:
            _clear(mine)
            Path(f"{mine}.lock").unlink(missing_ok=True)


def remove(vm_id: str) -> None:
    """End the browser that still shows this VM's pages, and remove its profiles."""
    snaps = Path(os.path.expanduser("~")).glob(f"snap/*/common/vmoat/{vm_id}")
    for folder in (paths.browser_dir(vm_id), *snaps):
        end(folder / "window")
        _clear(folder)


def has(profile: Path, word: str) -> bool:
    """Whether no browser has this profile open but one that was started with ``word``."""
    pid = owner(profile)
    return not pid or word in _command_line(pid).replace("\0", " ").split(" ")


def end(profile: Path) -> None:
    """End the browser that has this profile open; quiet when there is none."""
    pid = owner(profile)
    if not pid:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
        deadline = time.monotonic() + END_LIMIT
        while owner(profile) == pid and time.monotonic() < deadline:
            time.sleep(0.05)


def owner(profile: Path) -> int:
    """The pid of the browser that has this profile open; 0 for none.

    Chromium's lock is a symbolic link to HOST-PID (process_singleton_posix.cc); it stays behind a
    browser that was killed, so the process has to name the profile.
    """
    try:
        pid = int(os.readlink(profile / "SingletonLock").rpartition("-")[2])
    except (OSError, ValueError):
        return 0
    return pid if f"--user-data-dir={profile}" in _command_line(pid) else 0


def _command_line(pid: int) -> str:
    try:
        return os.fsdecode((Path("/proc") / str(pid) / "cmdline").read_bytes())
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return ""
    return proc.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], check=False).out


def _clear(folder: Path) -> None:
    """Remove a profile; the last of a browser's processes may still write there."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)
