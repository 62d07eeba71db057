"""What is known of a VM, durable after every step: records in TOML, the lock, the event log.

Every file is replaced whole (written beside, synced, renamed), so a ``kill -9`` at any moment
leaves the last finished state.  The event log is NDJSON, one event a line, written with one
``write`` each; a reader ignores a half line at its end.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmoat import locks, paths
from vmoat.errors import Code, VmoatError

Values = dict[str, Any]


def read_toml(file: Path) -> dict[str, Any]:
    """The file's table; empty where there is none.  A damaged record counts as none."""
    try:
        # A worktree may hold names that are no UTF-8; `write_toml` keeps their bytes.
        return tomllib.loads(file.read_text(encoding="utf-8", errors="surrogateescape"))
    except (OSError, ValueError):
        return {}


def write_toml(file: Path, table: Mapping[str, Any]) -> None:
    """Replace ``file`` atomically and sync it; raises MISSING where it cannot be written."""
    import tomli_w

    write_atomically(file, tomli_w.dumps(_storable(table)).encode("utf-8", "surrogateescape"))


def write_atomically(file: Path, data: bytes, mode: int = 0o600) -> None:
    """Write beside, sync, rename: a reader sees the old file or the new one, whole."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        paths.make_private(file.parent)
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, file)
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise paths.unwritable(file.parent, error) from error


def _storable(value: Any) -> Any:
    """TOML has no null, and lists stand for tuples."""
    if isinstance(value, Mapping):
        return {str(k): _storable(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_storable(item) for item in value if item is not None]
    return value


class StageStore:
    """The record of finished stages (``stages.toml``), and of attempts that may still run.

    An attempt is written before a stage starts its work in the guest: after a ``kill -9`` the
    next run finds it and joins the work instead of starting it twice.  It ends in the same write
    as the stage's record begins: a worker that dies between the two would do finished work again.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "stages.toml"
        self._table: dict[str, dict[str, Any]] = {}
        self.reload()

    def reload(self) -> None:
        """Read again what another process may have written."""
        table = read_toml(self.file)
        self._table = {
            part: dict(table[part]) if isinstance(table.get(part), dict) else {}
            for part in ("done", "attempts", "failed")
        }

    def _write(self) -> None:
        write_toml(self.file, self._table)

    def values(self, stage: str) -> Values:
        """What the stage recorded when it last succeeded; empty when it never did."""
        entry = self._table["done"].get(stage)
        return dict(entry) if isinstance(entry, dict) else {}

    def save(self, stage: str, values: Mapping[str, Any]) -> None:
        """The stage has succeeded."""
        self._table["attempts"].pop(stage, None)
        self._table["failed"].pop(stage, None)
        self._table["done"][stage] = dict(values)
        self._write()

    def forget(self, stage: str) -> None:
        """The stage has failed, or is to be done again: its record is void."""
        if self._table["done"].pop(stage, None) is not None:
            self._write()

    def unfinished(self, stage: str) -> str:
        """Why a stage without a trustworthy record has none: killed, failed; "" for neither."""
        if stage in self._table["attempts"]:
            return "its last run was not finished"
        return str(self._table["failed"].get(stage, ""))

    def attempted(self, stage: str) -> str:
        """The key of the work that was begun and whose end is not known; "" for none."""
        entry = self._table["attempts"].get(stage)
        return str(entry.get("key", "")) if isinstance(entry, dict) else ""

    def attempt(self, stage: str, key: str) -> str:
        """The id of the attempt at this work: an unfinished one of the same key, or a new one."""
        entry = self._table["attempts"].get(stage)
        if isinstance(entry, dict) and entry.get("key") == key and entry.get("id"):
            return str(entry["id"])
        attempt_id = os.urandom(8).hex()
        self._table["attempts"][stage] = {"key": key, "id": attempt_id}
        self._write()
        return attempt_id

    def attempt_failed(self, stage: str, why: str) -> None:
        """The work has ended badly: the next run begins it anew, and says why."""
        self._table["attempts"].pop(stage, None)
        self._table["done"].pop(stage, None)
        self._table["failed"][stage] = why
        self._write()


