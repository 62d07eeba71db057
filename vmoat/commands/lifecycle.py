"""up, plan, wait, provision, down, destroy: what changes a VM and its stages."""

from __future__ import annotations

import argparse
import contextlib
import importlib
from pathlib import Path

from vmoat import graph, instance, paths, tunnels, view, watch
from vmoat.commands import attend, context, using
from vmoat.companion import process as companion
from vmoat.context import Context
from vmoat.errors import Code, VmoatError
from vmoat.fleet import admission, removal, sleep
from vmoat.fleet.volumes import recorded
from vmoat.lifecycle import shut_down, stack_command, volumes
from vmoat.output import Output
from vmoat.state import CANCEL_LIMIT, RunLog, cancel_run, require_lock

MAX_RUNS = 5
"""A run may find that inputs changed while it joined another; it does not chase them for ever."""

SHORT = 4.0
"""Seconds that `up --detach` waits for a `down` at work: its caller may give it ten in all."""

JOINS = "joining the work that goes on"

FORCED = ("apt", "script", "seed", "stack")
"""``--force`` alone: everything that is done inside the VM, not the VM itself."""


def up(args: argparse.Namespace, out: Output, begun: RunLog | None = None) -> int:
    """Bring the stack up: ask what is to be done, have a worker do it, watch.

    ``begun`` is a run that does it already (``begin_up``): it is followed, whether it goes on or
    has ended, and nothing is started.
    """
    ctx = context(args)
    warn(ctx, out)
    if args.detach:
        log = _begin(ctx, args, out)
        out.say(f"{ctx.instance.name}: working in the background; `vmoat wait` follows it")
        if args.json:
            view.JsonView(out).show(view.event("detached", log.run_id, follow="vmoat wait"))
        return int(Code.OK)
    with using(ctx, out):
        if begun:
            _follow(ctx, begun, args, out)
            attend(ctx)  # where it had nothing to do
        else:
            bring_up(ctx, _targets(ctx, args), args, out, force=forced(ctx, args.force))
    if not args.stages:
        for text in tunnels.restore(ctx):
            out.warn(text)
        if not args.json:
            closing_words(ctx, out)
    return int(Code.OK)


def begin_up(args: argparse.Namespace, out: Output) -> RunLog:
    """Start the work of an `up` and return at once, with the run that does it."""
    return _begin(context(args), args, out)


def _targets(ctx: Context, args: argparse.Namespace) -> list[str]:
    if args.force:  # a stage that is forced is wanted
        return [*(args.stages or graph.default_targets(ctx)), args.force]
    return list(args.stages)


def forced(ctx: Context, force: str | None) -> list[str]:
    """The stages that ``--force`` names."""
    if force is None:
        return []
    stages = graph.stages_of(ctx)
    if not force:
        return [*FORCED, *(entry.name for entry in ctx.settings.stages)]
    if force not in stages:
        raise graph.unknown_stage(force, stages)
    return [force]


def bring_up(
    ctx: Context,
    targets: list[str],
    args: argparse.Namespace,
    out: Output,
    *,
    force: list[str] | None = None,
) -> int:
    """Run the graph up to ``targets``: skip what holds, join who works, else start a worker."""
    as_json = getattr(args, "json", False)
    ctx.forced = frozenset(force or ())
    ctx.no_wait = getattr(args, "no_wait", False)
    for _ in range(MAX_RUNS):
        seen, log = watch.last_run(ctx), watch.active(ctx)
        # Where nothing is to be done, nothing can be missing: a no-op `up` does not look.
        if log is None and graph.nothing_to_do(graph.plan(ctx, targets)):
            attend(ctx)
            _up_to_date(ctx, out, as_json=as_json)
            return int(Code.OK)
        log, joined = _join_or_start(ctx, log, targets, seen, verbose=args.verbose)
        if log is None:
            continue
        if joined and not as_json:
            out.say(f"{ctx.instance.name}: {JOINS}")
        _follow(ctx, log, args, out)
        if not joined:
            return int(Code.OK)
        # Who joined may have asked for more, or have changed a file since: look again.
        ctx.store.reload()
        ctx.forced -= watch.forced_in(log)
        ctx.joined |= log.done()
    raise _too_many(ctx)


