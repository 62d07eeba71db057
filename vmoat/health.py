"""Is the stack well?  HEALTH_URL answers 2xx inside the VM; without one, every container does,
and a service (``[up] service``) listens.

A container that ended with an error or keeps restarting is a failure at once: waiting for the
time limit would not mend it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmoat import stages
from vmoat.context import Context, guest_environment
from vmoat.errors import Code, VmoatError
from vmoat.lifecycle import stack_command

if TYPE_CHECKING:
    from vmoat.facts import Container, Facts

POLL = 1.0
"""Seconds between two questions; each is one ssh round trip."""

RESTARTS = 3
"""A container that was restarted this often will not come up by itself."""

SETTLE = 3.0
"""Seconds that a container without a healthcheck has to stay up before it counts as well: one
that dies of its configuration does so at once."""
CALM = 12.0
"""The same for one that was restarted again and again: dockerd waits ever longer in between."""

SILENT = 120
"""Seconds that a service may run without listening before it counts as one that never does: a
watcher, a queue's worker."""

CONTAINER_LINES = 12
SERVICE_LINES = 15
MOST_CONTAINERS = 4
SCREEN = 20
"""Lines of all containers together: the reason stands above them, and has to stay in sight."""


@dataclass(frozen=True)
class Verdict:
    """What was found: well, or why not, and whether waiting may help."""

    healthy: bool
    reason: str = ""
    failed: Container | None = None
    over: bool = False
    """Waiting cannot help."""


def judge(ctx: Context) -> Verdict:
    """Ask once."""
    facts = ctx.facts()
    if facts is None:
        return Verdict(False, "the VM is not running")
    own = frozenset(ctx.store.values("stack").get("own", ()))
    project = guest_environment(ctx)["COMPOSE_PROJECT_NAME"]
    mine = stack_containers(facts, own, project)
    return judge_facts(
        replace(facts, containers=tuple(mine)), ctx.settings.health_url, service=is_service(ctx)
    )


def is_service(ctx: Context) -> bool:
    """Whether the stack's command doesn't return."""
    try:
        return stack_command(ctx).service
    except VmoatError:
        return False


def stack_containers(facts: Facts, own: Collection[str], project: str) -> list[Container]:
    """Those that are the stack's: neither `compose run`, nor what somebody started beside it.

    ``own``: the ids that its start has made; without any, all count.
    """
    containers = [c for c in facts.containers if not c.oneoff]
    return [c for c in containers if c.id in own or c.project == project or not own]


def judge_facts(facts: Facts, url: str, *, service: bool = False) -> Verdict:
    """The verdict on what the guest said.  Pure."""
    containers = [c for c in facts.containers if not c.oneoff]
    for container in containers:
        if container.failed:
            known = container.exit_code is not None
            how = f"exit code {container.exit_code}" if known else "an error"
            return Verdict(False, f"{container.name} ended with {how}", container)
        if container.restarts >= RESTARTS and container.state in ("restarting", "exited"):
            return Verdict(False, f"{container.name} keeps restarting", container)
    ended = facts.units.get("stack", "").removeprefix("exited ")
    if ended.isdigit() and (service or ended != "0"):  # a service does not come back
        return Verdict(False, f"the stack's command ended with exit code {ended}", over=True)
    if url:
        if facts.health_code is not None and 200 <= facts.health_code < 300:
            return Verdict(True)
        said = f"answers {facts.health_code}" if facts.health_code else "does not answer"
        return Verdict(False, f"{url} {said}")
    if not facts.docker and not facts.active("stack"):
        return Verdict(False, "dockerd does not answer in the VM")
    for container in containers:
        if container.state in ("created", "restarting", "paused"):
            return Verdict(False, f"{container.name} is {container.state}")
        if container.health in ("starting", "unhealthy"):
            return Verdict(False, f"{container.name} is {container.health}")
        calm = CALM if container.restarts >= RESTARTS else SETTLE
        if container.up_seconds < calm and not container.health:
            again = f", after {container.restarts} restarts" if container.restarts else ""
            return Verdict(False, f"{container.name} has only just started{again}")
    return _service(facts, containers) if service else Verdict(True)


def _service(facts: Facts, containers: Sequence[Container]) -> Verdict:
    """Whether a service is up, when nothing else says: it runs, and listens.

    One that runs containers in the foreground (``docker compose up``) is as well as they are.
    """
    if not facts.active("stack"):
        return Verdict(False, "the stack's command does not run", over=True)
    seconds = facts.running_for.get("stack", SILENT)
    if seconds < SETTLE:
        return Verdict(False, "the stack's command has only just started")
    # Containers may be left from another command: that they run proves this one only in time.
    patience = CALM if any(c.state == "running" for c in containers) else SILENT
    if seconds < patience and not facts.owned:
        return Verdict(False, "the stack's command does not listen on any port yet")
    return Verdict(True)


def wait(ctx: Context) -> None:
    """Wait until the stack is well; raises STAGE for a failed container, TIMEOUT at the limit."""
    limit = ctx.settings.health_timeout
    deadline = time.monotonic() + limit
    said = ""
    while True:
        verdict = judge(ctx)
        if verdict.healthy:
            return
        if verdict.failed is not None:
            raise VmoatError(
                f"the stack is not healthy: {verdict.reason}",
                hint=f"`vmoat logs {verdict.failed.name}` shows all",
                code=Code.STAGE,
                details=container_lines(ctx, verdict.failed),
            )
        if verdict.over:
            raise VmoatError(
                f"the stack is not healthy: {verdict.reason}",
                hint="`vmoat logs --stage stack` shows its whole output; `vmoat up` tries again",
                code=Code.STAGE,
                details=unit_lines(ctx),
            )
        if ctx.facts() is None and ctx.status.state != "running":
            reasons = "; ".join(ctx.status.reasons)
            raise VmoatError(
                f"the VM is {ctx.status.state}" + (f": {reasons}" if reasons else ""),
                hint="`vmoat up` starts it again",
                code=Code.VM,
            )
        if time.monotonic() >= deadline:
            raise VmoatError(
                f"not healthy within {limit:g} s: {verdict.reason}",
                hint="`vmoat logs` shows the stack; HEALTH_TIMEOUT sets the limit",
                code=Code.TIMEOUT,
                details=last_words(ctx),
            )
        if verdict.reason != said:
            said = verdict.reason
            ctx.say(f"waiting: {said}")
        time.sleep(min(POLL, max(0.0, deadline - time.monotonic())))
        ctx.forget_facts()


def container_lines(
    ctx: Context, container: Container, most: int = CONTAINER_LINES
) -> tuple[str, ...]:
    """A container's last lines, under its name."""
    done = ctx.guest.run(
        f"docker logs --tail {most} {container.id} 2>&1", root=True, check=False, timeout=20
    )
    return (f"--- {container.name}", *done.out.splitlines()[-most:])


def unit_lines(ctx: Context) -> tuple[str, ...]:
    """The last lines that the stack's command wrote."""
    line = f"tail -n {SERVICE_LINES} {stages.log_path('stack')}"
    try:
        return tuple(ctx.guest.run(line, root=True, check=False, timeout=20).out.splitlines())
    except VmoatError:
        return ()


def last_words(ctx: Context) -> tuple[str, ...]:
    """The last lines of every container; the stack's own where there is none."""
    facts = ctx.facts()
    containers = facts.containers if facts else ()
    if not containers:
        return unit_lines(ctx)
    asked = containers[:MOST_CONTAINERS]
    most = SCREEN // len(asked)
    return tuple(line for c in asked for line in container_lines(ctx, c, most))
