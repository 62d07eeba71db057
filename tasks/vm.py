"""The VM: created where there is none, started, of the size asked for, answering ssh."""

from __future__ import annotations

import contextlib
from typing import Any

from vmoat import dockercontext, localfolders
from vmoat.companion import process as companion
from vmoat.context import Context
from vmoat.drivers import VmSpec
from vmoat.errors import VmoatError
from vmoat.fleet import sleep, volumes
from vmoat.fleet.admission import Room
from vmoat.guestwork import required_facts
from vmoat.lifecycle import stop_stack
from vmoat.stage import Stage
from vmoat.state import Values

WAYS_LIMIT = 20.0
"""Seconds for the ways back to the host; the stack's stage says so where they are missing."""
BOOT_LIMIT = 300.0
"""Seconds from the driver's start to the first ssh answer; 40 under emulation, more when four
VMs share two cores."""


def stage(after: tuple[str, ...]) -> Stage:
    return Stage("vm", "the VM, running and reachable", after, check, work)


def check(ctx: Context, values: Values) -> str:
    status = ctx.status
    if status.state == "absent":
        return "there is no VM yet"
    if status.state == "stopped":
        slept = sleep.of(ctx.instance.folder)
        return f"the VM {slept.words()}" if slept else "the VM is stopped"
    if status.state != "running":
        return f"the VM is {status.state}: {'; '.join(status.reasons) or 'it did not finish'}"
    if values.get("boot") != status.boot:
        return "its start was not finished"
    changed = what_changed(values.get("spec", {}), facts_of(ctx.spec), fixed(ctx))
    if changed:
        return changed
    return "" if ctx.facts() else "the VM runs, but ssh does not answer"


def work(ctx: Context) -> Values:
    # Before anything is started: the boot lays these over the worktree.
    localfolders.require(ctx.worktree, ctx.settings.mounts_local)
    with Room(ctx) as room:
        _end_what_must_not_stay(ctx, room.grows)
        room.take()
        _start(ctx)
    return _record(ctx)


def _end_what_must_not_stay(ctx: Context, grows: str) -> None:
    values = ctx.store.values("vm")
    status = ctx.status
    running = status.state in ("running", "paused", "starting", "broken")
    recorded = values.get("spec", {}) if values.get("boot") == status.boot else {}
    changed = what_changed(recorded, facts_of(ctx.spec), fixed(ctx)) if recorded else grows
    if running and changed:
        ctx.notice(f"{changed}: the VM is restarted")
        with contextlib.suppress(VmoatError):
            stop_stack(ctx)
        ctx.driver.stop(ctx.instance.name)
    elif status.state == "running" and recorded and not answers(ctx):
        ctx.notice("ssh does not answer: the VM is restarted")
        ctx.driver.stop(ctx.instance.name, timeout=20)
    elif status.state == "running" and "vm" in ctx.forced:
        ctx.say("--force: the VM is restarted")
        with contextlib.suppress(VmoatError):
            stop_stack(ctx)
        ctx.driver.stop(ctx.instance.name)
    ctx.forget_facts()


def _start(ctx: Context) -> None:
    # Not under one that is broken: a QEMU whose disks were deleted would seem well again, still
    # running on the deleted ones.  The start ends it, and makes what is missing.
    if ctx.status.state != "broken":
        ctx.driver.create(ctx.spec, ctx.say)
    ctx.driver.start(ctx.spec, ctx.notice)
    sleep.end(ctx.instance.folder)
    volumes.begin(ctx.instance.folder)
    ctx.forget_facts()
    ctx.guest.connect(timeout=BOOT_LIMIT)
    if warning := dockercontext.ensure(
        ctx.instance.name, ctx.instance.vm_id, ctx.worktree.path
    ):
        ctx.notice(warning)
    companion.ensure(ctx)
    companion.ready(ctx, WAYS_LIMIT, "open")  # dockerd pulls through one of them


def _record(ctx: Context) -> Values:
    values = ctx.store.values("vm")
    spec, had = facts_of(ctx.spec), values.get("spec", {})
    if values.get("disk") == ctx.status.disk:
        spec.update({key: had[key] for key in fixed(ctx) if key in had})
    status = ctx.status
    # Its disk is what the VM has made: what was installed there outlives a boot.
    return {
        "boot": status.boot,
        "disk": status.disk,
        "spec": spec,
        "made": status.disk,
    }


def answers(ctx: Context) -> bool:
    """Whether the guest answers, given time: a busy one is no reason to restart what runs in it."""
    try:
        required_facts(ctx)
    except VmoatError:
        return False
    return True


def facts_of(spec: VmSpec) -> dict[str, Any]:
    """What a running VM must have been started with."""
    return {
        "cpus": spec.cpus,
        "memory": spec.memory_gib,
        "disk": spec.disk_gib,
        "worktree": str(spec.worktree),
        "git": str(spec.git_dir),
        "masked": [str(path) for path in spec.masked],
        "gitlinks": [str(path) for path in spec.gitlinks],
        "shares": [f"{share.path}:{'rw' if share.writable else 'ro'}" for share in spec.shares],
        "walls": [spec.walls, spec.network_open, spec.git_writable],
        "mount_type": spec.mount_type,
        "kind": spec.kind,
        "args": [*spec.extra_args, *spec.start_args],
        "owner": spec.owner.uid,
        "cache": spec.image_cache,
    }


_NAMES = {
    "cpus": "its number of CPUs changed",
    "memory": "its memory changed",
    "disk": "its disk's size changed",
    "worktree": "the worktree was moved",
    "git": "the worktree's git folder was moved",
    "masked": "another worktree was made inside this one",
    "gitlinks": "the worktree has another submodule",
    "shares": "its shares changed",
    "walls": "its walls changed",
    "mount_type": "its mount type changed",
    "kind": "vm.type changed",
    "args": "its driver's arguments changed",
    "owner": "the worktree has another owner",
    "cache": "[cache] enabled changed",
}


def fixed(ctx: Context) -> tuple[str, ...]:
    """What a VM of this driver keeps as it was made."""
    return ctx.driver.features.fixed


def what_changed(old: dict[str, Any], new: dict[str, Any], fixed: tuple[str, ...] = ()) -> str:
    """The first thing that a restart is needed for; "" where the VM is as asked."""
    for key, name in _NAMES.items():
        if key in fixed:
            continue
        was, now = old.get(key), new[key]
        if key == "disk":
            if now > (was or 0):  # a disk never shrinks
                return f"{name}: {was} → {now}"
        elif key in ("masked", "gitlinks"):
            # One that is gone needs no restart; a new one is not walled off yet.
            if set(now) - set(was or ()):
                return name
        elif was != now:
            return f"{name}: {was} → {now}" if key in ("cpus", "memory") else name
    return ""
