"""The task graph, and the only module that imports doit: loader, state backend, reporter.

Facts about doit 0.37 that shaped it: dependency data is written only when a run ends, so the
backend here writes at each success; a failed task loses its record, which is wanted; a task runs
only when its own checks say so, whatever its dependencies did, so each check compares the run ids
of the stages before it (``Stage.why``); DoitMain lets the current folder's pyproject.toml override
its configuration unless it is told to read no file.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmoat.config import stages as declared
from vmoat.context import Context, load
from vmoat.errors import Code, VmoatError, as_error
from vmoat.stage import Stage
from vmoat.state import RunLog, StageStore, require_lock

if TYPE_CHECKING:
    from doit.task import Task

BUILT_IN = ("image", "vm", "local", "apt", "script", "seed", "stack", "health", "tunnel", "test")
DEFAULT_TARGET = "health"


def stages_of(ctx: Context) -> dict[str, Stage]:
    """Every stage of this worktree, built-in ones and the project's own, in running order."""
    edges = declared.edges(ctx.settings.stages)
    found: dict[str, Stage] = {}
    for name in BUILT_IN:
        module = importlib.import_module(f"vmoat.tasks.{name}")
        found[name] = module.stage(edges[name])
    user = importlib.import_module("vmoat.tasks.user")
    for entry in ctx.settings.stages:
        found[entry.name] = user.stage(entry, edges[entry.name])
    order = TopologicalSorter({name: stage.after for name, stage in found.items()}).static_order()
    return {name: found[name] for name in order}


@dataclass(frozen=True)
class Step:
    """One row of the plan."""

    name: str
    help: str
    reason: str
    """Why it would run; "" when it would be skipped."""
    always: bool


def wanted(ctx: Context, stages: Mapping[str, Stage], targets: Sequence[str]) -> list[str]:
    """The targets and all that they need, in order; raises USAGE for a name that is no stage."""
    names = list(targets or default_targets(ctx))
    for name in names:
        if name not in stages:
            raise unknown_stage(name, stages)
    need: set[str] = set()
    while names:
        name = names.pop()
        if name not in need:
            need.add(name)
            names.extend(stages[name].after)
    return [name for name in stages if name in need]


def default_targets(ctx: Context) -> list[str]:
    """What ``vmoat up`` alone brings up."""
    last = ["tunnel"] if ctx.settings.tunnel_auto else []
    return [DEFAULT_TARGET, *(stage.name for stage in ctx.settings.stages), *last]


def unknown_stage(name: str, stages: Mapping[str, Stage]) -> VmoatError:
    """The error of a stage that is not there."""
    return VmoatError(
        f"there is no stage `{name}`", hint="the stages are: " + ", ".join(stages), code=Code.USAGE
    )


def plan(ctx: Context, targets: Sequence[str] = ()) -> list[Step]:
    """What a run would do, each stage with one reason; touches nothing."""
    stages = stages_of(ctx)
    steps: list[Step] = []
    running: set[str] = set()
    for name in wanted(ctx, stages, targets):
        stage = stages[name]
        reason = stage.why(ctx)
        if not reason and not stage.always and ctx.store.values(name) and stage.asked_for(ctx):
            # Without a record only its own check decides (``Stage.why``).
            before = [n for n in stage.after if n in running and n not in ("image", "vm")]
            reason = f"`{before[0]}` runs before it" if before else ""
        if reason and not stage.always:
            running.add(name)
        if name == "vm" and reason:
            ctx.notes["boot"] = "the VM starts anew"
        steps.append(Step(name, stage.help, reason, stage.always))
    return steps


def nothing_to_do(steps: Sequence[Step]) -> bool:
    """Whether every stage holds; health and tunnels were asked and answered."""
    return not any(step.reason for step in steps)


# --- doit ---------------------------------------------------------------------------------------


def make_task(ctx: Context, stage: Stage, caught: list[VmoatError]) -> Task:
    """The stage as a doit task."""
    from doit.exceptions import TaskFailed
    from doit.task import Task

    reason = ""

    def holds() -> bool:
        nonlocal reason
        try:
            reason = stage.why(ctx)
        except Exception as error:
            # The work will say what is wrong; a check only decides whether to do it.
            reason = as_error(error).message
        return not reason

    def work() -> Any:
        try:
            return stage.run(ctx)
        except Exception as error:
            caught.append(as_error(error))
            caught[-1].stage = stage.name
            # doit would print a traceback, and lose it: the worker has no terminal.
            return TaskFailed(caught[-1].message)

    return Task(
        stage.name,
        [work],
        uptodate=[holds],
        task_dep=list(stage.after),
        doc=stage.help,
        verbosity=2,
        io={"capture": False},
        meta={"reason": lambda: reason},
    )