def _begin(ctx: Context, args: argparse.Namespace, out: Output) -> RunLog:
    """Have a worker bring it up, or the one that works already go on with this."""
    targets = _targets(ctx, args)
    ctx.forced, ctx.no_wait = frozenset(forced(ctx, args.force)), args.no_wait
    with using(ctx, out):
        for _ in range(MAX_RUNS):
            seen, log = watch.last_run(ctx), watch.active(ctx)
            # The worker finds out what is to be done: a guest that is busy answers later than this
            # returns.
            limit = SHORT if args.detach else None
            log, joined = _join_or_start(ctx, log, targets, seen, verbose=args.verbose, limit=limit)
            if log is None or (joined and not log.wish(targets, sorted(ctx.forced))):
                continue  # it has just ended
            if joined and not args.json:
                out.say(f"{ctx.instance.name}: {JOINS}")
            return log
    raise _too_many(ctx)


def _require_commands(ctx: Context, targets: list[str]) -> None:
    """No VM is made for a stack or tests whose command nobody knows; raises CONFIG."""
    wanted = graph.wanted(ctx, graph.stages_of(ctx), targets)
    if "stack" in wanted:
        stack_command(ctx)
    if "test" in wanted:
        importlib.import_module("vmoat.tasks.test").command(ctx)


def _join_or_start(
    ctx: Context,
    log: RunLog | None,
    targets: list[str],
    seen: str,
    *,
    verbose: bool,
    limit: float | None = None,
) -> tuple[RunLog | None, bool]:
    """The run that works on this VM, and whether it is another's; none where that has ended.

    ``log`` is the one that does now, ``seen`` the last before it was looked what is to be done.
    """
    if log is not None:
        if ctx.no_wait:
            admission.require_none_waits(ctx)
        return log, True
    _require_commands(ctx, targets)
    ctx.driver.check(walls=ctx.settings.walls)
    log = watch.start(ctx, targets, sorted(ctx.forced), {}, verbose, seen)
    return (log, False) if log else (watch.newer(ctx, seen, limit), True)


def _follow(ctx: Context, log: RunLog, args: argparse.Namespace, out: Output) -> None:
    as_json, tail = getattr(args, "json", False), getattr(args, "tail", None)
    shown = view.make(out, as_json=as_json, tail=tail)
    watch.follow(ctx, log, shown, timeout=getattr(args, "timeout", None))
    ctx.forget_facts()


def _too_many(ctx: Context) -> VmoatError:
    return VmoatError(
        f"other work on {ctx.instance.name} came first, {MAX_RUNS} times",
        hint="`vmoat wait` follows it; `vmoat up` asks again",
        code=Code.BUSY,
    )


def _up_to_date(ctx: Context, out: Output, *, as_json: bool) -> None:
    nothing = "up to date, nothing to do"
    if as_json:
        view.JsonView(out).show(view.no_run(nothing))
    else:
        out.say(f"{ctx.instance.name}: {nothing}")


def warn(ctx: Context, out: Output) -> None:
    """What is not as the config would have it, and stops nobody."""
    from vmoat.seeds import seeds

    missing = [missing_seed(seed.path) for seed in seeds(ctx) if seed.state == "missing"]
    for text in (*ctx.settings.warnings, *missing, *kept_as_made(ctx)):
        out.warn(text)


def kept_as_made(ctx: Context) -> list[str]:
    """What the config asks for and only a new VM of this driver can have, a line each."""
    had = ctx.store.values("vm").get("spec", {})
    wanted = {
        "kind": ("vm.type", ctx.settings.vm_type),
        "mount_type": ("vm.mount_type", ctx.settings.vm_mount_type),
    }
    return [
        f'{wanted[key][0]} stays "{had[key]}" (the config asks for "{wanted[key][1]}"): '
        "`vmoat destroy`, then `vmoat up`, makes a VM that has it"
        for key in ctx.driver.features.fixed
        if key in had and had[key] != wanted[key][1]
    ]


