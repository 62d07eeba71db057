"""A browser for which localhost is the VM: its arguments, port, profile and pages."""

from __future__ import annotations

import functools
import json
import os
import plistlib
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import World, git
from timing import until

from vmoat import hostfacts, tunnels
from vmoat.browser import argv, find, profiles, proxy, target
from vmoat.browser.evidence import MOST, UNFINISHED, Evidence
from vmoat.browser.shot import is_loopback, told
from vmoat.context import load
from vmoat.errors import Code, VmoatError
from vmoat.forwards import SOCKS

GOLDEN = Path(__file__).parents[1] / "golden"
VM = "0123456789abcdef"


# --- arguments


def test_the_arguments_of_each_browser() -> None:
    """Update with UPDATE_GOLDEN=1 after looking at the difference."""
    profile = Path("/data/browsers/it's mine/window")
    chromium = ["/usr/bin/chromium", "--lang=de"]
    blocks = {
        "open": argv.window(10800, profile, root=False),
        "open, as root": argv.window(10800, profile, root=True),
        "shot": argv.headless(10801, profile, root=False),
        "mcp": argv.devtools_mcp(10802, chromium, root=False, display=True),
        "mcp, without a display, as root": argv.devtools_mcp(
            10802, chromium, root=True, display=False
        ),
        "mcp, macOS": argv.devtools_mcp(
            10802, ["/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"],
            root=False, display=True,
        ),
    }  # fmt: skip
    text = "".join(f"# {name}\n" + "".join(f"{w}\n" for w in words) + "\n"
                   for name, words in blocks.items())  # fmt: skip
    file = GOLDEN / "browser_args.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


def test_what_mcp_prints_survives_a_shell_unquoted() -> None:
    words = argv.devtools_mcp(10802, ["/usr/bin/chromium"], root=True, display=False)
    line = f"set -- $(printf '%s\\n' {' '.join(map(repr, words))}); printf '%s\\n' \"$@\""
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == words


# --- which browser


def program(folder: Path, name: str, text: str = "exit 0") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def test_the_users_own_browser_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find.proc, "which", lambda name: f"/b/{name}" if "hrom" in name else None)
    assert find.command("") == ["/b/google-chrome"]
    monkeypatch.undo()
    mine = program(tmp_path / "a b", "my-chrome")
    assert find.command(f"'{mine}' --lang=de") == [str(mine), "--lang=de"]


def test_without_a_browser_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find.proc, "which", lambda name: None)
    with pytest.raises(VmoatError, match=r"install one .*`browser\.command`") as caught:
        find.command("")
    assert caught.value.code == Code.MISSING
    with pytest.raises(VmoatError, match="`/no/such`") as caught:
        find.command("/no/such --x")
    assert caught.value.code == Code.MISSING
    with pytest.raises(VmoatError) as caught:
        find.command("'unclosed")
    assert caught.value.code == Code.CONFIG


def test_a_mac_has_apps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(find.proc, "which", lambda name: None)
    monkeypatch.setattr(find.sys, "platform", "darwin")
    monkeypatch.setenv("HOME", str(tmp_path))
    app = program(tmp_path / "Applications/Chromium.app/Contents/MacOS", "Chromium")
    assert find.command("") == [str(app)]
    assert find.has_display({}, "darwin")
    assert not find.has_display({}, "linux")
    assert find.has_display({"WAYLAND_DISPLAY": "wayland-0"}, "linux")


