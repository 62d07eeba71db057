"""Where the cache takes no VM: the host's network wall, held for the host's own connections.

The rules are ``netguard``'s.  A name is resolved once, and the very addresses that were judged are
the ones connected to: a name whose answer changes in between (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from vmoat.drivers.qemu.netguard import Denied, host_addresses, host_denied

HOST_NAME = "host.vmoat.internal"
"""The name by which dockerd reaches listed registries of the host's loopback.  It needs one:
Go's HTTP client never uses a proxy for ``localhost`` and ``127.0.0.0/8``
(golang.org/x/net/http/httpproxy)."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*")

Address = tuple[socket.AddressFamily, tuple[str, int]]
"""A family and what ``socket.connect`` takes."""


def _addresses() -> list[tuple[int, int, int, bytes]]:
    if hasattr(socket, "AF_NETLINK"):
        return host_addresses()
    from vmoat.imagecache import ifconfig

    return ifconfig.addresses()


class Refused(Exception):  # noqa: N818  (not an error of ours: the answer to a request)
    """The request leads where a VM may not go; the text tells the user why."""


@dataclass(frozen=True)
class Origin:
    """A server and how it is spoken to; ``name`` is the Host that the client asked for."""

    scheme: str
    host: str
    port: int
    name: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def key(self) -> tuple[str, str, int]:
        """What makes two origins the same."""
        return self.scheme, self.host, self.port


def split_authority(text: str, default_port: int) -> tuple[str, int]:
    """Host (lower case, without brackets) and port of ``host[:port]``; raises Refused."""
    found = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::(\d{1,5}))?|([^:\[\]@/]+)(?::(\d{1,5}))?", text)
    if found is None:
        raise Refused("this is no host and port")
    host = (found[1] or found[3]).lower().rstrip(".")
    port = int(found[2] or found[4] or default_port)
    if found[1]:
        try:
            host = str(ipaddress.IPv6Address(host))
        except ValueError:
            raise Refused("this is no address") from None
    elif len(host) > 253 or not _HOST.fullmatch(host):
        raise Refused("this is no host name")
    if not 1 <= port <= 65535:
        raise Refused("this is no port")
    return host, port


class Walls:
    """Judges where a VM wants to go.

    ``registries`` are the user's own ``host:port`` exceptions; ``open_network`` is the setting
    ``network.open``, which lifts everything here.
    """

    def __init__(self, registries: Iterable[str] = (), *, open_network: bool = False) -> None:
        self.listed = frozenset(split_authority(text, 443) for text in registries)
        self.open_network = open_network
        self._last: Denied | None = None

    def origin(self, scheme: str, authority: str) -> Origin:
        """Who is meant by a client's ``host[:port]``; raises Refused for what is none.

        A listed registry on loopback goes by ``HOST_NAME`` too, and speaks plain http.
        """
        host, port = split_authority(authority, 443 if scheme == "https" else 80)
        if host == HOST_NAME:
            host = next((one for one in LOOPBACK if (one, port) in self.listed), "")
            if not host:
                raise Refused(
                    f"{HOST_NAME}:{port} is this machine's loopback, which a VM reaches only for "
                    f'registries that cache.registries lists ("127.0.0.1:{port}")'
                )
        if host in LOOPBACK and self.has(host, port):
            host, scheme = "::1" if host == "::1" else "127.0.0.1", "http"
        return Origin(scheme, host, port, authority)

    def has(self, host: str, port: int) -> bool:
        """Whether the user listed this registry; loopback's names are the same but for IPv6."""
        names = LOOPBACK[:2] if host in LOOPBACK[:2] else (host,)
        return any((name, port) in self.listed for name in names)

    def addresses(self, host: str, port: int) -> list[Address]:
        """The addresses to connect to, each of them judged.

        Raises Refused where one of them is behind the wall, OSError where the name has none.
        """
        try:
            rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except UnicodeError:
            raise Refused("this is no host name") from None
        found: list[Address] = []
        for family, _, _, _, place in rows:
            if family in (socket.AF_INET, socket.AF_INET6):
                found.append((family, (str(place[0]), port)))
        if not found:
            raise OSError(f"{host} has no address")
        if not self.has(host, port):
            for kind, (address, _) in found:
                self._judge(host, kind, address)
        return found

    def is_own(self, host: str, port: int) -> bool:
        """Whether a server of the host's own settings (a proxy) is this machine itself."""
        denied = self._denied()
        try:
            rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return False
        return any(_has(denied, row[0], str(row[4][0])) for row in rows)

    def _judge(self, host: str, family: int, address: str) -> None:
        if not self.open_network and _has(self._denied(), family, address):
            named = "" if host == address else f" ({host})"
            raise Refused(
                f"a VM may not reach {address}{named}; a registry there has to be listed in "
                "cache.registries"
            )

    def _denied(self) -> Denied:
        """The deny list as of now; where the kernel does not answer, the last one."""
        try:
            self._last = host_denied(_addresses(), dict(socket.if_nameindex()))
        except OSError:
            if self._last is None:
                raise Refused("the host's addresses cannot be read") from None
        return self._last


def _has(denied: Denied, family: int, address: str) -> bool:
    packed = socket.inet_pton(family, address.partition("%")[0])
    return denied.has4(packed) if family == socket.AF_INET else denied.has6(packed)
