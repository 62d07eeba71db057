"""What the proxy does with each request.

A CONNECT to a registry is ended here and its requests are looked at; one to any other host is a
tunnel.  What counts as the registry being away: no connection, an answer of 5xx, or 429 (Docker
Hub's rate limit).

HEAD is asked upstream even where the store has the content: with it a ``docker push`` finds out
what it need not send, and another repository's copy would not do.
"""

from __future__ import annotations

import contextlib
import http.client
import selectors
import socket
import socketserver
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from vmoat.errors import VmoatError
from vmoat.imagecache import bodies, protocol
from vmoat.imagecache.bodies import Broken
from vmoat.imagecache.deliver import Delivery, Head
from vmoat.imagecache.protocol import Asked
from vmoat.imagecache.store import Remembered, digest_of
from vmoat.imagecache.upstream import Answer
from vmoat.imagecache.walls import Origin, Refused, split_authority

CLIENT_SECONDS = 120.0
"""How long a client may neither send nor take anything."""

_PIECE = 1 << 18
_AWAY = (OSError, http.client.HTTPException)  # what makes a registry count as unreachable


if TYPE_CHECKING:
    from vmoat.imagecache.server import ImageCache, Server


class Handler(BaseHTTPRequestHandler):
    """One connection of a client, and all requests on it."""

    protocol_version = "HTTP/1.1"
    timeout = CLIENT_SECONDS
    server: Server
    origin: Origin | None = None
    """Whom the connection is for, once a CONNECT was ended here."""

    # the connection

    def setup(self) -> None:
        super().setup()
        self.server.opened(self.connection)

    def finish(self) -> None:
        self.server.closed(self.connection)
        with contextlib.suppress(OSError):
            super().finish()
        with contextlib.suppress(OSError):
            self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: request lines may hold tokens."""

    @property
    def cache(self) -> ImageCache:
        return self.server.cache

    def do_CONNECT(self) -> None:
        """A tunnel, or the end of TLS where the host is a registry."""
        if self.origin is not None:
            self._fail(400, "CONNECT within CONNECT")
            return
        try:
            origin = self.cache.upstream.walls.origin("https", self.path)
            if self.cache.registries.has(origin):
                self._end_tls(origin)
                return
            with self.cache.upstream.dial(origin) as link:
                self._established()
                self.close_connection = True
                with contextlib.suppress(OSError):
                    _pump(self.connection, link)
        except Refused as error:
            self._fail(403, str(error))
        except VmoatError as error:
            self._fail(502, error.message)
        except _AWAY as error:
            self._fail(502, f"{self.path} cannot be reached: {error}")

    def _established(self) -> None:
        self.send_response_only(200, "Connection established")
        self.end_headers()

    def _end_tls(self, origin: Origin) -> None:
        context = self.cache.authority.context(split_authority(self.path, 443)[0])
        self._established()
        self.close_connection = True
        self.server.closed(self.connection)
        try:
            wrapped = context.wrap_socket(self.connection, server_side=True)
        except (OSError, ValueError):
            return
        self.connection = wrapped
        self.server.opened(wrapped)
        self.rfile = wrapped.makefile("rb", -1)
        self.wfile = socketserver._SocketWriter(wrapped)  # type: ignore[attr-defined]
        self.origin = origin
        self.close_connection = False

    # requests

    def _serve(self) -> None:
        try:
            origin, path = self._target()
        except Refused as error:
            self._fail(403, str(error))
            return
        asked = protocol.content_asked(path)
        delivery = Delivery(self, origin, path)
        try:
            if self.command not in ("GET", "HEAD") or self._has_body():
                self._pass(delivery)
            elif asked and asked.digest and self.command == "GET":
                self._by_digest(delivery, asked)
            elif asked:
                self._remembered(delivery, asked)
            elif protocol.is_ping(path):
                self._ping(delivery)
            else:
                self._pass(delivery)
        except Broken:
            self.close_connection = True  # the client must not take a part for the whole
        except Refused as error:
            self._fail(403, str(error))
        except http.client.InvalidURL:
            self._fail(400, "this is no path")  # its own text would show the query
        except _AWAY as error:
            if delivery.begun:
                self.close_connection = True
            else:
                self._fail(502, f"{origin.authority} cannot be reached: {error}")

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _serve  # noqa: N815

    def _target(self) -> tuple[Origin, str]:
        """Whom the request is for, and the path there; raises Refused."""
        if self.origin is not None:
            if not self.path.startswith("/"):
                raise Refused("a path is wanted within CONNECT")
            return self.origin, self.path
        if self.path.startswith("http://"):
            return self.cache.upstream.parse(self.path)
        # No proxy's request: a port of the VM leads here in the place of a listed registry.
        walls = self.cache.upstream.walls
        origin = walls.origin("http", self.headers.get("Host", ""))
        if not self.path.startswith("/") or not walls.has(origin.host, origin.port):
            raise Refused("this is a proxy, and the registries of cache.registries")
        return origin, self.path

    def _has_body(self) -> bool:
        return self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers

    def _pass(self, delivery: Delivery) -> None:
        """Anything else: the client's request and the answer to it, unchanged."""
        fields = protocol.end_to_end(self.headers.items(), leave_out="host")
        body: Iterable[bytes] = ()
        if self._has_body():
            if "Transfer-Encoding" in self.headers:
                fields = [*(f for f in fields if f[0].lower() != "content-length")]
                fields.append(("Transfer-Encoding", "chunked"))
                body = bodies.framed(bodies.read_chunks(self.rfile))
            else:
                body = bodies.read_length(self.rfile, int(self.headers["Content-Length"]))
        with delivery.ask(self.command, fields, body) as answer:
            self.close_connection |= not answer.took_all
            delivery.relay(answer)

    def _ping(self, delivery: Delivery) -> None:
        """``/v2/``: where the registry is away, yes and no challenge, so that the pull goes on."""
        fields = protocol.end_to_end(self.headers.items(), leave_out="host")
        try:
            answer = delivery.ask(self.command, fields)
        except _AWAY:
            answer = None
        with answer or contextlib.nullcontext():
            if answer is not None and answer.status < 500:
                delivery.relay(answer)
                return
        self._said(delivery.origin, "/v2/ answered in its place")
        delivery.send(Head(200, "application/json", [protocol.VERSION_HEADER]), b"{}")

    def _by_digest(self, delivery: Delivery, asked: Asked) -> None:
        """Content that its digest names: from the store, else from the registry into it."""
        if self._from_store(delivery, asked):
            return
        wanted = self.headers.get("Range", "")
        if asked.kind == "manifests":
            self._manifest(delivery, asked)
        elif wanted and not protocol.open_range(wanted):
            with delivery.follow("GET") as answer:
                delivery.relay(answer)
        else:
            self._blob(delivery, asked, wanted)

    def _blob(self, delivery: Delivery, asked: Asked, wanted: str) -> None:
        """A blob that is not here: fetched whole, whatever its end that the client wants."""
        with self.cache.store.claim(asked.digest) as writing:
            if writing is None and self._from_store(delivery, asked):
                return
            with delivery.follow("GET", leave_out="range if-range") as answer:
                if answer.status != 200:
                    delivery.relay(answer)
                    return
                size = answer.header("Content-Length")
                if writing and size.isdigit() and not self.cache.store.has_room(int(size)):
                    self.cache.store.trim()
                    writing.refuse()
                kept = delivery.tee(answer, writing, asked.digest, wanted)
            self._said(delivery.origin, f"{asked.digest} fetched" + ("" if kept else ", not kept"))

    def _manifest(self, delivery: Delivery, asked: Asked) -> None:
        with delivery.follow("GET") as answer:
            data = self._small(delivery, answer)
            if data is None:
                return
        right = digest_of(data) == asked.digest
        if not right:
            raise http.client.HTTPException(f"the registry's {asked.digest} is something else")
        if protocol.manifest_type(data) == protocol.bare_type(answer.header("Content-Type")):
            self.cache.store.keep(asked.digest, data)
        delivery.relay_data(answer, data)

    def _small(self, delivery: Delivery, answer: Answer) -> bytes | None:
        """The whole of a manifest's answer; None where it is none and was passed on."""
        if answer.status != 200 or answer.header("Content-Encoding") not in ("", "identity"):
            delivery.relay(answer)
            return None
        data = answer.response.read(protocol.MANIFEST_LIMIT + 1)
        length = answer.header("Content-Length")
        if len(data) > protocol.MANIFEST_LIMIT or (length.isdigit() and int(length) != len(data)):
            raise http.client.HTTPException("a manifest that is cut off, or longer than 4 MiB")
        return data

    def _from_store(self, delivery: Delivery, asked: Asked) -> bool:
        """Whether the content was here, and sent."""
        store, digest = self.cache.store, asked.digest
        if asked.kind == "manifests":
            data = store.read(digest, protocol.MANIFEST_LIMIT)
            kind = protocol.manifest_type(data) if data else ""
            if not kind or not protocol.accepts(self.headers, kind):
                return False
            delivery.send(content_head(kind, digest), data)
        else:
            file = store.open(digest)
            if file is None:
                return False
            with file:
                if not delivery.send_file(file, digest, self.headers.get("Range", "")):
                    store.drop(digest)
                    raise Broken
        self._said(delivery.origin, f"{digest} from the store")
        return True

    def _remembered(self, delivery: Delivery, asked: Asked) -> None:
        """A tag, or a HEAD: the registry's answer, and what it last was where that is away."""
        try:
            with delivery.follow(self.command) as answer:
                if not answer.down:
                    self._note(delivery, asked, answer)
                elif not self._recalled(delivery, asked):
                    delivery.relay(answer)
        except _AWAY:
            if delivery.begun or not self._recalled(delivery, asked):
                raise

    def _note(self, delivery: Delivery, asked: Asked, answer: Answer) -> None:
        """Send on what the registry says, and remember it where it is a tag's."""
        kind = protocol.bare_type(answer.header("Content-Type"))
        digest = answer.header("Docker-Content-Digest")
        key = tag_key(delivery.origin, asked)
        if self.command == "GET":
            data = self._small(delivery, answer)
            if data is None:
                return
            actual = digest_of(data)
            if digest in ("", actual) and protocol.manifest_type(data) == kind:
                self.cache.store.keep(actual, data)
                self.cache.store.remember(f"GET {key}", Remembered(actual, kind, len(data)))
            delivery.relay_data(answer, data)
            return
        size = answer.header("Content-Length")
        if answer.status == 200 and asked.tag and digest.startswith("sha256:") and size.isdigit():
            self.cache.store.remember(f"HEAD {key}", Remembered(digest, kind, int(size)))
        delivery.relay(answer)

    def _recalled(self, delivery: Delivery, asked: Asked) -> bool:
        """Whether the store could answer in the registry's place."""
        digest = asked.digest
        if asked.tag:
            key = tag_key(delivery.origin, asked)
            found = self.cache.store.recall(f"HEAD {key}", f"GET {key}")
            if found is None:
                return False
            digest = found.digest
            self._said(delivery.origin, f"{asked.name}:{asked.tag} as it last was")
        return self._from_store(delivery, Asked(asked.kind, asked.name, digest=digest))

    def _fail(self, status: int, text: str) -> None:
        self._said(None, f"{status}: {text}")
        self.close_connection = True
        with contextlib.suppress(OSError):
            # Go shows the reason of a failed CONNECT and nothing else of the answer
            text = f"vmoat's image cache: {text}"[:400]
            reason = "".join(c if " " <= c <= "~" else "?" for c in text)
            head = Head(status, "text/plain; charset=utf-8", reason=reason)
            Delivery(self, self.origin, "").send(head, f"{reason}\n".encode())

    def _said(self, origin: Origin | None, text: str) -> None:
        self.cache.log(f"{origin.authority} {text}" if origin else text)


def content_head(kind: str, digest: str) -> Head:
    return Head(200, kind, [("Docker-Content-Digest", digest), ("ETag", f'"{digest}"')])


def tag_key(origin: Origin, asked: Asked) -> str:
    """What a tag is remembered under: where it was really asked, not what the client calls it."""
    return f"{origin.scheme}://{origin.authority}/{asked.name}:{asked.tag}"


def _pump(one: socket.socket, other: socket.socket) -> None:
    """Copy both ways until both sides ended, one broke, or nothing moves."""
    other.settimeout(CLIENT_SECONDS)
    towards = {one: other, other: one}
    with selectors.DefaultSelector() as waiting:
        for source in towards:
            waiting.register(source, selectors.EVENT_READ)
        while waiting.get_map() and (ready := waiting.select(5 * CLIENT_SECONDS)):
            for key, _ in ready:
                assert isinstance(key.fileobj, socket.socket)
                target = towards[key.fileobj]
                if data := key.fileobj.recv(_PIECE):
                    target.sendall(data)
                else:
                    waiting.unregister(key.fileobj)
                    target.shutdown(socket.SHUT_WR)