class Backend:
    """doit's state, in the VM's own ``stages.toml``, written at every success.

    Tasks that are not stages (a project's own, under plain ``doit``) go to doit's JSON backend in
    the file that the project chose.
    """

    store: StageStore | None = None
    stages: frozenset[str] = frozenset()

    def __init__(self, name: str, codec: Any, *, module_name: str | None = None) -> None:
        from doit.dependency import JsonDB

        self.name = name
        self._other = JsonDB(name, codec) if name else None
        self._memory: dict[str, dict[str, Any]] = {}

    def _mine(self, task_id: str) -> bool:
        return task_id in self.stages

    def set(self, task_id: str, dependency: str, value: Any) -> None:
        if not self._mine(task_id):
            if self._other:
                self._other.set(task_id, dependency, value)
        elif dependency == "_values_:" and self.store:
            self.store.save(task_id, value)
        else:
            self._memory.setdefault(task_id, {})[dependency] = value

    def get(self, task_id: str, dependency: str) -> Any:
        if not self._mine(task_id):
            return self._other.get(task_id, dependency) if self._other else None
        if dependency == "_values_:" and self.store:
            return self.store.values(task_id)
        return self._memory.get(task_id, {}).get(dependency)

    def in_(self, task_id: str) -> bool:
        if not self._mine(task_id):
            return bool(self._other and self._other.in_(task_id))
        return bool(self.store and self.store.values(task_id))

    def remove(self, task_id: str) -> None:
        if not self._mine(task_id):
            if self._other:
                self._other.remove(task_id)
        elif self.store:
            self.store.forget(task_id)
            self._memory.pop(task_id, None)

    def remove_all(self) -> None:
        for name in self.stages:
            self.remove(name)
        if self._other:
            self._other.remove_all()

    def dump(self) -> None:
        if self._other and getattr(self._other, "_db", None):
            self._other.dump()


def use_store(store: StageStore, names: Iterable[str]) -> None:
    """Tell the backend, which doit makes itself from its entry point, which VM this is."""
    Backend.store, Backend.stages = store, frozenset(names)


class EventReporter:
    """Writes what doit does to the event log; nothing to any terminal."""

    desc = "vmoat's event log"
    log: RunLog

    def __init__(self, outstream: Any, options: Mapping[str, Any]) -> None:
        self._started: dict[str, float] = {}

    def initialize(self, tasks: Mapping[str, Task], selected_tasks: Sequence[str]) -> None:
        names = [name for name, task in tasks.items() if task.actions]
        self.log.write("graph", stages=names)

    def get_status(self, task: Task) -> None:
        self._started[task.name] = time.monotonic()

    def execute_task(self, task: Task) -> None:
        if task.actions:
            self._started[task.name] = time.monotonic()
            self.log.write("stage_start", stage=task.name, reason=task.meta["reason"]())

    def _end(self, task: Task, outcome: str) -> None:
        if task.actions:
            seconds = round(time.monotonic() - self._started.get(task.name, time.monotonic()), 2)
            self.log.write("stage_end", stage=task.name, outcome=outcome, seconds=seconds)

    def add_failure(self, task: Task, fail: Any) -> None:
        self._end(task, "failed")

    def add_success(self, task: Task) -> None:
        self._end(task, "done")

    def skip_uptodate(self, task: Task) -> None:
        self._end(task, "skipped")

    def skip_ignore(self, task: Task) -> None:
        self._end(task, "skipped")

    def cleanup_error(self, exception: Any) -> None:
        self.log.write("line", stage="", text=str(exception.get_msg()))

    def runtime_error(self, msg: str) -> None:
        self.log.write("line", stage="", text=msg)

    def teardown_task(self, task: Task) -> None: ...

    def complete_run(self) -> None: ...


