"""dashboard: every worktree of this machine on one local page."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from vmoat.commands import start
from vmoat.commands.ports import browser_argv, show
from vmoat.dashboard import record, tickets
from vmoat.dashboard.actions import Actions
from vmoat.dashboard.facts import Facts
from vmoat.dashboard.gate import Gate
from vmoat.dashboard.hub import Hub
from vmoat.dashboard.server import Dashboard
from vmoat.errors import Code, VmoatError
from vmoat.output import Output


def dashboard(args: argparse.Namespace, out: Output) -> int:
    """Serve the page until Ctrl-C, or print the URL of the one that is served already."""
    lock = record.lock()
    while not lock.take():
        if _second(args, out):
            return int(Code.OK)
    try:
        with _ends_with_the_terminal():
            _serve(args, out)
    except KeyboardInterrupt:
        out.say("the dashboard has ended; the VMs go on")
    finally:
        lock.free()
    return int(Code.OK)


def _second(args: argparse.Namespace, out: Output) -> bool:
    """Whether the first one was told; False where it has ended meanwhile."""
    found = record.running()
    if found is not None:
        out.say("a dashboard runs already")
        _tell(Gate(found.port, token=found.token), found.pid, args, out)
    elif record.lock().held():
        raise VmoatError(
            "a dashboard of this user runs, and does not say where",
            hint="end it with Ctrl-C in its terminal, and start another",
            code=Code.BUSY,
        )
    return found is not None


def _serve(args: argparse.Namespace, out: Output) -> None:
    tickets.sweep()
    actions = Actions()
    facts = Facts(actions, start(args))
    hub = Hub(facts.look)
    with _bind(args.port, hub, actions, facts) as server:
        record.write(server.gate.port, server.gate.token)
        hub.start()
        try:
            _tell(server.gate, os.getpid(), args, out)
            out.say("Ctrl-C ends it")
            server.serve_forever()
        finally:
            hub.stop()
            actions.end()
            tickets.sweep()


def _bind(port: int | None, hub: Hub, actions: Actions, facts: Facts) -> Dashboard:
    """The server, where the last one was: bookmarks and forwards to it stay good."""
    last = record.read()
    for wanted in [last.port if last else 0, 0] if port is None else [port]:
        try:
            return Dashboard(wanted, hub, actions, facts.open_log, tickets.redeem)
        except OSError as error:
            failure = error
    refused = isinstance(failure, PermissionError)  # ports below 1024 are root's
    raise VmoatError(
        f"the dashboard cannot listen on port {port or 'any'}: {failure.strerror}",
        hint="name another with --port", code=Code.USAGE if refused else Code.BUSY,
    )  # fmt: skip


def _tell(gate: Gate, pid: int, args: argparse.Namespace, out: Output) -> None:
    if args.json:
        out.json({"schema": "vmoat.dashboard/1", "url": gate.url, "port": gate.port, "pid": pid})
    else:
        out.answer(gate.url)
    if args.no_open or args.json:
        return
    argv = browser_argv(os.environ, sys.platform)
    if argv and shutil.which(argv[0]):  # else the URL above has to do
        show(tickets.address(gate.url_with, argv, os.environ), out)


@contextlib.contextmanager
def _ends_with_the_terminal() -> Iterator[None]:
    """A terminal that closes, and `kill`, end it as Ctrl-C does: nothing it follows stays."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {name: signal.signal(name, end) for name in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
