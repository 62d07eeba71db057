"""A page in a headless browser: its picture, and what went wrong while it loaded."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import os
import stat
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vmoat import proc
from vmoat.browser.argv import VIEWPORT
from vmoat.browser.cdp import OVERSIZE, Browser
from vmoat.browser.evidence import Evidence, plain
from vmoat.errors import Code, VmoatError

SCHEMA = "vmoat.shot/1"
QUIET = 0.5
"""Seconds without a request after which a page is taken to be done."""
QUIET_LIMIT = 10.0
"""Seconds for that after the load; a page that polls is never quiet."""
PICTURE_LIMIT = 10.0
"""Seconds for each answer about the page, once it is loaded."""
ABORTED = "net::ERR_ABORTED"
"""What a navigation ends with that leads to no page: a download, 204."""
ERROR_PAGE_LIMIT = 3.0
"""Seconds for the browser's own page about a site that cannot be reached."""
FOLLOW = {"autoAttach": True, "waitForDebuggerOnStart": True, "flatten": True}
"""Each waits until it is watched: what a worker does first is told too."""
LAUNCHERS = ("xdg-email", "xdg-open")
"""What Chromium starts on Linux where a page goes to `mailto:`, without a question
(external_protocol_handler.cc, platform_util_linux.cc): a branch's page has no mail to write.
"""
SHARED = "shared_worker"
TALLEST = 16384
"""Pixels of a whole page: what Chromium's compositor takes."""
PNG = b"\x89PNG\r\n\x1a\n"
TOLD = 20
"""Errors, and failed requests, that are told; the report has more."""
LINE = 400
"""Characters of a line that is told."""