def test_a_browser_tells_its_name_where_that_is_cheap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a person set may be anything: it is not started."""
    told = program(tmp_path, "chromium", "echo Chromium 140.0.7339.80 built on Debian 12 bookworm")
    monkeypatch.setattr(find.proc, "which", lambda name: str(told))
    monkeypatch.setattr(find, "VERSION_LIMIT", 60)
    assert find.name("") == "Chromium 140.0.7339.80"
    assert hostfacts.browser(f"{told} --x") == (str(told), "")
    broken = program(tmp_path, "chromium", "exit 1")
    assert hostfacts.browser("") == (str(broken), "")
    monkeypatch.setattr(find, "VERSION_LIMIT", 0.2)
    slow = program(tmp_path, "chromium", "exec sleep 60")
    assert find.name("") == str(slow)
    monkeypatch.setattr(find, "snap", lambda name: "chromium")
    program(tmp_path, "chromium", f"touch {tmp_path}/started")
    assert find.name("") == str(told)
    assert not (tmp_path / "started").exists()
    monkeypatch.setattr(find.proc, "which", lambda name: None)
    assert hostfacts.browser("") == ("", "")
    assert "`/no/such` of browser.command" in hostfacts.browser("/no/such")[1]


def test_a_macs_app_tells_its_version_without_a_start(tmp_path: Path) -> None:
    app = program(tmp_path / "Chromium.app/Contents/MacOS", "Chromium", f"touch {tmp_path}/started")
    assert find.name(shlex.quote(str(app))) == str(app)
    info = {"CFBundleName": "Chromium", "CFBundleShortVersionString": "140.0"}
    (tmp_path / "Chromium.app/Contents/Info.plist").write_bytes(plistlib.dumps(info))
    assert find.name(shlex.quote(str(app))) == "Chromium 140.0"
    assert not (tmp_path / "started").exists()


def test_a_branch_cannot_name_a_program_of_the_host(world: World) -> None:
    (world.tree / "vmoat.local.toml").write_text('[browser]\ncommand = "sh -c evil"\n')
    done = world.vmoat("browser-args", code=3)
    assert "browser.command" in done.stderr
    assert "vmoat trust" in done.stderr


# --- profiles


def test_profiles_are_private_and_one_a_vm(homes: Path) -> None:
    mine = profiles.window(VM, ["/usr/bin/chromium"])
    other = profiles.window("f" * 16, ["/usr/bin/chromium"])
    assert mine != other
    assert stat.S_IMODE(mine.parent.stat().st_mode) == 0o700


def test_a_snaps_profile_is_where_a_snap_may_write(
    homes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(homes))
    monkeypatch.setattr(profiles.os.path, "realpath", lambda name: "/usr/bin/snap")
    place = profiles.home(VM, ["/snap/bin/chromium"])
    assert place == homes / "snap/chromium/common/vmoat" / VM
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(homes))
    profiles.remove(VM)
    assert not place.exists()


def test_a_throwaway_profile_goes_and_takes_those_of_the_killed_along(homes: Path) -> None:
    code = (
        "import os, sys; from vmoat.browser import profiles\n"
        f"with profiles.throwaway({VM!r}, ['chromium']) as p:\n"
        "    (p / 'Default').mkdir(); print(p, flush=True); sys.stdin.read()\n"
    )
    killed, lives = (
        subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
        for _ in range(2)
    )
    left, kept = (Path(p.stdout.readline().strip()) for p in (killed, lives))  # type: ignore[union-attr]
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert left.is_dir()
    with profiles.throwaway(VM, ["chromium"]) as mine:
        assert mine.is_dir()
        assert not left.exists()
        assert kept.is_dir(), "its maker still works"
    assert not mine.exists()
    lives.communicate("")
    assert os.listdir(profiles.home(VM, ["chromium"])) == []


def test_destroy_ends_the_browser_of_this_profile_only(homes: Path) -> None:
    profile = profiles.window(VM, ["chromium"])
    profile.mkdir()
    held = f"import time; time.sleep(60)  # --user-data-dir={profile}"
    mine = subprocess.Popen([sys.executable, "-c", held])
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (profile / "SingletonLock").symlink_to(f"host-{other.pid}")
        assert profiles.owner(profile) == 0, "the number went to another program"
        (profile / "SingletonLock").unlink()
        (profile / "SingletonLock").symlink_to(f"host-{mine.pid}")
        assert profiles.owner(profile) == mine.pid
        threading.Thread(target=mine.wait, daemon=True).start()  # no zombie is left to look at
        profiles.remove(VM)
        assert mine.wait(60) == -signal.SIGTERM
        assert other.poll() is None
        assert not profile.parent.exists()
    finally:
        for process in (mine, other):
            process.kill()
            process.wait()


# --- the port


def test_the_port_is_given_out_before_the_vm_runs_and_stays(world: World) -> None:
    first = world.vmoat("browser-args")
    assert "its port answers after `vmoat up`" in first.stderr
    port = proxy.recorded(world.context())
    assert port in proxy.PORTS
    assert f"--proxy-server=socks5://127.0.0.1:{port}" in first.stdout.splitlines()
    assert "--proxy-bypass-list=<-loopback>" in first.stdout.splitlines()
    world.vmoat("up")
    assert world.vmoat("browser-args").stdout == first.stdout
    assert world.context().guest.forwards() == {port: SOCKS}
    world.vmoat("untunnel")
    assert proxy.recorded(world.context()) == 0
    assert world.vmoat("browser-args").stdout == first.stdout, "the same one next time"


def test_the_port_is_no_tunnel_and_told_by_status(world: World) -> None:
    world.vmoat("up")
    args = json.loads(world.vmoat("browser-args", "--json").stdout)
    assert args["schema"] == "vmoat.browser-args/1"
    report = json.loads(world.vmoat("status", "--json").stdout)
    assert report["tunnels"] == []
    assert report["waiting"] == []
    assert report["browser"] == args["proxy"]
    assert args["proxy"] in world.vmoat("status").stdout
    world.vmoat("down")
    assert json.loads(world.vmoat("status", "--json").stdout)["waiting"] == []


def test_two_worktrees_never_get_one_port(world: World) -> None:
    world.vmoat("browser-args")
    mine = proxy.recorded(world.context())
    other = world.root / "other"
    subprocess.run(
        ["git", "-C", world.repo, "worktree", "add", "-q", "-b", "other", other], check=True
    )
    world.vmoat("browser-args", cwd=other)
    found = load(other).instance.folder / "forwards.json"
    (port,) = json.loads(found.read_text())
    assert int(port) not in (mine, 0)


def test_a_window_that_is_open_keeps_its_port_after_untunnel(world: World) -> None:
    """Nobody else may get it: the window would show another worktree's pages."""
    world.vmoat("browser-args")
    mine = proxy.recorded(world.context())
    world.vmoat("untunnel")
    other = world.root / "other"
    git(world.repo, "worktree", "add", "-q", "-b", "other", str(other))
    world.vmoat("browser-args", cwd=other)
    (port,) = json.loads((load(other).instance.folder / "forwards.json").read_text())
    assert int(port) not in (mine, 0)
    world.vmoat("browser-args")
    assert proxy.recorded(world.context()) == mine


