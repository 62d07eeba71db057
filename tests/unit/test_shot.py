"""Pictures and reports by a real Chromium, of pages on this machine's loopback; no VM, no proxy."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmoat.browser import argv, shot
from vmoat.browser.cdp import Browser
from vmoat.errors import Code, VmoatError

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="no Chromium is installed (apt-get install chromium)"
)

PAGES = {
    "/good": "<title>start</title><h1>good</h1><script>"
    "fetch('/api').then(r => r.text()).then(t => { document.title = t; })</script>",
    "/api": "from the api",
    "/tall": "<div style='height: 3000px'>tall</div>",
    "/bad": "<script>console.error('oh', 'no', 3); alert('nobody is here'); fetch('/missing');"
    "setTimeout(() => { throw new Error('late'); }, 100); Promise.reject(new Error('lost'));"
    "</script><img src='/missing.png'>",
    "/moved": "<script>location.href = '/good'</script>",
    "/endless": "<h1>before</h1><script src='/never'></script>",
}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/never":
            self.server.gate.wait(600)  # type: ignore[attr-defined]
        body = PAGES.get(self.path, "").encode()
        with contextlib.suppress(OSError):
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *words: object) -> None: ...


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.gate = threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.gate.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def words(profile: Path) -> list[str]:
    """The browser of `vmoat shot`, without its way into a VM."""
    made = argv.headless(1, profile, root=os.geteuid() == 0)
    return [CHROMIUM, *(word for word in made if not word.startswith("--proxy"))]


def take(url: str, folder: Path, *, full: bool = False, limit: float = 60) -> shot.Shot:
    profile = folder / "profile"
    taken = shot.take(words(profile), url, folder / "log", full=full, limit=limit)
    wait_until(lambda: not processes(profile))
    return taken


def processes(profile: Path) -> list[int]:
    """The processes of a browser with this profile."""
    mark = os.fsencode(f"--user-data-dir={profile}")
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found


def wait_until(true: Callable[[], bool], limit: float = 60) -> None:
    deadline = time.monotonic() + limit
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def size(picture: bytes) -> tuple[int, int]:
    """Width and height of a PNG (its IHDR chunk)."""
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(picture[16:20], "big"), int.from_bytes(picture[20:24], "big")


def test_a_good_page(site: str, tmp_path: Path) -> None:
    """What its script fetches after the load is waited for."""
    taken = take(f"{site}/good", tmp_path)
    assert taken.report["title"] == "from the api"
    assert (taken.ok, taken.report["status"], taken.report["quiet"]) == (True, 200, True)
    assert size(taken.picture) == argv.VIEWPORT
    files = shot.write(taken, tmp_path / "new folder" / "page")
    assert Path(files["png"]).read_bytes() == taken.picture
    assert json.loads(Path(files["json"]).read_text()) == taken.report


def test_a_whole_page(site: str, tmp_path: Path) -> None:
    taken = take(f"{site}/tall", tmp_path, full=True)
    assert size(taken.picture) == (taken.report["width"], taken.report["height"])
    assert taken.report["height"] > 3000


def test_a_bad_page(site: str, tmp_path: Path) -> None:
    report = take(f"{site}/bad", tmp_path).report
    assert not report["ok"]
    said = sorted((row["kind"], row["text"].splitlines()[0]) for row in report["errors"])
    assert said == [
        ("console", "oh no 3"), ("exception", "Error: late"), ("exception", "Error: lost"),
    ]  # fmt: skip
    failed = sorted((row["url"], row["status"]) for row in report["failed_requests"])
    assert failed == [(f"{site}/missing", 404), (f"{site}/missing.png", 404)]


def test_a_page_that_goes_elsewhere_is_followed(site: str, tmp_path: Path) -> None:
    report = take(f"{site}/moved", tmp_path).report
    assert (report["final_url"], report["title"]) == (f"{site}/good", "from the api")
    assert (report["ok"], report["quiet"]) == (True, True)


def test_a_page_that_is_not_there(site: str, tmp_path: Path) -> None:
    taken = take(f"{site}/nothing", tmp_path)
    assert (taken.ok, taken.report["status"]) == (False, 404)
    assert len(taken.report["failed_requests"]) == 1
    assert taken.picture


def test_a_site_that_does_not_answer(tmp_path: Path) -> None:
    taken = take("http://localhost:1/", tmp_path)
    assert (taken.ok, taken.report["status"]) == (False, None)
    (row,) = taken.report["failed_requests"]
    assert row["error"].startswith("net::ERR_")


def test_a_page_that_never_ends_is_shown_as_far_as_it_came(site: str, tmp_path: Path) -> None:
    began = time.monotonic()
    taken = take(f"{site}/endless", tmp_path, limit=2)
    assert time.monotonic() - began < 300
    assert (taken.report["loaded"], taken.ok) == (False, False)
    assert size(taken.picture) == argv.VIEWPORT


def test_a_browser_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    broken = ["sh", "-c", "echo no usable sandbox >&2; exit 1"]
    with pytest.raises(VmoatError, match="ended by itself") as caught:
        shot.take(broken, "http://localhost/", tmp_path / "log", full=False, limit=5)
    assert caught.value.code == Code.MISSING
    assert caught.value.details == ("no usable sandbox",)


def test_a_browser_that_hangs_is_ended(tmp_path: Path) -> None:
    with Browser(words(tmp_path / "p"), tmp_path / "log", lambda *event: None) as browser:
        browser.call("Browser.getVersion")
        os.kill(browser.pid, signal.SIGSTOP)
        with pytest.raises(VmoatError) as caught:
            browser.call("Browser.getVersion", limit=0.5)
        assert caught.value.code == Code.TIMEOUT
    wait_until(lambda: not processes(tmp_path / "p"))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whoever_is_ended_leaves_no_browser(site: str, tmp_path: Path, how: int) -> None:
    profile = tmp_path / "profile"
    code = (
        "import sys; from pathlib import Path; from vmoat.browser import shot\n"
        "shot.take(sys.argv[3:], sys.argv[1], Path(sys.argv[2]), full=False, limit=60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, f"{site}/endless", tmp_path / "log", *words(profile)],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: len(processes(profile)) >= 3)  # itself, the browser, a helper
        process.send_signal(how)
        process.wait(60)
        wait_until(lambda: not processes(profile))
    finally:
        process.kill()
        process.wait()


