"""Commands of the project's stack: what brings it up, and what stops it; and stopping its VM."""

from __future__ import annotations

import contextlib
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from vmoat.companion import process as companion
from vmoat.config.detect import detect
from vmoat.context import Context
from vmoat.errors import Code, VmoatError
from vmoat.fleet.volumes import LIST, record, recorded
from vmoat.output import printable

DOWN_LIMIT = 60.0
"""Seconds for CMD_DOWN; compose gives each container ten to end."""

LAST_LINES = 8


@dataclass(frozen=True)
class StackCommand:
    """What CMD_UP is, and where it comes from."""

    command: str
    down: str
    service: bool
    source: str
    passed_over: tuple[str, ...] = ()

    def told(self) -> str:
        """What will run and why, for a person."""
        others = f" (passed over: {', '.join(self.passed_over)})" if self.passed_over else ""
        return f"{self.source}: {self.command}{others}"


def stack_command(ctx: Context) -> StackCommand:
    """CMD_UP, configured or detected; raises CONFIG where there is neither."""
    settings = ctx.settings
    found = detect(ctx.worktree.path)
    down = settings.down_command or found.down
    if settings.up_command:
        return StackCommand(settings.up_command, down, settings.up_service, "configured")
    if found.command:
        service = settings.up_service or found.service
        source = f"detected: {found.source}"
        return StackCommand(found.command, down, service, source, found.passed_over)
    raise VmoatError(
        "nothing says how this project's stack starts",
        hint='set [up] command = "…" in vmoat.toml (CMD_UP in vmoat.conf), add a compose file, '
        "or a Makefile with `up:`; `vmoat init` writes a vmoat.toml to begin with",
        code=Code.CONFIG,
    )


def stop_stack(ctx: Context) -> None:
    """Run CMD_DOWN in a VM that answers; raises STAGE, with its last lines, where it fails."""
    try:
        command = stack_command(ctx)
    except VmoatError:
        return
    if ctx.facts() is None:
        return
    if command.service:
        ctx.guest.stop_stage("stack")
    if not command.down:
        return
    last: deque[str] = deque(maxlen=LAST_LINES)
    ctx.refresh_guest()
    # In capitals: no stage of a project's can have that name.
    code = ctx.guest.stage(
        "CMD_DOWN", command.down, attempt=secrets.token_hex(8), on_line=last.append,
        timeout=DOWN_LIMIT,
    )  # fmt: skip
    if code != 0:
        raise VmoatError(
            f"`{command.down}` failed with exit code {code}",
            hint="[down] command (CMD_DOWN) says how the stack is stopped",
            code=Code.STAGE,
            details=tuple(last),
        )


def shut_down(ctx: Context, warn: Callable[[str], None]) -> None:
    """Stop the stack, close the master, stop the VM; the caller holds the VM's lock.

    A stack that does not stop is only a warning.  Raises VM where the VM cannot be stopped.
    """
    if (found := _asked_volumes(ctx)) is not None:  # else the record keeps its age: gc goes by it
        record(ctx.instance.folder, found)
    try:
        stop_stack(ctx)
    except VmoatError as error:
        warn(f"the stack did not stop by itself: {error.message}")
        for line in error.details:
            warn(f"  {printable(line)}")
    companion.end(ctx.instance.vm_id)  # it would connect again
    with contextlib.suppress(VmoatError):
        ctx.guest.close()
    ctx.driver.stop(ctx.instance.name)
    ctx.forget_facts()


def volumes(ctx: Context) -> tuple[str, ...]:
    """The named volumes: what a person may miss."""
    found = _asked_volumes(ctx)
    return recorded(ctx.instance.folder) if found is None else found


def _asked_volumes(ctx: Context) -> tuple[str, ...] | None:
    """Those of a VM that runs, in its dockerd's word; None where it does not answer."""
    if ctx.facts() is None:
        return None
    try:
        done = ctx.guest.run(LIST, root=True, check=False, timeout=20)
    except VmoatError:  # a dockerd that hangs must not be in the way
        return None
    return tuple(done.out.split()) if done.rc == 0 else None
