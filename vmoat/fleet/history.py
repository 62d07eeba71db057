"""How each stage of a VM went last, from its event logs and its record of finished stages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmoat.state import RunLog, VmLock, current_run, read_toml

HEAD, TAIL = 64 << 10, 256 << 10
"""Bytes read of a long log: its begin tells which stages there are, its end how they went."""
LOGS = 5
"""Runs that are looked at for a stage which the last one did not come to."""


@dataclass(frozen=True)
class StageRow:
    """One stage of one VM."""

    name: str
    state: str
    """``done`` (it ran, or what it made still held), ``running``, ``waiting`` (for others, in a run
    that goes on), ``failed``, ``interrupted`` (its worker was cancelled or killed)."""
    at: float
    """When it came to that state (unix time); 0 where only its record is left."""
    seconds: float
    """How long it took; 0 while it runs, and where it was skipped."""
    reason: str
    """Why it ran; what went wrong, where it failed; "" where nothing was to be done."""


@dataclass(frozen=True)
class History:
    """The last runs of one VM."""

    stages: tuple[StageRow, ...] = ()
    """In the order in which they run."""
    working: bool = False
    """Whether a worker brings the VM up now."""
    ended: float = 0.0
    """When something was last written of a run (unix time)."""


def read(folder: Path) -> History:
    """The history in a VM's state folder."""
    lock = VmLock(folder)
    holder = lock.holder()
    last = current_run(folder)
    if last is None:
        return History(tuple(_recorded(folder, {})))
    logs = [last.file, *_older(last)]
    found: dict[str, StageRow] = {}
    order: list[str] = []
    working = False
    for file in logs[:LOGS]:
        events = list(_events(file))
        live = file == last.file and _lives(events, holder)
        working = working or live
        names = [name for e in events if e["event"] == "graph" for name in e["stages"]]
        order += [name for name in names if name not in order]
        for name, row in _rows_of(events, names, live).items():
            found.setdefault(name, row)
        if all(name in found for name in names):
            break
    for row in _recorded(folder, found):
        found[row.name] = row
    rows = [found[name] for name in [*order, *found] if name in found]
    return History(tuple(dict.fromkeys(rows)), working, _written(last.file))


def _older(last: RunLog) -> list[Path]:
    others = [file for file in last.file.parent.glob("*.ndjson") if file != last.file]
    return sorted(others, key=_written, reverse=True)


def _written(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _events(file: Path) -> Iterator[dict[str, Any]]:
    """The events of a log that tell of stages; its lines of output are passed over unread."""
    for line in _lines(file):
        # `RunLog.write` puts the kind right behind the time
        if b'"event": "line"' in line[:64]:
            continue
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            yield event


def _lines(file: Path) -> list[bytes]:
    try:
        with open(file, "rb") as stream:
            data = stream.read(HEAD + TAIL)
            if len(data) == HEAD + TAIL:
                begin = data[:HEAD]
                stream.seek(-TAIL, 2)
                data = begin + b"\n" + stream.read()
    except OSError:
        return []
    return data.split(b"\n")


def _lives(events: list[dict[str, Any]], holder: int) -> bool:
    """Whether the worker of this run holds the VM's lock (as ``state.active_run``)."""
    if not holder or any(e["event"] == "run_end" for e in events):
        return False
    pids = {e.get("pid") for e in events if e["event"] == "run_start"}
    return not pids or holder in pids


def _rows_of(events: list[dict[str, Any]], names: list[str], live: bool) -> dict[str, StageRow]:
    rows: dict[str, StageRow] = {}
    for event in events:
        name, at = str(event.get("stage", "")), float(event.get("time", 0))
        if event["event"] == "stage_start":
            reason = str(event.get("reason", ""))
            state = "running" if live else "interrupted"
            rows[name] = StageRow(name, state, at, 0.0, reason)
        elif event["event"] == "stage_end":
            before = rows.get(name)
            state = "failed" if event.get("outcome") == "failed" else "done"
            skipped = event.get("outcome") == "skipped"
            reason = before.reason if before and not skipped else ""
            rows[name] = StageRow(name, state, at, float(event.get("seconds", 0)), reason)
        elif event["event"] == "run_end" and event.get("code"):
            rows = {n: _with_error(row, event) for n, row in rows.items()}
    if live:
        now = float(events[0].get("time", 0)) if events else 0.0
        for name in names:
            rows.setdefault(name, StageRow(name, "waiting", now, 0.0, ""))
    return rows


def _with_error(row: StageRow, end: dict[str, Any]) -> StageRow:
    """What the run ended with is what the stage failed with."""
    if row.state != "failed" or not end.get("message"):
        return row
    return StageRow(row.name, row.state, row.at, row.seconds, str(end["message"]))


def _recorded(folder: Path, known: dict[str, StageRow]) -> Iterator[StageRow]:
    """Stages of which no log is left."""
    table = read_toml(folder / "stages.toml")
    for name, why in _part(table, "failed").items():
        if name not in known:
            yield StageRow(name, "failed", 0.0, 0.0, str(why))
    for name in _part(table, "done"):
        if name not in known:
            yield StageRow(name, "done", 0.0, 0.0, "")


def _part(table: dict[str, Any], name: str) -> dict[str, Any]:
    found = table.get(name)
    return found if isinstance(found, dict) else {}
