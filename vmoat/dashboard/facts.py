"""What the page knows of each worktree: the fleet's rows, the stages' times, the last actions.

Worktrees that have no VM yet are shown too: those of every repository that has one, and of the
repository in which the dashboard was started.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

from vmoat import paths, worktree
from vmoat.dashboard.actions import Actions, argv
from vmoat.dashboard.hub import Vm
from vmoat.dashboard.logs import FOLLOWED, Followed, Output, Source, Stages
from vmoat.dashboard.timeline import Timeline
from vmoat.errors import VmoatError
from vmoat.fleet.rows import Row, rows

ROWS = 1.5
"""Seconds between two looks at the processes; the event logs are read at each."""
CHECKOUTS = 8.0
"""Seconds between two looks for worktrees without a VM: git is asked."""


class Facts:
    """Looks at everything; each kind of fact as often as it changes and as it costs."""

    def __init__(self, actions: Actions, here: Path | None) -> None:
        self._actions = actions
        self._here = here
        self._rows: list[Row] = []
        self._rows_at = self._checkouts_at = float("-inf")
        self._bare: list[Vm] = []
        self._timelines: dict[str, Timeline] = {}

    def look(self) -> list[Vm]:
        """All worktrees, by repository and folder."""
        now = time.monotonic()
        if now - self._rows_at >= ROWS:
            self._rows, self._rows_at = rows(self._rows), now
        if now - self._checkouts_at >= CHECKOUTS:
            self._bare, self._checkouts_at = self._without_vm(), now
        for timeline in list(self._timelines.values()):  # also of what was destroyed
            timeline.look()
        taken = {row.worktree for row in self._rows}
        found = [self._vm(row) for row in self._rows]
        found += [vm for vm in self._bare if vm["path"] not in taken]
        found = [{**vm, "actions": self._actions.of(vm["key"])} for vm in found]
        return sorted(found, key=lambda vm: (vm["repository"], vm["folder"], vm["key"]))

    def _vm(self, row: Row) -> Vm:
        timeline = self._timelines.get(row.vm_id)
        if timeline is None:
            timeline = self._timelines[row.vm_id] = Timeline(paths.vm_dir(row.name))
            timeline.look()
        return {
            "key": row.name,
            "name": row.name,
            "path": row.worktree,
            "folder": Path(row.worktree).name or row.name,
            "branch": row.branch,
            "repository": row.repository,
            "driver": row.driver,
            "state": row.state,
            "reasons": list(row.reasons),
            # By the same log as the stages: rows are looked at less often.
            "working": timeline.run.get("state") == "running",
            "health": row.health,
            "urls": [
                {"service": u.service, "guest": u.guest, "url": u.url} for u in row.urls if u.open
            ],
            "cpu": row.cpu_percent,
            "cpus": row.cpus,
            "memory": row.memory_bytes,
            "memory_size": row.memory_size_bytes,
            "disk": row.disk_bytes,
            "used_at": int(row.used_at),
            "gone": f"{row.orphan} → `vmoat gc`" if row.orphan else row.left,
            "stages": [dict(stage) for stage in timeline.stages.values()],
            "run": dict(timeline.run),
        }

    def _without_vm(self) -> list[Vm]:
        starts = {row.repository: Path(row.worktree) for row in self._rows if row.worktree_exists}
        found: dict[str, Vm] = {}
        for start in [*([self._here] if self._here else []), *starts.values()]:
            if str(start) in found:
                continue
            try:
                tree = worktree.find(start)
                checkouts, repository = tree.checkouts(), tree.repository_name()
            except VmoatError:  # not a worktree, or no longer
                continue
            for entry in checkouts:
                if not entry.bare and entry.path.is_dir():
                    found[str(entry.path)] = bare(entry.path, entry.branch, repository)
        return list(found.values())

    def open_log(self, key: str, name: str) -> Source | None:
        """The lines of one worktree; None where there is no such worktree or source."""
        if name == "test":
            return Output(lambda: self._actions.get(key, name))
        row = next((row for row in self._rows if row.name == key), None)
        if row is None:
            return None
        if name == "stages" and row.vm_id in self._timelines:
            return Stages(self._timelines[row.vm_id])
        if name in FOLLOWED:
            return Followed(argv(row.worktree, FOLLOWED[name]))
        return None


def bare(path: Path, branch: str, repository: str) -> Vm:
    """A worktree that has no VM."""
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    nothing: dict[str, Any] = {
        "name": "", "driver": "", "state": "absent", "reasons": [], "working": False,
        "health": "unknown", "urls": [], "cpu": None, "cpus": 0, "memory": 0, "memory_size": 0,
        "disk": 0, "used_at": 0, "gone": "", "stages": [], "run": {},
    }  # fmt: skip
    return {
        **nothing, "key": f"at-{digest}", "path": str(path), "folder": path.name,
        "branch": branch, "repository": repository,
    }  # fmt: skip
