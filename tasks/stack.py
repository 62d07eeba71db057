"""CMD_UP: the project's own stack, started in the worktree inside the VM."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmoat import space, stages
from vmoat.companion import process as companion
from vmoat.context import Context, guest_environment
from vmoat.errors import Code, VmoatError
from vmoat.facts import Container, Facts
from vmoat.fingerprint import globbed, tracked_and_new
from vmoat.guestwork import attempt_key, boot_now, boot_of, fingerprints, required_facts, run_unit
from vmoat.lifecycle import StackCommand, stack_command
from vmoat.seeds import seed_paths
from vmoat.stage import Stage, digest
from vmoat.state import Values, write_atomically

DEPENDENCY_FAILED = re.compile(
    r"dependency failed to start|is unhealthy|dependency .* (exited|is not running)", re.IGNORECASE
)
"""compose's words when a service that others wait for restarts while it initialises."""

OWN_AFTER = 3
"""Runs in a row after which a tracked file that changes in each is taken for the stack's own."""

MOST_CHANGED = 1000
"""Names of files that changed while the stack started: a branch switched meanwhile has no end."""

UP = ("initializing", "starting", "running", "degraded", "maintenance")
"""systemctl(1), is-system-running: the states of a system that is not on its way down."""

COMPANION_LIMIT = 60.0
DOCKER_LIMIT = 180.0
REBOOT_LIMIT = 240.0
"""Seconds for dockerd to start, and for a guest that reboots to be gone."""


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
    gone = _not_as_left(values.get("containers", {}), values.get("lasting", ()), facts)
    if gone:
        return gone
    changed = what_changed(values.get("inputs", {}), parts(contents(ctx).files))
    return f"{told(changed)} changed" if changed else ""


def work(ctx: Context) -> Values:
    command = stack_command(ctx)
    ctx.notice(command.told())
    space.require(ctx)
    start_docker(ctx)
    _await_companion(ctx)
    last = ctx.store.values("stack")
    key = {"boot": boot_now(ctx)}
    before = as_it_began(ctx, command, key)
    there = {c.id for c in required_facts(ctx, docker=True).containers}
    _start(ctx, command, key)
    ctx.forget_facts()
    mine = _made(required_facts(ctx, docker=True), there - {*last.get("own", ())}, ctx)
    after = contents(ctx)
    record = served(before, after, last.get("changed", {}))
    _tell(ctx, record["changed"], what_changed(before.new, after.new))
    return {
        "command": command.command,
        "boot": key["boot"],
        "own": [c.id for c in mine],
        "containers": {c.id: c.name for c in mine if c.state == "running"},
        "lasting": [c.id for c in mine if c.ports or c.health],
        **record,
    }


def _await_companion(ctx: Context) -> None:
    """What the stack starts may watch files, and pull with the host's logins.

    A watch that is set before the guest knows the files sleeps for ever.
    """
    if companion.ready(ctx, COMPANION_LIMIT):
        return
    ctx.notice(
        "the VM has no connection yet to what serves it here (file changes, docker logins): a dev "
        "server that starts now may not wake when a file is saved; `vmoat status` says more"
    )


def _made(facts: Facts, foreign: Collection[str], ctx: Context) -> list[Container]:
    """The containers that are this stack's: of its compose project, or new since it was started.

    All there are, where none is: CMD_UP may start what it finds.
    """
    project = guest_environment(ctx)["COMPOSE_PROJECT_NAME"]
    containers = [c for c in facts.containers if not c.oneoff]
    mine = [c for c in containers if c.project == project or c.id not in foreign]
    return mine or containers


def _tell(ctx: Context, changed: Mapping[str, int], new: Sequence[str]) -> None:
    """Say what changed while the stack was started, and what will become of it."""
    late = [name for name, times in changed.items() if times < OWN_AFTER]
    own = [name for name, times in changed.items() if times >= OWN_AFTER]
    if late:
        ctx.notice(f"{told(late)} changed while it started: the next `vmoat up` serves that")
    if own:
        ctx.notice(f"{told(own)} changes at each start: taken for the stack's own")
    if new:
        ctx.notice(
            f"{told(new)}, which git does not know, changed while it started: taken for the "
            "stack's own (`vmoat up --force stack` serves it)"
        )