@dataclass(frozen=True)
class Shot:
    """The picture (PNG; empty where the page never let one be taken) and the report.

    The report: ``schema``, ``url`` (asked for), ``final_url``, ``title``, ``status`` (HTTP status
    of the document, null without an answer), ``certificate`` (what is wrong with one on the VM's
    loopback, which was taken), ``ok``, ``loaded`` (in time), ``quiet``, ``seconds``, ``width``,
    ``height``, ``errors`` (kind: exception, console, log, navigation, crash; text, url, line),
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
    with tempfile.TemporaryDirectory(dir=log.parent) as folder:
        env = without_launchers(Path(folder))
        with Browser(argv, log, lambda *event: page.take(*event), env) as browser:
            page = Page(browser, evidence)
            return page.shoot(url, full=full, limit=limit)


def without_launchers(folder: Path) -> dict[str, str]:
    """The environment of a browser that starts no other program; ``folder`` is empty, for it."""
    for name in LAUNCHERS:
        # A link: a script does not run where the folder's disk is mounted noexec.
        (folder / name).symlink_to(proc.which("false") or "/bin/false")
    return {"PATH": f"{folder}:{os.environ.get('PATH', os.defpath)}"}


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
        elif method == "Target.attachedToTarget" and (session or _shared(params)):
            self._watch(params["sessionId"])  # a frame of another site, a worker
        elif method == "Security.certificateError":
            self._judge(params, session)
        elif method == OVERSIZE:
            size = params["size"] >> 20
            self._evidence.error("console", f"something of {size} MiB is left out")
        if session:
            self._evidence.take(method, params, session)

    def _judge(self, params: dict[str, Any], session: str) -> None:
        """A certificate that nobody signed is what a dev server has.  On the VM's loopback it
        stands between nobody; other hosts' have to be good.
        """
        taken = is_loopback(params["requestURL"])
        if taken:
            self._evidence.certificate = params["errorType"]
        answer = {"eventId": params["eventId"], "action": "continue" if taken else "cancel"}
        self._browser.send("Security.handleCertificateError", answer, session)

    def open(self) -> None:
        """A blank tab, attached to and watched."""
        # Unasked, it would write what a page offers into the user's own Downloads.
        self._browser.call("Browser.setDownloadBehavior", {"behavior": "deny"})
        target = self._browser.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attach = {"targetId": target, "flatten": True}
        self._evidence.session = self._browser.call("Target.attachToTarget", attach)["sessionId"]
        self._watch(self.session)
        self._browser.send("Security.enable", session=self.session)
        override = {"override": True}
        self._browser.send("Security.setOverrideCertificateErrors", override, self.session)
        # Shared workers are the browser's, not the page's.
        follow = {**FOLLOW, "filter": [{"type": SHARED}, {"exclude": True}]}
        self._browser.send("Target.setAutoAttach", follow)
        tree = self._browser.call("Page.getFrameTree", session=self.session)
        self._evidence.frame = tree["frameTree"]["frame"]["id"]

    def _watch(self, session: str) -> None:
        send = self._browser.send
        for domain in ("Runtime", "Network", "Log", "Page", "Inspector"):
            send(f"{domain}.enable", session=session)
        send("Target.setAutoAttach", FOLLOW, session)
        send("Runtime.runIfWaitingForDebugger", session=session)

    def shoot(self, url: str, *, full: bool, limit: float) -> Shot:
        began = time.monotonic()
        self.open()
        width, height = VIEWPORT
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._browser.call("Emulation.setDeviceMetricsOverride", metrics, self.session)
        loaded, quiet = self._load(url, limit)
        seconds = round(time.monotonic() - began, 2)
        picture, height = self._picture(full) if not self._evidence.crashed else (b"", 0)
        final_url, title = self._place()
        evidence = self._evidence
        failed_document = evidence.status is not None and evidence.status >= 400
        return Shot(
            picture,
            {
                "schema": SCHEMA,
                "url": url,
                "final_url": final_url,
                "title": title,
                "status": evidence.status,
                "certificate": evidence.certificate,
                "ok": bool(loaded and picture and evidence.clean and not failed_document),
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
        number = self._browser.send("Page.navigate", {"url": url}, self.session)

        def failure() -> str:
            answer = self._browser.answer(number) or {}
            return str(answer.get("result", {}).get("errorText", ""))

        def settled() -> bool:
            if failure() or evidence.crashed:
                return True
            return self._browser.answer(number) is not None and evidence.loaded

        settled_in_time = self._browser.wait(settled, limit)
        if failure():
            self._refused(failure(), url)
            return True, True
        if not settled_in_time:
            evidence.give_up()
            # A navigation under way, or a script in a loop, would hold up the picture.
            self._browser.send("Page.stopLoading", session=self.session)
            self._browser.send("Runtime.terminateExecution", session=self.session)
        if not settled_in_time or evidence.crashed:
            return False, False
        left = max(0.0, min(QUIET_LIMIT, deadline - time.monotonic()))
        return True, self._browser.wait(
            lambda: evidence.loaded and evidence.quiet_for() >= QUIET, left
        )

    def _refused(self, error: str, url: str) -> None:
        """There is no such document; the browser shows a page of its own about most errors."""
        evidence = self._evidence
        if error == ABORTED:
            evidence.error("navigation", "no page: a download, which is not kept, or no content",
                           url)  # fmt: skip
            return
        if not evidence.document_failed(url, error):
            evidence.error("navigation", error, url)
        self._browser.wait(lambda: evidence.loaded, ERROR_PAGE_LIMIT)

    def _picture(self, full: bool) -> tuple[bytes, int]:
        """The PNG and its height in pixels; empty where a busy page does not let it be taken."""
        deadline = time.monotonic() + PICTURE_LIMIT
        while True:
            try:
                return self._capture(full)
            except VmoatError as error:
                if error.code == Code.TIMEOUT or time.monotonic() > deadline:
                    return b"", 0
            # Refused between two pages: one that goes on to the next for ever is met on its way.
            self._browser.wait(lambda: False, 0.1)

    def _capture(self, full: bool) -> tuple[bytes, int]:
        height = VIEWPORT[1]
        params: dict[str, Any] = {"format": "png"}
        if full:
            size = self._call("Page.getLayoutMetrics")["cssContentSize"]
            height = min(TALLEST, max(height, int(size["height"])))
            clip = {"x": 0, "y": 0, "width": VIEWPORT[0], "height": height, "scale": 1}
            params |= {"captureBeyondViewport": True, "clip": clip}
        return base64.b64decode(self._call("Page.captureScreenshot", params)["data"]), height

    def _place(self) -> tuple[str, str]:
        """Where the page is and its title, in the browser's word: a page's own script could say
        anything.
        """
        with contextlib.suppress(VmoatError):
            history = self._call("Page.getNavigationHistory")
            entry = history["entries"][history["currentIndex"]]
            return plain(entry["url"]), plain(entry["title"])
        return "", ""

    def _call(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._browser.call(method, params, self.session, limit=PICTURE_LIMIT)


def _shared(attached: dict[str, Any]) -> bool:
    return bool(attached["targetInfo"]["type"] == SHARED)


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
    """Write STEM.png and STEM.json; their places, which the report names as ``files``.

    Without a picture there is no STEM.png: that of an earlier shot would pass for this one's.
    """
    files = {"json": f"{stem}.json"}
    if shot.picture:
        files["png"] = f"{stem}.png"
    shot.report["files"] = files
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        if shot.picture:
            _replace(Path(files["png"]), shot.picture)
        else:
            Path(f"{stem}.png").unlink(missing_ok=True)
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


def is_loopback(url: str) -> bool:
    """Whether the URL leads to the VM itself (RFC 6761 has names below localhost do so)."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def told(report: dict[str, Any]) -> list[str]:
    """The report for a person, a line each; the page's words are plain in it already."""
    status = report["status"] if report["status"] is not None else "no answer"
    title = f" “{_line(report['title'])[:100]}”" if report["title"] else ""
    rows = [f"{report['final_url'] or report['url']}{title}: {status}, {report['seconds']} s"]
    if not report["loaded"]:
        rows.append("  was not loaded in time")
    if report["certificate"]:
        rows.append(f"  a browser would warn of its certificate: {report['certificate']}")
    if "png" not in report["files"]:
        rows.append("  there is no picture: the page did not let one be taken")
    for row in report["errors"][:TOLD]:
        place = f" ({row['url']}:{row['line']})" if row["url"] else ""
        rows.append(f"  {row['kind']}: {_line(row['text'])}{place}")
    for row in report["failed_requests"][:TOLD]:
        why = row["error"] or row["status"]
        rows.append(f"  request: {row['method']} {row['url']}: {why}")
    more = sum(max(0, len(report[kind]) - TOLD) for kind in ("errors", "failed_requests"))
    if more + report["omitted"]:
        rows.append(f"  and {more + report['omitted']} more")
    return [row[:LINE] for row in rows]


def _line(text: str) -> str:
    """The first line that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
