"""Never more VMs than fit into the memory that they may have: the others wait their turn."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import fakes
import pytest
from conftest import World, git
from timing import LIMIT, until

from vmoat import locks
from vmoat.errors import VmoatError
from vmoat.fleet import admission, sleep, tickets, use
from vmoat.state import VmLock, current_run


class Fleet:
    """Worktrees of one repository, a VM of 1 GiB each; two of them fit."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.started: list[subprocess.Popen[str]] = []

    def worktree(self, name: str) -> Path:
        folder = self.world.root / name
        git(self.world.repo, "worktree", "add", "-q", "-b", name, str(folder))
        return folder

    def start(self, folder: Path, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self.world.argv(*words), cwd=folder, stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.started.append(process)
        return process

    def run(self, folder: Path, *words: str, code: int = 0) -> str:
        done = self.world.vmoat(*words, cwd=folder, code=code)
        return done.stdout + done.stderr

    def full(self) -> tuple[Path, Path]:
        """Worktrees `a` and `b`, whose VMs run and have all the room."""
        a, b = (self.worktree(name) for name in ("a", "b"))
        self.run(a, "up")
        self.run(b, "up")
        return a, b

    def said(self, name: str) -> str:
        """All that the last run of a VM said: who follows it late may see only its end."""
        log = current_run(fakes.paths.vm_dir(name))
        assert log is not None
        return "\n".join(event.get("text", "") for event in log.events())

    def runs(self) -> set[str]:
        """The VMs that run, by the machine itself."""
        return {file.parent.name for file in (fakes.place("x").parent).glob("*/boot")}


@pytest.fixture
def fleet(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.setenv("VMOAT_VM_MEMORY", "1")
    monkeypatch.setenv("VMOAT_FLEET_MEMORY", "2")
    found = Fleet(world)
    yield found
    for process in found.started:
        process.kill()
        process.communicate()
    for file in tickets.living():  # the workers of a test that failed
        _kill(file.name[9:])


def _kill(name: str) -> None:
    holder = VmLock(fakes.paths.vm_dir(name)).holder()
    if holder:
        os.kill(holder, signal.SIGKILL)


def test_five_at_once_where_two_fit(fleet: Fleet) -> None:
    """Two run, three wait; each gets its turn in the order of asking, and all end well."""
    folders = [fleet.worktree(f"w{number}") for number in range(5)]
    ups = {f"wt-{folder.name}": fleet.start(folder, "up") for folder in folders}
    most: set[int] = set()

    def watch() -> None:
        running = fleet.runs()
        most.add(len(running))

    def settled() -> bool:
        watch()
        return len(fleet.runs()) == 2 and len(tickets.waiting()) == 3

    until(settled)
    queue = tickets.waiting()
    assert set(queue) | fleet.runs() == set(ups)
    for expected in queue:
        goes = sorted(fleet.runs())[0]
        assert ups[goes].wait(LIMIT) == 0
        fleet.run(fleet.world.root / goes.removeprefix("wt-"), "down")
        until(lambda name=expected: watch() or name in fleet.runs())  # type: ignore[misc]
    assert [process.wait(LIMIT) for process in ups.values()] == [0] * 5
    assert tickets.waiting() == []
    assert max(most) == 2
    said = ups[queue[0]].communicate()[1]
    assert f"waiting for room: {queue[0]} needs 1 GiB, and 0 of the 2 GiB" in said
    assert "there is room, after" in said


def test_a_large_one_is_not_overtaken_by_small_ones(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = fleet.full()
    large = fleet.worktree("large")
    small = fleet.worktree("small")
    monkeypatch.setenv("VMOAT_VM_MEMORY", "2")
    fleet.start(large, "up", "--detach").wait(LIMIT)
    until(lambda: tickets.waiting() == ["wt-large"])
    monkeypatch.setenv("VMOAT_VM_MEMORY", "1")
    fleet.start(small, "up", "--detach").wait(LIMIT)
    until(lambda: tickets.waiting() == ["wt-large", "wt-small"])
    fleet.run(a, "down")
    time.sleep(3 * admission.POLL)
    assert fleet.runs() == {"wt-b"}, "there is room for the small one, but it came later"
    fleet.run(b, "down")
    until(lambda: fleet.runs() == {"wt-large"})
    fleet.run(large, "wait")
    assert tickets.waiting() == ["wt-small"]
    fleet.run(large, "down")
    fleet.run(small, "wait")
    assert fleet.runs() == {"wt-small"}


def test_a_killed_waiter_leaves_the_queue(fleet: Fleet) -> None:
    a, _ = fleet.full()
    dead = fleet.worktree("dead")
    next_ = fleet.worktree("next")
    fleet.run(dead, "up", "--detach")
    until(lambda: tickets.waiting() == ["wt-dead"])
    fleet.run(next_, "up", "--detach")
    until(lambda: tickets.waiting() == ["wt-dead", "wt-next"])
    _kill("wt-dead")
    fleet.run(a, "down")
    fleet.run(next_, "wait")
    assert fleet.runs() == {"wt-b", "wt-next"}
    assert "killed" in fleet.run(dead, "wait", code=5)


def test_a_waiter_that_is_cancelled_leaves_the_queue(fleet: Fleet) -> None:
    fleet.full()
    third = fleet.worktree("third")
    up = fleet.start(third, "up")
    until(lambda: tickets.waiting() == ["wt-third"])
    fleet.run(third, "down")
    assert up.wait(LIMIT) == 130
    assert tickets.waiting() == []


def test_a_watcher_sees_what_is_waited_for_and_its_time_limit_holds(fleet: Fleet) -> None:
    a, _ = fleet.full()
    third = fleet.worktree("third")
    for limit in ("3", "30"):  # until it has come to its waiting
        done = fleet.world.vmoat("up", "--json", "--timeout", limit, cwd=third, code=6)
        events = [json.loads(line) for line in done.stdout.splitlines()]
        lines = [event["text"] for event in events if event.get("event") == "line"]
        if lines:
            break
    assert any(line.startswith("waiting for room: ") for line in lines), lines
    assert any(line.startswith("wt-a runs, ") and "(1 GiB)" in line for line in lines), lines
    fleet.run(a, "down")
    fleet.run(third, "wait")
    assert "there is room, after" in fleet.said("wt-third")


def test_no_wait_ends_with_7_and_names_what_runs(fleet: Fleet) -> None:
    a, _ = fleet.full()
    third = fleet.worktree("third")
    said = fleet.run(third, "up", "--no-wait", code=7)
    assert "wt-third needs 1 GiB, and 0 of the 2 GiB" in said
    assert "wt-a runs" in said
    assert "wt-b runs" in said
    assert tickets.waiting() == []
    fleet.run(third, "up", "--detach")
    until(lambda: tickets.waiting() == ["wt-third"])
    assert "it waits for room" in fleet.run(third, "status")
    assert "waits for room already" in fleet.run(third, "up", "--no-wait", code=7)
    fleet.run(third, "down")
    fleet.run(a, "down")
    fleet.run(third, "up", "--no-wait")


def test_larger_than_the_limit_is_an_error_at_once(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMOAT_VM_MEMORY", "3")
    said = fleet.run(fleet.worktree("a"), "up", code=3)
    assert "needs 3 GiB, more than all VMs may have together (2 GiB)" in said
    assert "[fleet] memory" in said


def test_a_start_that_fails_gives_its_room_back(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, broken, next_ = (fleet.worktree(name) for name in ("a", "b", "broken", "next"))
    fleet.run(a, "up")
    fleet.run(broken, "name")
    fakes.place("wt-broken").joinpath("no-start").touch()
    fleet.run(broken, "up", code=5)
    fleet.run(b, "up", "--no-wait")
    fleet.run(a, "down")
    fakes.place("wt-next").joinpath("die").write_text("vm middle")
    fleet.run(next_, "up", code=5)
    assert admission.taken() == [admission.Taken("wt-b", 1.0, starts=False)]


def test_a_restart_keeps_its_room(fleet: Fleet) -> None:
    a, _ = fleet.full()
    third = fleet.worktree("third")
    fleet.run(third, "up", "--detach")
    until(lambda: tickets.waiting() == ["wt-third"])
    fleet.run(a, "up", "--force", "vm")
    assert fleet.runs() == {"wt-a", "wt-b"}
    fleet.run(third, "down")


def test_one_that_grows_waits_for_the_rest(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = fleet.full()
    monkeypatch.setenv("VMOAT_VM_MEMORY", "2")
    fleet.run(a, "up", "--detach")
    until(lambda: tickets.waiting() == ["wt-a"])
    fleet.run(b, "down")
    fleet.run(a, "wait")
    assert admission.taken() == [admission.Taken("wt-a", 2.0, starts=False)]


def test_one_that_grows_waits_though_its_record_is_lost(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = fleet.full()
    (fakes.paths.vm_dir("wt-a") / "stages.toml").unlink()
    monkeypatch.setenv("VMOAT_VM_MEMORY", "2")
    fleet.run(a, "up", "--detach")
    # It is ended while it waits: two that grow would wait for each other.
    until(lambda: tickets.waiting() == ["wt-a"] and fleet.runs() == {"wt-b"})
    fleet.run(b, "down")
    fleet.run(a, "wait")
    assert "its memory changed: 1 → 2: the VM is restarted" in fleet.said("wt-a")
    assert admission.taken() == [admission.Taken("wt-a", 2.0, starts=False)]


def test_one_that_grows_and_will_not_wait_goes_on_with_what_it_has(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = fleet.full()
    monkeypatch.setenv("VMOAT_VM_MEMORY", "2")
    said = fleet.run(a, "up", "--no-wait", code=7)
    assert "wt-a needs 2 GiB, and 1 of the 2 GiB" in said
    monkeypatch.setenv("VMOAT_VM_MEMORY", "3")
    assert "more than all VMs may have" in fleet.run(a, "up", code=3)
    assert fleet.runs() == {"wt-a", "wt-b"}, "nothing was ended for a start that cannot be"
    assert tickets.waiting() == []
    assert admission.taken() == [
        admission.Taken(name, 1.0, starts=False) for name in ("wt-a", "wt-b")
    ]


def test_one_that_grows_has_an_idle_one_stopped_before_it_is_ended(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = fleet.full()
    os.utime(fakes.paths.vm_dir("wt-b") / use.MARK, (time.time() - 600,) * 2)
    monkeypatch.setenv("VMOAT_FLEET_EVICT", "idle")
    monkeypatch.setenv("VMOAT_VM_MEMORY", "2")
    said = fleet.run(a, "up", "--no-wait")
    assert said.index("wt-b is stopped: nobody uses it") < said.index("the VM is restarted")
    assert admission.taken() == [admission.Taken("wt-a", 2.0, starts=False)]


def test_two_that_grow_at_once_come_up_one_after_the_other(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither waits for what the other has; the first to ask is the first to have it."""
    a, b, other = (fleet.worktree(name) for name in ("a", "b", "other"))
    monkeypatch.setenv("VMOAT_FLEET_MEMORY", "3")
    for folder in (a, b, other):
        fleet.run(folder, "up")
    monkeypatch.setenv("VMOAT_VM_MEMORY", "3")
    fleet.run(a, "up", "--detach")
    until(lambda: tickets.waiting() == ["wt-a"])
    fleet.run(b, "up", "--detach")
    until(lambda: tickets.waiting() == ["wt-a", "wt-b"])
    fleet.run(other, "down")
    fleet.run(a, "wait")
    until(lambda: fleet.runs() == {"wt-a"})
    assert tickets.waiting() == ["wt-b"]
    fleet.run(a, "down")
    fleet.run(b, "wait")
    assert admission.taken() == [admission.Taken("wt-b", 3.0, starts=False)]


def test_who_will_not_wait_has_an_idle_one_stopped_all_the_same(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.full()
    third = fleet.worktree("third")
    monkeypatch.setenv("VMOAT_FLEET_EVICT", "idle")
    assert "there is no room" in fleet.run(third, "up", "--no-wait", code=7), "both just used"
    os.utime(fakes.paths.vm_dir("wt-b") / use.MARK, (time.time() - 600,) * 2)
    assert "wt-b is stopped: nobody uses it" in fleet.run(third, "up", "--no-wait")
    assert fleet.runs() == {"wt-a", "wt-third"}


def test_the_longest_idle_one_makes_room_where_that_is_wanted(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, b = fleet.full()
    third = fleet.worktree("third")
    for name, ago in (("wt-a", 300), ("wt-b", 600)):
        os.utime(fakes.paths.vm_dir(name) / use.MARK, (time.time() - ago,) * 2)
    monkeypatch.setenv("VMOAT_FLEET_EVICT", "idle")
    said = fleet.run(third, "up")
    assert "wt-b is stopped: nobody uses it" in said
    assert fleet.runs() == {"wt-a", "wt-third"}
    said = fleet.run(b, "exec", "echo", "again")
    assert "to make room for wt-third: starting it again" in said
    assert "wt-a is stopped" in said
    assert fleet.runs() == {"wt-b", "wt-third"}


def test_nobody_is_stopped_where_that_does_not_make_room_enough(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, large = (fleet.worktree(name) for name in ("a", "b", "large"))
    fleet.run(a, "up")
    fleet.run(b, "up")  # just used
    os.utime(fakes.paths.vm_dir("wt-a") / use.MARK, (time.time() - 300,) * 2)
    monkeypatch.setenv("VMOAT_FLEET_EVICT", "idle")
    monkeypatch.setenv("VMOAT_VM_MEMORY", "2")
    fleet.run(large, "up", "--detach")
    until(lambda: tickets.waiting() == ["wt-large"])
    time.sleep(3 * admission.POLL)
    assert fleet.runs() == {"wt-a", "wt-b"}
    fleet.run(large, "down")


def test_two_that_fit_and_will_not_wait_both_start_at_once(fleet: Fleet) -> None:
    """One that is about to be let in is nobody to wait for."""
    for round_ in range(3):
        folders = [fleet.worktree(f"r{round_}-{number}") for number in range(2)]
        ups = [fleet.start(folder, "up", "--no-wait") for folder in folders]
        assert [up.wait(LIMIT) for up in ups] == [0, 0]
        for folder in folders:
            fleet.run(folder, "down")


# -- what goes wrong on the way --


def test_a_vm_whose_room_file_is_damaged_takes_what_it_was_started_with(fleet: Fleet) -> None:
    fleet.full()
    third = fleet.worktree("third")
    for name, damage in (("wt-a", ""), ("wt-b", "nan")):
        (fakes.paths.vm_dir(name) / admission.ROOM).write_text(damage)
    assert "0 of the 2 GiB" in fleet.run(third, "up", "--no-wait", code=7)


def test_a_vm_that_cannot_be_looked_at_keeps_its_room(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.run(fleet.worktree("a"), "up")

    def broken(self: object, name: str) -> object:
        raise OSError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(fakes.FakeDriver, "status", broken)
        with tickets.turn():
            assert admission.taken(forget=True) == [admission.Taken("wt-a", 1.0, starts=False)]

    def no_more(name: str) -> object:
        raise VmoatError("there is no driver `old`")

    monkeypatch.setattr(admission.drivers, "load", no_more)
    assert not admission.lives("wt-a")


def test_what_else_lies_in_the_queue_is_in_nobody_s_way(fleet: Fleet) -> None:
    queue = tickets.folder() / "queue"
    for name in ("00000001-wt-folder/x", "00000002", "²²²²²²²²-wt-x", "00000003-wt-.."):
        (queue / name).parent.mkdir(parents=True, exist_ok=True)
        (queue / name).write_bytes(b"\0damaged")
    (queue / "00000004-wt-dead").write_bytes(b"\0damaged")  # its waiter was killed
    fleet.run(fleet.worktree("a"), "up", "--no-wait")
    assert tickets.waiting() == []
    assert not (queue / "00000004-wt-dead").exists()


def test_a_full_disk_is_told_and_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this host has no /dev/full")
    with pytest.raises(VmoatError, match="No space left"):
        tickets.Held(full, "1\n")
    assert not locks.held(full)


def test_a_room_file_is_never_empty_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill -9 between two system calls leaves a number."""
    file = tmp_path / "room"
    held = tickets.Held(file, "16\n")
    seen: list[float] = []
    cut = os.ftruncate

    def look(fd: int, length: int) -> None:
        seen.append(float(file.read_text()))
        cut(fd, length)
        seen.append(float(file.read_text()))

    monkeypatch.setattr(os, "ftruncate", look)
    for text in ("8\n", "0.5\n", "12\n"):
        held.write(text)
    held.free()
    assert seen == [8, 8, 0.5, 0.5, 12, 12]


def test_a_limit_that_is_changed_counts_for_those_that_wait(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allow(memory: int) -> None:
        new = user.with_suffix(".new")
        new.write_text(f"[fleet]\nmemory = {memory}\n")
        new.replace(user)

    user = fakes.paths.config_home() / "config.toml"
    user.parent.mkdir(parents=True, exist_ok=True)
    monkeypatch.delenv("VMOAT_FLEET_MEMORY")
    allow(2)
    a, small, large = (fleet.worktree(name) for name in ("a", "small", "large"))
    fleet.run(a, "up")
    monkeypatch.setenv("VMOAT_VM_MEMORY", "2")
    fleet.run(large, "up", "--detach")
    until(lambda: tickets.waiting() == ["wt-large"])
    allow(3)
    fleet.run(large, "wait")
    assert fleet.runs() == {"wt-a", "wt-large"}
    fleet.run(small, "up", "--detach")
    until(lambda: tickets.waiting() == ["wt-small"])
    allow(1)
    until(lambda: tickets.waiting() == [])
    assert "more than all VMs may have together (1 GiB)" in fleet.run(small, "wait", code=3)


def test_where_a_stop_comes_to_nothing_the_next_idle_one_makes_room(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.full()
    third = fleet.worktree("third")
    for name, ago in (("wt-a", 300), ("wt-b", 600)):
        os.utime(fakes.paths.vm_dir(name) / use.MARK, (time.time() - ago,) * 2)
    (fakes.place("wt-b") / "die").write_text("stop start")
    monkeypatch.setenv("VMOAT_FLEET_EVICT", "idle")
    said = fleet.run(third, "up", "--no-wait")
    assert said.index("wt-b is stopped") < said.index("wt-a is stopped")
    assert fleet.runs() == {"wt-b", "wt-third"}


def test_who_has_one_stopped_and_is_killed_leaves_the_room_to_the_next(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.full()
    dead = fleet.worktree("dead")
    next_ = fleet.worktree("next")
    fleet.run(dead, "name")
    os.utime(fakes.paths.vm_dir("wt-b") / use.MARK, (time.time() - 600,) * 2)
    monkeypatch.setenv("VMOAT_FLEET_EVICT", "idle")
    fleet.run(dead, "up", "--detach")
    until(lambda: (fakes.paths.vm_dir("wt-b") / sleep.FILE).exists())
    _kill("wt-dead")
    fleet.run(next_, "up")
    assert {"wt-a", "wt-next"} <= fleet.runs() <= {"wt-a", "wt-next", "wt-dead"}
