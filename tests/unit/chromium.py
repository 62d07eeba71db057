"""A real Chromium for tests, driven over its debugging pipe (--remote-debugging-pipe).

Messages are JSON with a NUL at the end, on descriptors 3 and 4; no port, no client library.
Protocol: https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = next((p for n in ("chromium", "google-chrome") if (p := shutil.which(n))), "")
needed = pytest.mark.skipif(not PROGRAM, reason="no chromium on PATH")

LIMIT = 60.0
"""Seconds for an answer or for the page to come to a state."""


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.call("Page.enable")
        self.call("Network.enable")
        self.call("Runtime.enable")
        self.call("Log.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def js(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        done = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True,
            userGesture=True,
        )  # fmt: skip
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def until(self, expression: str, limit: float = LIMIT) -> Any:
        """Wait until the expression is true in the page; its value."""
        deadline = time.monotonic() + limit
        while True:
            with contextlib.suppress(AssertionError):  # a page that is being replaced
                if found := self.js(expression):
                    return found
            if time.monotonic() > deadline:
                text = self.js("document.body.innerText")
                raise AssertionError(f"never true: {expression}\n{text}")
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """As a person would: a button that is disabled is waited for."""
        self.until(f"document.querySelector({json.dumps(selector)})?.disabled === false")
        self.js(f"document.querySelector({json.dumps(selector)}).click()")

    def size(self, width: int, height: int, *, dark: bool = False, scale: float = 1) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=scale, mobile=False)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def exchanges(self, origin: str) -> tuple[dict[str, dict[str, str]], dict[str, int]]:
        """The headers that were sent to an origin and the status that came back, by path."""
        self.js("1")
        mine = [e for e in self._browser.events if e.get("sessionId") == self._session]
        paths = {
            event["params"]["requestId"]: event["params"]["request"]["url"].removeprefix(origin)
            for event in mine
            if event["method"] == "Network.requestWillBeSent"
            and event["params"]["request"]["url"].startswith(origin + "/")
        }
        sent: dict[str, dict[str, str]] = {}
        got: dict[str, int] = {}
        for event in mine:
            path = paths.get(event["params"].get("requestId", ""), "")
            if path and event["method"] == "Network.requestWillBeSentExtraInfo":
                headers = event["params"]["headers"].items()
                sent[path] = {name.lower(): value for name, value in headers}
            elif path and event["method"] == "Network.responseReceivedExtraInfo":
                got[path] = event["params"]["statusCode"]
        return sent, got

    def problems(self) -> list[str]:
        """Uncaught exceptions, console errors, refused or failed loads so far."""
        self.js("1")  # what came before this answer is in
        found = []
        for event in self._browser.events:
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(params["entry"]["text"])
        return found


class Browser:
    """One headless browser with a profile of its own."""

    def __init__(self, profile: Path) -> None:
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20) for fd in (theirs_in, theirs_out)]

        def place() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self.process = subprocess.Popen(
            [PROGRAM, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}",
             "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--no-sandbox",
             "--disable-background-networking", "--disable-component-update",
             "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=place, pass_fds=(3, 4), start_new_session=True,
        )  # fmt: skip
        for fd in (theirs_in, theirs_out, *ends):
            os.close(fd)
        self._number = 0
        self._held = b""
        self.events: list[dict[str, Any]] = []

    def page(self) -> Page:
        """A new tab."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        return Page(self, found["sessionId"])

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + LIMIT
        while True:
            answer = self._next(deadline)
            if "method" in answer:
                self.events.append(answer)
            elif answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._held:
            left = deadline - time.monotonic()
            assert left > 0, "Chromium does not answer"
            if select.select([self._from], [], [], left)[0]:
                chunk = os.read(self._from, 1 << 16)
                assert chunk, f"Chromium ended: {self.process.wait(60)}"
                self._held += chunk
        first, _, self._held = self._held.partition(b"\0")
        return dict(json.loads(first))

    def close(self) -> None:
        with contextlib.suppress(AssertionError, OSError):
            self.call("Browser.close")
        os.close(self._to)
        os.close(self._from)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)
            self.process.wait()


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser that is gone afterwards."""
    found = Browser(profile)
    try:
        yield found
    finally:
        found.close()