def fork(act: Callable[[], object]) -> int:
    """A process that does this and ends, with 0 where it went well; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        act()
        code = 0
    finally:
        os._exit(code)


def test_worktrees_that_choose_at_once_get_a_port_each(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All want the same first: their ids do not tell them apart here."""
    trees = [world.tree, *(world.root / name for name in ("b", "c", "d"))]
    for tree in trees[1:]:
        git(world.repo, "worktree", "add", "-q", "-b", tree.name, str(tree))
    contexts = [load(tree) for tree in trees]
    monkeypatch.setattr(proxy, "_from", lambda vm_id: list(proxy.PORTS))
    children = [fork(functools.partial(proxy.port, ctx)) for ctx in contexts]
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * len(children)
    assert len({proxy.recorded(ctx) for ctx in contexts} - {0}) == len(contexts)


def test_a_destroyed_vms_port_is_not_the_next_ones() -> None:
    """An agent's browser that outlived its VM shows no other VM's pages."""
    firsts = {proxy._from(f"{number:016x}")[0] for number in range(20)}
    assert len(firsts) > 15
    assert sorted(proxy._from("x")) == list(proxy.PORTS)


def test_a_damaged_record_of_another_vm_stops_nobody(world: World) -> None:
    other = world.context().instance.folder.parent / "wt-other"
    other.mkdir()
    (other / "ports.toml").write_text('socks = "many"\n')
    assert world.vmoat("browser-args").stdout


