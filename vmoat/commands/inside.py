"""test, exec, ssh, cp, ssh-config: commands inside the VM, with their own exit codes."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from vmoat import tunnels
from vmoat.commands import attend, context, using, wake
from vmoat.context import Context
from vmoat.errors import Code, VmoatError
from vmoat.output import Output, printable


def test(args: argparse.Namespace, out: Output) -> int:
    """CMD_TEST with the words appended, each quoted; brings up what is not up."""
    ctx = context(args)
    command = ctx.settings.test_command
    if not command:
        raise VmoatError(
            "no test command is set",
            hint='set [test] command = "…" in vmoat.toml (CMD_TEST in vmoat.conf)',
            code=Code.CONFIG,
        )
    if args.no_up:
        _require_up(ctx)
    else:
        from vmoat.commands.lifecycle import bring_up, warn

        warn(ctx, out)
        with using(ctx, out):
            bring_up(ctx, [], args, out)
    ctx.refresh_guest()
    line = " ".join([command, *map(shlex.quote, args.rest)])
    with using(ctx, out):
        return _run(ctx, "test", [line], args.tail, out, tty=_terminal())


def _run(
    ctx: Context, name: str, words: Sequence[str], tail: int | None, out: Output, *, tty: bool
) -> int:
    """The user's command; with ``--tail`` its output goes into a file, and the end is shown."""
    if tail is None:
        return ctx.guest.exec(words, tty=tty)
    from vmoat import patience
    from vmoat.tail import last_lines

    file = ctx.instance.folder / f"{name}.out"
    call_off = patience.after(lambda: f"cut off, it ends; what it wrote until then: {file}", out)
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        code = ctx.guest.exec(words, output=stream)
    call_off()
    rows, left_out = last_lines(file, tail)
    for row in rows:
        out.answer(printable(row))
    if left_out:
        out.say(f"these are the last {len(rows)} lines; all of them: {file}")
    return code


def _require_up(ctx: Context) -> None:
    from vmoat import graph

    steps = [step for step in graph.plan(ctx) if step.reason]
    if steps:
        raise VmoatError(
            f"the stack is not up: {steps[0].name}: {steps[0].reason}",
            hint="`vmoat up` brings it up; without --no-up `test` does",
            code=Code.VM,
        )


def _terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def execute(args: argparse.Namespace, out: Output) -> int:
    """A command without a terminal."""
    if not args.rest:
        raise VmoatError(
            "`exec` wants a command", hint="`vmoat ssh` opens a shell", code=Code.USAGE
        )
    ctx = running(args, out)
    with using(ctx, out):
        return _run(ctx, "exec", args.rest, args.tail, out, tty=False)


def ssh(args: argparse.Namespace, out: Output) -> int:
    """A shell, or a command on a terminal where there is one."""
    ctx = running(args, out)
    with using(ctx, out):
        return ctx.guest.exec(args.rest, tty=_terminal())


def copy(args: argparse.Namespace, out: Output) -> int:
    """Copy files and folders to or from the VM."""
    from vmoat import copying

    ctx = running(args, out)
    with using(ctx, out):
        copying.copy(ctx.guest, args.paths, recursive=args.recursive, notice=out.warn)
    return int(Code.OK)


def running(args: argparse.Namespace, out: Output) -> Context:
    """The worktree's VM, connected and attended; raises VM where it does not run."""
    ctx = context(args)
    wake(ctx, args, out)
    if ctx.status.state != "running":
        reasons = f" ({'; '.join(ctx.status.reasons)})" if ctx.status.reasons else ""
        raise VmoatError(
            f"the VM {ctx.instance.name} is {ctx.status.state}{reasons}",
            hint="`vmoat up` starts it",
            code=Code.VM,
        )
    ctx.guest.connect()
    for text in tunnels.failed(ctx):
        out.warn(text)
    attend(ctx)
    ctx.refresh_guest()
    return ctx


def ssh_config(args: argparse.Namespace, out: Output) -> int:
    """The block for other ssh clients; the host is called as the VM."""
    ctx = context(args)
    name = ctx.instance.name
    out.answer(ctx.guest.ssh_config_block(name, proxy_argv(name)).rstrip("\n"))
    return int(Code.OK)


def proxy_argv(name: str) -> list[str]:
    """What carries a connection to the VM.  An editor may know nothing of our environment, so the
    folders that are not where they would be without it are named.
    """
    settings = [
        f"{key}={os.environ[key]}"
        for key in ("XDG_STATE_HOME", "XDG_DATA_HOME")
        if os.environ.get(key)
    ]
    start = ["env", *settings] if settings else []
    return [*start, sys.executable, "-P", "-m", "vmoat.sshproxy", name]
