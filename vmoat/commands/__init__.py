"""The commands: each takes its arguments and the output, and returns its exit code."""

from __future__ import annotations

TYPE_CHECKING = False  # the long imports wait: `vmoat help` needs none of them
if TYPE_CHECKING:
    import argparse
    from pathlib import Path
    from typing import Any

    from vmoat.context import Context


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
