"""Registries on loopback that stand in for public ones, and a client of the image cache.

A registry behaves as Docker Hub does: a challenge and a token server, blobs behind a redirect to
another host that must not see the token, Range; and it can be slow, broken or away.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "Bearer sesame-4711"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def manifest(*layers: bytes, kind: str = OCI_MANIFEST) -> bytes:
    """A manifest of these layers."""
    rows = [{"digest": digest(layer), "size": len(layer)} for layer in layers]
    return json.dumps({"schemaVersion": 2, "mediaType": kind, "layers": rows}).encode()


@dataclass
class Seen:
    """One request that came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class Web:
    """A server of one's own making on a port of 127.0.0.1."""

    answer: Callable[[Web, Any], None]
    tls: ssl.SSLContext | None = None
    seen: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def serve(self) -> None:
                body = self.read_body()
                web.seen.append(Seen(self.command, self.path, dict(self.headers.items()), body))
                web.answer(web, self)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_CONNECT = serve  # noqa: N815

            def read_body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = b""
                while length := int(self.rfile.readline(), 16):
                    body += self.rfile.read(length)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: Any) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        if self.tls:
            self.server.socket = self.tls.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def count(self, part: str, method: str = "GET") -> int:
        """How many requests of this kind had ``part`` in their path."""
        return sum(part in one.path and one.method == method for one in self.seen)


def reply(handler: Any, status: int, data: bytes = b"", **fields: str) -> None:
    handler.send_response(status)
    for name, value in fields.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(data)


class Registry(Web):
    """A registry that holds ``blobs`` and ``tags``.

    ``private``: asks for a token; ``cdn``: the URL that blobs are at; ``pause``: seconds between
    pieces; ``status``: what it answers to everything, 0 for the truth.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, private: bool = False) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.private, self.cdn, self.pause, self.status = private, "", 0.0, 0
        self.lies: dict[str, bytes] = {}
        self.cut = 0  # bytes after which a blob breaks off
        self.chunked = False
        super().__init__(type(self).respond, tls)

    def put(self, name: str, *layers: bytes) -> str:
        """An image of these layers under ``name`` (a tag); its digest."""
        data = manifest(*layers)
        for layer in layers:
            self.blobs[digest(layer)] = layer
        for key in (name, digest(data)):
            self.manifests[key] = (OCI_MANIFEST, data)
        return digest(data)

    def respond(self, handler: Any) -> None:
        path = handler.path.partition("?")[0]
        version = {"Docker_Distribution_API_Version": "registry/2.0"}
        if self.status:
            return reply(handler, self.status, b"not now", **version)
        if self.private and handler.headers.get("Authorization") != TOKEN:
            challenge = 'Bearer realm="https://auth.test/token",service="r"'
            return reply(handler, 401, b"{}", WWW_Authenticate=challenge, **version)
        if path == "/v2/":
            return reply(handler, 200, b"{}", **version)
        if handler.command in ("POST", "PATCH", "PUT", "DELETE"):
            return reply(handler, 202, Location=f"{self.base(handler)}/v2/up/1", Range="0-0")
        reference = path.rpartition("/")[2]
        if "/manifests/" in path and reference in self.manifests:
            kind, data = self.manifests[reference]
            return reply(handler, 200, data, Content_Type=kind, Docker_Content_Digest=digest(data))
        if "/blobs/" in path and reference in self.blobs:
            if self.cdn:
                return reply(handler, 307, Location=f"{self.cdn}/data/{reference}")
            return self.send_blob(handler, self.lies.get(reference, self.blobs[reference]))
        return reply(handler, 404, b'{"errors":[]}')

    def base(self, handler: Any) -> str:
        """As Distribution makes its links: by Host and X-Forwarded-Proto."""
        scheme = handler.headers.get("X-Forwarded-Proto", "http")
        return f"{scheme}://{handler.headers['Host']}"

    def send_blob(self, handler: Any, data: bytes) -> None:
        handler.send_response(200)
        if self.chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        else:
            handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if handler.command == "HEAD":
            return
        for at in range(0, len(data), 65536):
            piece = data[at : at + 65536]
            if self.cut and at >= self.cut:
                handler.close_connection = True
                return
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self.chunked else piece)
            time.sleep(self.pause)
        if self.chunked:
            handler.wfile.write(b"0\r\n\r\n")


@dataclass
class Got:
    """An answer as the client has it."""

    status: int
    headers: http.client.HTTPMessage
    data: bytes


class Client:
    """What dockerd does: CONNECT on the cache's socket, then TLS that trusts the cache alone."""

    def __init__(self, place: Path, authority: str) -> None:
        self.place, self.authority = place, authority

    def dial(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(60)
        sock.connect(str(self.place))
        return sock

    def connect(self, target: str) -> tuple[int, str, socket.socket]:
        """Status, reason and the socket of a CONNECT."""
        sock = self.dial()
        sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = sock.recv(1)
            assert byte, head
            head += byte
        line = head.split(b"\r\n")[0].decode().split(" ", 2)
        return int(line[1]), line[2], sock

    def refused(self, target: str) -> tuple[int, str]:
        """Status and reason of a CONNECT that is not let through."""
        status, reason, sock = self.connect(target)
        sock.close()
        assert status != 200
        return status, reason

    @contextlib.contextmanager
    def open(self, target: str, authority: str = "") -> Iterator[http.client.HTTPConnection]:
        """A connection to ``host:port`` through the cache."""
        status, reason, sock = self.connect(target)
        if status != 200:
            sock.close()
            raise ConnectionError(f"{status} {reason}")
        trust = ssl.create_default_context(cadata=authority or self.authority)
        host, _, port = target.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port))
        connection.sock = trust.wrap_socket(sock, server_hostname=host)
        try:
            yield connection
        finally:
            connection.close()

    def get(self, target: str, path: str, method: str = "GET", **fields: str) -> Got:
        """One request over TLS, as dockerd would send it."""
        with self.open(target) as connection:
            return ask(connection, method, path, **fields)

    def plain(self, url: str, method: str = "GET", **fields: str) -> Got:
        """One request in a proxy's plain form, or with a path alone in a server's."""
        with contextlib.closing(http.client.HTTPConnection("nowhere")) as connection:
            connection.sock = self.dial()
            return ask(connection, method, url, **fields)


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: Any = None,
    **fields: str,
) -> Got:
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    connection.request(method, path, body=body, headers=headers)
    response = connection.getresponse()
    return Got(response.status, response.headers, response.read())
