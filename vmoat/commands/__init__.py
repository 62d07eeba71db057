"""The commands: each takes its arguments and the output, and returns its exit code."""

from __future__ import annotations

TYPE_CHECKING = False  # the long imports wait: `vmoat help` needs none of them
if TYPE_CHECKING:
    import argparse
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import Any

    from vmoat.context import Context
    from vmoat.output import Output


def context(
    args: argparse.Namespace, *, claim: bool = True, tolerant: bool = False, **flags: Any
) -> Context:
    """The context of the worktree that the command line names."""
    from vmoat.context import load

    return load(start(args), branch=args.branch or "", flags=flags, claim=claim, tolerant=tolerant)


def start(args: argparse.Namespace) -> Path:
    """The folder that the command line names; raises USAGE where the current one is gone."""
    from pathlib import Path

    from vmoat.errors import Code, VmoatError

    if args.path:
        return Path(args.path)
    try:
        return Path.cwd()
    except OSError as error:
        raise VmoatError(
            "the current folder is gone", hint="cd to another, or name one with -C PATH",
            code=Code.USAGE,
        ) from error  # fmt: skip


def attend(ctx: Context) -> None:
    """See that a VM that runs has its companion, which may have been killed, and its context."""
    if ctx.status.state == "running":
        from vmoat import dockercontext
        from vmoat.companion import process

        process.ensure(ctx)
        dockercontext.ensure(ctx.instance.name, ctx.instance.vm_id, ctx.worktree.path)


def using(ctx: Context, out: Output) -> AbstractContextManager[None]:
    """The VM is in use while this lasts: it is not stopped for being idle."""
    from vmoat.fleet.use import used

    words = "is just being stopped for being idle: waiting until that is done"
    return used(ctx.instance.folder, lambda: out.say(f"{ctx.instance.name} {words}"))


def wake(ctx: Context, args: argparse.Namespace, out: Output) -> None:
    """Start a VM that sleeps: a command wants to go there."""
    from vmoat.fleet import sleep

    if not ctx.instance.claimed:
        return
    with using(ctx, out):  # and then it counts as just used: no stop comes in between
        slept = sleep.of(ctx.instance.folder)
        if slept is None or ctx.status.state != "stopped":
            return
        from argparse import Namespace

        from vmoat.commands.lifecycle import bring_up

        out.say(f"{ctx.instance.name} {slept.words()}: starting it again; cut off, that goes on, "
                "and `vmoat wait` follows it")  # fmt: skip
        # not with the command's own --json: stdout is its answer's
        bring_up(ctx, [], Namespace(verbose=args.verbose), out)
        ctx.forget_facts()
