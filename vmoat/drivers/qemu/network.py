"""passt and the guard before it: how the VM reaches the network, and what it may not reach.

Facts: passt(1) of 2023-03 and 2025; what an installed one takes is read from its ``--help``.
"""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import Sequence

from vmoat import proc
from vmoat.drivers.qemu import netguard
from vmoat.drivers.qemu.argv import MTU


def passt_argv(
    program: str,
    *,
    fd: int,
    ssh_port: int,
    run_as: tuple[int, int] | None,
    options: str,
    open_network: bool = False,
) -> list[str]:
    """passt on an open socket; ``options`` is what its ``--help`` says.

    The gateway's address leads nowhere (``--no-map-gw``) unless the network is to be open: then it
    is the host's loopback.  Nothing comes in but ssh.
    """
    words = [program, "--foreground", "--quiet", "--fd", str(fd), "--ipv4-only"]
    words += ["--address", netguard.GUEST, "--netmask", str(netguard.PREFIX)]
    words += ["--gateway", netguard.GATEWAY, "--mtu", str(MTU)]
    words += ["--no-dhcp", "--no-dhcpv6", "--no-ndp", "--no-ra"]
    if open_network:
        pass
    elif "--map-host-loopback" in options:
        words += ["--map-host-loopback", "none"]
    else:
        words += ["--no-map-gw"]
    words += ["--no-dhcp-dns", "--no-dhcp-search"]
    words += ["--udp-ports", "none", "--tcp-ports", f"127.0.0.1/{ssh_port}:22"]
    if run_as is not None:
        words += ["--runas", f"{run_as[0]}:{run_as[1]}"]
    return words


def guard_argv(
    python: str, fds: Sequence[int], *, run_as: tuple[int, int] | None, open_network: bool
) -> list[str]:
    """The guard, by its path: it needs nothing of vmoat, and must stay small."""
    who = f"{run_as[0]}:{run_as[1]}" if run_as else "-"
    mode = "open" if open_network else "filter"
    return [python, "-I", "-S", netguard.__file__, *map(str, fds), who, mode]


def passt_options(program: str) -> str:
    """What the installed passt takes."""
    answer = proc.run([program, "--help"], check=False, timeout=20)
    return answer.out + answer.err


PORTS = range(61000, 65536)
"""Above what Linux gives to outgoing connections (ip(7), ``ip_local_port_range``): none of these
takes the port between this look and passt's start.  In no order: VMs start side by side."""


def free_port(wanted: int = 0) -> int:
    """A loopback port that nobody listens on: the wanted one if possible."""
    for port in (*([wanted] if wanted else []), *random.sample(PORTS, 20), 0):
        with socket.socket() as probe:
            # connections of the last start that linger do not count
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            number: int = probe.getsockname()[1]
            return number
    return 0


def python() -> str:
    """This interpreter."""
    return sys.executable
