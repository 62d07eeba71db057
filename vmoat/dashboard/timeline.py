"""The stages of a VM as its event logs tell them: which run, how long, why.

Read as they grow: an ``apt`` run writes megabytes, and the page is fresh every second.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vmoat.state import RunLog, VmLock, current_run

Event = dict[str, Any]

KEEP_LINES = 400
"""Lines of the log that a page gets when it begins to follow."""


class Tail:
    """The events of a log, each once; a half line at its end is left for the next look."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._at = 0

    def new(self) -> Iterator[Event]:
        """What was written since the last call; nothing where the file is gone."""
        try:
            with open(self.file, "rb") as stream:
                stream.seek(self._at)
                data = stream.read()
        except OSError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                yield event


class Timeline:
    """The stages of one VM, over all runs that are on record."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stages: dict[str, Event] = {}
        self.run: Event = {}
        self.lines: deque[Event] = deque(maxlen=KEEP_LINES)
        """The last lines, each with the stage that said it and a number that only grows."""
        self.count = 0
        self._stage = ""
        self._tail: Tail | None = None
        self._seen: set[Path] = set()
        """Logs that were read, or begun to be."""

    def look(self) -> None:
        """Take in what was written since the last look."""
        log = current_run(self.folder)
        if log is None:
            if self._tail is not None:
                self._forget()
            return
        if self._tail is None or self._tail.file != log.file:
            for old in self._missed(log):
                self._read(old)
            self._tail = Tail(log.file)
            self._seen.add(log.file)
        self._read(self._tail)
        if self.run.get("state") == "running" and not VmLock(self.folder).held():
            self._read(self._tail)  # it may have ended between the two looks
            self._died()

    def _forget(self) -> None:
        """The VM was destroyed: the next one of this name begins anew."""
        self.stages, self.run, self._tail, self._seen = {}, {}, None, set()

    def _missed(self, log: RunLog) -> Iterator[Tail]:
        """What runs before this one said since the last look, the oldest first."""
        for file in _earlier(log):
            if file not in self._seen:
                self._seen.add(file)
                yield Tail(file)
            elif self._tail and file == self._tail.file:
                yield self._tail

    def _read(self, tail: Tail) -> None:
        for event in tail.new():
            try:
                self.take(event)
            except (KeyError, TypeError, AttributeError):  # another version's log
                continue

    def take(self, event: Event) -> None:
        """One event of a log, in the order of writing."""
        kind, name = event["event"], event.get("stage", "")
        if kind == "run_start":
            self._begin(event)
        elif kind == "graph":
            # `up` never runs `test`; where something does, its start brings it in.
            order = dict.fromkeys(name for name in event["stages"] if name != "test")
            kept = {n: s for n, s in self.stages.items() if n not in order}
            self.stages = {**{n: self.stages.get(n) or _unknown(n) for n in order}, **kept}
        elif kind == "stage_start":
            self._stage = name
            self.stages[name] = {
                "name": name, "state": "running", "reason": event["reason"],
                "began": event["time"], "seconds": 0.0,
            }  # fmt: skip
        elif kind == "stage_end":
            self._end(name, event)
        elif kind in ("line", "notice", "call"):
            self._say(kind, event["text"], event["time"])
        elif kind == "run_end":
            self.run |= {
                "state": "done" if event["code"] == 0 else "failed", "ended": event["time"],
                **{key: event[key] for key in ("code", "message", "hint", "details")},
            }  # fmt: skip

    def _begin(self, event: Event) -> None:
        self._fail_what_runs()  # the run before was killed
        self._stage = ""
        self.run = {
            "id": event["run"], "state": "running", "began": event["time"],
            "ended": 0.0, "code": 0, "message": "", "hint": "", "details": [],
        }  # fmt: skip
        self._say("run", "vmoat up " + " ".join(event["targets"]), event["time"])

    def _end(self, name: str, event: Event) -> None:
        stage = self.stages.setdefault(name, _unknown(name))
        self._stage = ""
        if event["outcome"] == "skipped":
            # When it last ran, and how long that took, says more than that it holds.
            if stage["state"] in ("running", "failed", "waiting"):
                stage |= {"state": "done", "reason": ""}
            stage["fresh"] = event["time"]
            return
        stage |= {"state": event["outcome"], "seconds": event["seconds"], "fresh": event["time"]}

    def _died(self) -> None:
        self._fail_what_runs()
        self.run |= {
            "state": "failed", "code": 5, "message": "the worker was killed before it was done",
            "hint": "`vmoat up` goes on from the last finished stage",
        }  # fmt: skip

    def _fail_what_runs(self) -> None:
        for stage in self.stages.values():
            if stage["state"] == "running":
                stage["state"] = "failed"

    def _say(self, kind: str, text: str, when: float) -> None:
        from vmoat.output import printable

        self.count += 1
        self.lines.append(
            {"n": self.count, "stage": self._stage, "kind": kind, "text": printable(text),
             "time": when}
        )  # fmt: skip


def _unknown(name: str) -> Event:
    return {"name": name, "state": "waiting", "reason": "", "began": 0.0, "seconds": 0.0}


def _earlier(log: RunLog) -> list[Path]:
    """The logs of the runs before this one, the oldest first."""
    logs = [file for file in log.file.parent.glob("*.ndjson") if file != log.file]
    return sorted(logs, key=lambda file: file.stat().st_mtime)
