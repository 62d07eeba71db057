"""`up`, watched: two at once, watchers that go away, Ctrl-C, --timeout, --detach, wait."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import World

from vmoat.state import VmLock

UNITS = ("apt", "script", "gen", "stack")


def start(world: World, *words: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        world.argv(*words), cwd=world.tree, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, **options,  # type: ignore[call-overload]
    )  # fmt: skip


def until(world: World, event: str, limit: float = 60) -> None:
    deadline = time.monotonic() + limit
    while event not in world.events():
        assert time.monotonic() < deadline, world.events()
        time.sleep(0.02)


def idle(world: World, limit: float = 60) -> None:
    """Wait until no worker holds the VM."""
    lock = VmLock(world.context().instance.folder)
    deadline = time.monotonic() + limit
    while lock.held():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def once(world: World) -> None:
    counts = {unit: world.ran().count(unit) for unit in UNITS}
    assert counts == dict.fromkeys(UNITS, 1), world.events()


def test_up_and_up_again(world: World) -> None:
    first = world.vmoat("up")
    assert first.stdout == ""
    assert "▸ apt: never run" in first.stderr
    assert "wt-tree is healthy" in first.stderr
    facts = world.place.parent / "ran"
    facts.unlink()
    second = world.vmoat("up")
    assert "up to date, nothing to do" in second.stderr
    assert facts.read_text().count("facts") == 1, "one round trip"
    once(world)


@pytest.mark.parametrize("failing", ["", "script"])
def test_two_at_the_same_instant(world: World, failing: str) -> None:
    """One works, one joins: same exit code, each stage once."""
    world.context()
    if failing:
        world.set(f"fail-{failing}", "4")
    for round_ in range(4):
        world.set("slow", "0.2" if round_ % 2 else "0")
        before = len(world.ran())
        both = [start(world, "up", "--force") for _ in range(2)]
        codes = {p.wait(60) for p in both}
        says = [p.communicate()[1] for p in both]
        assert codes == ({1} if failing else {0}), says
        ran = world.ran()[before:]
        expected = ("apt", "script") if failing else UNITS
        assert {u: ran.count(u) for u in expected} == dict.fromkeys(expected, 1), says


def test_a_late_one_joins(world: World) -> None:
    world.context()
    world.hold()
    first = start(world, "up")
    until(world, "apt")
    second = start(world, "up")
    assert second.stderr is not None
    assert any("joining" in line for line in second.stderr)
    world.go_on()
    assert first.wait(60) == second.wait(60) == 0
    first.communicate()
    second.communicate()
    once(world)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_watcher_that_goes_away_leaves_the_work_going(
    world: World, number: signal.Signals
) -> None:
    world.context()
    world.hold()
    watcher = start(world, "up", start_new_session=True)
    until(world, "apt")
    os.killpg(watcher.pid, number)
    watcher.communicate(timeout=60)
    if number == signal.SIGINT:
        assert watcher.returncode == 130
    world.go_on()
    done = world.vmoat("wait")
    assert done.returncode == 0
    idle(world)
    once(world)


def test_timeout_ends_the_watching_with_6(world: World) -> None:
    world.context()
    world.hold()
    done = world.vmoat("up", "--timeout", "0.5", code=6)
    assert "the work goes on" in done.stderr
    assert world.vmoat("wait", "--timeout", "0.1", code=6)
    world.go_on()
    world.vmoat("wait")
    once(world)


def test_detach_returns_at_once_and_holds_no_pipe(world: World) -> None:
    world.context()
    world.hold()
    world.set("fail-script", "9")
    done = world.vmoat("up", "--detach")  # reads both pipes to their end
    assert "vmoat wait" in done.stderr
    world.go_on()
    failed = world.vmoat("wait", code=1)
    assert "`script` failed with exit code 9" in failed.stderr
    assert "`script` failed" in world.vmoat("wait", code=1).stderr, "also when nothing goes on"


def test_json_is_one_object_a_line(world: World) -> None:
    done = world.vmoat("up", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["event"] == "run_start"
    assert events[-1]["event"] == "run_end"
    assert events[-1]["code"] == 0
    again = json.loads(world.vmoat("up", "--json").stdout)
    assert again["code"] == 0
    assert json.loads(world.vmoat("wait", "--json").stdout)["code"] == 0


def test_an_up_that_asks_for_more_than_the_run_it_joined(world: World) -> None:
    world.context()
    world.set("slow", "0.5")
    first = start(world, "up", "apt")
    until(world, "apt")
    world.vmoat("up")
    assert first.wait(60) == 0
    first.communicate()
    once(world)


def test_up_waits_for_nobody_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """`down` or plain doit hold the VM: exit 7, with who it is."""
    from vmoat import watch
    from vmoat.errors import VmoatError

    ctx = world.context()
    lock = VmLock(ctx.instance.folder)
    assert lock.take()
    monkeypatch.setattr(watch, "START_LIMIT", 0.2)
    with pytest.raises(VmoatError) as caught:
        watch.newer(ctx, "")
    assert caught.value.code == 7
    assert str(os.getpid()) in caught.value.message
    assert caught.value.hint.startswith("`vmoat up` again"), "`vmoat wait` would find no work"
    lock.free()
    assert watch.newer(ctx, "") is None


class Terminal:
    """`vmoat` on a terminal of its own."""

    def __init__(self, world: World, *words: str) -> None:
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.chdir(world.tree)
            argv = world.argv(*words)
            os.execve(argv[0], argv, {**os.environ, "TERM": "xterm"})

    def press(self, key: bytes) -> None:
        os.write(self.fd, key)

    def end(self) -> tuple[int, str]:
        seen = b""
        while True:
            try:
                chunk = os.read(self.fd, 4096)
            except OSError:
                chunk = b""
            if not chunk:
                break
            seen += chunk
        os.close(self.fd)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return code, seen.decode(errors="replace")


@pytest.mark.parametrize("stage", ["apt", "stack"])
def test_ctrl_c_on_a_terminal_cancels_and_up_goes_on_from_there(world: World, stage: str) -> None:
    world.context()
    if stage == "stack":
        world.work("gen", "script", "seed")
    world.hold()
    terminal = Terminal(world, "up")
    until(world, stage)
    terminal.press(b"\x03")
    code, seen = terminal.end()
    assert code == 130, seen
    assert "cancelled" in seen
    idle(world)
    assert f"stopped {stage}" in world.ran()
    world.go_on()
    world.vmoat("up")
    assert world.ran().count(stage) == 2
    assert world.ran().count("boot") == 1


def test_closing_the_terminal_leaves_the_work_going(world: World) -> None:
    world.context()
    world.hold()
    terminal = Terminal(world, "up")
    until(world, "apt")
    os.close(terminal.fd)
    os.waitpid(terminal.pid, 0)
    world.go_on()
    world.vmoat("wait")
    once(world)


def test_nothing_was_ever_started(world: World) -> None:
    assert "nothing was ever started" in world.vmoat("wait").stderr
    assert not list(Path(world.root / "state").glob("vmoat/vms/wt-*")), "asking claims no name"