def start_docker(ctx: Context) -> None:
    """Make sure that dockerd runs; a guest that is about to reboot is waited for."""
    before = boot_now(ctx)
    for last in (False, True):
        try:
            ctx.guest.run("systemctl start docker", root=True, timeout=DOCKER_LIMIT)
            return
        except VmoatError as error:
            if last or not _goes_down(ctx, error):
                raise
        ctx.notice("the guest is rebooting, or its connection broke: waiting for it")
        _await_guest(ctx, before)
        ctx.forget_facts()  # the last answer may be from the old boot, and the next go on record


def _await_guest(ctx: Context, before: str) -> None:
    """Wait for the next boot, or for a guest that turns out to be well."""
    deadline = time.monotonic() + REBOOT_LIMIT
    while time.monotonic() < deadline:
        ctx.forget_facts()
        if ctx.status.state not in ("running", "starting"):
            return
        with contextlib.suppress(VmoatError):  # it does not answer on its way
            if boot_now(ctx) != before or not _stopping(ctx):
                return
        time.sleep(1)


def _stopping(ctx: Context) -> bool:
    """Whether the guest goes down: systemd says so, or does not answer any more."""
    state = ctx.guest.run("systemctl is-system-running", check=False, timeout=30)
    return state.out.strip() not in UP


def _goes_down(ctx: Context, error: VmoatError) -> bool:
    """Whether a command may have failed because the guest was on its way down."""
    if error.code == Code.VM:  # the connection broke
        return True
    try:
        return _stopping(ctx)
    except VmoatError:
        return True


def as_it_began(ctx: Context, command: StackCommand, key: Mapping[str, str]) -> Contents:
    """The inputs as they were when this attempt began.

    Kept in a file, for an attempt that a killed worker began is joined and not begun anew.
    """
    file = ctx.instance.folder / "stack-inputs.json"
    attempt = attempt_key("stack", command.command, key)
    now = contents(ctx)
    if ctx.store.attempted("stack") == attempt:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(file.read_bytes())
            if kept["attempt"] == attempt:
                then = Contents(dict(kept["tracked"]), dict(kept["new"]))
                if not _outdated(ctx, then, now):
                    return then
                ctx.store.attempt_failed("stack", "its inputs changed after it had ended")
    data = json.dumps({"attempt": attempt, "tracked": now.tracked, "new": now.new})
    write_atomically(file, data.encode("utf-8", "surrogatepass"))
    return now


def _outdated(ctx: Context, then: Contents, now: Contents) -> bool:
    """Whether an attempt that has ended meanwhile is of no use: forced, or edited since its end.

    What changed before its end may be its own writing.
    """
    facts = ctx.facts()
    if facts is None or not facts.units.get("stack", "").startswith("exited"):
        return False
    if "stack" in ctx.forced:
        return True
    rc = f"{stages.folder('stack')}/rc"
    ended = ctx.guest.run(f"stat -c %Y {rc}", root=True, check=False, timeout=20).out.strip()
    names = [*what_changed(then.tracked, now.tracked), *what_changed(then.new, now.new)]
    return ended.isdigit() and any(
        _changed_at(ctx.worktree.path / name) > int(ended) + 1 for name in names
    )


