"""Ports of the guest on the host's loopback, through the ssh master.

Which ports: the asked-for ones, else EXPOSE_PORTS, else what the containers publish and (for a
stack that is a service, or has no containers) the guest's listening sockets.  Which host port: the
same where it is free on 127.0.0.1 and ::1, else the first free of 9000-9099, else any; the same one
next time.  What was opened comes back with the next master (``vmoat.forwards``).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from vmoat import instance, paths
from vmoat.context import Context
from vmoat.errors import Code, VmoatError
from vmoat.facts import Facts
from vmoat.forwards import RECORD, SERVICES, Record
from vmoat.netports import CACHE_PORT
from vmoat.state import read_toml, write_toml

SPARE = range(9000, 9100)
OURS = frozenset({22, CACHE_PORT})
"""Listeners of the guest itself that no tunnel is made for unless it is asked for."""


@dataclass(frozen=True)
class Tunnel:
    """One forward."""

    guest: int
    host: int
    service: str = ""

    @property
    def url(self) -> str:
        return f"http://localhost:{self.host}"


def parse_port(text: str) -> tuple[int, int]:
    """``GUEST`` or ``GUEST:HOST`` as two numbers, 0 for any host port; raises USAGE."""
    from vmoat.config.values import Bad
    from vmoat.config.values import parse_port as parse

    try:
        port = parse(text)
    except Bad as error:
        raise VmoatError(
            f"{text!r} is no port", hint="write GUEST or GUEST:HOST, each from 1 to 65535",
            code=Code.USAGE,
        ) from error  # fmt: skip
    return port.guest, port.host


def wanted(ctx: Context, asked: Sequence[tuple[int, int]] = ()) -> list[tuple[int, int, str]]:
    """(guest port, host port or 0, service) of each forward that should be there."""
    services = published(ctx)
    if asked:
        return [(guest, host, services.get(guest, "")) for guest, host in asked]
    configured = ctx.settings.tunnel_ports
    if configured:
        return [(p.guest, p.host or 0, services.get(p.guest, "")) for p in configured]
    facts = ctx.facts()
    # A dev server beside a database in a container publishes nothing: its sockets tell.
    listening = own_ports(facts) - services.keys() if facts else frozenset()
    found = {**dict.fromkeys(listening, ""), **services}
    return [(port, 0, name) for port, name in sorted(found.items())]


def own_ports(facts: Facts) -> frozenset[int]:
    """What listens in the guest outside of containers: the service's own sockets, if it has any;
    else, for a service and a stack without containers, all but the guest's own.
    """
    if facts.owned:
        return facts.owned - OURS
    some = not facts.containers or facts.active("stack")
    return facts.listening - OURS if some else frozenset()


def published(ctx: Context) -> dict[int, str]:
    """Ports that the running containers publish, with their service's name."""
    facts = ctx.facts()
    found: dict[int, str] = {}
    for container in facts.containers if facts else ():
        if container.state == "running":
            for port, _ in container.ports:
                found.setdefault(port, container.service or container.name)
    return found


def left_out(ctx: Context) -> list[str]:
    """What the running containers publish and no ssh forward carries, for a person."""
    facts = ctx.facts()
    return [
        f"{port}/udp of {container.service or container.name} is left out: ssh forwards no udp"
        for container in (facts.containers if facts else ())
        if container.state == "running"
        for port in container.udp
    ]


def holder(port: int, mine: str) -> str:
    """The worktree whose tunnel holds this port of the host; "" where it is none of vmoat's.

    ``mine``: the name of the VM that asks.
    """
    for file in sorted(paths.vms_dir().glob(f"[!.]*/{RECORD}")):
        name = file.parent.name
        if name != mine and port in Record(file).read():
            owner = instance.read_owner(name)
            return str(owner.worktree) if owner else name
    return ""


def remapped(ctx: Context, tunnel: Tunnel) -> str:
    """Why a tunnel has another port than the VM's own; "" where it has the same."""
    if tunnel.host == tunnel.guest:
        return ""
    if where := holder(tunnel.guest, ctx.instance.name):
        return f"localhost:{tunnel.guest} is the tunnel of {where}"
    return "" if is_free(tunnel.guest) else f"something else on this machine holds {tunnel.guest}"


def first_page(ctx: Context, opened: Sequence[Tunnel]) -> str:
    """What a person wants to see: the health URL's page, else the first tunnel's."""
    url = urlsplit(ctx.settings.health_url or "")
    for tunnel in opened:
        if url.hostname and tunnel.guest == (url.port or 80):
            return f"{tunnel.url}/"
    return f"{opened[0].url}/"


