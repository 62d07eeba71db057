"""CMD_UP: the project's own stack, started in the worktree inside the VM."""

from __future__ import annotations

import re
from typing import Any

from vmoat.context import Context
from vmoat.errors import Code, VmoatError
from vmoat.fingerprint import globbed, tracked_and_new
from vmoat.guestwork import boot_of, fingerprints, run_unit
from vmoat.lifecycle import StackCommand, stack_command
from vmoat.seeds import seed_paths
from vmoat.stage import Stage, digest
from vmoat.state import Values

DEPENDENCY_FAILED = re.compile(
    r"dependency failed to start|is unhealthy|dependency .* (exited|is not running)", re.IGNORECASE
)
"""compose's words when a service that others wait for restarts while it initialises."""


def stage(after: tuple[str, ...]) -> Stage:
    return Stage("stack", "the project's stack (CMD_UP)", after, check, work)


def check(ctx: Context, values: Values) -> str:
    command = stack_command(ctx)
    if not values:
        return "never run"
    facts = ctx.facts()
    if facts is None:
        return "the VM is not running"
    if values.get("command") != command.command:
        return "its command changed"
    if values.get("boot") != boot_of(ctx):
        return "a new boot"
    if values.get("containers") and not facts.docker:
        return "dockerd does not answer"
    if command.service and not facts.active("stack"):
        return "its process is not running"
    gone = _not_as_left(values.get("containers", {}), ctx)
    if gone:
        return gone
    changed = what_changed(values.get("inputs", {}), inputs_of(ctx))
    return f"{changed} changed" if changed else ""


def work(ctx: Context) -> Values:
    command = stack_command(ctx)
    ctx.say(f"{command.source}: {command.command}")
    ctx.guest.run("systemctl start docker", root=True, timeout=180)
    _start(ctx, command)
    ctx.forget_facts()
    facts = ctx.facts()
    containers = {c.id: c.name for c in facts.containers if c.state == "running"} if facts else {}
    # After the run: what the stack itself wrote is no reason to run it again.
    return {
        "command": command.command,
        "boot": boot_of(ctx),
        "containers": containers,
        "inputs": inputs_of(ctx),
    }


def _start(ctx: Context, command: StackCommand) -> None:
    if command.service:
        ctx.guest.service("stack", command.command)
        return
    tries = max(0, ctx.settings.up_retries)
    key = {"boot": boot_of(ctx), "inputs": inputs_of(ctx)}
    while True:
        try:
            run_unit(ctx, "stack", command.command, key={**key, "tries": tries})
            return
        except VmoatError as error:
            first_start = any(DEPENDENCY_FAILED.search(line) for line in error.details)
            if error.code != Code.STAGE or not tries or not first_start:
                raise _with_containers(ctx, error) from error
            tries -= 1
            ctx.say("a dependency restarted while it initialised: once more ([up] retries)")


def _with_containers(ctx: Context, error: VmoatError) -> VmoatError:
    """The error with the last lines of the container that failed."""
    from vmoat.health import container_lines

    ctx.forget_facts()
    facts = ctx.facts()
    failed = [c for c in facts.containers if c.failed] if facts else []
    lines = [line for c in failed[:1] for line in container_lines(ctx, c)]
    return VmoatError(
        error.message, hint=error.hint, code=error.code, details=(*error.details, *lines)
    )


def _not_as_left(left: dict[str, str], ctx: Context) -> str:
    facts = ctx.facts()
    now = {c.id: c for c in facts.containers} if facts else {}
    for container_id, name in left.items():
        found = now.get(container_id)
        if found is None:
            return f"the container {name} is gone"
        if found.state != "running":
            return f"the container {name} is {found.state}"
    return ""


def inputs_of(ctx: Context) -> dict[str, str]:
    """A digest for each part of the worktree that the stack is built from.

    A part is a top-level name: enough to say what changed, and the record stays small.
    """
    if ctx.settings.up_inputs:
        names = globbed(ctx.worktree.path, ctx.settings.up_inputs)
    else:
        names = [*tracked_and_new(ctx.worktree), *seed_paths(ctx)]
        # Plain doit keeps its own record in the worktree, whoever ignores it or not.
        names = [name for name in names if not name.startswith(".doit.db")]
    files = fingerprints(ctx).of(names)
    parts: dict[str, list[Any]] = {}
    for name, content in files.items():
        parts.setdefault(name.split("/", 1)[0], []).append((name, content))
    return {part: digest(rows) for part, rows in sorted(parts.items())}


def what_changed(old: dict[str, str], new: dict[str, str]) -> str:
    """The names that differ, at most three."""
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
