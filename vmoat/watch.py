"""Watching a run: start the worker, follow its event log, render it, know how it ended.

Any number of watchers follow one run.  A watcher that is killed, hung up or runs out of time
leaves the work going; Ctrl-C on a terminal cancels it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from vmoat import paths, patience, proc
from vmoat.context import Context
from vmoat.errors import Code, VmoatError
from vmoat.state import RunLog, VmLock, active_run, current_run, require_lock
from vmoat.worker import Request

Event = dict[str, Any]

START_LIMIT = 15.0
"""Seconds for the worker to begin its log; it needs one on a busy machine."""


CANCEL_LIMIT = 8.0
"""Seconds that a cancelled worker has for its last words."""


class View(Protocol):
    """Shows events to a person or a program."""

    def show(self, event: Event) -> None: ...

    def tick(self) -> None:
        """Called several times a second, for a heartbeat or a moving clock."""

    def close(self) -> None: ...


def start(
    ctx: Context,
    targets: Sequence[str],
    force: Sequence[str],
    flags: Mapping[str, object],
    verbose: bool,
    seen: str,
) -> RunLog | None:
    """Start a worker and return the log of its run; None where another worker came first.

    ``seen`` is the run that was the last one before the caller looked at what is to be done.
    """
    request = Request(
        secrets.token_hex(6), str(ctx.worktree.path), str(ctx.instance.folder), seen,
        list(targets), list(force), dict(flags), verbose, sorted(ctx.joined),
        ctx.no_wait,
    )  # fmt: skip
    log = RunLog(ctx.instance.folder, request.run_id)
    # Its own last words, where even the event log could not be opened.
    words = ctx.instance.folder / "worker.err"
    try:
        stderr = open(words, "wb")  # noqa: SIM115
    except OSError as error:
        raise paths.unwritable(words.parent, error) from error
    with stderr:
        worker = proc.spawn(worker_argv(request), cwd="/", stderr=stderr)
    deadline = time.monotonic() + START_LIMIT
    try:
        while time.monotonic() < deadline:
            code = worker.poll()
            if log.file.exists():
                return log
            if code == Code.BUSY:
                return None
            if code is not None:
                break
            time.sleep(0.02)
    except KeyboardInterrupt:
        if at_terminal():
            worker.send_signal(signal.SIGINT)
        raise
    raise VmoatError(
        "the worker did not start",
        hint="`vmoat doctor` checks this machine",
        code=Code.VM,
        details=words.read_text(errors="replace").splitlines()[-12:],
    )


def worker_argv(request: Request) -> list[str]:
    """The worker's own command line.  -P: a vmoat/ in some folder must not be taken for us."""
    return [sys.executable, "-P", "-m", "vmoat.worker", request.dumps()]


def last_run(ctx: Context) -> str:
    """The id of the run that was started last; "" where none ever was."""
    log = current_run(ctx.instance.folder)
    return log.run_id if log else ""


def newer(ctx: Context, seen: str, limit: float | None = None) -> RunLog | None:
    """The run of whoever came first; None where the lock is free again and there was no run.

    Raises BUSY where something else than a run holds the VM for ``limit`` seconds (START_LIMIT):
    ``vmoat down``, plain ``doit``.
    """
    lock = VmLock(ctx.instance.folder)
    deadline = time.monotonic() + (START_LIMIT if limit is None else limit)
    while time.monotonic() < deadline:
        held = lock.held()
        log = current_run(ctx.instance.folder)
        if log is not None and log.run_id != seen:
            return log
        if not held:
            return None
        time.sleep(0.05)
    again = "`vmoat up` again when it is through (`vmoat wait` follows an `up` only)"
    require_lock(ctx.instance.folder, "`up`", then=again).free()
    return None


def at_terminal() -> bool:
    """Whether Ctrl-C came from a person: one of our streams is a terminal."""
    return any(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def active(ctx: Context) -> RunLog | None:
    """The run that works on this VM now."""
    return active_run(ctx.instance.folder)


def forced_in(log: RunLog) -> frozenset[str]:
    """The stages that this run was told to do whatever their state."""
    return frozenset(n for e in log.events() if e["event"] == "run_start" for n in e["force"])


def follow(ctx: Context, log: RunLog, view: View, *, timeout: float | None = None) -> int:
    """Show the run until it ends; returns the worker's exit code.

    Raises TIMEOUT after ``timeout`` seconds (the work goes on), and the run's own error.
    """
    patience.follows()
    deadline = time.monotonic() + timeout if timeout is not None else None
    lock = VmLock(ctx.instance.folder)
    worker = 0
    end: Event | None = None
    try:
        for event in _events(log, lock, view, deadline):
            worker = event.get("pid", worker)
            view.show(event)
            if event["event"] == "run_end":
                end = event
    except KeyboardInterrupt:
        end = _interrupted(log, lock, view, worker)
    finally:
        view.close()
    if end is None:
        raise died(log)
    if end["code"] != Code.OK:
        raise failure(end)
    return int(Code.OK)


def failure(end: Event) -> VmoatError:
    """The error that a run ended with, from its last event."""
    error = VmoatError(
        end["message"], hint=end["hint"], code=end["code"], details=tuple(end["details"])
    )
    error.stage = end.get("stage", "")
    return error


def _events(
    log: RunLog, lock: VmLock, view: View, deadline: float | None
) -> Iterator[Event]:
    over = False
    next_look = 0.0

    def stop() -> bool:
        nonlocal next_look
        view.tick()
        if deadline is not None and time.monotonic() > deadline:
            raise VmoatError(
                "the time limit of this command is over; the work goes on",
                hint="`vmoat wait` follows it",
                code=Code.TIMEOUT,
            )
        if over:
            return True
        if time.monotonic() < next_look:
            return False
        next_look = time.monotonic() + 0.5
        return not lock.held()

    for event in log.follow(stop):
        over = event["event"] == "run_end"
        yield event
        if over:
            return


def _interrupted(log: RunLog, lock: VmLock, view: View, worker: int) -> Event:
    """Ctrl-C: cancel the worker where a person at a terminal pressed it."""
    error = {"event": "run_end", "code": int(Code.INTERRUPTED), "details": []}
    if not at_terminal():
        return {**error, "message": "interrupted; the work goes on",
                "hint": "`vmoat wait` follows it"}  # fmt: skip
    worker = worker or next((e["pid"] for e in log.events() if e["event"] == "run_start"), 0)
    if worker and lock.held():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(worker, signal.SIGINT)
    end = {**error, "message": "cancelled", "hint": "`vmoat up` goes on from here"}
    with contextlib.suppress(KeyboardInterrupt, VmoatError):  # a second Ctrl-C, or the limit
        for event in _events(log, lock, view, time.monotonic() + CANCEL_LIMIT):
            if event["event"] == "run_end":
                end = event
    return {**end, "code": int(Code.INTERRUPTED)}


def died(log: RunLog) -> VmoatError:
    return VmoatError(
        "the worker was killed before it was done",
        hint="`vmoat up` goes on from the last finished stage",
        code=Code.VM,
        details=[e["text"] for e in log.events() if e["event"] == "line"][-5:],
    )
