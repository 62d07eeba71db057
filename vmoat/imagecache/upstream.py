"""Connections to registries, as the host makes them: its proxies, its certificates, its walls."""

from __future__ import annotations

import base64
import http.client
import ipaddress
import os
import socket
import ssl
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vmoat.imagecache.walls import LOOPBACK, Address, Origin, Refused, Walls

CONNECT_SECONDS = 15.0
IDLE_SECONDS = 60.0
"""How long a registry may say nothing."""

REDIRECTS = 5
BUNDLES = (
    *("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"),
    *("/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"),
)
"""Where distributions keep their certificates: a Python of its own may look elsewhere."""

Fields = Sequence[tuple[str, str]]


@dataclass
class Answer:
    """What a registry said; its body is still to be read, and ``close`` to be called."""

    connection: http.client.HTTPConnection
    response: http.client.HTTPResponse
    took_all: bool = True
    """Whether it read the whole request before it answered."""

    @property
    def status(self) -> int:
        return self.response.status

    @property
    def down(self) -> bool:
        """Whether this says that the registry is away for now."""
        return self.status == 429 or self.status >= 500

    def header(self, name: str) -> str:
        return self.response.headers.get(name, "")

    def close(self) -> None:
        self.response.close()
        self.connection.close()

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Dialled(http.client.HTTPConnection):
    """A connection whose socket is there already, and no other is ever made."""

    auto_open = 0

    def __init__(self, sock: socket.socket, origin: Origin) -> None:
        super().__init__(origin.host, origin.port, timeout=IDLE_SECONDS)
        self.sock = sock


class Upstream:
    """Opens connections to where a VM may go.

    ``proxies`` are the host's, by their lower-case names (``https_proxy``, ``no_proxy``…);
    ``certificates`` (PEM) are trusted beyond the system's.
    """

    def __init__(
        self,
        walls: Walls,
        proxies: Mapping[str, str] | None = None,
        certificates: Iterable[str] = (),
    ) -> None:
        self.walls = walls
        self.proxies = dict(proxies or {})
        self.tls = client_context(certificates)

    def dial(self, origin: Origin) -> socket.socket:
        """A TCP connection to the server, through the host's proxy where one is to be used.

        Raises Refused for what the walls keep, OSError for what cannot be reached.
        """
        proxy = self.proxy_for(origin)
        if proxy is None:
            return connect(self.walls.addresses(origin.host, origin.port))
        return self._tunnel(proxy, origin)

    def ask(
        self, origin: Origin, method: str, path: str, fields: Fields, body: Iterable[bytes] = ()
    ) -> Answer:
        """Send one request and return the answer's head.

        ``fields`` say how long ``body`` is (Content-Length, or Transfer-Encoding: chunked, where
        the pieces come framed).  Raises what ``dial`` does, and HTTPException.
        """
        sock = self.dial(origin)
        try:
            sock.settimeout(IDLE_SECONDS)
            if origin.scheme == "https":
                sock = self.tls.wrap_socket(sock, server_hostname=origin.host)
            connection = _Dialled(sock, origin)
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", host_field(origin))
            for name, value in fields:
                connection.putheader(name, value)
            connection.endheaders()
            whole = _send(connection, body)
            return Answer(connection, connection.getresponse(), whole)
        except BaseException:
            sock.close()
            raise

    def follow(self, origin: Origin, method: str, path: str, fields: Fields) -> Answer:
        """The same without a body, through redirects: each is judged like a request of the VM's.

        Credentials stay with the server that they were given for.
        """
        first = origin
        for _ in range(REDIRECTS):
            sent = fields if origin.key == first.key else without_credentials(fields)
            answer = self.ask(origin, method, path, sent)
            target = answer.header("Location")
            if answer.status not in (301, 302, 303, 307, 308) or not target:
                return answer
            answer.close()
            base = f"{origin.scheme}://{origin.authority}{path}"
            origin, path = self.parse(urllib.parse.urljoin(base, target))
        raise http.client.HTTPException("too many redirects")

    def parse(self, url: str) -> tuple[Origin, str]:
        """Server and path of a URL; raises Refused for one that is no http(s)."""
        try:
            parts = urllib.parse.urlsplit(url)
        except ValueError:
            raise Refused("this is no URL") from None
        if parts.scheme not in ("http", "https") or "@" in parts.netloc:
            raise Refused("only http and https are passed on")
        path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        return self.walls.origin(parts.scheme, parts.netloc), path

    def proxy_for(self, origin: Origin) -> urllib.parse.SplitResult | None:
        """The proxy that the host's variables want for this server; raises OSError for a kind
        that is not known here."""
        url = self.proxies.get(f"{origin.scheme}_proxy") or self.proxies.get("all_proxy", "")
        if not url or origin.host in LOOPBACK or self._bypassed(origin):
            return None
        proxy = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        if proxy.scheme != "http" or not proxy.hostname:
            raise OSError(f"the image cache knows http:// proxies only, not {proxy.scheme}://")
        return proxy

    def _bypassed(self, origin: Origin) -> bool:
        listed = self.proxies.get("no_proxy", "")
        if not listed:
            return False
        if urllib.request.proxy_bypass_environment(  # type: ignore[attr-defined]
            origin.authority, {"no": listed}
        ):
            return True
        try:
            address = ipaddress.ip_address(origin.host)
        except ValueError:
            return False
        return any(_within(address, word.strip()) for word in listed.split(","))

    def _tunnel(self, proxy: urllib.parse.SplitResult, origin: Origin) -> socket.socket:
        """CONNECT through the host's proxy, for plain http as well: nothing is rewritten."""
        assert proxy.hostname
        port = proxy.port or 80
        name = self._name_for(origin, own=self.walls.is_own(proxy.hostname, port))
        sock = socket.create_connection((proxy.hostname, port), CONNECT_SECONDS)
        try:
            target = f"[{name}]:{origin.port}" if ":" in name else f"{name}:{origin.port}"
            lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
            if proxy.username:
                words = (proxy.username, proxy.password or "")
                login = ":".join(urllib.parse.unquote(word) for word in words).encode()
                lines.append(f"Proxy-Authorization: Basic {base64.b64encode(login).decode()}")
            sock.sendall("\r\n".join([*lines, "", ""]).encode())
            status = _proxy_status(sock)
            if status != 200:
                raise OSError(f"the host's proxy answered {status} for {target}")
            return sock
        except BaseException:
            sock.close()
            raise

    def _name_for(self, origin: Origin, *, own: bool) -> str:
        """What the proxy is told.  One on this machine would reach what the VM may not, so it gets
        the address that was judged; one elsewhere may know names that this host does not."""
        if self.walls.open_network or self.walls.has(origin.host, origin.port):
            return origin.host
        try:
            found = self.walls.addresses(origin.host, origin.port)
        except OSError:
            if own:
                raise
            return origin.host
        return found[0][1][0] if own else origin.host


