"""A page in a headless browser: its picture, and what went wrong while it loaded."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmoat.browser.argv import VIEWPORT
from vmoat.browser.cdp import Browser
from vmoat.browser.evidence import LONGEST, Evidence
from vmoat.errors import Code, VmoatError

SCHEMA = "vmoat.shot/1"
QUIET = 0.5
"""Seconds without a request after which a page is taken to be done."""
QUIET_LIMIT = 10.0
"""Seconds for that after the load; a page that polls is never quiet."""
PICTURE_LIMIT = 10.0
ERROR_PAGE_LIMIT = 3.0
"""Seconds for the browser's own page about a site that cannot be reached."""
TALLEST = 16384
"""Pixels of a whole page: what Chromium's compositor takes."""
PNG = b"\x89PNG\r\n\x1a\n"
LINE = 400
"""Characters of a line that is told."""


@dataclass(frozen=True)
class Shot:
    """The picture (PNG; empty where the page never let one be taken) and the report.

    The report: ``schema``, ``url`` (asked for), ``final_url``, ``title``, ``status`` (HTTP status
    of the document, null without an answer), ``ok``, ``loaded`` (in time), ``quiet``, ``seconds``,
    ``width``, ``height``, ``errors`` (kind: exception, console, log, navigation; text, url, line),
    ``failed_requests`` (url, method, type, status, error), ``omitted`` (how many more).
    """

    picture: bytes
    report: dict[str, Any]

    @property
    def ok(self) -> bool:
        return bool(self.report["ok"])


def take(argv: Sequence[str], url: str, log: Path, *, full: bool, limit: float) -> Shot:
    """Load ``url`` within ``limit`` seconds; ``argv`` is the browser's (``argv.headless``).

    A page that does not finish in time is shown as far as it came.
    Raises MISSING where the browser does not start.
    """
    evidence = Evidence()
    with Browser(argv, log, lambda *event: page.take(*event)) as browser:
        page = Page(browser, evidence)
        return page.shoot(url, full=full, limit=limit)


class Page:
    """One tab of a browser, watched from before its first request."""

    def __init__(self, browser: Browser, evidence: Evidence) -> None:
        self._browser = browser
        self._evidence = evidence

    @property
    def session(self) -> str:
        return self._evidence.session

    def take(self, method: str, params: dict[str, Any], session: str) -> None:
        """An event: what the page needs done at once, then the evidence."""
        if method == "Page.javascriptDialogOpening":  # it would wait for ever
            self._browser.send("Page.handleJavaScriptDialog", {"accept": True}, session)
        elif method == "Target.attachedToTarget" and session:  # a frame of another site, a worker
            self._watch(params["sessionId"])
        if session:
            self._evidence.take(method, params, session)

    def open(self) -> None:
        """A blank tab, attached to and watched."""
        target = self._browser.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attach = {"targetId": target, "flatten": True}
        self._evidence.session = self._browser.call("Target.attachToTarget", attach)["sessionId"]
        self._watch(self.session)
        tree = self._browser.call("Page.getFrameTree", session=self.session)
        self._evidence.frame = tree["frameTree"]["frame"]["id"]

    def _watch(self, session: str) -> None:
        send = self._browser.send
        for domain in ("Runtime", "Network", "Log", "Page"):
            send(f"{domain}.enable", session=session)
        follow = {"autoAttach": True, "waitForDebuggerOnStart": False, "flatten": True}
        send("Target.setAutoAttach", follow, session)

    def shoot(self, url: str, *, full: bool, limit: float) -> Shot:
        began = time.monotonic()
        self.open()
        width, height = VIEWPORT
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._browser.call("Emulation.setDeviceMetricsOverride", metrics, self.session)
        loaded, quiet = self._load(url, limit)
        seconds = round(time.monotonic() - began, 2)
        picture, height = self._picture(full)
        evidence = self._evidence
        failed_document = evidence.status is not None and evidence.status >= 400
        return Shot(
            picture,
            {
                "schema": SCHEMA,
                "url": url,
                "final_url": self._value(f"location.href.slice(0, {LONGEST})"),
                "title": self._value(f"document.title.slice(0, {LONGEST})"),
                "status": evidence.status,
                "ok": loaded and evidence.clean and not failed_document,
                "loaded": loaded,
                "quiet": quiet,
                "seconds": seconds,
                "width": width,
                "height": height,
                "errors": evidence.errors,
                "failed_requests": evidence.failed_requests,
                "omitted": evidence.omitted,
            },
        )

    def _load(self, url: str, limit: float) -> tuple[bool, bool]:
        """Whether the page was loaded in time, and whether its network came to rest."""
        deadline = time.monotonic() + limit
        evidence = self._evidence
        failure: list[str] = []
        number = self._browser.send("Page.navigate", {"url": url}, self.session)

        def settled() -> bool:
            answer = self._browser.answer(number)
            if answer and (text := answer.get("result", {}).get("errorText")):
                failure.append(text)
            return bool(failure) or (answer is not None and evidence.loaded)

        loaded = self._browser.wait(settled, limit)
        if failure:
            if not any(row["url"] == url for row in evidence.failed_requests):
                evidence.error("navigation", failure[0], url)
            self._browser.wait(lambda: evidence.loaded, ERROR_PAGE_LIMIT)
            return True, True
        if not loaded:  # a navigation under way, or a script in a loop, would hold up the picture
            self._browser.send("Page.stopLoading", session=self.session)
            self._browser.send("Runtime.terminateExecution", session=self.session)
        left = max(0.0, min(QUIET_LIMIT, deadline - time.monotonic()))
        return loaded, loaded and self._browser.wait(
            lambda: evidence.loaded and evidence.quiet_for() >= QUIET, left
        )

    def _picture(self, full: bool) -> tuple[bytes, int]:
        """The PNG and its height in pixels; empty where a busy page does not let it be taken."""
        height = VIEWPORT[1]
        params: dict[str, Any] = {"format": "png"}
        with contextlib.suppress(VmoatError):
            if full:
                size = self._call("Page.getLayoutMetrics")["cssContentSize"]
                height = min(TALLEST, max(height, int(size["height"])))
                clip = {"x": 0, "y": 0, "width": VIEWPORT[0], "height": height, "scale": 1}
                params |= {"captureBeyondViewport": True, "clip": clip}
            data = self._call("Page.captureScreenshot", params)["data"]
            return base64.b64decode(data), height
        return b"", 0

    def _value(self, expression: str) -> str:
        with contextlib.suppress(VmoatError):
            answer = self._call("Runtime.evaluate", {"expression": expression})
            return str(answer["result"].get("value", ""))
        return ""

    def _call(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._browser.call(method, params, self.session, limit=PICTURE_LIMIT)


def stem(text: str) -> Path:
    """The common start of both files: FILE, FILE.png and FILE.json all mean FILE.

    Raises USAGE for a folder and where one of the files is somebody's (`--out app` beside the
    project's app.json), MISSING where none can be written.
    """
    path = Path(os.path.abspath(os.path.expanduser(text)))
    if not text.strip() or text.endswith("/") or path.is_dir():
        raise VmoatError(
            f"--out {text!r} is a folder" if text.strip() else "--out has an empty name",
            hint=f"name a file: --out {os.path.join(text.strip(), 'page')}",
            code=Code.USAGE,
        )
    found = path.with_suffix("") if path.suffix in (".png", ".json") else path
    for file in (Path(f"{found}.png"), Path(f"{found}.json")):
        if not _may_replace(file):
            raise VmoatError(
                f"{file} is there, and no " + REPLACED[file.suffix],
                hint="name another file with --out",
                code=Code.USAGE,
            )
    try:
        found.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=found.parent):
            pass
    except OSError as error:
        raise _unwritable(found.parent, error) from error
    return found