def test_a_port_that_somebody_else_took_is_changed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.work()
    ctx = world.context()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        first = taken.getsockname()[1]
        monkeypatch.setattr(proxy, "PORTS", range(first, first + 20))
        with tunnels.kept(ctx).change() as table:
            table[first] = SOCKS
        world.set("taken", str(first))
        second = proxy.port(ctx)
    assert second in set(proxy.PORTS) - {first}
    assert tunnels.kept(ctx).read() == {second: SOCKS}


# --- which page


@pytest.fixture
def running(world: World) -> World:
    ctx = world.context()
    ctx.driver.create(ctx.spec, print)
    ctx.driver.start(ctx.spec, print)
    listed = [
        {"name": "web", "ports": [[8088, 80]]},
        {"name": "secure", "ports": [[9443, 443]]},
        {"name": "db", "ports": [[5432, 5432]]},
        {"name": "job"},
    ]
    world.set("containers", json.dumps(listed))
    return world


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (None, "http://localhost:8080/"),  # the health URL's
        ("/login?x=1", "http://localhost:8080/login?x=1"),
        ("web", "http://localhost:8088/"),
        ("secure", "https://localhost:9443/"),
        ("9000", "http://localhost:9000/"),
        ("80", "http://localhost/"),
        ("443", "https://localhost/"),
        ("localhost:3000", "http://localhost:3000/"),
        ("localhost/x", "http://localhost/x"),
        ("app.test:81/a", "http://app.test:81/a"),
        ("https://example.org/a b", "https://example.org/a b"),
    ],
)
def test_the_page_that_is_meant(running: World, said: str | None, meant: str) -> None:
    assert target.url_of(running.context(), said) == meant


@pytest.mark.parametrize("said", [
    "nope", "job", "file:///etc/passwd", "70000", "http://", "https://:8080/", "http://a b/",
    "http://localhost:99999/", "localhost:99999", "http://[::1/", "http://localhost/\n", "/a\x1b[m",
    "javascript:alert(1)", "localhost:0", "", " ", "web app", "ftp://x/", "data:text/html,x",
    "view-source:http://localhost/", "about:blank", "²", "-web", "localhost/\n", "http://x/\x9b",
])
def test_a_page_that_cannot_be(running: World, said: str) -> None:
    with pytest.raises(VmoatError) as caught:
        target.url_of(running.context(), said)
    assert caught.value.code == Code.USAGE
    if said in ("nope", "job"):
        assert "db, secure, web" in caught.value.hint


@pytest.mark.parametrize("command", ["open", "shot"])
@pytest.mark.parametrize("said", ["", "http://", "ftp://x", "javascript:alert(1)", "a b", "9\n"])
def test_what_is_no_page_is_told_before_a_vm_is_asked(
    world: World, command: str, said: str
) -> None:
    """Nothing is started for it: there is no VM, no browser and no display here."""
    done = world.vmoat(command, said, code=2)
    assert "name a service, a port, a /path or a URL" in done.stderr
    assert world.events() == []


