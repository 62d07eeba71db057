"""CMD_TEST inside the VM, once the stack is healthy."""

from __future__ import annotations

from vmoat.context import Context
from vmoat.errors import Code, VmoatError
from vmoat.guestwork import run_unit
from vmoat.stage import Stage
from vmoat.state import Values


def stage(after: tuple[str, ...]) -> Stage:
    return Stage("test", "the project's tests (CMD_TEST)", after, check, work, always=True)


def check(ctx: Context, values: Values) -> str:
    return "asked for each time"


def work(ctx: Context) -> Values:
    run_unit(ctx, "test", command(ctx), key={})
    return {}


def command(ctx: Context) -> str:
    """CMD_TEST; raises CONFIG where none is set."""
    if ctx.settings.test_command:
        return ctx.settings.test_command
    raise VmoatError(
        "no test command is set",
        hint='set [test] command = "…" in vmoat.toml (CMD_TEST in vmoat.conf)',
        code=Code.CONFIG,
    )
