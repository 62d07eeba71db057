"""The SOCKS port through which a browser of the host is a browser of the VM.

It is a forward as any other (``vmoat.forwards``): on loopback only, on record, there again with
each new master, at the same port: a browser that is open, or an MCP server's command line, stays
right through `down` and `up`.  The port may be given out before the VM runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from vmoat import paths, tunnels
from vmoat.context import Context
from vmoat.errors import Code, VmoatError
from vmoat.forwards import SOCKS
from vmoat.locks import in_turn
from vmoat.state import read_toml, write_toml

PORTS = range(10800, 11800)
"""Outside of what a kernel gives to outgoing connections, so that none takes one meanwhile."""

REMEMBERED = "socks"
"""Key of ``ports.toml``, which outlives `untunnel`."""


def port(ctx: Context) -> int:
    """The worktree's SOCKS port, open where the VM is connected; chosen at the first call.

    Raises BUSY where no port is free, VM where the connection is gone.
    """
    # Two worktrees that choose at once must not choose the same.
    with in_turn(paths.make_private(paths.vms_dir()) / ".socks.lock"):
        for candidate in _candidates(ctx):
            if _take(ctx, candidate):
                return candidate
    raise VmoatError(
        f"no port from {PORTS.start} to {PORTS.stop - 1} of this machine is free",
        hint="each VM keeps its own: `vmoat gc` and `vmoat destroy` make room",
        code=Code.BUSY,
    )


def recorded(ctx: Context) -> int:
    """The port that was given out; 0 for none."""
    found = [host for host, guest in tunnels.kept(ctx).read().items() if guest == SOCKS]
    return found[0] if found else 0


def _candidates(ctx: Context) -> Iterator[int]:
    """What it was, then what no other VM has or was given, running or not."""
    mine = recorded(ctx)
    if mine:
        yield mine
    last = _given(ctx.instance.folder / "ports.toml")
    promised = _promised(ctx.instance.name)
    for candidate in ([last] if last else []) + _from(ctx.instance.vm_id):
        if candidate in promised or candidate == mine:
            continue
        if not tunnels.holder(candidate, ctx.instance.name):
            yield candidate


def _take(ctx: Context, candidate: int) -> bool:
    """Open the port, or note it for the VM's next start; False where it is taken."""
    mine = recorded(ctx)
    if ctx.status.state == "running" and ctx.guest.connected():
        try:
            ctx.guest.forward(SOCKS, candidate)
        except VmoatError as error:
            if error.code != Code.BUSY:
                raise
            return False
    elif candidate != mine and not tunnels.is_free(candidate):
        return False
    with tunnels.kept(ctx).change() as table:
        if mine != candidate:
            table.pop(mine, None)
        table[candidate] = SOCKS
    _remember(ctx, candidate)
    return True


def _remember(ctx: Context, candidate: int) -> None:
    file = ctx.instance.folder / "ports.toml"
    known = read_toml(file)
    if known.get(REMEMBERED) != candidate:
        write_toml(file, {**known, REMEMBERED: candidate})


def _from(vm_id: str) -> list[int]:
    """All ports, from one that the VM's id chooses.  A browser that vmoat cannot end (an MCP
    server's) may outlive its VM: the next VM on this machine is hardly ever given that one's port.
    """
    start = int.from_bytes(hashlib.sha256(vm_id.encode()).digest()[:4]) % len(PORTS)
    return [*PORTS[start:], *PORTS[:start]]


def _promised(mine: str) -> set[int]:
    """Ports that other VMs were ever given: a window that is open, or an MCP server's command line,
    goes on with its own though `untunnel` has closed it.  They are free when the VM is destroyed.
    """
    files = paths.vms_dir().glob("[!.]*/ports.toml")
    return {_given(file) for file in files if file.parent.name != mine}


def _given(record: Path) -> int:
    """The port that a VM was given last; 0 for none."""
    found = read_toml(record).get(REMEMBERED)
    return found if isinstance(found, int) else 0
