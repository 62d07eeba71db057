"""The project's own stages: ``[stages.NAME]`` with ``run``, ``inputs``, ``after``, ``every``."""

from __future__ import annotations

from vmoat.config.stages import UserStage
from vmoat.context import Context
from vmoat.guestwork import boot_now, boot_of, inputs_digest, run_unit
from vmoat.stage import Stage, digest
from vmoat.state import Values


def stage(entry: UserStage, after: tuple[str, ...]) -> Stage:
    def check(ctx: Context, values: Values) -> str:
        return why(ctx, entry, values)

    def work(ctx: Context) -> Values:
        values = {
            "run": digest(entry.run),
            "inputs": inputs_digest(ctx, entry.inputs),
            "disk": ctx.status.disk,
            "boot": boot_now(ctx),
        }
        run_unit(ctx, entry.name, entry.run, key=values)
        return values

    return Stage(entry.name, entry.run.strip().splitlines()[0][:60], after, check, work)


def why(ctx: Context, entry: UserStage, values: Values) -> str:
    """The reason to run a stage of the project's."""
    if not values:
        return "never run"
    if entry.every == "up" and entry.name not in ctx.joined:
        return 'every = "up"'
    if values.get("disk") != ctx.status.disk:
        return "a new disk"
    if entry.every == "boot" and values.get("boot") != boot_of(ctx):
        return 'a new boot (every = "boot")'
    if values.get("run") != digest(entry.run):
        return "its command changed"
    if values.get("inputs") != inputs_digest(ctx, entry.inputs):
        return "its inputs changed"
    return ""
