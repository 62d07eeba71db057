"""TCP on this machine: who speaks on a port, who holds it."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from pathlib import Path

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
