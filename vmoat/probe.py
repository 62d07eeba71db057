"""One question to the guest for everything that the stages want to know."""

from __future__ import annotations

from vmoat.context import Context
from vmoat.facts import Facts, Probe


def ask(ctx: Context, *, space: bool = False) -> Facts:
    """The guest's facts, in one ssh round trip; raises VmoatError where it does not answer."""
    record = ctx.store.values("local")
    known = {*ctx.settings.mounts_local, *record.get("folders", ()), *record.get("dropped", ())}
    probe = Probe(
        docker=True,
        units=("stack",),
        health_url=ctx.settings.health_url,
        sockets=True,
        space=space,
        worktree=str(ctx.worktree.path),
        local=tuple(sorted(known)),
    )
    ctx.guest.connect(timeout=CONNECT_LIMIT)
    return ctx.guest.facts(probe)


CONNECT_LIMIT = 5.0
"""Seconds for a new master to a guest that is up; a check must not wait for one that boots."""
