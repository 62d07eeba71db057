"""The dashboard without a browser: who is answered, what is told, what a button runs."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import World, git
from timing import until

from vmoat import netports, paths
from vmoat.dashboard import record, tickets
from vmoat.dashboard.actions import Actions
from vmoat.dashboard.facts import Facts
from vmoat.dashboard.gate import Gate, Verdict
from vmoat.dashboard.hub import Hub
from vmoat.dashboard.logs import Awaited, Followed, Output, Source
from vmoat.dashboard.server import Dashboard
from vmoat.dashboard.timeline import Timeline
from vmoat.state import RunLog, VmLock

GATE = Gate(7000, redeem=lambda word: word == "once-good", token="T", session="S", page="P")
HOST = {"host": "127.0.0.1:7000"}
MINE = {**HOST, "cookie": "vmoat-7000=S"}
ORIGIN = {"origin": "http://127.0.0.1:7000"}


@pytest.mark.parametrize(
    ("method", "target", "headers", "verdict"),
    [
        # the first page: the token, or a ticket, from a terminal or a link
        ("GET", "/?token=T", HOST, Verdict.WELCOME),
        ("GET", "/?token=once-good", HOST, Verdict.WELCOME),
        ("GET", "/?token=T", {**HOST, "sec-fetch-site": "cross-site",
                              "sec-fetch-dest": "document"}, Verdict.WELCOME),
        ("GET", "/?token=T", {"host": "localhost:7000"}, Verdict.WELCOME),
        ("GET", "/?token=wrong", HOST, Verdict.REFUSE),
        ("GET", "/?token=", HOST, Verdict.REFUSE),
        ("GET", "/?token=T&token=T", HOST, Verdict.REFUSE),
        ("GET", "/?token=T", {**HOST, "sec-fetch-dest": "iframe"}, Verdict.REFUSE),
        ("GET", "/?token=T", {**HOST, "origin": "https://example.org"}, Verdict.REFUSE),
        ("POST", "/?token=T", HOST, Verdict.REFUSE),
        # everything else: the cookie, from our own page
        ("GET", "/", MINE, Verdict.SERVE),
        ("GET", "/", {**MINE, "sec-fetch-site": "none"}, Verdict.SERVE),
        ("GET", "/", {**HOST, "cookie": '{a}="b; c; vmoat-7000=S; d='}, Verdict.SERVE),
        ("GET", "/events?page=P", {**MINE, "sec-fetch-site": "same-origin"}, Verdict.SERVE),
        ("POST", "/act?page=P", {**MINE, **ORIGIN}, Verdict.SERVE),
        # facts and buttons: the cookie, which other ports are told, is not enough
        ("GET", "/events", MINE, Verdict.REFUSE),
        ("GET", "/events?page=T", MINE, Verdict.REFUSE),
        ("GET", "/events?page=P&page=P", MINE, Verdict.REFUSE),
        ("POST", "/act", {**MINE, **ORIGIN}, Verdict.REFUSE),
        ("GET", "/", HOST, Verdict.REFUSE),
        ("GET", "/events?page=P", HOST, Verdict.REFUSE),
        ("GET", "/events?page=P", {**HOST, "cookie": "vmoat-7000=T"}, Verdict.REFUSE),
        ("GET", "/events?page=P", {**HOST, "cookie": "vmoat-7001=S"}, Verdict.REFUSE),
        ("GET", "/events?token=T&page=P", HOST, Verdict.REFUSE),
        # another site, another port of this one, a frame's null origin
        ("GET", "/", {**MINE, "sec-fetch-site": "cross-site"}, Verdict.REFUSE),
        ("GET", "/", {**MINE, "sec-fetch-site": "same-site"}, Verdict.REFUSE),
        ("GET", "/events?page=P", {**MINE, "sec-fetch-site": "none"}, Verdict.REFUSE),
        ("GET", "/events?page=P", {**MINE, "origin": "http://127.0.0.1:8080"}, Verdict.REFUSE),
        ("GET", "/events?page=P", {**MINE, "origin": "null"}, Verdict.REFUSE),
        ("POST", "/act?page=P", MINE, Verdict.REFUSE),
        ("POST", "/act?page=P", {**MINE, "origin": "http://localhost:7000"}, Verdict.REFUSE),
        # a name that was rebound to the loopback
        ("GET", "/", {**MINE, "host": "evil.example:7000"}, Verdict.REFUSE),
        ("GET", "/?token=T", {"host": "evil.example:7000"}, Verdict.REFUSE),
        ("GET", "/", {**MINE, "host": "127.0.0.1"}, Verdict.REFUSE),
        ("GET", "/", {**MINE, "host": "127.0.0.1:7001"}, Verdict.REFUSE),
        ("GET", "/", {"cookie": "vmoat-7000=S"}, Verdict.REFUSE),
        ("GET", "http://evil.example/?token=T", HOST, Verdict.REFUSE),
        ("GET", "//evil.example/events?page=P", MINE, Verdict.REFUSE),
        ("DELETE", "/", MINE, Verdict.REFUSE),
        ("OPTIONS", "/act?page=P", {**MINE, **ORIGIN}, Verdict.REFUSE),
    ],
)  # fmt: skip
def test_who_is_answered(
    method: str, target: str, headers: dict[str, str], verdict: Verdict
) -> None:
    assert GATE.judge(method, target, headers) is verdict


def test_a_browser_does_not_name_port_80() -> None:
    gate = Gate(80, token="T", session="S", page="P")
    mine = {"host": "127.0.0.1", "cookie": "vmoat-80=S", "origin": "http://127.0.0.1"}
    assert gate.judge("GET", "/?token=T", {"host": "127.0.0.1"}) is Verdict.WELCOME
    assert gate.judge("POST", "/act?page=P", mine) is Verdict.SERVE
    assert gate.judge("GET", "/?token=T", {"host": "evil.example"}) is Verdict.REFUSE
    stranger = {**mine, "origin": "http://localhost"}
    assert gate.judge("POST", "/act?page=P", stranger) is Verdict.REFUSE


def test_a_ticket_opens_the_page_once_and_for_a_minute(homes: Path) -> None:
    word = tickets.ticket()
    assert [tickets.redeem(word), tickets.redeem(word)] == [True, False]
    late = tickets.ticket()
    os.utime(paths.dashboard_dir() / late, (time.time() - 61,) * 2)
    assert not tickets.redeem(late)
    assert not tickets.redeem("../state/running.json")
    tickets.ticket()
    tickets.sweep()
    assert list(paths.dashboard_dir().iterdir()) == []


XDG = (["xdg-open"], {"DISPLAY": ":0"})


def handed_over(url: str) -> tuple[Path, str]:
    """The file that the browser is started with, and the ticket in it."""
    assert url.startswith("file:///")
    file = Path(url.removeprefix("file://"))
    found = re.search(r"url=http://127.0.0.1:7000/\?token=(once-[\w-]+)\"", file.read_text())
    assert found
    return file, found[1]


def test_the_browsers_file_is_its_users_alone_and_gone_once_used(
    homes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(homes))
    file, word = handed_over(tickets.address(GATE.url_with, *XDG))
    assert [oct(p.stat().st_mode & 0o777) for p in (file, file.parent)] == ["0o600", "0o700"]
    assert tickets.redeem(word)
    assert not file.parent.exists()
    unused, _ = handed_over(tickets.address(GATE.url_with, *XDG))
    tickets.sweep()
    assert not unused.parent.exists()


def test_a_browser_that_is_a_snap_finds_the_file(
    homes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is shown nothing hidden of the home, and another /tmp."""
    (homes / "snap").write_text("#!/bin/sh\n")
    (homes / "snap").chmod(0o755)
    (homes / "home").mkdir()
    monkeypatch.setenv("PATH", str(homes))
    monkeypatch.setenv("HOME", str(homes / "home"))
    file, word = handed_over(tickets.address(GATE.url_with, *XDG))
    assert file.parent.parent == homes / "home"
    assert not file.parent.name.startswith(".")
    assert tickets.redeem(word)
    assert list((homes / "home").iterdir()) == []
    monkeypatch.setenv("HOME", "/proc/nowhere")  # no file can be made there
    assert tickets.address(GATE.url_with, *XDG).startswith("http://127.0.0.1:7000/?token=once-")


