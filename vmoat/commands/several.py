"""One command for several worktrees: ``up -w A -w B``, ``down -w A -w B``, ``down --all``."""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable, Iterable
from pathlib import Path

from vmoat import instance, watch
from vmoat.commands import context
from vmoat.errors import Code, VmoatError, as_document, as_error
from vmoat.fleet import removal
from vmoat.fleet.rows import Row, rows
from vmoat.output import Output
from vmoat.state import CANCEL_LIMIT, cancel_run, require_lock

Run = Callable[[argparse.Namespace, Output], int]


def each(run: Run, args: argparse.Namespace, out: Output) -> int:
    """Run a command in one worktree after the other.

    An `up` first starts the work in all of them, so that it goes on at once, and then follows what
    it started: what is asked for is done once, also where the quicker one is through by then.  One
    that fails is told and stops no other; the exit code is the first failure's.  In JSON each
    document is a line with its ``branch``, and the failures come last.
    """
    as_json = getattr(args, "json", False)
    branches = list(dict.fromkeys(args.branches))
    todo = [(branch, _with(args, branch)) for branch in branches]
    failures: dict[str, VmoatError] = {}
    runs: dict[str, Run] = dict.fromkeys(branches, run)
    if args.command.name == "up" and not args.detach:
        for branch, one in todo:
            _try(branch, functools.partial(_begin, branch, one, runs), failures)
        todo = [(branch, one) for branch, one in todo if branch not in failures]
    for number, (branch, one) in enumerate(todo):
        if as_json:
            out.branch = branch
        else:
            out.say(f"--- {branch}")
        _try(branch, functools.partial(runs[branch], one, out), failures)
        error = failures.get(branch)
        if error is not None and error.code == Code.INTERRUPTED:
            _cancel(todo[number + 1 :])
            break
    return _end(failures, out, as_json=as_json)


def _begin(branch: str, one: argparse.Namespace, runs: dict[str, Run]) -> int:
    from vmoat.commands import lifecycle

    runs[branch] = functools.partial(lifecycle.up, begun=lifecycle.begin_up(one, _silent()))
    return int(Code.OK)


def _with(args: argparse.Namespace, branch: str, **more: object) -> argparse.Namespace:
    one = copy.copy(args)
    one.branch, one.branches = branch, [branch]
    for name, value in more.items():
        setattr(one, name, value)
    return one


def _silent() -> Output:
    import io

    return Output(io.StringIO(), io.StringIO())


def _try(what: str, act: Callable[[], int], failures: dict[str, VmoatError]) -> None:
    try:
        code = act()
    except BrokenPipeError:
        raise
    except Exception as error:
        failures[what] = as_error(error)
        return
    if code:
        failures[what] = VmoatError(f"it ended with exit code {code}", code=code)


def _cancel(todo: Iterable[tuple[str, argparse.Namespace]]) -> None:
    """Ctrl-C at a terminal is meant for all of them."""
    if not watch.at_terminal():
        return
    for _, one in todo:
        cancel_run(context(one, claim=False, tolerant=True).instance.folder)


def _end(failures: dict[str, VmoatError], out: Output, *, as_json: bool = False) -> int:
    for what, error in failures.items():
        out.say(f"--- {what}")
        out.error(error)
        if as_json:
            out.branch = what
            out.json_line(as_document(error))
    return next((error.code for error in failures.values()), int(Code.OK))


def down_all(down: Run, args: argparse.Namespace, out: Output) -> int:
    """Stop every VM of this user that runs; ``down`` is the command for one worktree."""
    failures: dict[str, VmoatError] = {}
    going = [row for row in rows() if row.up or row.state == "broken" or row.working]
    for row in going:
        if row.worktree_exists and not row.orphan:  # a new worktree may be in its place
            one = _with(args, "")
            one.path, one.all = row.worktree, False
            _try(row.name, functools.partial(down, one, out), failures)
        else:
            _try(row.name, functools.partial(_halt, row, out), failures)
    if not going:
        out.say("no VM runs")
    return _end(failures, out)


def _halt(row: Row, out: Output) -> int:
    """Stop a VM whose worktree is not there to say how its stack is stopped."""
    owner = instance.read_owner(row.name)
    if owner is None and row.left:  # its owner file is damaged
        raise VmoatError(f"{row.name} is not stopped", hint=row.left, code=Code.VM)
    if owner is None:
        return int(Code.OK)
    mine = instance.Instance(row.name, owner.vm_id)
    cancel_run(mine.folder)
    lock = require_lock(mine.folder, "`down`", wait=CANCEL_LIMIT)
    try:
        removal.halt(mine, owner)
    finally:
        lock.free()
    out.say(f"{row.name}: stopped; its worktree {Path(row.worktree)} is gone")
    return int(Code.OK)