def test_without_a_health_url_it_is_the_first_that_speaks_http(
    running: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMOAT_HEALTH_URL", "")
    assert target.url_of(running.context(), None) == "http://localhost:5432/", "nobody speaks"
    monkeypatch.setattr(target, "_speaks_http", lambda ctx, port: port == 8088)
    assert target.url_of(running.context(), None) == "http://localhost:8088/"


# --- open


def test_open_starts_a_browser_of_this_worktree_and_returns(
    running: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = running.root / "seen"
    text = f'printf "%s\\n" "$@" >{seen}.new; mv {seen}.new {seen}; sleep 3'
    browser = program(running.root, "browser", text)
    monkeypatch.setenv("VMOAT_BROWSER_COMMAND", f"{browser} --lang=de")
    monkeypatch.setenv("DISPLAY", ":77")
    done = running.vmoat("open", "web")
    assert done.stdout == "http://localhost:8088/\n"
    until(seen.exists)
    words = seen.read_text().splitlines()
    profile = profiles.window(running.context().instance.vm_id, [str(browser)])
    assert (words[0], words[-1]) == ("--lang=de", "http://localhost:8088/")
    assert f"--user-data-dir={profile}" in words
    assert ("--no-sandbox" in words) == (os.geteuid() == 0)
    answer = json.loads(running.vmoat("open", "--json", "9000").stdout)
    assert (answer["schema"], answer["url"]) == ("vmoat.open/1", "http://localhost:9000/")


def test_a_window_with_another_port_is_opened_anew(
    running: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = program(running.root, "browser", "sleep 3")
    monkeypatch.setenv("VMOAT_BROWSER_COMMAND", str(browser))
    monkeypatch.setenv("DISPLAY", ":77")
    profile = profiles.window(running.context().instance.vm_id, [str(browser)])
    profile.mkdir()
    port = proxy.port(running.context())
    for proxy_port, stays in ((port, True), (port + 1, False)):
        words = f"--user-data-dir={profile} --proxy-server=socks5://127.0.0.1:{proxy_port}"
        window = subprocess.Popen(["sh", "-c", "sleep 60; :", *words.split()])
        (profile / "SingletonLock").unlink(missing_ok=True)
        (profile / "SingletonLock").symlink_to(f"host-{window.pid}")
        threading.Thread(target=window.wait, daemon=True).start()
        said = running.vmoat("open", "9000").stderr
        assert ("opened anew" in said) is not stays
        if stays:
            assert window.poll() is None
        else:
            until(lambda window=window: window.poll() is not None)  # type: ignore[misc]
        window.kill()
        window.wait()


def test_open_without_a_display_names_what_works_without(
    running: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMOAT_BROWSER_COMMAND", str(program(running.root, "browser")))
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    done = running.vmoat("open", code=4)
    assert "`vmoat shot`" in done.stderr
    assert "`vmoat tunnel`" in done.stderr


def test_a_browser_that_does_not_start_is_told_with_its_last_words(
    running: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = program(running.root, "browser", "echo libnss3.so: not found >&2; exit 127")
    monkeypatch.setenv("VMOAT_BROWSER_COMMAND", str(broken))
    monkeypatch.setenv("DISPLAY", ":77")
    assert "libnss3.so: not found" in running.vmoat("open", code=4).stderr
    assert "libnss3.so: not found" in running.vmoat("shot", code=4).stderr


def test_destroy_removes_the_profiles(running: World, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = profiles.window(running.context().instance.vm_id, ["chromium"])
    (profile / "Default").mkdir(parents=True)
    running.vmoat("destroy", "-f")
    assert not profile.parent.exists()


# --- what a page did


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def gathered(*events: tuple[str, dict[str, object]], clock: Clock | None = None) -> Evidence:
    found = Evidence(clock or Clock())
    found.frame, found.session = "F", "S"
    for method, params in events:
        found.take(method, params, "S")
    return found


def began(
    number: str, url: str = "http://localhost/x", kind: str = "Fetch"
) -> tuple[str, dict[str, object]]:
    return "Network.requestWillBeSent", {
        "requestId": number, "type": kind, "request": {"url": url, "method": "GET"},
    }  # fmt: skip


def answered(number: str, status: int, kind: str = "Fetch") -> tuple[str, dict[str, object]]:
    return "Network.responseReceived", {
        "requestId": number, "type": kind, "frameId": "F",
        "response": {"status": status, "url": "http://localhost/x"},
    }  # fmt: skip


def test_a_good_page_is_clean() -> None:
    found = gathered(
        began("1", kind="Document"), answered("1", 200, "Document"),
        ("Network.loadingFinished", {"requestId": "1"}),
        ("Runtime.consoleAPICalled", {"type": "log", "args": [{"value": "hello"}]}),
        ("Page.loadEventFired", {}),
    )  # fmt: skip
    assert (found.clean, found.loaded, found.status) == (True, True, 200)


def test_exceptions_and_console_errors_are_kept_with_their_place() -> None:
    thrown = {"text": "Uncaught", "url": "http://localhost/a.js", "lineNumber": 6,
              "exception": {"subtype": "error", "description": "Error: no\n    at a.js"},
    }  # fmt: skip
    logged = {"type": "error", "args": [{"value": "count"}, {"value": 3}, {"type": "undefined"}],
              "stackTrace": {"callFrames": [{"url": "http://localhost/b.js", "lineNumber": 0}]},
    }  # fmt: skip
    found = gathered(
        ("Runtime.exceptionThrown", {"exceptionDetails": thrown}),
        ("Runtime.consoleAPICalled", logged),
        ("Log.entryAdded", {"entry": {"level": "error", "source": "security", "text": "CSP"}}),
        ("Log.entryAdded", {"entry": {"level": "error", "source": "network", "text": "404"}}),
        ("Log.entryAdded", {"entry": {"level": "warning", "source": "other", "text": "old"}}),
    )
    assert [
        (e["kind"], e["text"].splitlines()[0], e["url"][-4:], e["line"]) for e in found.errors
    ] == [
        ("exception", "Error: no", "a.js", 7),
        ("console", "count 3 undefined", "b.js", 1),
        ("log", "CSP", "", 0),
    ]


def test_failed_requests_are_told_once_and_given_up_ones_not() -> None:
    found = gathered(
        began("1"), answered("1", 500),
        ("Network.loadingFailed", {"requestId": "1", "errorText": "net::ERR_ABORTED"}),
        began("2", "http://localhost:9/api"),
        ("Network.loadingFailed", {"requestId": "2", "errorText": "net::ERR_FAILED",
                                   "corsErrorStatus": {"corsError": "MissingAllowOriginHeader"}}),
        began("3"), ("Network.loadingFailed", {"requestId": "3", "canceled": True}),
        began("4", "http://localhost/favicon.ico", "Other"), answered("4", 404),
    )  # fmt: skip
    assert [(r["url"], r["status"], r["error"]) for r in found.failed_requests] == [
        ("http://localhost/x", 500, ""),
        ("http://localhost:9/api", None, "net::ERR_FAILED (MissingAllowOriginHeader)"),
    ]


def test_the_network_is_quiet_when_nothing_is_under_way() -> None:
    clock = Clock()
    found = gathered(began("1"), began("2", kind="EventSource"), clock=clock)
    clock.now += 5
    assert found.quiet_for() == 0
    found.take("Network.loadingFinished", {"requestId": "1"}, "S")
    clock.now += 2
    assert found.quiet_for() == 2, "a stream of events may stay open"


def test_only_the_pages_own_load_counts() -> None:
    found = gathered(("Page.loadEventFired", {}))
    found.take("Page.frameNavigated", {"frame": {"id": "F"}}, "S")
    found.take("Page.loadEventFired", {}, "a frame of another site")
    assert not found.loaded
    found.take("Page.loadEventFired", {}, "S")
    assert found.loaded


def test_requests_of_a_document_that_was_left_are_not_waited_for() -> None:
    """Chromium says nothing more of them."""
    clock = Clock()
    found = gathered(began("1"), clock=clock)
    number, request = began("2", kind="Document")
    found.take(number, {**request, "loaderId": "new"}, "S")
    found.take("Page.frameNavigated", {"frame": {"id": "F", "loaderId": "new"}}, "S")
    clock.now += 1
    assert found.quiet_for() == 0, "the new one's own is still under way"
    found.take("Network.loadingFinished", {"requestId": "2"}, "S")
    clock.now += 1
    assert found.quiet_for() == 1


def test_a_report_has_a_bound() -> None:
    many = [("Runtime.consoleAPICalled", {"type": "error", "args": [{"value": "x" * 5000}]})]
    found = gathered(*many * (MOST + 7))
    assert (len(found.errors), found.omitted) == (MOST, 7)
    assert len(found.errors[0]["text"]) == 2000


def test_requests_end_where_a_worker_or_a_frame_takes_them_over() -> None:
    """Its script begins in the page's session and ends in the worker's own."""
    clock = Clock()
    found = gathered(began("W", kind="Script"), clock=clock)
    found.take("Network.loadingFinished", {"requestId": "W"}, "the worker")
    clock.now += 3
    assert found.quiet_for() == 3


def test_what_a_page_still_waits_for_is_why_it_was_not_loaded() -> None:
    found = gathered(began("1"), began("2", "http://localhost/live", "EventSource"))
    found.give_up()
    (row,) = found.failed_requests
    assert (row["url"], row["status"], row["error"]) == ("http://localhost/x", None, UNFINISHED)


def test_a_page_whose_process_ended_is_told() -> None:
    found = gathered(("Inspector.targetCrashed", {}))
    assert (found.crashed, [row["kind"] for row in found.errors]) == (True, ["crash"])


def test_a_download_takes_the_place_of_a_load() -> None:
    found = gathered(("Page.downloadWillBegin", {"frameId": "an advertisement"}))
    assert not found.loaded
    found.take("Page.downloadWillBegin", {"frameId": "F"}, "S")
    assert found.loaded


@pytest.mark.parametrize(
    ("wrote", "plain"),
    [
        ("a\x1b[31mred\x1b[0m", "ared"),
        ("\r[vmoat] all is well", "[vmoat] all is well"),
        ("one\rtwo\n\n three", "one\ntwo\n\n three"),
        ("\n\n  late", "late"),
        ("up\x9b2J \u202eback \ud800", "up·2J ·back ·"),
    ],
)
def test_what_a_page_writes_moves_no_cursor(wrote: str, plain: str) -> None:
    event = "Runtime.consoleAPICalled", {"type": "error", "args": [{"value": wrote}]}
    (row,) = gathered(event).errors
    assert row["text"] == plain


def test_which_addresses_are_the_vm_itself() -> None:
    """Of these alone a certificate that nobody signed is taken."""
    vm = ["https://localhost:8443/", "https://app.localhost/", "https://127.9.0.1/", "https://[::1]/"]
    others = ["https://example.org/", "https://localhost.example.org/", "https://10.0.0.1/", "x"]
    assert all(map(is_loopback, vm))
    assert not any(map(is_loopback, others))


def a_report(**given: object) -> dict[str, object]:
    return {
        "url": "http://localhost/", "final_url": "", "title": "a", "status": None, "seconds": 1.2,
        "loaded": True, "certificate": "", "omitted": 0, "errors": [], "failed_requests": [],
        "files": {"json": "x.json", "png": "x.png"}, **given,
    }  # fmt: skip


def test_a_report_is_told_in_a_line_each() -> None:
    report = a_report(
        title="a\n[vmoat] b", loaded=False, files={}, certificate="ERR_CERT_DATE_INVALID",
        errors=[{"kind": "console", "text": "one\ntwo", "url": "", "line": 0}],
        failed_requests=[{"method": "GET", "url": "u", "status": 404, "error": ""}],
    )  # fmt: skip
    assert told(report) == [
        "http://localhost/ “a”: no answer, 1.2 s",
        "  was not loaded in time",
        "  a browser would warn of its certificate: ERR_CERT_DATE_INVALID",
        "  there is no picture: the page did not let one be taken",
        "  console: one",
        "  request: GET u: 404",
    ]


def test_what_is_told_has_a_bound() -> None:
    error = {"kind": "console", "text": "x" * 2000, "url": "", "line": 0}
    rows = told(a_report(errors=[error] * 50, omitted=7))
    assert len(rows) == 22
    assert rows[-1] == "  and 37 more"
    assert max(map(len, rows)) == 400
