"""Servers on a Unix socket of this user's alone, each request in a thread of this process."""

from __future__ import annotations

import contextlib
import os
import socketserver
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

LINE_SECONDS = 10.0
"""For the one line of a question."""
LINE_LIMIT = 1024
"""Bytes of it."""


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Serves from its making until ``close``; a socket that a dead process left is replaced.

    What a subclass needs for a request is set before ``__init__`` is called: it starts serving.
    Raises OSError where the socket can't be made.
    """

    daemon_threads = True
    block_on_close = False  # a request that hangs does not hold whoever closes
    request_queue_size = 64
    poll = 0.5
    """Seconds between two looks at whether it is to end."""

    def __init__(self, place: Path, handler: Callable[..., Any]) -> None:
        self.place = place
        place.unlink(missing_ok=True)
        super().__init__(os.fspath(place), handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(self.poll,), daemon=True)
        self._thread.start()

    def server_bind(self) -> None:
        """Private before anybody can connect: nobody listens yet."""
        super().server_bind()
        self.place.chmod(0o600)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent: a traceback on standard error would end in a log."""

    def close(self) -> None:
        """Stop answering and remove the socket; requests under way are left to themselves."""
        self.shutdown()
        self._thread.join()
        self.server_close()
        self.place.unlink(missing_ok=True)


class LineServer(UnixServer):
    """Answers one line with another: a connection is one question."""

    def __init__(self, place: Path, answer: Callable[[str], str]) -> None:
        self.answer = answer
        super().__init__(place, _LineHandler)


class _LineHandler(socketserver.StreamRequestHandler):
    timeout = LINE_SECONDS
    server: LineServer

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # a client that went, or never asked
            line = self.rfile.readline(LINE_LIMIT)
            if line.endswith(b"\n"):
                self.wfile.write(self.server.answer(line.decode(errors="replace")).encode() + b"\n")
