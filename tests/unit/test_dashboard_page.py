"""The dashboard in a real browser, on the fake machine: what its user sees and what they press."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chromium import Browser, Page, browser, needed
from conftest import World
from timing import until

from vmoat.dashboard import tickets
from vmoat.dashboard.actions import Actions
from vmoat.dashboard.facts import Facts, bare
from vmoat.dashboard.hub import Hub
from vmoat.dashboard.logs import Source
from vmoat.dashboard.server import Dashboard

pytestmark = needed

CARD = "[data-key=wt-tree]"


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def served(world: World) -> Iterator[Dashboard]:
    """The dashboard of the fake machine."""
    actions = Actions(lambda where, words: world.argv("-C", str(where), *words))
    facts = Facts(actions, world.tree)
    hub = Hub(facts.look)
    server = Dashboard(0, hub, actions, facts.open_log, tickets.redeem)
    thread = threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True)
    thread.start()
    hub.start()
    yield server
    hub.stop()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def page(chrome: Browser, served: Dashboard) -> Iterator[Page]:
    """The page, opened as a user opens it."""
    chrome.events.clear()
    found = chrome.page()
    found.open(served.gate.url)
    found.until("!!document.querySelector('.link.live')")
    yield found
    assert found.problems() == []
    found.open("about:blank")


def stage(name: str) -> str:
    return f"document.querySelector('{CARD} [data-stage={name}]')?.dataset.state"


def test_a_stage_goes_from_running_to_done_without_a_reload(world: World, page: Page) -> None:
    world.vmoat("provision")  # the VM is there, and its card
    go = world.root / "go"
    waits = f'[up]\ncommand = "until [ -e {go} ]; do sleep 0.05; done"\n'
    (world.tree / "vmoat.local.toml").write_text(waits)
    page.until(f"!!document.querySelector('{CARD}')")
    page.js("window.before = true")
    page.click(f"{CARD} [data-verb=up]")
    page.until(f"{stage('stack')} === 'running'")
    assert page.js(f"document.querySelector('{CARD} [data-status]').innerText") == "stack…"
    reason = page.js(f"document.querySelector('{CARD} [data-stage=stack] .reason').innerText")
    assert reason == "never run"
    go.touch()
    page.until(f"{stage('stack')} === 'done'")
    page.until(f"document.querySelector('{CARD} [data-status]').innerText === 'healthy'")
    took = page.js(f"document.querySelector('{CARD} [data-stage=stack] .time').innerText")
    assert took.endswith(" s")
    assert page.js("window.before") is True


def test_a_worktree_without_a_vm_is_brought_up_from_the_page(world: World, page: Page) -> None:
    page.until("document.body.innerText.includes('No worktree has a VM yet')")
    page.click("[aria-label='bring tree up']")
    page.until(f"document.querySelector('{CARD} [data-status]')?.innerText === 'healthy'")


def test_a_failure_says_what_to_do(world: World, page: Page) -> None:
    world.set("fail-stack", "3")
    world.vmoat("up", code=1)
    page.until(f"document.querySelector('{CARD} [data-status]')?.innerText === 'failed'")
    assert page.js(stage("stack")) == "failed"
    said = page.js(f"document.querySelector('{CARD} .failure').innerText")
    assert "stack" in said
    assert "vmoat logs" in said
    assert page.js("document.title") == "(1) vmoat"


def test_the_log_follows_pauses_and_is_filtered_by_stage(world: World, page: Page) -> None:
    world.vmoat("up")
    page.click(f"{CARD} [data-verb=logs]")
    page.until("document.querySelector('.lines').innerText.includes('vmoat up')")
    page.until("document.querySelectorAll('.logs option').length > 2")
    page.js("""(() => { const select = document.querySelector('.logs select');
        select.value = 'apt'; select.dispatchEvent(new Event('change')); })()""")
    page.until("[...document.querySelectorAll('.line b')].every((b) => b.innerText === 'apt')")
    page.click("[data-log=pause]")
    page.until("document.querySelector('[data-log=pause]').innerText.startsWith('Follow')")
    page.js("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
    page.until("!document.querySelector('.logs')")


def test_a_log_that_ended_with_the_vm_is_followed_again(
    world: World, page: Page, served: Dashboard
) -> None:
    world.vmoat("up")
    page.until(f"document.querySelector('{CARD} [data-status]')?.innerText === 'healthy'")
    opened: list[str] = []
    before = served.open_log

    def counted(key: str, name: str) -> Source | None:
        opened.append(name)
        return before(key, name)

    served.open_log = counted
    page.until(f"document.querySelector('{CARD} [data-status]')?.innerText === 'healthy'")
    page.click(f"{CARD} [data-verb=logs]")
    tabs = "[...document.querySelectorAll('[role=tab]')]"
    page.js(f"{tabs}.find((tab) => tab.innerText === 'Stack').click()")
    page.until("document.querySelector('[aria-selected=true]').innerText === 'Stack'")
    world.vmoat("down")
    page.until(f"document.querySelector('{CARD} [data-status]').innerText === 'stopped'")
    before_up = len(opened)
    world.vmoat("up")
    page.until(f"document.querySelector('{CARD} [data-status]').innerText === 'healthy'")
    until(lambda: len(opened) > before_up)
    assert opened[before_up:] == ["stack"]


WIDER = """(() => [...document.querySelectorAll('main, .card, .card *, .bare *, .logs header *')]
  .filter((each) => !each.closest('svg'))
  .filter((each) => each.getBoundingClientRect().right > innerWidth
    || (each.matches('main') && each.scrollWidth > each.clientWidth)
    || each.getBoundingClientRect().right
      > (each.closest('.card')?.getBoundingClientRect().right ?? Infinity))
  .map((each) => each.className || each.tagName).join())()"""
"""What reaches over the window's edge, or over its card's."""


@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_is_too_long_for_the_page(
    chrome: Browser, served: Dashboard, width: int
) -> None:
    """Folders, branches, stages and reasons without a blank in them."""
    long = "x" * 180
    without = {**bare(Path("/home/me", long), long, long), "actions": {}}
    run = {"state": "failed", "code": 1, "message": long, "hint": f"`{long}`", "details": [long]}
    stages = [
        {"name": "n" * 40, "state": "failed", "reason": long, "began": 1.0, "seconds": 7300.0}
    ]
    ended = {"verb": "test", "began": 1.0, "ended": 2.0, "code": 1, "stopped": False}
    card = {
        **without, "key": "wt-long", "name": "wt-long", "state": "running", "reasons": [long],
        "gone": long, "stages": stages, "run": run, "actions": {"test": {**ended, "said": [long]}},
        "urls": [{"service": long, "guest": 80, "url": f"http://localhost:{long}"}],
    }  # fmt: skip
    served.hub._look = lambda: [card, without]
    served.hub.nudge()
    page = chrome.page()
    page.size(width, 800)
    page.open(served.gate.url)
    page.until("document.querySelectorAll('[data-key]').length === 2")
    page.click("[data-verb=logs]")
    page.until("!!document.querySelector('.logs h2')")
    assert page.js(WIDER) == ""
    page.open("about:blank")


def test_a_reload_and_a_second_tab_show_it_still(page: Page, served: Dashboard) -> None:
    page.js("window.before = true")
    for way in ("location.reload()", f"location.href = 'http://127.0.0.1:{served.server_port}/'"):
        page.js(f"window.before = true; {way}")
        page.until("!window.before && !!document.querySelector('.link.live')")
    assert page.js("location.hash") == ""


def test_the_file_that_vmoat_opens_leads_to_the_page(
    page: Page, served: Dashboard, homes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(homes))
    url = tickets.address(served.gate.url_with, ["xdg-open"], {"DISPLAY": ":0"})
    page.js("window.before = true")
    page.open(url)
    page.until("!window.before && !!document.querySelector('.link.live')")
    assert not Path(url.removeprefix("file://")).exists()


def test_the_tests_run_and_what_they_say_is_shown(world: World, page: Page) -> None:
    world.vmoat("up")
    page.click(f"{CARD} [data-verb=test]")
    page.until(f"!!document.querySelector('{CARD} [data-notice=test].good')")
    page.until("document.querySelector('.lines').innerText.trim() !== ''")


def test_a_dashboard_that_ended_is_told_on_its_page(
    page: Page, served: Dashboard, chrome: Browser
) -> None:
    served.hub.stop()
    served.shutdown()
    served.server_close()
    page.until("document.querySelector('.banner')?.innerText.includes('vmoat dashboard')")
    assert page.js("document.querySelector('.link').innerText") == "no answer"
    page.open("about:blank")
    page.until("location.protocol === 'about:'")
    chrome.events.clear()  # the console's words on connections that were refused


@contextmanager
def another_site(content: str) -> Iterator[str]:
    """A page of somebody else, on another port of the loopback."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_another_page_in_the_same_browser_gets_nothing(
    world: World, page: Page, served: Dashboard, chrome: Browser
) -> None:
    """One port away: to the browser the same site, so it sends our cookie along."""
    world.vmoat("up")
    page.until(f"!!document.querySelector('{CARD}')")  # there is something to learn and to stop
    target = f"http://127.0.0.1:{served.server_port}"
    script = f"""
    (async () => {{
      const tries = {{}};
      const get = (name, path, options) =>
        fetch("{target}" + path, {{credentials: "include", ...options}})
          .then(async (r) => tries[name] = [r.status, (await r.text()).length, r.type])
          .catch((error) => tries[name] = "refused");
      await get("read", "/events?page={served.gate.page}");
      await get("blind", "/", {{mode: "no-cors"}});
      await get("act", "/act?page={served.gate.page}", {{method: "POST", mode: "no-cors",
        body: JSON.stringify({{key: "wt-tree", verb: "down"}})}});
      tries.frame = await new Promise((done) => {{
        const frame = document.createElement("iframe");
        frame.onload = () => {{
          try {{ done(frame.contentDocument?.body.innerText ?? "closed"); }}
          catch (error) {{ done("closed"); }}
        }};
        frame.src = "{target}/";
        document.body.append(frame);
      }});
      tries.script = await new Promise((done) => {{
        const element = document.createElement("script");
        element.onload = () => done("loaded"); element.onerror = () => done("refused");
        element.src = "{target}/app.js";
        document.head.append(element);
      }});
      return JSON.stringify(tries);
    }})()"""
    with another_site("<!doctype html><body>mine") as url:
        stranger = chrome.page()
        chrome.events.clear()
        stranger.open(url)
        stranger.until("document.body?.innerText === 'mine'")
        tries = json.loads(stranger.js(script))
        sent, got = stranger.exchanges(target)
        stranger.open("about:blank")
    act = f"/act?page={served.gate.page}"
    assert served.gate.cookie_name in sent[act]["cookie"]  # or it would prove nothing
    assert set(got.values()) == {403}
    assert {f"/events?page={served.gate.page}", "/", act, "/app.js"} <= set(got)
    assert tries == {
        "read": "refused", "blind": [0, 0, "opaque"], "act": [0, 0, "opaque"],
        "frame": "closed", "script": "refused",
    }  # fmt: skip
    assert served.actions.of("wt-tree") == {}
    chrome.events.clear()  # the refusals are in the console, as they should be


def test_without_the_token_the_browser_shows_nothing(
    served: Dashboard, tmp_path: Path, homes: Path
) -> None:
    with browser(tmp_path / "profile") as other:
        stranger = other.page()
        stranger.open(f"http://127.0.0.1:{served.server_port}/")
        stranger.until("location.protocol !== 'about:'")
        assert "vmoat" not in stranger.js("document.documentElement.innerHTML")
