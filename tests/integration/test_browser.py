"""localhost is the VM: real browsers of the host, in two worktrees at once."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import devtools
import pytest
from devtools import CdpDriver, McpDriver
from lab import Lab, Vm, command_lines, kill, told, wait_until

from vmoat.browser import profiles

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(
        not CHROMIUM and not os.environ.get("VMOAT_TESTS_NEED_VM"),
        reason="no Chromium is installed on this machine",
    ),
]

URL = "http://localhost:8080/"

PAGE = """\
<!doctype html>
<h1>the page of NAME</h1>
<p id="cookie"></p>
<button id="button">press</button>
<script>
  const show = () => { cookie.textContent = document.cookie || "no cookie"; };
  button.onclick = () => { document.cookie = "who=NAME"; button.textContent = "pressed"; show(); };
  show();
  fetch("http://localhost:9000/api").then(r => r.text()).then(t => { document.title = t; });
</script>
"""

API = """\
use IO::Socket::INET;
my $s = IO::Socket::INET->new(LocalPort => 9000, Listen => 5, ReuseAddr => 1) or die "no: $!";
while (my $c = $s->accept) {
  my $line = <$c>;
  while (my $head = <$c>) { last if $head eq "\\r\\n"; }
  print $c "HTTP/1.0 200 OK\\r\\nAccess-Control-Allow-Origin: http://localhost:8080\\r\\n"
    . "Content-Type: text/plain\\r\\n\\r\\nthe api of NAME, asked for " . (split / /, $line)[1];
  close $c;
}
"""

SILENT = """\
use IO::Socket::INET;
my $s = IO::Socket::INET->new(LocalPort => 9001, Listen => 5, ReuseAddr => 1) or die "no: $!";
sleep 600;
"""


def serve(vm: Vm, name: str) -> None:
    """A page on 8080, in the stack's container, and what it calls on 9000, in the guest."""
    build = vm.worktree / "build"  # git ignores it: no input of the stack
    (build / "page.html").write_text(PAGE.replace("NAME", name))
    (build / "api.pl").write_text(API.replace("NAME", name))
    vm.ok("docker cp build/page.html $(docker ps -q):/www/index.html")
    start_api(vm)


def start_api(vm: Vm) -> None:
    vm.ok(f"sudo systemd-run -q -G --unit=api perl {shlex.quote(str(vm.worktree))}/build/api.pl")
    vm.ok("for i in $(seq 50); do curl -s localhost:9000/ && break; sleep 0.2; done")


def stop_api(vm: Vm) -> None:
    vm.ok("sudo systemctl stop api")


@pytest.fixture(scope="module")
def both(golden: Vm, first_up: str, odd: Vm) -> Iterator[tuple[Vm, Vm]]:
    """Two worktrees, up, each with its own page and API at the same addresses."""
    odd.up()
    for vm, name in ((golden, "golden"), (odd, "odd")):
        serve(vm, name)
    yield golden, odd
    for vm in (golden, odd):
        stop_api(vm)
        vm.ok("docker cp index.html $(docker ps -q):/www/index.html")
        vm.cli("untunnel")


@pytest.fixture(scope="module")
def path(lab: Lab) -> str:
    """A PATH on which `vmoat` is the one that is tested."""
    folder = lab.folder / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "vmoat").write_text(f'#!/bin/sh\nexec {shlex.join(lab.home.python)} "$@"\n')
    (folder / "vmoat").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.fixture(params=["mcp", "cdp"])
def drive(request: pytest.FixtureRequest, lab: Lab, path: str) -> Callable[[Vm], Any]:
    """What makes a driver of a worktree's browser."""
    if request.param == "cdp":
        return lambda vm: CdpDriver(vm, CHROMIUM)
    if not devtools.node_is_new_enough():
        pytest.skip(f"{devtools.MCP} wants Node {'.'.join(map(str, devtools.NODE))} and npm")
    server = devtools.install_mcp(lab.folder / "npm")
    return lambda vm: McpDriver(vm, server, path)


def test_two_worktrees_at_once_on_the_same_addresses(
    both: tuple[Vm, Vm], drive: Callable[[Vm], Any]
) -> None:
    """Each shows its own page, its script reaches its own API, and no cookie crosses over."""
    one, two = (drive(vm) for vm in both)
    with devtools.closing(one, two):
        for page, name in ((one, "golden"), (two, "odd")):
            page.open(URL)
            assert f"the page of {name}" in page.text()
            assert "no cookie" in page.text()
            api = f"the api of {name}, asked for /api"
            wait_until(lambda page=page, api=api: page.title() == api, 30)
        one.press("press")
        wait_until(lambda: "pressed" in one.text() and "who=golden" in one.text(), 60)
        two.open(URL)
        assert "no cookie" in two.text()
        two.press("press")
        wait_until(lambda: "who=odd" in two.text(), 10)
        one.open(URL)
        wait_until(lambda: "who=golden" in one.text(), 60)