REPLACED = {".png": "picture", ".json": "report of `vmoat shot`"}
"""What a shot may write over."""


def _may_replace(file: Path) -> bool:
    """Whether nothing is lost with what has the name."""
    if not os.path.lexists(file):
        return True
    try:
        if not stat.S_ISREG(file.lstat().st_mode):
            return False
        if file.suffix == ".png":
            with open(file, "rb") as stream:
                return stream.read(len(PNG)) in (PNG, b"")
        found = json.loads(file.read_text())
        return isinstance(found, dict) and found.get("schema") == SCHEMA
    except (OSError, ValueError):
        return False


def _unwritable(folder: Path, error: OSError) -> VmoatError:
    return VmoatError(
        f"nothing can be written in {folder}: {error.strerror}",
        hint="name a file of another folder with --out",
        code=Code.MISSING,
    )


def write(shot: Shot, stem: Path) -> dict[str, str]:
    """Write STEM.png and STEM.json; their places, which the report names as ``files``."""
    files = {"json": f"{stem}.json"}
    if shot.picture:
        files["png"] = f"{stem}.png"
    shot.report["files"] = files
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        if shot.picture:
            _replace(Path(files["png"]), shot.picture)
        # ASCII: a page may well write half a surrogate pair, which no file could hold
        _replace(Path(files["json"]), (json.dumps(shot.report, indent=2) + "\n").encode())
    except OSError as error:
        raise _unwritable(stem.parent, error) from error
    return files


def _replace(file: Path, data: bytes) -> None:
    """Write a new file in the place of the old one: the name may be a link by now that the VM made
    in the worktree, to a file of the user's.
    """
    descriptor, draft = tempfile.mkstemp(prefix=".shot-", dir=file.parent)
    try:
        with open(descriptor, "wb") as stream:
            stream.write(data)
            os.fchmod(descriptor, 0o666 & ~_umask())
        os.replace(draft, file)
    except BaseException:
        os.unlink(draft)
        raise


def _umask() -> int:
    """Linux and macOS tell it only to who sets it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def told(report: dict[str, Any], printable: Callable[[str], str]) -> list[str]:
    """The report for a person, a line each; ``printable`` cleans what the page wrote."""
    status = report["status"] if report["status"] is not None else "no answer"
    title = f" “{report['title'][:100]}”" if report["title"] else ""
    rows = [f"{report['final_url'] or report['url']}{title}: {status}, {report['seconds']} s"]
    if not report["loaded"]:
        rows.append("  was not loaded in time")
    for row in report["errors"]:
        place = f" ({row['url']}:{row['line']})" if row["url"] else ""
        rows.append(f"  {row['kind']}: {row['text'].splitlines()[0] if row['text'] else ''}{place}")
    for row in report["failed_requests"]:
        why = row["error"] or row["status"]
        rows.append(f"  request: {row['method']} {row['url']}: {why}")
    if report["omitted"]:
        rows.append(f"  and {report['omitted']} more")
    return [printable(row)[:LINE] for row in rows]
