"""Seed files: gitignored ones, from the main checkout; one that exists is never overwritten."""

from __future__ import annotations

from vmoat.context import Context
from vmoat.seeds import copy, seeds
from vmoat.stage import Stage
from vmoat.state import Values


def stage(after: tuple[str, ...]) -> Stage:
    return Stage("seed", "gitignored files from the main checkout", after, check, work)


def check(ctx: Context, values: Values) -> str:
    wanted = [seed.path for seed in seeds(ctx) if seed.state == "copy"]
    return f"not in the worktree yet: {', '.join(wanted[:3])}" if wanted else ""


def work(ctx: Context) -> Values:
    for seed in seeds(ctx):
        if seed.state == "copy":
            copy(seed)
            ctx.notice(f"copied {seed.path}")
    return {}
