"""HTTP on the loopback: the page's files, one stream of server-sent events, the buttons.

The standard library's server is enough: one user, a few connections, nothing to install.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

from vmoat import __version__, netports
from vmoat.dashboard.actions import VERBS, Actions
from vmoat.dashboard.gate import Gate, Verdict
from vmoat.dashboard.hub import Hub
from vmoat.dashboard.logs import Awaited, Source

HEADERS = {
    # No inline script or style, nothing from elsewhere, in nobody's frame.  lit-html fills
    # <template> elements, which needs a policy of its name (W3C Trusted Types).
    "Content-Security-Policy": "; ".join(
        [
            "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'",
            "connect-src 'self'", "base-uri 'none'", "form-action 'none'",
            "frame-ancestors 'none'", "require-trusted-types-for 'script'",
            "trusted-types lit-html",
        ]
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}  # fmt: skip

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
"""What is served of ``page/``, by the end of its name."""

WELCOME = """<!doctype html><meta charset="utf-8"><title>vmoat</title>
<link rel="icon" href="/icon.svg"><meta http-equiv="refresh" content="0;url=/#{page}">
"""
"""Answers the URL with the token.  The page takes its secret from the fragment, which no server is
told, and keeps it.  No redirect: one that began on another site, or in another
program, comes without the cookie (SameSite=Strict); a page that goes on by itself does not."""

BODY_LIMIT = 4096
"""Bytes of a request's body."""
TICK = 0.2
"""Seconds between two looks for something to send."""
KEEP_ALIVE = 15.0
"""Seconds after which an empty comment shows both ends that the stream lives."""
REQUEST_SECONDS = 10.0
"""For a request to arrive."""

OpenLog = Callable[[str, str], Source | None]
"""Takes the worktree's key and a source's name; None where there is no such thing."""


class Dashboard(ThreadingHTTPServer):
    """Serves one user's page on 127.0.0.1; ``port`` 0 takes any free one.

    Raises OSError where the port is taken.
    """

    daemon_threads = True
    request_queue_size = 128  # of five, a sixth that comes at once waits for a second
    block_on_close = False  # a stream ends with its page or with the process

    def __init__(
        self,
        port: int,
        hub: Hub,
        actions: Actions,
        open_log: OpenLog,
        redeem: Callable[[str], bool] = lambda word: False,
    ) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.gate = Gate(self.server_port, redeem)
        self.hub = hub
        self.actions = actions
        self.open_log = open_log

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Another user of this machine is not answered at all, whatever he has read; root is: he
        may be a forward of sshd's."""
        uid = netports.owner(client_address, ("127.0.0.1", self.server_port))
        return uid in (0, os.getuid()) or (uid is None and not netports.tells_owners())

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent: a traceback would hold request lines, and these the token."""


class Handler(BaseHTTPRequestHandler):
    """One request.  Nothing of it is written anywhere."""

    server: Dashboard
    protocol_version = "HTTP/1.1"
    timeout = REQUEST_SECONDS

    def do_GET(self) -> None:  # the standard library's name
        self._answer()

    do_POST = do_HEAD = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = do_GET  # noqa: N815

    def _answer(self) -> None:
        verdict = self.server.gate.judge(self.command, self.path, self._head())
        parts = urlsplit(self.path)
        if verdict is Verdict.REFUSE:
            self._refuse()
        elif verdict is Verdict.WELCOME:
            gate = self.server.gate
            body = WELCOME.format(page=gate.page).encode()
            self._send(body, TYPES["html"], {"Set-Cookie": gate.cookie})
        elif self.command == "POST":
            self._post(parts.path)
        elif parts.path == "/events":
            self._stream({k: v[-1] for k, v in parse_qs(parts.query).items()})
        else:
            self._file(parts.path)

    def _head(self) -> dict[str, str]:
        """The headers; one that came twice counts as neither, and so opens nothing."""
        names = [name.lower() for name in self.headers]
        return {
            name.lower(): "\n" if names.count(name.lower()) > 1 else value
            for name, value in self.headers.items()
        }

    # answers

    def _refuse(self, code: int = 403) -> None:
        self.close_connection = True
        self.send_response_only(code)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library refuses by itself tells no more than what we refuse."""
        self._refuse(code)

    def _send(self, body: bytes, kind: str, more: dict[str, str] | None = None) -> None:
        self.send_response_only(200)
        headers = {"Content-Type": kind, "Content-Length": str(len(body))}
        for name, value in {**headers, **HEADERS, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Request lines hold the token."""

    # the page

    def _file(self, path: str) -> None:
        words = (path.strip("/") or "index.html").split("/")
        kind = TYPES.get(words[-1].rpartition(".")[2])
        if kind is None or any(word in ("", ".", "..") for word in words):
            return self._refuse(404)
        file = resources.files("vmoat.dashboard").joinpath("page", *words)
        try:
            body = file.read_bytes()
        except (OSError, ValueError):  # ValueError: a NUL in the name
            return self._refuse(404)
        return self._send(body, kind)

    # the buttons

    def _post(self, path: str) -> None:
        """``/act {key, verb}``: the worktree is one that the page was shown, never a path."""
        asked = self._body()
        vm = self.server.hub.find(str(asked.get("key", "")))
        verb = str(asked.get("verb", ""))
        if path != "/act" or vm is None or verb not in VERBS:
            return self._refuse(404)
        if asked.get("stop"):
            self.server.actions.stop(vm["key"], verb)
        else:
            self.server.actions.start(vm["key"], vm["path"], verb)
        self.server.hub.nudge()
        return self._send(b"{}", "application/json")

    def _body(self) -> dict[str, Any]:
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > BODY_LIMIT:
            return {}
        if self.headers.get("Content-Type") != "application/json":
            return {}
        try:
            found = json.loads(self.rfile.read(int(size)))
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    # the stream

    def _stream(self, query: dict[str, str]) -> None:
        """Until the page goes: all worktrees whenever something changed, and one's log."""
        self.close_connection = True
        self.send_response_only(200)
        self.send_header("Content-Type", "text/event-stream")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        # A page that has gone, at any line, is no error.
        with contextlib.suppress(OSError), self.server.hub.watching():
            key, log = query.get("key", ""), query.get("log", "")
            with contextlib.closing(Awaited(lambda: self.server.open_log(key, log))) as source:
                for chunk in self._messages(source):
                    self.wfile.write(chunk)

    def _messages(self, source: Source) -> Iterator[bytes]:
        hub = self.server.hub
        # At once, even where the log is empty: the page clears what another one's lines left.
        yield message("lines", {"fresh": True, "lines": source.new()})
        yield message("history", hub.past())
        sent, last = 0, time.monotonic()  # 0: nothing was looked at yet
        while not hub.over:
            if hub.version != sent:
                sent, last = hub.version, time.monotonic()
                yield message("fleet", self._fleet())
            if lines := source.new():
                yield message("lines", {"fresh": False, "lines": lines})
            if time.monotonic() - last > KEEP_ALIVE:
                last = time.monotonic()
                yield b": still here\n\n"
            # Readable: the page has closed its end; it says nothing else on this connection.
            if select.select([self.connection], [], [], TICK)[0]:
                return

    def _fleet(self) -> dict[str, Any]:
        hub = self.server.hub
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return {
            "time": time.time(), "version": __version__, "host": {"memory": memory},
            "trouble": hub.trouble, "vms": hub.vms,
        }  # fmt: skip


def message(event: str, data: dict[str, Any]) -> bytes:
    """One server-sent event (HTML standard, 9.2)."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"event: {event}\ndata: {text}\n\n".encode("utf-8", "replace")
