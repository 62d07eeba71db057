"""PROVISION_SCRIPT: the project's own set-up, by a login shell in the worktree."""

from __future__ import annotations

from vmoat.context import Context
from vmoat.guestwork import inputs_digest, run_unit
from vmoat.stage import Stage, digest
from vmoat.state import Values


def stage(after: tuple[str, ...]) -> Stage:
    about = "the project's set-up (PROVISION_SCRIPT)"
    return Stage("script", about, after, check, work, asked_for=asked_for)


def asked_for(ctx: Context) -> bool:
    return bool(ctx.settings.provision_script)


def check(ctx: Context, values: Values) -> str:
    if not values:
        return "never run"
    if values.get("disk") != ctx.status.disk:
        return "a new disk"
    if values.get("script") != digest(ctx.settings.provision_script):
        return "the script changed"
    if values.get("inputs") != inputs_digest(ctx, ctx.settings.provision_inputs):
        return "its inputs changed"
    return ""


def work(ctx: Context) -> Values:
    script = ctx.settings.provision_script
    values = {
        "script": digest(script),
        "inputs": inputs_digest(ctx, ctx.settings.provision_inputs),
        "disk": ctx.status.disk,
    }
    if script:
        run_unit(ctx, "script", script, key=values)
    return values