def missing_seed(path: str) -> str:
    return f"the seed {path} is in neither checkout"


def closing_words(ctx: Context, out: Output) -> None:
    """What a person wants next: the URLs that are open, and the commands to go on with."""
    alive = tunnels.open_tunnels(ctx)
    for tunnel in alive:
        out.say(f"{tunnel.url} → {tunnel.service or 'port'} {tunnel.guest}")
    nexts = [] if alive else ["`vmoat tunnel` brings its ports to localhost"]
    if ctx.settings.test_command:
        nexts.append("`vmoat test` runs the tests")
    nexts.append("`vmoat ssh` is a shell inside")
    out.say(f"{ctx.instance.name} is healthy: " + ", ".join(nexts))


def provision(args: argparse.Namespace, out: Output) -> int:
    """The VM, apt, script and seed."""
    ctx = context(args)
    warn(ctx, out)
    with using(ctx, out):
        return bring_up(ctx, ["apt", "script", "seed"], args, out)


def plan(args: argparse.Namespace, out: Output) -> int:
    """Each stage, whether it would run, and the one reason why."""
    ctx = context(args, claim=False)
    steps = graph.plan(ctx, args.stages)
    if args.json:
        out.json(
            {
                "schema": "vmoat.plan/1",
                "name": ctx.instance.name,
                "stages": [
                    {"stage": s.name, "runs": bool(s.reason), "reason": s.reason or "up to date"}
                    for s in steps
                ],
                "notes": notes(ctx),
            }
        )
        return int(Code.OK)
    width = max(len(step.name) for step in steps)
    for step in steps:
        mark, why = ("run ", step.reason) if step.reason else ("skip", _holds(step))
        out.answer(f"{step.name:<{width}}  {mark}  {why}")
    for note in notes(ctx):
        out.say(note)
    return int(Code.OK)


def _holds(step: graph.Step) -> str:
    return "checked just now" if step.always else "up to date"


def notes(ctx: Context) -> list[str]:
    """What a plan should say besides: a detected command, a seed that differs from main's."""
    from vmoat.seeds import differs, seeds

    found = kept_as_made(ctx)
    with contextlib.suppress(VmoatError):
        command = stack_command(ctx)
        found.append(f"CMD_UP, {command.told()}")
    was = ctx.store.values("vm").get("spec", {}).get("disk", 0)
    if was > ctx.settings.vm_disk:
        asked = ctx.settings.vm_disk
        found.append(f"the disk stays at {was} GiB (vm.disk is {asked}): no disk shrinks")
    for seed in seeds(ctx):
        if seed.state == "missing":
            found.append(missing_seed(seed.path))
        elif seed.state == "there" and differs(seed):
            found.append(f"the seed {seed.path} differs from the main checkout's (left as it is)")
    return found


def wait(args: argparse.Namespace, out: Output) -> int:
    """Follow the work that goes on, or tell how the last ended."""
    ctx = context(args, claim=False, tolerant=True)
    log = watch.active(ctx)
    if log is None:
        return _how_it_ended(ctx, out, as_json=args.json)
    shown = view.make(out, as_json=args.json, tail=args.tail)
    watch.follow(ctx, log, shown, timeout=args.timeout)
    return int(Code.OK)


def _how_it_ended(ctx: Context, out: Output, *, as_json: bool) -> int:
    from vmoat.state import current_run

    log = current_run(ctx.instance.folder)
    if log is None:
        nothing = "nothing was ever started"
        if as_json:
            view.JsonView(out).show(view.no_run(nothing))
        else:
            out.say(f"{ctx.instance.name}: {nothing}; `vmoat up` does")
        return int(Code.OK)
    ends = [event for event in log.events() if event["event"] == "run_end"]
    if not ends:
        raise watch.died(log)
    end = ends[-1]
    if as_json:
        view.JsonView(out).show(end)
    if end["code"] != Code.OK:
        raise watch.failure(end)
    if not as_json:
        out.say(f"{ctx.instance.name}: nothing goes on; the last run ended well")
    return int(Code.OK)