def _changed_at(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def served(before: Contents, after: Contents, own: Mapping[str, int]) -> dict[str, Any]:
    """What the stack was made from, to be compared with at the next ``up``.  Pure.

    As it is after the run, so that what the stack itself wrote is no reason to run it again; but
    a tracked file that changed meanwhile may be the user's edit, which came too late to be served:
    it counts as it was before.  One that changed in ``OWN_AFTER`` runs in a row is the stack's own;
    ``own`` says in how many it did until now.
    """
    changed = what_changed(before.tracked, after.tracked)
    times = {name: own.get(name, 0) + 1 for name in changed[:MOST_CHANGED]}
    files = after.files
    for name in changed:
        if times.get(name, 0) < OWN_AFTER:
            files.pop(name, None)
            if name in before.tracked:
                files[name] = before.tracked[name]
    return {"inputs": parts(files), "changed": times}


def _start(ctx: Context, command: StackCommand, key: Mapping[str, str]) -> None:
    if command.service:
        ctx.guest.service("stack", command.command)
        return
    tries = max(0, ctx.settings.up_retries)
    while True:
        try:
            with space.watched(ctx, "stack"):
                run_unit(ctx, "stack", command.command, key=key)
            return
        except VmoatError as error:
            first_start = any(DEPENDENCY_FAILED.search(line) for line in error.details)
            if error.code != Code.STAGE or not tries or not first_start:
                raise _with_containers(ctx, error) from error
            tries -= 1
            ctx.notice("a dependency restarted while it initialised: once more ([up] retries)")


def _with_containers(ctx: Context, error: VmoatError) -> VmoatError:
    """The error with the last lines of the container that failed."""
    from vmoat.health import container_lines

    ctx.forget_facts()
    facts = ctx.facts()
    found = culprit(facts.containers) if facts else None
    if found is None:
        return error
    return VmoatError(
        error.message,
        hint=f"{error.hint}; the container's: `vmoat logs {found.name}`",
        code=error.code,
        details=(*error.details, *container_lines(ctx, found)),
    )


def culprit(containers: Sequence[Container]) -> Container | None:
    """The container that a failed start is most likely due to; None where all seem well."""
    failed = [c for c in containers if c.failed]
    unhealthy = [c for c in containers if c.health == "unhealthy"]
    restarting = [c for c in containers if c.state == "restarting"]
    return next(iter((*failed, *unhealthy, *restarting)), None)


def _not_as_left(left: Mapping[str, str], lasting: Collection[str], facts: Facts) -> str:
    """Why the containers are not as the stack left them; "" where they are.

    One that ended well may have done its work (a migration that was still at it then), unless it
    publishes ports or has a healthcheck, or all of them have ended.
    """
    now = {c.id: c for c in facts.containers}
    some = any(now[c].state == "running" for c in left if c in now)
    for container_id, name in left.items():
        found = now.get(container_id)
        if found is None:
            return f"the container {name} is gone"
        done = found.state == "exited" and found.exit_code == 0
        if found.state != "running" and not (done and some and container_id not in lasting):
            return f"the container {name} is {found.state}"
    return ""


@dataclass(frozen=True)
class Contents:
    """What the stack may be built from: each file's digest, by its name in the worktree."""

    tracked: dict[str, str]
    """Files that are asked for by name, tracked by git, or seeds."""
    new: dict[str, str]
    """What git neither tracks nor ignores."""

    @property
    def files(self) -> dict[str, str]:
        return {**self.new, **self.tracked}


def contents(ctx: Context) -> Contents:
    """The inputs as they are now: ``[up] inputs``, else all that git does not ignore and seeds."""
    prints = fingerprints(ctx)
    if ctx.settings.up_inputs:
        return Contents(prints.of(globbed(ctx.worktree.path, ctx.settings.up_inputs)), {})
    tracked, new = tracked_and_new(ctx.worktree)
    # Plain doit keeps its own record in the worktree, whoever ignores it or not.
    new = [name for name in new if not name.startswith(".doit.db")]
    return Contents(prints.of([*tracked, *seed_paths(ctx)]), prints.of(new))


def parts(files: Mapping[str, str]) -> dict[str, str]:
    """One digest for each top-level name: enough to say what changed; the record stays small."""
    rows: dict[str, list[Any]] = {}
    for name, content in sorted(files.items()):
        rows.setdefault(name.split("/", 1)[0], []).append((name, content))
    return {part: digest(entries) for part, entries in sorted(rows.items())}


def what_changed(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The names that differ."""
    return [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]


def told(names: Sequence[str]) -> str:
    """At most three of them."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
