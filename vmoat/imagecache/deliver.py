"""Answers on their way to a client: relayed, from a file, or both at once into the store."""

from __future__ import annotations

import hashlib
import http.client
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from vmoat.imagecache import protocol
from vmoat.imagecache.bodies import Broken
from vmoat.imagecache.store import Writing
from vmoat.imagecache.upstream import Answer, Upstream
from vmoat.imagecache.walls import Origin

if TYPE_CHECKING:
    from vmoat.imagecache.handler import Handler

_PIECE = 1 << 18


@dataclass
class Head:
    """Status, media type and more header fields of an answer of ours."""

    status: int
    type: str
    fields: list[tuple[str, str]] = field(default_factory=list)
    reason: str = ""


class Delivery:
    """One request of a client and the answer to it."""

    def __init__(self, handler: Handler, origin: Origin | None, path: str) -> None:
        self.handler = handler
        self._origin, self.path = origin, path
        self.begun = False

    @property
    def origin(self) -> Origin:
        assert self._origin is not None
        return self._origin

    @property
    def upstream(self) -> Upstream:
        return self.handler.cache.upstream

    # towards the registry

    def ask(
        self, method: str, fields: Sequence[tuple[str, str]], body: Iterable[bytes] = ()
    ) -> Answer:
        """The client's own request, to the very server that it named."""
        own = [("X-Forwarded-Proto", "https")] if self._hides_http() else []
        return self.upstream.ask(self.origin, method, self.path, [*fields, *own], body)

    def follow(self, method: str, leave_out: str = "") -> Answer:
        """The same through redirects, and uncompressed: what comes is known by its digest."""
        out = f"host accept-encoding {leave_out}"
        fields = protocol.end_to_end(self.handler.headers.items(), leave_out=out)
        fields.append(("Accept-Encoding", "identity"))
        return self.upstream.follow(self.origin, method, self.path, fields)

    def _hides_http(self) -> bool:
        """The client speaks TLS to us, we plain http to a registry on loopback: its links must
        not say http."""
        return self.handler.origin is not None and self.origin.scheme == "http"

    # towards the client

    def _start(self, status: int, reason: str, fields: Iterable[tuple[str, str]]) -> None:
        self.begun = True
        handler = self.handler
        handler.send_response_only(status, reason or None)
        for name, value in fields:
            handler.send_header(name, value)
        if handler.close_connection:
            handler.send_header("Connection", "close")
        handler.end_headers()

    def relay(self, answer: Answer) -> None:
        """The registry's answer as it is."""
        response = answer.response
        fields = protocol.end_to_end(response.headers.items())
        bodiless = self.handler.command == "HEAD" or answer.status in (204, 304)
        length = answer.header("Content-Length")
        framed = not bodiless and not length.isdigit()
        if framed:
            fields = [pair for pair in fields if pair[0].lower() != "content-length"]
            fields += self._framing()
        self._start(answer.status, response.reason, fields)
        if bodiless:
            return
        sent = 0
        for piece in pieces(response):
            sent += len(piece)
            self._send(piece, framed)
        if not framed and sent != int(length):
            raise Broken
        self._end(framed)

    def _framing(self) -> list[tuple[str, str]]:
        """How a body of unknown length ends: by a last chunk, for old clients by hanging up."""
        if self.handler.request_version == "HTTP/1.0":
            self.handler.close_connection = True
            return []
        return [("Transfer-Encoding", "chunked")]

    def _send(self, piece: bytes, framed: bool) -> None:
        if framed and self.handler.request_version != "HTTP/1.0":
            piece = b"%x\r\n%b\r\n" % (len(piece), piece)
        self.handler.wfile.write(piece)

    def _end(self, framed: bool) -> None:
        if framed and self.handler.request_version != "HTTP/1.0":
            self.handler.wfile.write(b"0\r\n\r\n")

    def relay_data(self, answer: Answer, data: bytes) -> None:
        """The registry's answer whose body was read already."""
        fields = protocol.end_to_end(answer.response.headers.items(), leave_out="content-length")
        fields.append(("Content-Length", str(len(data))))
        self._start(answer.status, answer.response.reason, fields)
        self.handler.wfile.write(data)

    def send(self, head: Head, data: bytes) -> None:
        """An answer of our own."""
        fields = [("Content-Type", head.type), ("Content-Length", str(len(data))), *head.fields]
        self._start(head.status, head.reason, fields)
        if self.handler.command != "HEAD":
            self.handler.wfile.write(data)

    def send_file(self, file: BinaryIO, digest: str, wanted: str) -> bool:
        """A blob of the store, or the part that is wanted.

        A whole one is hashed on the way; where it is wrong its end is held back: False then, and
        the connection has to be cut.
        """
        size = os.fstat(file.fileno()).st_size
        fields = blob_fields(digest)
        if "If-Range" in self.handler.headers:
            wanted = ""
        try:
            part = protocol.byte_range(wanted, size)
        except protocol.Unsatisfiable:
            fields += [("Content-Range", f"bytes */{size}"), ("Content-Length", "0")]
            self._start(416, "", fields)
            return True
        first, last = part or (0, size - 1)
        fields.append(("Content-Length", str(last - first + 1)))
        if part:
            fields.append(("Content-Range", f"bytes {first}-{last}/{size}"))
        self._start(206 if part else 200, "", fields)
        if self.handler.command == "HEAD":
            return True
        file.seek(first)
        seen = hashlib.sha256()
        for piece, is_last in with_last(file_pieces(file, last - first + 1)):
            seen.update(piece)
            if is_last and not part and "sha256:" + seen.hexdigest() != digest:
                return False
            self.handler.wfile.write(piece)
        return True

    def tee(self, answer: Answer, writing: Writing | None, digest: str, wanted: str) -> bool:
        """A blob from the registry, to the client and into the store at once.

        The last piece is sent when all of it has proved right, and is stored.  ``wanted`` is an
        open range or "".  Returns whether it is in the store; raises Broken where the registry
        sent something else, OSError where the client hung up.
        """
        length = answer.header("Content-Length")
        kept = False
        skip, framed = self._start_blob(digest, length, wanted)
        seen = hashlib.sha256()
        for piece, is_last in with_last(pieces(answer.response)):
            seen.update(piece)
            if writing is not None:
                writing.write(piece)
            if is_last:
                if "sha256:" + seen.hexdigest() != digest:
                    raise Broken
                kept = writing is not None and writing.commit()
            if skip < len(piece):
                self._send(piece[skip:] if skip else piece, framed)
            skip = max(0, skip - len(piece))
        self._end(framed)
        return kept

    def _start_blob(self, digest: str, length: str, wanted: str) -> tuple[int, bool]:
        """Send the head; returns how many bytes to leave out, and whether the rest is framed."""
        fields = blob_fields(digest)
        if not length.isdigit():
            self._start(200, "", [*fields, *self._framing()])
            return 0, True
        size = int(length)
        part = None
        if wanted and "If-Range" not in self.handler.headers:
            try:
                part = protocol.byte_range(wanted, size)
            except protocol.Unsatisfiable:
                part = None
        first, last = part or (0, size - 1)
        fields.append(("Content-Length", str(size - first)))
        if part:
            fields.append(("Content-Range", f"bytes {first}-{last}/{size}"))
        self._start(206 if part else 200, "", fields)
        return first, False


def blob_fields(digest: str) -> list[tuple[str, str]]:
    return [
        ("Content-Type", "application/octet-stream"),
        ("Docker-Content-Digest", digest),
        ("ETag", f'"{digest}"'),
        ("Accept-Ranges", "bytes"),
    ]


def pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while data := response.read(_PIECE):
        yield data


def file_pieces(file: BinaryIO, length: int) -> Iterator[bytes]:
    """So many bytes of a file; fewer where it is shorter."""
    while length > 0 and (data := file.read(min(length, _PIECE))):
        length -= len(data)
        yield data


def with_last(items: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Each item, and whether it is the last; b"" is the last of none."""
    before: bytes | None = None
    for item in items:
        if before is not None:
            yield before, False
        before = item
    yield before or b"", True