def open_tunnels(ctx: Context) -> list[Tunnel]:
    """The forwards that are alive."""
    services = published(ctx)
    return [
        Tunnel(guest, host, services.get(guest, ""))
        for host, guest in sorted(ctx.guest.forwards().items())
    ]


def ensure(ctx: Context, asked: Sequence[tuple[int, int]] = ()) -> list[Tunnel]:
    """Open what is wanted and not open yet; returns all of it, in the order asked for.

    Raises USAGE for a host port that somebody else holds, STAGE where there is nothing to open.
    """
    ports = wanted(ctx, asked)
    if not ports:
        raise VmoatError(
            "there is no port to forward: no container publishes one",
            hint="name one (`vmoat tunnel 8080`), or set EXPOSE_PORTS",
        )
    alive = open_tunnels(ctx)
    result = []
    for guest, host, service in ports:
        mine = [tunnel.host for tunnel in alive if tunnel.guest == guest]
        have = mine[0] if mine and not host else host if host in mine else 0
        if not have:
            _forget(ctx, guest)
        result.append(Tunnel(guest, have or _open(ctx, guest, host), service))
    _remember_services(ctx, result)
    return result


def _remember_services(ctx: Context, opened: Sequence[Tunnel]) -> None:
    """Write down whose ports these are: who looks at many VMs (`vmoat ls`) asks no guest."""
    file = ctx.instance.folder / SERVICES
    had = read_toml(file)
    now = {**had, **{str(tunnel.guest): tunnel.service for tunnel in opened if tunnel.service}}
    if now != had:
        write_toml(file, now)


def kept(ctx: Context) -> Record:
    """The record of what was asked for: it outlives the master, the VM's runs and the host's."""
    return Record(ctx.instance.folder / RECORD)


def restore(ctx: Context) -> list[str]:
    """Open what was asked for and is not open; a warning for each host port that is taken."""
    warnings = []
    for host, guest in sorted(ctx.guest.waiting().items() if kept(ctx).read() else ()):
        try:
            ctx.guest.forward(guest, host)
        except VmoatError as error:
            if error.code != Code.BUSY:
                raise
            warnings.append(taken(Tunnel(guest, host)))
    return warnings


def failed(ctx: Context) -> list[str]:
    """A warning for each that a new master of this process could not open again."""
    found = ctx.guest.connection.ports.failed
    return [taken(Tunnel(guest, host)) for host, guest in sorted(found.items())]


def taken(tunnel: Tunnel) -> str:
    """What is said of a forward whose port somebody else holds."""
    return (
        f"port {tunnel.host} of this machine is taken: the tunnel to the VM's port {tunnel.guest} "
        f"waits for it (`vmoat tunnel {tunnel.guest}` chooses another)"
    )


def close(ctx: Context, ports: Collection[int] = ()) -> int:
    """Cancel and forget forwards (of these ports of the guest, or all); returns how many."""
    table = {h: g for h, g in kept(ctx).read().items() if not ports or g in ports}
    if ctx.status.state == "running" and ctx.guest.connected():
        for host, guest in table.items():
            ctx.guest.cancel(guest, host)
    else:
        with kept(ctx).change() as rest:
            for host in table:
                rest.pop(host, None)
    return len(table)


def _forget(ctx: Context, guest: int) -> None:
    """Another host port is asked for, or the one that was asked for is taken."""
    for host, port in kept(ctx).read().items():
        if port == guest:
            ctx.guest.cancel(guest, host)


def _open(ctx: Context, guest: int, host: int) -> int:
    remembered = _remembered(ctx)
    for candidate in [host] if host else _candidates(guest, remembered):
        if not is_free(candidate):
            continue
        ctx.guest.forward(guest, candidate)
        if remembered.get(str(guest)) != candidate:
            write_toml(ctx.instance.folder / "ports.toml", {**remembered, str(guest): candidate})
        return candidate
    low = host < 1024 and os.geteuid() != 0
    raise VmoatError(
        f"the host's port {host} " + ("is for root only" if low else "is in use"),
        hint=f"name another, or leave the choice to vmoat: `vmoat tunnel {guest}`",
        code=Code.USAGE,
    )


def _remembered(ctx: Context) -> dict[str, int]:
    return {k: int(v) for k, v in read_toml(ctx.instance.folder / "ports.toml").items()}


def _candidates(guest: int, remembered: dict[str, int]) -> list[int]:
    last = remembered.get(str(guest))
    taken = set(remembered.values())
    spare = [port for port in SPARE if port not in taken]
    return [*([last] if last else []), guest, *spare, _any_port()]


def is_free(port: int) -> bool:
    """Whether nobody listens on the port, on either loopback address."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                # A host without IPv6 has no ::1 to be in use.
                if family == socket.AF_INET or error.errno == errno.EADDRINUSE:
                    return False
    return True


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
