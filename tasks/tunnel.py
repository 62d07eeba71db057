"""Forwards to the host's loopback: part of ``up`` with ``[tunnel] auto``, else when asked for."""

from __future__ import annotations

from vmoat import tunnels
from vmoat.context import Context
from vmoat.stage import Stage
from vmoat.state import Values


def stage(after: tuple[str, ...]) -> Stage:
    return Stage("tunnel", "ports on the host's loopback", after, check, work, always=True)


def check(ctx: Context, values: Values) -> str:
    if ctx.facts() is None:
        return "the VM is not running"
    alive = {tunnel.guest: tunnel.host for tunnel in tunnels.open_tunnels(ctx)}
    for guest, host, _ in tunnels.wanted(ctx):
        if alive.get(guest) is None or host not in (0, alive[guest]):
            return f"port {guest} is not forwarded"
    return ""


def work(ctx: Context) -> Values:
    if tunnels.wanted(ctx):
        for tunnel in tunnels.ensure(ctx):
            ctx.say(f"{tunnel.url} → {tunnel.service or 'port'} {tunnel.guest}")
    return {}
