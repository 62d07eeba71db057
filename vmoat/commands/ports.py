"""tunnel and untunnel: ports of the VM on the host's loopback."""

from __future__ import annotations

import argparse

from vmoat import tunnels
from vmoat.commands import context
from vmoat.errors import Code, VmoatError
from vmoat.output import Output


def tunnel(args: argparse.Namespace, out: Output) -> int:
    """Open the forwards; one URL a line on stdout."""
    asked = [tunnels.parse_port(text) for text in args.ports]
    ctx = context(args, claim=False)
    if ctx.facts() is None:
        raise VmoatError(
            f"the VM {ctx.instance.name} does not run", hint="`vmoat up` starts it", code=Code.VM
        )
    opened = tunnels.ensure(ctx, asked)
    if args.json:
        out.json([{"url": t.url, "guest": t.guest, "host": t.host, "service": t.service}
                  for t in opened])  # fmt: skip
        return int(Code.OK)
    for entry in opened:
        out.answer(entry.url)
        out.say(f"{entry.url} → {entry.service or 'port'} {entry.guest}")
    return int(Code.OK)


def untunnel(args: argparse.Namespace, out: Output) -> int:
    """Close and forget all of them, or those of some ports; no error where none is open."""
    ports = [tunnels.parse_port(text)[0] for text in args.ports]
    ctx = context(args, claim=False, tolerant=True)
    count = tunnels.close(ctx, ports)
    out.say(f"{ctx.instance.name}: {count} closed" if count else "no tunnel is open")
    return int(Code.OK)