def down(args: argparse.Namespace, out: Output) -> int:
    """CMD_DOWN, power off; the disks stay."""
    if args.all:
        from vmoat.commands.several import down_all

        return down_all(down, args, out)
    ctx = context(args, claim=False, tolerant=True)
    for text in ctx.settings.warnings:
        out.warn(text)
    if ctx.instance.claimed:
        sleep.end(ctx.instance.folder)
    if watch.active(ctx) is None and ctx.status.state in ("absent", "stopped"):
        out.say(f"{ctx.instance.name}: not running")
        return int(Code.OK)
    cancel_run(ctx.instance.folder)  # what brings it up has nothing left to do
    lock = require_lock(ctx.instance.folder, "`down`", wait=CANCEL_LIMIT)
    ctx.forget_facts()
    try:
        shut_down(ctx, out.warn)
    finally:
        lock.free()
    out.say(f"{ctx.instance.name}: stopped; its disks stay, `vmoat up` starts it again")
    return int(Code.OK)


def destroy(args: argparse.Namespace, out: Output) -> int:
    """Remove the VM, its disks, its state; no byte stays."""
    if args.name:
        return _destroy_by_name(args, out)
    ctx = context(args, claim=False, tolerant=True)
    if not ctx.instance.claimed:
        out.say(f"{ctx.instance.name}: there is no VM")
        return int(Code.OK)
    _confirm(args, out, ctx.instance.name, str(ctx.worktree.path), volumes(ctx))
    cancel_run(ctx.instance.folder)
    lock = require_lock(ctx.instance.folder, "`destroy`", wait=CANCEL_LIMIT)
    companion.end(ctx.instance.vm_id)
    try:
        with contextlib.suppress(VmoatError):
            ctx.guest.close()
        removal.remove(ctx.instance, ctx.driver.name)
    finally:
        lock.free()
    out.say(f"{ctx.instance.name}: removed")
    return int(Code.OK)


def _destroy_by_name(args: argparse.Namespace, out: Output) -> int:
    owner = instance.read_owner(args.name) if instance.is_name(args.name) else None
    if owner is None and instance.is_name(args.name) and instance.is_damaged(args.name):
        owner = instance.Owner("", Path(), Path("(not known)"))
    if owner is None:
        known = sorted(folder.name for folder in paths.vms_dir().glob("[!.]*"))
        raise VmoatError(
            f"there is no VM called `{args.name}`", hint="the VMs are: " + ", ".join(known) or "-",
            code=Code.USAGE,
        )  # fmt: skip
    mine = instance.Instance(args.name, owner.vm_id)
    _confirm(args, out, mine.name, str(owner.worktree), recorded(mine.folder))
    cancel_run(mine.folder)
    lock = require_lock(mine.folder, "`destroy`", wait=CANCEL_LIMIT)
    try:
        removal.remove(mine, owner.driver)
    finally:
        lock.free()
    out.say(f"{mine.name}: removed")
    return int(Code.OK)


def _confirm(
    args: argparse.Namespace, out: Output, name: str, worktree: str, volumes: tuple[str, ...]
) -> None:
    out.say(f"the VM {name} of the worktree {worktree}")
    if volumes:
        out.say(f"with its volumes: {', '.join(volumes)}")
    if args.force:
        return
    if not out.interactive:
        raise VmoatError(
            "`destroy` removes data and there is nobody to ask", hint="add -f", code=Code.USAGE
        )
    if not out.ask("remove it, with everything in it?"):
        raise VmoatError("nothing was removed", code=Code.INTERRUPTED)
