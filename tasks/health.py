"""Whether the stack is well: asked each time, waited for when the stack has just started."""

from __future__ import annotations

from vmoat import health
from vmoat.context import Context
from vmoat.stage import Stage
from vmoat.state import Values


def stage(after: tuple[str, ...]) -> Stage:
    return Stage("health", "the stack answers and is well", after, check, work, always=True)


def check(ctx: Context, values: Values) -> str:
    verdict = health.judge(ctx)
    return "" if verdict.healthy else verdict.reason


def work(ctx: Context) -> Values:
    health.wait(ctx)
    return {}
