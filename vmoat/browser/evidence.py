"""What a page did while it was loaded, gathered from the browser's events; no browser is needed.

Events and their fields: https://chromedevtools.github.io/devtools-protocol/ (Network, Page,
Runtime, Log, Target).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from vmoat.output import printable

MOST = 100
"""Errors, and failed requests, that a report holds; a page in a loop makes thousands."""
LONGEST = 2000
"""Characters of each."""
BY_ITSELF = "/favicon.ico"
"""What a browser asks for though no page names it."""
ENDLESS = frozenset({"EventSource", "Ping", "Media"})
"""Requests that may stay open for as long as the page does."""
UNFINISHED = "no end in time"
LEFT_SOCKET = "WebSocket is closed before the connection is established."
"""The error of a WebSocket that the page itself closed (websocket_channel_impl.cc); React's strict
mode opens every second one in vain."""

OPENED = frozenset({"plain", "array"})
"""Kinds of objects whose content is told; errors, nodes, dates and the like say what they are."""

Problem = dict[str, Any]


@dataclass
class Request:
    """One that is under way.  Its end may be told in another session than its begin: by the worker
    or the frame of another site that it was for.
    """

    row: Problem
    session: str
    document: str
    """The loader of the document that it is for."""


class Evidence:
    """Console errors, failed requests, and whether the network is quiet."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.errors: list[Problem] = []
        self.failed_requests: list[Problem] = []
        self.omitted = 0
        self.loaded = False
        self.crashed = False
        self.frame = ""
        """The page's own frame, and the session that speaks of it, once they are known."""
        self.session = ""
        self.certificate = ""
        """What is wrong with the VM's own certificate, which was taken all the same."""
        self.status: int | None = None
        """HTTP status of the page's last document."""
        self._answerer = ""
        """The loader whose document has that status."""
        self._has_document = False
        self._clock = clock
        self._open: dict[str, Request] = {}
        self._told: set[str] = set()
        self._last = clock()

    def take(self, method: str, params: dict[str, Any], session: str) -> None:
        """One event of the browser's."""
        handler = HANDLERS.get(method)
        if handler is not None:
            handler(self, params, session)

    def quiet_for(self) -> float:
        """Seconds since the last request began or ended; 0 while one is open."""
        busy = any(True for _ in self._awaited())
        return 0.0 if busy else self._clock() - self._last

    def _awaited(self) -> Iterator[Problem]:
        """The requests under way that a page is to wait for."""
        for request in self._open.values():
            if request.row["type"] not in ENDLESS and not _by_itself(request.row):
                yield request.row

    def give_up(self) -> None:
        """The page was not loaded in time: what it still waits for are failures."""
        for row in self._awaited():
            self._add(self.failed_requests, {**row, "status": None, "error": UNFINISHED})

    def document_failed(self, url: str, error: str) -> bool:
        """Whether the failure of the page that was asked for is told already."""
        return any(
            row["type"] == "Document" and (row["url"] == plain(url) or row["error"] == error)
            for row in self.failed_requests
        )

    @property
    def clean(self) -> bool:
        return not self.errors and not self.failed_requests

    def error(self, kind: str, text: str, url: str = "", line: int = 0) -> None:
        self._add(self.errors, {"kind": kind, "text": plain(text), "url": plain(url), "line": line})

    def _add(self, rows: list[Problem], row: Problem) -> None:
        if len(rows) < MOST:
            rows.append(row)
        else:
            self.omitted += 1

    # Runtime, Log

    def _thrown(self, params: dict[str, Any], session: str) -> None:
        details = params["exceptionDetails"]
        text, thrown = details.get("text", ""), details.get("exception", {})
        if thrown.get("subtype") == "error":
            text = thrown.get("description") or text
        elif thrown:  # anything may be thrown; the text is but "Uncaught (in promise)"
            text = f"{text} {_shown(thrown)}"
        self.error("exception", text, details.get("url", ""), _line(details))

    def _console(self, params: dict[str, Any], session: str) -> None:
        if params["type"] not in ("error", "assert"):
            return
        text = " ".join(_shown(value) for value in params.get("args", ()))
        frame = (params.get("stackTrace", {}).get("callFrames") or [{}])[0]
        self.error("console", text, frame.get("url", ""), _line(frame))

    def _logged(self, params: dict[str, Any], session: str) -> None:
        entry = params["entry"]
        # The network's are told by the failed requests, which know more.
        if entry.get("level") == "error" and entry.get("source") != "network":
            line = int(entry.get("lineNumber", -1)) + 1
            self.error("log", entry.get("text", ""), entry.get("url", ""), line)

    # Network

    def _began(self, params: dict[str, Any], session: str) -> None:
        row = {
            "url": plain(params["request"]["url"]),
            "method": plain(params["request"]["method"][:20]),
            "type": params.get("type", "Other"),
        }
        self._open[params["requestId"]] = Request(row, session, params.get("loaderId", ""))
        self._last = self._clock()

    def _answered(self, params: dict[str, Any], session: str) -> None:
        status = int(params["response"]["status"])
        if params.get("type") == "Document" and params.get("frameId") == self.frame:
            self.status, self._answerer = status, params.get("loaderId", "")
        if status >= 400:
            self._failed(params, status=status)

    def _ended(self, params: dict[str, Any], session: str) -> None:
        self._open.pop(params["requestId"], None)
        self._last = self._clock()

    def _broke(self, params: dict[str, Any], session: str) -> None:
        # A request that the page itself gave up is no failure.
        if not params.get("canceled"):
            blocked = params.get("blockedReason") or params.get("corsErrorStatus", {}).get(
                "corsError", ""
            )
            error = params.get("errorText", "")
            self._failed(params, error=f"{error} ({blocked})" if blocked else error)
        self._ended(params, session)

    def _socket_began(self, params: dict[str, Any], session: str) -> None:
        row = {"url": plain(params["url"]), "method": "GET", "type": "WebSocket"}
        self._open[params["requestId"]] = Request(row, session, "")
        self._last = self._clock()

    def _socket_broke(self, params: dict[str, Any], session: str) -> None:
        if params["errorMessage"] != LEFT_SOCKET:
            self._failed(params, error=plain(params["errorMessage"]))
        self._ended(params, session)

    def _failed(
        self, params: dict[str, Any], *, status: int | None = None, error: str = ""
    ) -> None:
        key = params["requestId"]
        request = self._open.get(key)
        row = request.row if request else {
            "url": plain(params.get("response", {}).get("url", "")), "method": "",
            "type": params.get("type", "Other"),
        }  # fmt: skip
        if key not in self._told and not _by_itself(row):
            self._add(self.failed_requests, {**row, "status": status, "error": error})
        self._told.add(key)

    # Page

    def _load(self, params: dict[str, Any], session: str) -> None:
        if session == self.session:
            self.loaded = True

    def _stopped(self, params: dict[str, Any], session: str) -> None:
        """The page's own window.stop(), or a way to another program (`mailto:`): no load follows.

        Before the page has a document of its own it is the blank one's.
        """
        if params.get("frameId") == self.frame and self._has_document:
            self.loaded = True

    def _navigated(self, params: dict[str, Any], session: str) -> None:
        """A new document: the load to come is its own, and of the one before no more is heard."""
        frame = params["frame"]
        if frame["id"] != self.frame:
            return
        self.loaded, self._has_document = False, True
        mine = frame.get("loaderId", "")
        if frame.get("unreachableUrl") and mine != self._answerer:
            self.status = None  # the browser's own page, in place of one that nobody answered for
        self._open = {
            key: request
            for key, request in self._open.items()
            if request.session != session or request.document == mine
        }

    def _download(self, params: dict[str, Any], session: str) -> None:
        """It takes the place of a document: the page that asked for it stays, and loads no more."""
        if params.get("frameId") == self.frame:
            self.loaded = True

    def _crashed(self, params: dict[str, Any], session: str) -> None:
        self.error("crash", "the page's process crashed")
        self.crashed = self.crashed or session == self.session