def test_open_shows_each_worktrees_page_in_its_own_profile(both: tuple[Vm, Vm]) -> None:
    """The user's browser, without its window; it outlives the command and ends with its profile."""
    command = f"{CHROMIUM} --headless=new --remote-debugging-port=0"
    env = {"VMOAT_BROWSER_COMMAND": command, "DISPLAY": ":77"}
    answers = []
    for vm in both:
        done = vm.cli("open", "--json", env=env, timeout=120)
        assert done.returncode == 0, told(done)
        answers.append(json.loads(done.stdout))
    try:
        for answer, name in zip(answers, ("golden", "odd"), strict=True):
            assert answer["url"] == URL
            api = f"the api of {name}, asked for /api"
            wait_until(lambda answer=answer, api=api: api in titles(answer["profile"]), 60)
    finally:
        for answer in answers:
            profiles.end(Path(answer["profile"]))
    wait_until(lambda: not browsers(*(answer["profile"] for answer in answers)), 60)


def titles(profile: str) -> list[str]:
    """What an opened browser's tabs are called; [] where it does not answer yet."""
    try:
        port = (Path(profile) / "DevToolsActivePort").read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=60) as answer:
            return [tab["title"] for tab in json.load(answer)]
    except (OSError, IndexError, ValueError):  # half of it is written
        return []


def browsers(*folders: str) -> list[str]:
    """Command lines of the browsers that use a profile below these folders."""
    marks = [f"--user-data-dir={folder}" for folder in folders]
    return [line for _, line in command_lines() if any(mark in line for mark in marks)]


def test_a_shot_is_a_picture_and_a_report(both: tuple[Vm, Vm], tmp_path: Path, lab: Lab) -> None:
    vm = both[0]
    began = time.monotonic()
    done = vm.cli("shot", "web", "--out", str(tmp_path / "page.png"), timeout=120)
    lab.figure("shot of a page", time.monotonic() - began, "")
    assert done.returncode == 0, told(done)
    picture, text = (Path(line) for line in done.stdout.splitlines())
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    report = json.loads(text.read_text())
    assert report["schema"] == "vmoat.shot/1"
    assert report["title"] == "the api of golden, asked for /api"
    assert (report["status"], report["ok"], report["errors"]) == (200, True, [])


def test_a_page_error_is_exit_1_and_told(both: tuple[Vm, Vm]) -> None:
    """The API is gone: an uncaught exception and a failed request; then the master, which the
    next shot has again."""
    vm = both[0]
    stop_api(vm)
    try:
        done = vm.cli("shot", "/", "--json", timeout=120)
    finally:
        start_api(vm)
    assert done.returncode == 1, told(done)
    report = json.loads(done.stdout)
    assert [row["url"] for row in report["failed_requests"]] == ["http://localhost:9000/api"]
    assert any("Failed to fetch" in row["text"] for row in report["errors"])
    assert "http://localhost:9000/api" in done.stderr
    kill(*vm.masters())
    done = vm.cli("shot", timeout=120)
    assert done.returncode == 0, told(done)


def test_a_shot_that_is_killed_leaves_no_browser(both: tuple[Vm, Vm]) -> None:
    """Of a page that accepts and never answers; the next shot removes its profile."""
    vm = both[0]
    script = vm.worktree / "build" / "silent.pl"
    script.write_text(SILENT)
    vm.ok(f"sudo systemd-run -q -G --unit=silent perl {shlex.quote(str(script))}")
    vm.ok("until bash -c '</dev/tcp/localhost/9001' 2>/dev/null; do sleep 0.2; done")
    folder = profiles_of(vm)
    try:
        process = vm.start("shot", "9001", start_new_session=True)
        wait_until(lambda: len(browsers(str(folder))) >= 3, 60)
        kill(process.pid)
        process.communicate(timeout=60)
        wait_until(lambda: not browsers(str(folder)), 60)
    finally:
        vm.ok("sudo systemctl stop silent")
    assert vm.cli("shot", timeout=120).returncode == 0
    assert not list(folder.glob("shot-*"))


def profiles_of(vm: Vm) -> Path:
    return vm.home.data / "browsers" / vm.vm_id
