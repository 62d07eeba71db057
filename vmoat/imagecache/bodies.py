"""Bodies of requests on their way to a registry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import BufferedIOBase

_PIECE = 1 << 18


class Broken(Exception):  # noqa: N818  (it ends one connection, nobody reads it)
    """A message cannot be brought to a right end: the connection has to be cut."""


def read_length(file: BufferedIOBase, length: int) -> Iterator[bytes]:
    """A body of a known length; raises Broken where it ends early."""
    while length > 0:
        data = file.read(min(length, _PIECE))
        if not data:
            raise Broken
        length -= len(data)
        yield data


def read_chunks(file: BufferedIOBase) -> Iterator[bytes]:
    """A body in chunks (RFC 9112, 7.1), without their frames; raises Broken for a wrong one."""
    while True:
        line = file.readline(1024).partition(b";")[0].strip()
        try:
            length = int(line, 16)
        except ValueError:
            raise Broken from None
        if length < 0:
            raise Broken
        if length == 0:
            break
        yield from read_length(file, length)
        if file.readline(8) not in (b"\r\n", b"\n"):
            raise Broken
    while file.readline(65536) not in (b"\r\n", b"\n", b""):
        pass  # trailers


def framed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The pieces as chunks."""
    for piece in pieces:
        yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"
