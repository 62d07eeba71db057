"""TCP on this machine: who speaks on a port, who holds it."""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

POLL = 0.2
"""Seconds between two tries while the guest boots."""
BANNER_PATIENCE = 1.0
"""Seconds after which a connection that says nothing is joined by another."""
BANNER_TRIES = 8
"""Connections that may be open at once while waiting."""

CACHE_PORT = 46871
"""The guest's loopback port that an ssh forward leads from to the host's image cache."""

HELLO = b"SSH-2.0-vmoat\r\n"


def banner(host: str, port: int, timeout: float) -> bool:
    """Whether an ssh server speaks there within ``timeout`` seconds.

    QEMU's port forward accepts long before sshd listens, and such a connection never speaks; a
    busy guest's sshd needs seconds for its first line.  So a new connection is tried each second
    while the last few stay open.
    """
    deadline = time.monotonic() + timeout
    tries: list[socket.socket] = []
    fresh = 0.0  # when to try anew
    try:
        while True:
            now = time.monotonic()
            if now >= fresh and len(tries) < BANNER_TRIES:
                tries.append(_knock(host, port))
                fresh = now + BANNER_PATIENCE
            for sock in select.select(tries, [], [], max(0.0, min(POLL, deadline - now)))[0]:
                if _first_bytes(sock) == b"SSH-":
                    return True
                tries.remove(sock)
                sock.close()
                fresh = min(fresh, time.monotonic() + POLL)
            if time.monotonic() >= deadline:
                return False
            if len(tries) >= BANNER_TRIES and time.monotonic() >= fresh:
                tries.pop(0).close()
    finally:
        for sock in tries:
            sock.close()


def _knock(host: str, port: int) -> socket.socket:
    """A connection that has spoken: passt of 2023 completes the guest's side only with data.

    One that is given up silently keeps such a passt spinning on it.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.settimeout(2)
    with contextlib.suppress(OSError):
        sock.connect((host, port))
        sock.sendall(HELLO)
    sock.setblocking(False)
    return sock


def _first_bytes(sock: socket.socket) -> bytes:
    try:
        return sock.recv(4)
    except OSError:
        return b""


def free(address: str, port: int) -> bool:
    """Whether a program could listen there now; port 0 asks for the address alone."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
            return True
    except OSError:
        return False


def listening_ports(pid: int) -> set[int] | None:
    """TCP ports that a process listens on (proc(5)); None where /proc does not tell."""
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return None
    inodes = set()
    for number in descriptors:
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/{pid}/fd/{number}")
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    ports = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes:  # 0A: TCP_LISTEN
                    ports.add(int(fields[1].rsplit(":", 1)[1], 16))
    return ports


class Traffic(NamedTuple):
    """Connections to ports of this machine's loopback, each under a name of its own."""

    open: frozenset[str]
    over: frozenset[str]
    """Closed within the last minute: the kernel remembers them that long (TIME_WAIT)."""


def traffic(ports: Collection[int]) -> Traffic:
    """Who speaks on these ports of the loopback, or did just now."""
    if not ports:
        return Traffic(frozenset(), frozenset())
    if sys.platform == "darwin":
        from vmoat import proc

        rows = netstat_rows(proc.run(["netstat", "-an", "-p", "tcp"], check=False, quiet=True).out)
    else:
        rows = _proc_rows()
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for near, far, state in rows:
        if near in ports or far in ports:
            found[state == "TIME_WAIT"].add(f"{near} {far}")
    return Traffic(frozenset(found[False]), frozenset(found[True]))


Address = tuple[str, int]
"""An IPv4 address and a port, as the ``socket`` module has them."""

LOOKS = 3
"""A table of ``/proc`` that changes while it is read may leave a row out."""


def tells_owners() -> bool:
    """Whether ``owner`` can know: macOS has no such table, and a program of Windows (which
    belongs to whoever runs the WSL) may be in none of WSL's."""
    return Path("/proc/net/tcp").exists() and not os.environ.get("WSL_DISTRO_NAME")


def owner(near: Address, far: Address) -> int | None:
    """The user id of the process at the ``near`` end of a connection within this machine.

    From ``/proc/net/tcp`` and ``tcp6`` (proc(5)): a socket of IPv6 reaches 127.0.0.1 as
    ``::ffff:127.0.0.1``.  None where no process holds that end, or none any more: the kernel says
    0 for the user of such a row, and 0 for its inode.
    """
    ends = _hex_end(near), _hex_end(far)
    mapped = tuple(MAPPED + end for end in ends)
    for _ in range(LOOKS):
        for table, wanted in (("tcp", ends), ("tcp6", mapped)):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                    fields = line.split()
                    if (fields[1], fields[2]) == wanted:
                        return int(fields[7]) if fields[9] != "0" else None
    return None


MAPPED = "0000000000000000FFFF0000"
"""What an IPv4 address follows on a socket of IPv6."""


def _hex_end(address: Address) -> str:
    """As ``/proc/net/tcp`` writes it: the address as a number in the host's byte order."""
    number = int.from_bytes(socket.inet_aton(address[0]), sys.byteorder)
    return f"{number:08X}:{address[1]:04X}"


Rows = Iterator[tuple[int, int, str]]
"""Both ports and the state of connections between two ends on the loopback."""


def _proc_rows() -> Rows:
    """From ``/proc/net/tcp`` (proc(5)): hexadecimal, addresses in the host's byte order."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                _, near, far, state, *_ = line.split()
                if state != "0A" and _is_loopback(near) and _is_loopback(far):
                    yield _hex_port(near), _hex_port(far), "TIME_WAIT" if state == "06" else "open"


def _is_loopback(end: str) -> bool:
    address = end.partition(":")[0]
    return address.endswith("7F") if len(address) == 8 else address in _LOOPBACK6


_LOOPBACK6 = ("00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
"""::1, and 127.0.0.1 on a socket that takes both kinds."""


def _hex_port(end: str) -> int:
    return int(end.rpartition(":")[2], 16)


def netstat_rows(text: str) -> Rows:
    """From what ``netstat -an -p tcp`` prints on macOS: ``127.0.0.1.8080``, ``::1.8080``."""
    end = r"(?:127\.[\d.]+|::1)\.(\d+)"
    pattern = rf"^tcp\S*\s+\d+\s+\d+\s+{end}\s+{end}\s+(\w+)"
    for near, far, state in re.findall(pattern, text, re.MULTILINE):
        yield int(near), int(far), state


def socket_users(path: Path) -> frozenset[str]:
    """Connections to a Unix socket of this machine, by their inodes; none where there is no /proc.

    From ``/proc/net/unix`` (proc(5)): ``Num RefCount Protocol Flags Type St Inode Path``.
    """
    found = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/unix").read_bytes().splitlines()[1:]:
            fields = line.split(None, 7)
            if len(fields) == 8 and fields[7] == os.fsencode(path) and fields[5] == b"03":
                found.add(fields[6].decode())
    return frozenset(found)
