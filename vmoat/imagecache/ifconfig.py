"""The addresses of this host where the kernel has no netlink (macOS): from ifconfig(8)."""

from __future__ import annotations

import re
import socket

from vmoat import proc

ASK_SECONDS = 10.0


def addresses() -> list[tuple[int, int, int, bytes]]:
    """Family, bits, 0 (no index), address of each; as ``netguard.host_addresses`` gives them."""
    text = proc.run(["ifconfig", "-a"], check=False, timeout=ASK_SECONDS, quiet=True).out
    return parsed(text)


def parsed(text: str) -> list[tuple[int, int, int, bytes]]:
    """The addresses in what ifconfig prints; those with a scope (``fe80::1%en0``) without it."""
    found = []
    for kind, word in re.findall(r"^\s+(inet6?) ([0-9a-fA-F.:]+)", text, re.MULTILINE):
        family = socket.AF_INET6 if kind == "inet6" else socket.AF_INET
        bits = 128 if family == socket.AF_INET6 else 32
        found.append((int(family), bits, 0, socket.inet_pton(family, word)))
    return found
