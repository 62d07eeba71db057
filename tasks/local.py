"""[mounts] local: folders of the worktree that lie on the VM's own disk."""

from __future__ import annotations

from vmoat import localfolders
from vmoat.context import Context
from vmoat.errors import Code, VmoatError
from vmoat.guestwork import required_facts
from vmoat.stage import Stage, digest, list_changes
from vmoat.state import Values

LIMIT = 60.0
"""Seconds for the mounts; each takes three programs of the guest."""


def stage(after: tuple[str, ...]) -> Stage:
    help = "folders on the VM's own disk ([mounts] local)"
    return Stage("local", help, after, check, work, asked_for=asked_for)


def asked_for(ctx: Context) -> bool:
    return bool(ctx.settings.mounts_local or ctx.store.values("local").get("folders"))


def check(ctx: Context, values: Values) -> str:
    wanted = ctx.settings.mounts_local
    if not values:
        return "never run"
    if changes := list_changes(values.get("folders", ()), wanted):
        return f"the list changed: {changes}"
    for name in wanted:
        if not localfolders.there(ctx.worktree.path, name):
            return f"{name} is no folder on the host any more"
    facts = ctx.facts()
    if facts is None:
        return ""  # a boot lays them
    for name in wanted:
        if name not in facts.local:
            return f"{name} is not mounted"
    still = [name for name in values.get("dropped", ()) if name in facts.local]
    return f"{still[0]} is still mounted" if still else ""


def work(ctx: Context) -> Values:
    wanted = ctx.settings.mounts_local
    values = ctx.store.values("local")
    localfolders.require(ctx.worktree, wanted)
    before = required_facts(ctx)
    known = {*values.get("folders", ()), *values.get("dropped", ())}
    dropped = sorted(known - {*wanted})
    _apply(ctx, dropped)
    for name in dropped:
        if name in before.local:
            ctx.notice(
                f"{name} is the host's folder again; what the VM had in it stays in "
                f"{localfolders.STORE}/{name} until `vmoat destroy`"
            )
    new = [name for name in wanted if name not in before.local]
    if new and any(c.state == "running" for c in before.containers):
        ctx.notice(
            f"containers that run do not see the new mount of {', '.join(new)}: "
            "`docker compose up -d --force-recreate` makes them anew"
        )
    # By content: what was installed there is still there after a boot, and after a mount that
    # was lost; with another folder or another disk it is not.
    made = digest(sorted(wanted), before.data_disk)
    return {"folders": list(wanted), "dropped": dropped, "made": made}


def _apply(ctx: Context, dropped: list[str]) -> None:
    top, owner = str(ctx.worktree.path), ctx.outline.owner
    text = localfolders.script(top, ctx.settings.mounts_local, (owner.uid, owner.gid))
    done = ctx.guest.run(
        localfolders.changing(top, dropped), root=True, input=text, timeout=LIMIT, check=False
    )
    if done.rc != 0:
        raise VmoatError(
            "the folders of mounts.local cannot be mounted in the VM",
            hint="`vmoat down && vmoat up` starts it anew",
            code=Code.STAGE,
            details=done.last_lines(),
        )
