"""Pictures and reports by a real Chromium, of pages on this machine's loopback; no VM, no proxy."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import documents
import pytest

from vmoat.browser import argv, cdp, shot
from vmoat.browser.cdp import Browser
from vmoat.browser.evidence import Evidence
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
    "/lost": "<script>location.href = 'http://localhost:2/away'</script>",
    "/mail": "<h1>write</h1><script>location.href = 'mailto:a@example.org?attach=x'</script>",
    "/endless": "<h1>before</h1><script src='/never'></script>",
    "/loud": "<title>true</title><script>console.error('y'.repeat(10e6));"
    "String.prototype.slice = () => 'a lie';"
    "Object.defineProperty(document, 'title', {get: () => 'a lie'});</script>",
    "/asking": "<title>asking</title><script>alert(1); confirm(2); prompt(3); print();"
    "window.onbeforeunload = () => 'stay';</script><iframe src='//127.0.0.1:PORT/alert'></iframe>",
    "/alert": "<script>alert('in a frame')</script>",
    "/parts": "<iframe src='//127.0.0.1:PORT/frame'></iframe>"
    "<script>new Worker('/work.js')</script>",
    "/frame": "<script>fetch('/missing-in-frame'); throw new Error('in a frame')</script>",
    "/work.js": "fetch('/missing-in-worker'); throw new Error('in a worker')",
    "/shared": "<script>new SharedWorker('/shared.js')</script>",
    "/shared.js": "fetch('/missing-in-shared'); throw new Error('in a shared worker')",
    "/sockets": "<script>const there = 'ws://localhost:PORT/missing-socket';"
    "new WebSocket(there); new WebSocket(there + '?left').close();</script>",
    "/thrown": "<script>Promise.reject('no network'); throw {code: 7, why: 'late'}</script>"
    "<script>console.error(null, true, [1, 'a'], {job: {id: 3}, name: 'x'})</script>",
    "/offer": "<title>offer</title><h1>here it comes</h1>"
    "<script>location.href = '/download'</script>",
    "/download": "what nobody asked for",
}
TYPES = {
    "/work.js": "text/javascript",
    "/shared.js": "text/javascript",
    "/download": "application/octet-stream",
}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/never":
            self.server.gate.wait(600)  # type: ignore[attr-defined]
        port = self.server.server_port  # type: ignore[attr-defined]
        body = PAGES.get(self.path, "").replace("PORT", str(port)).encode()
        with contextlib.suppress(OSError):
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", TYPES.get(self.path, "text/html"))
            if self.path == "/download":
                self.send_header("Content-Disposition", "attachment; filename=evil.bin")
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


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dev server with a certificate that it signed itself."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost",
            "-keyout", key, "-out", certificate]  # fmt: skip
    subprocess.run(made, check=True, capture_output=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{server.server_port}"
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
    documents.check({**taken.report, "files": {"json": "x.json"}})
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


def test_a_page_that_goes_where_nobody_answers_has_no_status(site: str, tmp_path: Path) -> None:
    report = take(f"{site}/lost", tmp_path).report
    assert (report["final_url"], report["status"]) == ("http://localhost:2/away", None)
    assert not report["ok"]


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


def test_a_page_can_neither_flood_nor_lie_about_itself(site: str, tmp_path: Path) -> None:
    report = take(f"{site}/loud", tmp_path).report
    assert (report["title"], report["final_url"]) == ("true", f"{site}/loud")
    assert [len(row["text"]) for row in report["errors"]] == [2000]


def test_dialogs_are_answered_also_in_frames(site: str, tmp_path: Path) -> None:
    report = take(f"{site}/asking", tmp_path).report
    assert (report["title"], report["ok"], report["quiet"]) == ("asking", True, True)


def test_errors_of_workers_and_of_other_sites_frames_are_the_pages(
    site: str, tmp_path: Path
) -> None:
    """Also what they do before anything else; and they are not waited for once they are done."""
    report = take(f"{site}/parts", tmp_path).report
    said = " ".join(row["text"] for row in report["errors"])
    assert "in a worker" in said
    assert "in a frame" in said
    failed = sorted(row["url"].rpartition("/")[2] for row in report["failed_requests"])
    assert failed == ["missing-in-frame", "missing-in-worker"]
    assert report["quiet"]


def test_a_shared_worker_is_the_pages_too(site: str, tmp_path: Path) -> None:
    """And its script, whose end the worker tells, is not waited for until time is up."""
    report = take(f"{site}/shared", tmp_path).report
    assert "exception" in {e["kind"] for e in report["errors"] if "in a shared worker" in e["text"]}
    assert [row["url"] for row in report["failed_requests"]] == [f"{site}/missing-in-shared"]
    assert report["quiet"]


def test_a_websocket_that_fails_is_a_failed_request(site: str, tmp_path: Path) -> None:
    """But not one that the page itself gave up."""
    report = take(f"{site}/sockets", tmp_path).report
    (row,) = report["failed_requests"]
    there = f"{site}/missing-socket".replace("http", "ws")
    assert (row["url"], row["type"]) == (there, "WebSocket")
    assert "404" in row["error"]
    assert not report["ok"]


def test_whatever_is_thrown_or_logged_can_be_read(site: str, tmp_path: Path) -> None:
    report = take(f"{site}/thrown", tmp_path).report
    assert sorted(row["text"] for row in report["errors"]) == [
        "Uncaught (in promise) no network",
        'Uncaught {code: 7, why: "late"}',
        'null true [1, "a"] {job: Object, name: "x"}',
    ]


def test_no_page_puts_a_file_on_this_machine(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headless or not, Chromium writes downloads into the user's folder if nobody says no."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    offer = take(f"{site}/offer", tmp_path)
    assert (offer.report["title"], offer.report["loaded"]) == ("offer", True)
    straight = take(f"{site}/download", tmp_path)
    assert not straight.ok
    assert ["a download" in row["text"] for row in straight.report["errors"]] == [True]
    assert not list(tmp_path.rglob("*evil*"))


def test_no_page_starts_a_program_of_this_machine(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chromium hands `mailto:` to the desktop without a question; and no load comes after it."""
    programs, started = tmp_path / "bin", tmp_path / "started"
    programs.mkdir()
    for name in ("xdg-open", "xdg-email"):
        (programs / name).write_text(f'#!/bin/sh\necho "$0 $@" >>{started}\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    taken = take(f"{site}/mail", tmp_path)
    assert (taken.ok, taken.report["loaded"]) == (True, True)
    assert not started.exists()


def test_a_dev_servers_own_certificate_is_taken_and_told(secure: str, tmp_path: Path) -> None:
    taken = take(f"{secure}/api", tmp_path)
    assert (taken.ok, taken.report["status"]) == (True, 200)
    assert taken.report["certificate"] == "ERR_CERT_AUTHORITY_INVALID"


def test_a_page_that_crashes_is_told_at_once(tmp_path: Path) -> None:
    evidence = Evidence()
    with Browser(words(tmp_path / "p"), tmp_path / "log", lambda *event: page.take(*event)) as one:
        page = shot.Page(one, evidence)
        page.open()
        one.send("Page.crash", session=page.session)
        assert one.wait(lambda: evidence.crashed, 30)
    assert [row["kind"] for row in evidence.errors] == ["crash"]


def test_a_message_without_bound_is_left_out(tmp_path: Path) -> None:
    """A browser that talks for ever takes no more memory than one message may."""
    text = "printf 'x%.0s' $(seq 1000); printf '\\0{\"id\": 1, \"result\": {\"a\": 2}}\\0'"
    script = ["sh", "-c", f"cat <&3 >/dev/null & {{ {text}; }} >&4; wait"]
    told: list[tuple[object, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cdp, "LARGEST", 500)
        with Browser(script, tmp_path / "log", lambda *event: told.append(event)) as browser:
            assert browser.call("Any.thing") == {"a": 2}
    assert told == [(cdp.OVERSIZE, {"size": 1000}, "")]
