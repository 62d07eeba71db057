"""The detached process that does the work of ``vmoat up``; everybody else only watches its log.

Started by ``vmoat.watch.start`` as ``python -m vmoat.worker``: one a VM, it holds the VM's lock,
runs the graph and appends to the run's event log.  It has its own session, so a terminal that
goes away takes nothing with it.  SIGINT and SIGTERM cancel it: the running stage is stopped, and
what was finished stays finished.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from vmoat import graph, proc
from vmoat.context import Context, load
from vmoat.errors import Code, VmoatError, as_error, as_fields
from vmoat.state import RunLog, VmLock, current_run

LOCK_WAIT = 0.5
"""Seconds; somebody who only asks whether the lock is held may be in the way for a moment."""


INSIST = 1.0
"""Seconds until a cancellation that got lost is repeated."""


class Cancelled(BaseException):
    """SIGINT or SIGTERM came; not an Exception, so that nothing on the way swallows it."""


@dataclass
class Request:
    """What one run is asked to do; travels to the worker as JSON."""

    run_id: str
    path: str
    folder: str
    seen: str = ""
    """The run that was the last one when this was asked for: a later one did the work already."""
    targets: list[str] = field(default_factory=list)
    force: list[str] = field(default_factory=list)
    flags: dict[str, Any] = field(default_factory=dict)
    verbose: bool = False
    joined: list[str] = field(default_factory=list)
    """Stages that were done in a run which the caller has joined."""
    no_wait: bool = False

    def dumps(self) -> str:
        return json.dumps(self.__dict__)

    @classmethod
    def loads(cls, text: str) -> Request:
        return cls(**json.loads(text))


def main(argv: Sequence[str] | None = None) -> int:
    """Do one request; the exit code is in the log as well, for those who watch."""
    request = Request.loads((argv or sys.argv[1:])[0])
    folder = Path(request.folder)
    with _cancellable():
        try:
            return _main(request, folder)
        except Cancelled:
            _ignore_signals()
            return int(Code.INTERRUPTED)


def _main(request: Request, folder: Path) -> int:
    lock = VmLock(folder)
    if not lock.take(wait=LOCK_WAIT):
        return int(Code.BUSY)
    last = current_run(folder)
    if last is not None and last.run_id != request.seen:
        return int(Code.BUSY)  # somebody was first, and is done already: join that one
    log = RunLog(folder, request.run_id)
    try:
        log.open()
        log.write("run_start", pid=os.getpid(), targets=request.targets, force=request.force)
        if request.verbose:
            proc.set_echo(lambda line: log.write("call", text=line))
        end = _do(request, log)
    except Cancelled:
        end = as_fields(_cancelled())
    _ignore_signals()  # too late to cancel; the end must be written
    log.close_wishes()
    # In this order: a watcher that finds the lock free and no end takes the worker for dead.
    log.write("run_end", **end)
    lock.free()
    return int(end["code"])


def _do(request: Request, log: RunLog) -> dict[str, Any]:
    ctx: Context | None = None
    try:
        wish: dict[str, Any] | None = {"targets": request.targets, "force": request.force}
        done = frozenset(request.joined)
        while wish is not None:
            # Anew for each: the project's config may have changed in between.
            ctx = load(Path(request.path), flags=request.flags)
            ctx.forced, ctx.joined = frozenset(wish["force"]), done
            ctx.no_wait = request.no_wait
            ctx.say = lambda line: log.write("line", text=line)
            ctx.notice = lambda line: log.write("notice", text=line)
            graph.run(ctx, wish["targets"], log)
            done |= log.done()
            wish = log.next_wish()
        return as_fields(VmoatError("", code=Code.OK))
    except Cancelled:
        _ignore_signals()
        _stop_what_runs(ctx)
        return as_fields(_cancelled())
    except Exception as error:  # the log is the only place where a defect of ours can be seen
        return as_fields(as_error(error))


def _cancelled() -> VmoatError:
    return VmoatError(
        "cancelled",
        hint="`vmoat up` goes on from the last finished stage",
        code=Code.INTERRUPTED,
    )


@contextlib.contextmanager
def _cancellable() -> Iterator[None]:
    def cancel(number: int, frame: FrameType | None) -> None:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_IGN)
        # Python drops what is raised inside a __del__ or a warning's hook: say it again.
        signal.setitimer(signal.ITIMER_REAL, INSIST, INSIST)
        raise Cancelled

    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(name, cancel)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield


def _ignore_signals() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)


def _stop_what_runs(ctx: Context | None) -> None:
    """Stop the guest's unit of the running stage, and the host programs of this session."""
    os.killpg(os.getpgid(0), signal.SIGTERM)  # ignored here by now; QEMU has its own session
    if ctx is None or not ctx.running_unit:
        return
    # A guest that hangs must not keep the cancelling user waiting.
    stopper = threading.Thread(target=_stop_unit, args=(ctx, ctx.running_unit), daemon=True)
    stopper.start()
    stopper.join(5)


def _stop_unit(ctx: Context, unit: str) -> None:
    with contextlib.suppress(VmoatError):
        ctx.guest.stop_stage(unit)
    ctx.store.attempt_failed(unit, "its last run was cancelled")


if __name__ == "__main__":
    code = main()
    # Not through the interpreter's shutdown: a stage's helper thread may still wait for a guest.
    os._exit(code)