@pytest.mark.parametrize(
    ("argv", "env", "platform", "sees"),
    [
        (["xdg-open"], {"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
        (["open"], {}, "darwin", True),
        (["firefox"], {"BROWSER": "firefox", "DISPLAY": ":0"}, "linux", True),
        # these start a browser of another system
        (["wslview"], {"WSL_DISTRO_NAME": "Debian", "DISPLAY": ":0"}, "linux", False),
        (["browser.sh"], {"BROWSER": "browser.sh"}, "linux", False),
        (["browser.sh"], {"DISPLAY": ":0", "VSCODE_IPC_HOOK_CLI": "/run/x"}, "linux", False),
    ],
)
def test_which_browser_sees_our_files(
    argv: list[str], env: dict[str, str], platform: str, sees: bool
) -> None:
    assert tickets.sees_files(argv, env, platform) is sees


# what a request gets over a real socket


@pytest.fixture
def served(homes: Path) -> Iterator[Dashboard]:
    """A dashboard with one worktree, whose buttons do nothing."""
    vm = {"key": "wt-a", "path": str(homes), "memory": 1, "disk": 2}
    hub = Hub(lambda: [vm])
    hub.look()
    server = Dashboard(0, hub, Actions(lambda where, words: ["true"]), lambda key, name: None)
    thread = threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def ask(
    server: Dashboard, method: str, target: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    data = None if body is None else json.dumps(body)
    connection.request(method, target, data, {n.replace("_", "-"): v for n, v in headers.items()})
    answer = connection.getresponse()
    found = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    connection.close()
    return found


def raw(server: Dashboard, method: str, target: str, headers: dict[str, str], body: str) -> bytes:
    """The answer to a request as it is written here."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: 127.0.0.1:{server.server_port}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as client:
        client.sendall("\r\n".join([*lines, "Connection: close", "", body]).encode())
        return client.makefile("rb").read()


def mine(server: Dashboard) -> dict[str, str]:
    """The headers of a request from the page itself."""
    gate = server.gate
    return {
        "Cookie": f"{gate.cookie_name}={gate.session}", "Sec_Fetch_Site": "same-origin",
        "Origin": f"http://127.0.0.1:{gate.port}", "Content_Type": "application/json",
    }  # fmt: skip


def test_a_refusal_tells_nothing(served: Dashboard) -> None:
    for target in ("/", "/?token=x", "/events", "/app.js", "/nothing"):
        code, headers, body = ask(served, "GET", target)
        assert (code, body) == (403, b"")
        assert headers == {"content-length": "0", "connection": "close"}


def test_what_is_no_http_gets_no_facts(served: Dashboard) -> None:
    with socket.create_connection(("127.0.0.1", served.server_port), timeout=60) as client:
        client.sendall(b"BREW /pot HTTP/1.1\r\n\r\n")
        answer = client.makefile("rb").read()
    assert answer.endswith(b"\r\n\r\n")
    assert b"ython" not in answer


def test_a_second_host_header_opens_nothing(served: Dashboard) -> None:
    cookie = mine(served)["Cookie"]
    lines = ["GET / HTTP/1.1", f"Host: 127.0.0.1:{served.server_port}", "Host: evil.example"]
    with socket.create_connection(("127.0.0.1", served.server_port), timeout=60) as client:
        client.sendall("\r\n".join([*lines, f"Cookie: {cookie}", "", ""]).encode())
        assert client.makefile("rb").read().startswith(b"HTTP/1.1 403")


def test_a_hundred_connections_that_say_nothing_keep_nobody_out(served: Dashboard) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            where = ("127.0.0.1", served.server_port)
            stack.enter_context(socket.create_connection(where, timeout=20))
        assert ask(served, "GET", "/", **mine(served))[0] == 200


def test_the_first_page_gives_the_cookie_and_goes_on(served: Dashboard) -> None:
    code, headers, body = ask(served, "GET", f"/?token={served.gate.token}")
    assert code == 200
    assert "HttpOnly; SameSite=Strict" in headers["set-cookie"]
    assert served.gate.token not in headers["set-cookie"]
    assert f"url=/#{served.gate.page}".encode() in body
    code, headers, body = ask(served, "GET", "/", Cookie=headers["set-cookie"].split(";")[0])
    assert code == 200
    assert b"app.js" in body
    assert headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]


def test_only_the_pages_own_files_are_served(served: Dashboard) -> None:
    for target in ("/../server.py", "/vendor/../../server.py", "/%2e%2e/server.py", "/vendor",
                   "/vendor/lit-html/LICENSE", "/missing.js", f"/{'a' * 5000}.js"):  # fmt: skip
        assert ask(served, "GET", target, **mine(served))[0] == 404, target
    assert ask(served, "GET", "/vendor/lit-html/lit-html.js", **mine(served))[0] == 200


def test_a_button_runs_its_command_in_a_worktree_that_is_shown(served: Dashboard) -> None:
    good, act = {"key": "wt-a", "verb": "up"}, f"/act?page={served.gate.page}"
    assert ask(served, "POST", act, good, **mine(served))[0] == 200
    until(lambda: served.actions.of("wt-a")["up"]["code"] is not None)
    assert served.actions.of("wt-a")["up"]["code"] == 0
    for bad in ({"key": "/etc", "verb": "up"}, {"key": "wt-a", "verb": "destroy"}, [], "x"):
        assert ask(served, "POST", act, bad, **mine(served))[0] == 404
    deep = {**mine(served), "Content_Length": "4000"}
    answer = raw(served, "POST", act, deep, "[" * 4000)
    assert answer.startswith(b"HTTP/1.1 404")
    plain = {**mine(served), "Content_Type": "text/plain"}  # what a form could send
    assert ask(served, "POST", act, good, **plain)[0] == 404
    other = {**mine(served), "Origin": "http://127.0.0.1:8080"}
    assert ask(served, "POST", act, good, **other)[0] == 403


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1"])
def test_another_user_of_this_machine_gets_nothing(served: Dashboard, address: str) -> None:
    """Not even with the token: a browser's command line can be read by everybody."""
    request = f"GET /?token={served.gate.token} HTTP/1.1\r\nHost: 127.0.0.1:{served.server_port}"
    program = (
        "import encodings.idna, os, socket, sys; os.setuid(65534)\n"
        "link = socket.create_connection((sys.argv[3], int(sys.argv[1])), 10)\n"
        "link.sendall(sys.argv[2].encode() + b'\\r\\n\\r\\n')\n"
        "try: print(len(link.recv(100)))\n"
        "except ConnectionError: print(0)\n"
    )
    words = [sys.executable, "-c", program, str(served.server_port), request, address]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.skipif(not netports.tells_owners(), reason="no table of connections here")
@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1"])
def test_the_owner_of_a_connection_is_who_holds_it_still(address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = listener.getsockname()
        client = socket.create_connection((address, far[1]), timeout=10)
        with listener.accept()[0] as served:
            near = served.getpeername()
            assert netports.owner(near, far) == os.getuid()
            assert netports.owner(("127.0.0.2", near[1]), far) is None
            client.close()  # the kernel says that root holds it, until it is forgotten
            assert netports.owner(near, far) is None


def test_the_end_of_a_dashboard_ends_what_its_pages_follow(served: Dashboard) -> None:
    followed = Followed(["sleep", "600"])
    served.open_log = lambda key, name: followed
    connection = http.client.HTTPConnection("127.0.0.1", served.server_port, timeout=60)
    headers = {n.replace("_", "-"): v for n, v in mine(served).items()}
    connection.request("GET", f"/events?page={served.gate.page}&log=stack", headers=headers)
    answer = connection.getresponse()
    assert answer.readline()
    served.hub.stop()
    assert followed._process.wait(60) == -signal.SIGTERM
    answer.close()
    connection.close()


def test_the_stream_begins_with_all_there_is(served: Dashboard) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.server_port, timeout=60)
    headers = {n.replace("_", "-"): v for n, v in mine(served).items()}
    connection.request("GET", f"/events?page={served.gate.page}", headers=headers)
    answer = connection.getresponse()
    assert answer.getheader("Content-Type") == "text/event-stream"
    found: dict[str, Any] = {}
    name = ""
    while "fleet" not in found:
        line = answer.readline().decode().rstrip()
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            found[name] = json.loads(line[6:])
    answer.close()
    connection.close()
    assert [vm["key"] for vm in found["fleet"]["vms"]] == ["wt-a"]
    assert [point[1:] for point in found["history"]["wt-a"]] == [[1, 2]]


def test_a_look_that_fails_is_told_and_keeps_what_was_known() -> None:
    answers: list[Any] = [[{"key": "a", "memory": 0, "disk": 0}], OSError("no such folder")]

    def look() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    hub = Hub(look)
    hub.look()
    before = hub.version
    hub.look()
    assert (hub.trouble, hub.vms[0]["key"]) == ("OSError: no such folder", "a")
    assert hub.version > before


# the stages


def a_run(folder: Path, run_id: str) -> RunLog:
    log = RunLog(folder, run_id)
    log.open()
    log.write("run_start", pid=os.getpid(), targets=[], force=[])
    log.write("graph", stages=["vm", "apt", "stack", "test"])
    return log


def test_the_stages_of_a_run_as_it_goes_on(tmp_path: Path) -> None:
    lock = VmLock(tmp_path)
    lock.take()
    log, timeline = a_run(tmp_path, "one"), Timeline(tmp_path)
    log.write("stage_start", stage="vm", reason="there is no VM yet")
    log.write("line", text="making the system disk")
    timeline.look()
    states = {name: stage["state"] for name, stage in timeline.stages.items()}
    assert states == {"vm": "running", "apt": "waiting", "stack": "waiting"}
    assert timeline.stages["vm"]["reason"] == "there is no VM yet"
    assert [(line["stage"], line["text"]) for line in timeline.lines] == [
        ("", "vmoat up "), ("vm", "making the system disk")
    ]  # fmt: skip
    log.write("stage_end", stage="vm", outcome="done", seconds=20.9)
    log.write("stage_start", stage="apt", reason="never run")
    log.write("stage_end", stage="apt", outcome="failed", seconds=3.0)
    end = {"code": 1, "message": "apt failed", "hint": "look", "details": ["E: no"]}
    log.write("run_end", **end)
    timeline.look()
    assert timeline.stages["vm"]["seconds"] == 20.9
    assert timeline.stages["apt"]["state"] == "failed"
    assert {key: timeline.run[key] for key in end} == end
    lock.free()


def test_a_stage_that_still_holds_keeps_its_time_and_reason(tmp_path: Path) -> None:
    first = a_run(tmp_path, "one")
    first.write("stage_start", stage="apt", reason="never run")
    first.write("stage_end", stage="apt", outcome="done", seconds=25.7)
    first.write("run_end", code=0, message="", hint="", details=[])
    second = a_run(tmp_path, "two")
    second.write("stage_end", stage="apt", outcome="skipped", seconds=0.0)
    second.write("run_end", code=0, message="", hint="", details=[])
    timeline = Timeline(tmp_path)
    timeline.look()
    apt = timeline.stages["apt"]
    assert (apt["state"], apt["reason"], apt["seconds"]) == ("done", "never run", 25.7)


def test_the_end_of_a_run_is_told_though_others_have_followed(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path)
    for number, name in enumerate(("one", "two", "three")):
        log = a_run(tmp_path, name)
        os.utime(log.file, (number, number))
        if name == "one":
            timeline.look()
            log.write("line", text="the last of one")
            os.utime(log.file, (number, number))
        log.write("line", text=f"of {name}")
        os.utime(log.file, (number, number))
    timeline.look()
    timeline.look()
    said = [line["text"] for line in timeline.lines if line["kind"] == "line"]
    assert said == ["the last of one", "of one", "of two", "of three"]


def test_what_a_destroyed_vm_has_done_is_not_its_successors(tmp_path: Path) -> None:
    log, timeline = a_run(tmp_path / "wt", "one"), Timeline(tmp_path / "wt")
    log.write("stage_start", stage="apt", reason="never run")
    log.write("stage_end", stage="apt", outcome="done", seconds=25.7)
    timeline.look()
    before = timeline.count
    shutil.rmtree(tmp_path / "wt")
    timeline.look()
    assert (timeline.stages, timeline.run) == ({}, {})
    a_run(tmp_path / "wt", "two")
    timeline.look()
    assert {stage["state"] for stage in timeline.stages.values()} == {"waiting"}
    assert timeline.count > before  # who follows the lines goes on


def test_a_killed_worker_leaves_no_stage_running(tmp_path: Path) -> None:
    log, timeline = a_run(tmp_path, "one"), Timeline(tmp_path)
    log.write("stage_start", stage="vm", reason="never run")
    timeline.look()  # nobody holds the lock
    assert timeline.stages["vm"]["state"] == "failed"
    assert "killed" in timeline.run["message"]


def test_a_half_line_and_anothers_events_are_passed_over(tmp_path: Path) -> None:
    log, timeline = a_run(tmp_path, "one"), Timeline(tmp_path)
    with open(log.file, "a") as file:
        file.write('{"event": "stage_start"}\n[]\n{"event": "stage_st')
    timeline.look()
    with open(log.file, "a") as file:
        file.write('art", "stage": "vm", "reason": "r", "time": 1}\n')
    timeline.look()
    assert timeline.stages["vm"]["reason"] == "r"


def test_a_followed_program_ends_when_nobody_looks_any_more(tmp_path: Path) -> None:
    script = "echo $$ > pid; printf 'one\\n\\033[31mtwo\\033[0m\\n'; exec sleep 600"
    source = Followed(["sh", "-c", f"cd {tmp_path}; {script}"])
    lines: list[str] = []

    def read() -> bool:
        lines.extend(line["text"] for line in source.new())
        return len(lines) >= 2

    until(read)
    assert lines == ["one", "two"]
    source.close()
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not Path(f"/proc/{pid}").exists())


def test_a_log_that_is_asked_for_before_the_first_look_is_shown_after_it() -> None:
    found: list[Source] = []
    source = Awaited(lambda: found[0] if found else None)
    assert source.new() == []
    actions = Actions(lambda where, words: ["echo", "hello"])
    actions.start("k", "/", "test")
    found.append(Output(lambda: actions.get("k", "test")))
    lines: list[str] = []
    deadline = time.monotonic() + 20
    while not lines and time.monotonic() < deadline:
        lines += [line["text"] for line in source.new()]
        time.sleep(0.01)
    assert lines == ["hello"]


# the whole, on the fake machine


def test_every_worktree_is_shown_with_or_without_a_vm(world: World) -> None:
    git(world.repo, "worktree", "add", "-q", "-b", "other", str(world.root / "other"))
    world.vmoat("up")
    found = {vm["folder"]: vm for vm in Facts(Actions(), world.tree).look()}
    assert set(found) == {"repo", "tree", "other"}
    assert (found["tree"]["state"], found["tree"]["health"]) == ("running", "healthy")
    assert (found["other"]["name"], found["other"]["branch"]) == ("", "other")
    assert {s["name"]: s["state"] for s in found["tree"]["stages"]}["stack"] == "done"
    elsewhere = {vm["folder"] for vm in Facts(Actions(), Path("/")).look()}
    assert elsewhere == set(found)  # by the repository of the VM


def start_dashboard(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vmoat", "-C", "/", "dashboard", *words],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def processes_of(session: int) -> list[int]:
    """Those of a program that leads a session, and of its children that lead theirs."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents[int(folder.name)] = int(fields[1])
    found = [session]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return [pid for pid in found if pid in parents]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_nothing_that_a_page_follows_outlives_the_dashboard(
    world: World, how: signal.Signals
) -> None:
    world.vmoat("up")
    console = paths.vm_dir("wt-tree") / "console.log"
    console.write_text("it boots\n")
    started = start_dashboard("--no-open")
    assert started.stdout is not None
    url = urlsplit(started.stdout.readline().strip())
    pages = [http.client.HTTPConnection(url.netloc, timeout=60) for _ in range(2)]
    answers: list[http.client.HTTPResponse] = []  # one that is dropped closes its stream
    try:
        headers, secret = entered(pages[0], url.query)
        for page in pages:
            page.request("GET", f"/events?page={secret}&key=wt-tree&log=console", headers=headers)
            answers.append(page.getresponse())
            while b"it boots" not in answers[-1].readline():
                pass
        family = processes_of(started.pid)
        assert len(family) >= 5  # two times `vmoat logs` and tail
        started.send_signal(how)
        started.communicate(timeout=20)
        deadline = time.monotonic() + 20
        while (left := alive(family)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert left == []
    finally:
        started.kill()
        for page in pages:
            page.close()


def alive(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            found += [pid] if state != "Z" else []
    return found


def entered(link: http.client.HTTPConnection, query: str) -> tuple[dict[str, str], str]:
    """The headers of a page that was opened with the token, and its secret."""
    link.request("GET", f"/?{query}")
    answer = link.getresponse()
    cookie = str(answer.getheader("Set-Cookie")).partition(";")[0]
    secret = re.search(r"url=/#([\w-]+)", answer.read().decode())
    assert secret
    return {"Cookie": cookie}, secret[1]


def test_a_second_dashboard_prints_the_firsts_url(homes: Path) -> None:
    first = start_dashboard("--no-open")
    assert first.stdout is not None
    url = first.stdout.readline().strip()
    second = start_dashboard("--json")
    told = json.loads(second.communicate(timeout=60)[0])
    assert (told["url"], told["pid"]) == (url, first.pid)
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=60)[1]
    assert (first.returncode, second.returncode) == (0, 0)
    assert url.partition("token=")[2] not in said
    urls = []
    for words in ([], ["--port=0"]):
        later = start_dashboard("--no-open", *words)
        assert later.stdout is not None
        urls.append(later.stdout.readline().strip())
        later.terminate()
        later.communicate(timeout=60)
    # the port is kept for bookmarks and forwards, the token is new
    assert urls[0].partition("token=")[0] == url.partition("token=")[0]
    assert urls[0] != url
    assert urls[1].partition("token=")[0] != url.partition("token=")[0]


def test_a_dashboard_that_has_just_begun_is_waited_for(homes: Path) -> None:
    """It holds its lock before the lock's file and the record say who it is."""
    first = record.lock()
    assert first.take()
    first.file.write_text("")
    second = start_dashboard("--json")
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(1)
    first.file.write_text(str(os.getpid()))
    record.write(7433, "T")
    told = json.loads(second.communicate(timeout=60)[0])
    assert (told["port"], told["pid"]) == (7433, os.getpid())


def test_one_that_ends_while_it_is_waited_for_is_followed(homes: Path) -> None:
    first = record.lock()
    assert first.take()
    second = start_dashboard("--no-open")
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(1)
    first.free()
    assert second.stdout is not None
    url = second.stdout.readline().strip()
    second.terminate()
    second.communicate(timeout=60)
    assert url.startswith("http://127.0.0.1:")


def test_the_browsers_arguments_hold_no_secret(
    homes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, told = homes / "browser", homes / "told"
    script.write_text(f'#!/bin/sh\necho "$1" >{told}.new; mv {told}.new {told}\n')
    script.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(script))
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("HOME", str(homes))
    monkeypatch.delenv("VSCODE_IPC_HOOK_CLI", raising=False)
    started = start_dashboard()
    assert started.stdout is not None
    url = started.stdout.readline().strip()
    until(told.exists)
    opened = told.read_text().strip()
    assert opened.startswith("file:///")
    assert "once-" not in opened
    file = Path(opened.removeprefix("file://"))
    target = re.search(r"url=http://127.0.0.1:(\d+)([^\"]+)", file.read_text())
    assert target
    assert url.partition("token=")[2] not in file.read_text()
    answers = []
    for _ in range(2):
        connection = http.client.HTTPConnection("127.0.0.1", int(target[1]), timeout=10)
        connection.request("GET", target[2])
        answers.append(connection.getresponse().status)
        connection.close()
    assert not file.parent.exists()
    started.terminate()
    started.communicate(timeout=60)
    assert answers == [200, 403]


@pytest.mark.parametrize("port", ["70000", "-1", "x"])
def test_a_port_that_is_none_is_an_error_of_the_command_line(homes: Path, port: str) -> None:
    asked = start_dashboard("--no-open", f"--port={port}")
    said = asked.communicate(timeout=60)[1]
    assert asked.returncode == 2
    assert f"--port: invalid port value: '{port}'" in said


def test_a_taken_port_that_was_asked_for_is_an_error(homes: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        asked = start_dashboard("--no-open", "--port", str(other.getsockname()[1]))
        said = asked.communicate(timeout=60)[1]
    assert asked.returncode == 7
    assert "--port" in said


def test_a_port_that_is_roots_is_an_error_that_says_so(homes: Path) -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) < 2:
        pytest.skip("here every port is everybody's")
    drop = ["setpriv", "--bounding-set", "-net_bind_service"] if os.getuid() == 0 else []
    words = [sys.executable, "-m", "vmoat", "-C", "/", "dashboard", "--no-open", "--port", "1"]
    asked = subprocess.run([*drop, *words], capture_output=True, text=True, timeout=60)
    assert asked.returncode == 2
    assert "cannot listen on port 1: Permission denied" in asked.stderr
    assert "--port" in asked.stderr