class VmLock:
    """The lock of a VM; held by whatever changes its stages, freed by the kernel at its death."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "lock"
        self._fd: int | None = None

    def take(self, *, wait: float = 0) -> bool:
        """Whether the lock is ours now; tries for ``wait`` seconds."""
        paths.make_private(self.file.parent)
        fd = locks.opened(self.file)
        deadline = time.monotonic() + wait
        while True:
            if not locks.take(fd):
                if time.monotonic() >= deadline:
                    os.close(fd)
                    return False
                time.sleep(0.05)
                continue
            if locks.same_file(fd, self.file):
                self._fd = fd
                os.ftruncate(fd, 0)
                os.pwrite(fd, str(os.getpid()).encode(), 0)
                return True
            # The VM was destroyed while we waited: its folder, and this file, are gone.
            os.close(fd)
            return self.take(wait=max(0.0, deadline - time.monotonic()))

    def free(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def holder(self) -> int:
        """The process that holds the lock; 0 where none does."""
        if not self.held():
            return 0
        try:
            return int(self.file.read_bytes() or b"0")
        except (OSError, ValueError):
            return 0

    def held(self) -> bool:
        """Whether somebody holds it."""
        return locks.held(self.file)


KEEP_RUNS = 20


@dataclass(frozen=True)
class RunLog:
    """The event log of one run of the graph (``runs/ID.ndjson``)."""

    folder: Path
    run_id: str

    @property
    def file(self) -> Path:
        return self.folder / "runs" / f"{self.run_id}.ndjson"

    def open(self) -> None:
        """Begin the log and make it the current one; older ones beyond 20 are removed."""
        paths.make_private(self.file.parent)
        try:
            self.file.touch(mode=0o600)
        except OSError as error:
            raise paths.unwritable(self.file.parent, error) from error
        write_atomically(self.folder / "current", self.run_id.encode())
        logs = sorted(self.file.parent.glob("*.ndjson"), key=lambda file: file.stat().st_mtime)
        for old in logs[:-KEEP_RUNS]:
            if old != self.file:  # a clock that was set back must not remove the running one
                old.unlink(missing_ok=True)
                old.with_suffix(".wishes").unlink(missing_ok=True)

    def write(self, event: str, **fields: Any) -> None:
        """Append one event.  A full disk loses the event, never the work."""
        row = {"time": round(time.time(), 3), "event": event, "run": self.run_id, **fields}
        line = json.dumps(row, ensure_ascii=False) + "\n"
        try:
            fd = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        try:
            os.write(fd, line.encode("utf-8", "replace"))
        except OSError:
            pass
        finally:
            os.close(fd)

    # Wishes: what is asked for while the run works, and nobody stays to see it begin.

    @property
    def _wishes(self) -> Path:
        return self.file.with_suffix(".wishes")

    def wish(self, targets: Sequence[str], force: Sequence[str]) -> bool:
        """Have the run go on with these when it is through; False where it has ended already."""
        line = json.dumps({"targets": list(targets), "force": list(force)}) + "\n"
        with open(self._wishes, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            if b"closed" in file.read().splitlines():
                return False
            file.write(line.encode())
        return True

    def close_wishes(self) -> None:
        """The run ends, whatever was wished for: later ones have to start one of their own."""
        with contextlib.suppress(OSError), open(self._wishes, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(b"closed\n")

    def next_wish(self) -> dict[str, Any] | None:
        """The oldest wish; without one there will be none: later ones have to start a run."""
        with open(self._wishes, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            first, _, rest = file.read().partition(b"\n")
            file.truncate(0)
            file.write(rest if first else b"closed\n")
        return dict(json.loads(first)) if first else None

    def events(self) -> list[dict[str, Any]]:
        return list(self.follow(lambda: True))

    def done(self) -> frozenset[str]:
        """The stages that this run has done."""
        return frozenset(
            e["stage"]
            for e in self.events()
            if e["event"] == "stage_end" and e["outcome"] == "done"
        )

    def follow(self, stop: Any, pause: float = 0.05) -> Iterator[dict[str, Any]]:
        """Each event as it is written, until ``stop()`` is true and nothing more is there."""
        with open(self.file, "rb") as stream:
            held = b""
            while True:
                last_look = stop()
                chunk = stream.read()
                held += chunk
                *lines, held = held.split(b"\n")
                for line in lines:
                    try:
                        yield json.loads(line)
                    except ValueError:
                        continue
                if not chunk:
                    if last_look:
                        return
                    time.sleep(pause)


def current_run(folder: Path) -> RunLog | None:
    """The run that was started last; None where none ever was."""
    try:
        run_id = (folder / "current").read_text().strip()
    except (OSError, ValueError):  # none, or a damaged one
        return None
    log = RunLog(folder, run_id)
    return log if run_id and log.file.is_file() else None


def active_run(folder: Path) -> RunLog | None:
    """The run whose worker holds the VM's lock now.

    None where nobody does, and where something else does (`down`, plain doit) after a run was
    killed.
    """
    holder = VmLock(folder).holder()
    log = current_run(folder) if holder else None
    if log is None:
        return None
    events = log.events()
    if any(e["event"] == "run_end" for e in events):
        return None
    pids = {e["pid"] for e in events if e["event"] == "run_start"}
    return log if not pids or holder in pids else None


CANCEL_LIMIT = 15.0
"""Seconds for a worker that was cancelled to let go of its VM."""


def cancel_run(folder: Path) -> None:
    """Tell the worker that brings this VM up to stop; nobody else who holds its lock."""
    if active_run(folder) is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            holder = VmLock(folder).holder()
            if holder:
                os.kill(holder, signal.SIGINT)


def stage_lines(folder: Path, stage: str) -> list[str]:
    """What a stage said when it ran last, by the event logs."""
    logs = sorted((folder / "runs").glob("*.ndjson"), key=lambda file: file.stat().st_mtime)
    for file in reversed(logs):
        lines: list[str] | None = None
        found: list[str] | None = None
        for event in RunLog(folder, file.stem).events():
            if event["event"] == "stage_start" and event["stage"] == stage:
                found = lines = []
            elif event["event"] == "stage_end":
                lines = None
            elif event["event"] in ("line", "notice") and lines is not None:
                lines.append(str(event["text"]))
        if found is not None:
            return found
    return []


def require_lock(
    folder: Path, what: str, *, wait: float = 2.0, then: str = "`vmoat wait` follows it"
) -> VmLock:
    """The VM's lock, for a command that changes stages; raises BUSY where somebody works."""
    lock = VmLock(folder)
    if lock.take(wait=wait):
        return lock
    raise VmoatError(
        f"{what} has to wait: another vmoat (process {lock.holder() or '?'}) works on this VM",
        hint=f"{then}; Ctrl-C in the terminal that started it ends it",
        code=Code.BUSY,
    )