HANDLERS: dict[str, Callable[[Evidence, dict[str, Any], str], None]] = {
    "Runtime.exceptionThrown": Evidence._thrown,
    "Runtime.consoleAPICalled": Evidence._console,
    "Log.entryAdded": Evidence._logged,
    "Network.requestWillBeSent": Evidence._began,
    "Network.responseReceived": Evidence._answered,
    "Network.loadingFinished": Evidence._ended,
    "Network.loadingFailed": Evidence._broke,
    "Network.webSocketCreated": Evidence._socket_began,
    "Network.webSocketHandshakeResponseReceived": Evidence._ended,
    "Network.webSocketFrameError": Evidence._socket_broke,
    "Network.webSocketClosed": Evidence._ended,
    "Page.frameNavigated": Evidence._navigated,
    "Page.frameStoppedLoading": Evidence._stopped,
    "Page.loadEventFired": Evidence._load,
    "Page.downloadWillBegin": Evidence._download,
    "Inspector.targetCrashed": Evidence._crashed,
}


def plain(text: str) -> str:
    """What a page wrote, without what would move a cursor or pass for somebody else's line."""
    lines = (printable(line) for line in text[:LONGEST].strip().splitlines())
    return "\n".join(lines)


def _by_itself(request: Problem) -> bool:
    return urlsplit(request["url"]).path == BY_ITSELF


def _line(place: dict[str, Any]) -> int:
    """The line as a person counts; 0 where it is unknown."""
    return int(place.get("lineNumber", -1)) + 1


def _shown(value: dict[str, Any]) -> str:
    """A value of the page's (Runtime.RemoteObject) as its console shows it."""
    if "value" in value:
        return value["value"] if isinstance(value["value"], str) else json.dumps(value["value"])
    if value.get("subtype", "plain") in OPENED and "preview" in value:
        return _content(value["preview"])
    return str(value.get("description") or value.get("unserializableValue") or value.get("type"))


def _content(preview: dict[str, Any]) -> str:
    """An object's first properties (Runtime.ObjectPreview): `{id: 3, name: "x"}`, `[1, 2]`."""
    is_list = preview.get("subtype") == "array"
    parts = [
        _part(row) if is_list else f"{row['name']}: {_part(row)}"
        for row in preview.get("properties", ())
    ]
    text = ", ".join([*parts, *(["…"] if preview.get("overflow") else [])])
    if is_list:
        return f"[{text}]"
    kind = preview.get("description", "Object")
    return f"{{{text}}}" if kind == "Object" else f"{kind} {{{text}}}"


def _part(row: dict[str, Any]) -> str:
    value = str(row.get("value", row["type"]))
    return json.dumps(value, ensure_ascii=False) if row["type"] == "string" else value