def _send(connection: http.client.HTTPConnection, body: Iterable[bytes]) -> bool:
    """Send a body; False where the server hung up on it, which it may after answering."""
    for piece in body:
        try:
            connection.send(piece)
        except (BrokenPipeError, ConnectionResetError):
            return False
    return True


def host_field(origin: Origin) -> str:
    """The Host that is sent: what the client said, so that the links in answers lead back here."""
    default = 443 if origin.scheme == "https" else 80
    return origin.name.removesuffix(f":{default}") or origin.authority


def connect(addresses: Sequence[Address]) -> socket.socket:
    """A connection to the first address that answers; raises the last one's OSError."""
    last: OSError = OSError("no address")
    for family, address in addresses:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.settimeout(CONNECT_SECONDS)
        try:
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except OSError as error:
            sock.close()
            last = error
    raise last


def client_context(certificates: Iterable[str]) -> ssl.SSLContext:
    """TLS as the host trusts it; a certificate that cannot be read is left out."""
    context = ssl.create_default_context()
    for bundle in BUNDLES:
        if os.path.exists(bundle) and not context.cert_store_stats()["x509_ca"]:
            context.load_verify_locations(cafile=bundle)
    for text in certificates:
        try:
            context.load_verify_locations(cadata=text)
        except (ssl.SSLError, ValueError):
            continue
    return context


def without_credentials(fields: Fields) -> list[tuple[str, str]]:
    return [(n, v) for n, v in fields if n.lower() not in ("authorization", "cookie")]


def _within(address: ipaddress.IPv4Address | ipaddress.IPv6Address, network: str) -> bool:
    try:
        return "/" in network and address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def _proxy_status(sock: socket.socket) -> int:
    """Read the head of a proxy's answer to CONNECT, and not a byte more."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte or len(head) > 16384:
            raise OSError("the host's proxy hung up")
        head += byte
    words = head.split(None, 2)
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