def run(ctx: Context, targets: Sequence[str], log: RunLog) -> None:
    """Run the graph up to ``targets``; raises the VmoatError of the stage that failed."""
    from doit.cmd_base import TaskLoader2
    from doit.doit_cmd import DoitMain

    stages = stages_of(ctx)
    need = wanted(ctx, stages, targets)
    caught: list[VmoatError] = []
    use_store(ctx.store, stages)
    settings = {
        "backend": "vmoat",
        "reporter": type("Reporter", (EventReporter,), {"log": log}),
        "dep_file": "",
        "verbosity": 2,
    }

    class Loader(TaskLoader2):  # type: ignore[misc]  # doit is not typed
        def load_doit_config(self) -> dict[str, Any]:
            return {"default_tasks": need}

        def load_tasks(self, cmd: Any, pos_args: Sequence[str]) -> list[Task]:
            return [make_task(ctx, stage, caught) for stage in stages.values()]

    # config_filenames: or the current folder's pyproject.toml would leak in.  BACKEND: for a
    # vmoat that runs without being installed, whose entry points doit cannot see.
    config = {"GLOBAL": settings, "BACKEND": {"vmoat": "vmoat.graph:Backend"}}
    main = DoitMain(Loader(), config_filenames=(), extra_config=config)
    code = int(main.run(["run", *need]) or 0)
    if caught:
        raise caught[0]
    if code != 0:
        raise VmoatError(
            "the task graph failed", hint=f"the log is {log.file}", code=Code.STAGE
        )


# --- plain doit ---------------------------------------------------------------------------------


def _plugin_base() -> Any:
    from doit.cmd_base import DodoTaskLoader

    return DodoTaskLoader


@contextlib.contextmanager
def _as_doit_says_it() -> Iterator[None]:
    """doit prints its own errors in one line, and a traceback for all others."""
    from doit.exceptions import InvalidDodoFile

    try:
        yield
    except VmoatError as error:
        raise InvalidDodoFile(str(error)) from error


def make_plugin_loader() -> Any:
    """The loader of plain ``doit``: vmoat's stages beside the project's own tasks."""
    base = _plugin_base()

    class PluginLoader(base):  # type: ignore[misc,valid-type]
        """Found by doit through the entry point ``doit.LOADER``."""

        def setup(self, opt_values: Mapping[str, Any]) -> None:
            self._has_dodo = os.path.exists(opt_values.get("dodoFile", "dodo.py"))
            if self._has_dodo:
                super().setup(opt_values)
            with _as_doit_says_it():
                self._ctx = load(Path.cwd(), claim=False)
                self._stages = stages_of(self._ctx)

        def load_doit_config(self) -> dict[str, Any]:
            own = dict(super().load_doit_config()) if self._has_dodo else {}
            own.setdefault("default_tasks", ["up"])
            return {**own, "backend": "vmoat", "verbosity": 2}

        def load_tasks(self, cmd: Any, pos_args: Sequence[str]) -> list[Task]:
            with _as_doit_says_it():
                return self._tasks(cmd, pos_args)

        def _tasks(self, cmd: Any, pos_args: Sequence[str]) -> list[Task]:
            from doit.task import Task

            own = list(super().load_tasks(cmd, pos_args)) if self._has_dodo else []
            taken = {task.name for task in own} & {*self._stages, "up"}
            if taken:
                raise VmoatError(
                    f"dodo.py defines `{min(taken)}`, which is a stage of vmoat",
                    hint="rename the task in dodo.py",
                    code=Code.CONFIG,
                )
            caught: list[VmoatError] = []
            if cmd.name == "run":
                self._ctx = load(Path.cwd())
                self._ctx.say = lambda line: print(line, file=sys.stderr)
                self._ctx.notice = self._ctx.say
                self._ctx.driver.check(walls=self._ctx.settings.walls)
                self._lock = require_lock(self._ctx.instance.folder, "doit")
                self._ctx.store.reload()
            use_store(self._ctx.store, {*self._stages, "up"})
            mine = [make_task(self._ctx, stage, caught) for stage in self._stages.values()]
            up = Task("up", None, task_dep=default_targets(self._ctx), doc="everything, healthy")
            return [*own, up, *mine]

    return PluginLoader


def __getattr__(name: str) -> Any:
    # doit loads the class by this name; it must not be made, and doit imported, before.
    if name == "PluginLoader":
        return make_plugin_loader()
    raise AttributeError(name)
