"""The table of `vmoat ls` and `vmoat top`, and the commands for several worktrees."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import struct
import sys
import termios
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fcntl import ioctl
from pathlib import Path
from typing import Any

import fakes
import pyte
import pytest
from conftest import World, git, repository
from documents import names
from timing import until

from vmoat import instance, paths, worktree
from vmoat.fleet import table, top
from vmoat.fleet.history import StageRow
from vmoat.fleet.rows import Row, Url

NOW = 1_800_000_000.0
GIB = 1 << 30
ROW = Row(
    name="wt-feature", vm_id="1" * 16, driver="qemu", worktree="/src/shop/worktrees/feature",
    branch="feature/checkout", repository="shop", state="running", health="healthy",
    cpus=4, cpu_seconds=75.0, cpu_percent=12.3, memory_bytes=3 * GIB, memory_size_bytes=8 * GIB,
    disk_bytes=5 * GIB, used_at=NOW - 400,
    urls=(Url("web", 8080, 8080, "http://localhost:8080", True),),
)  # fmt: skip
STOPPED = replace(
    ROW, name="wt-old", worktree="/src/shop/worktrees/old", branch="", state="stopped",
    health="unknown", urls=(), used_at=0.0, worktree_exists=False,
    orphan="the worktree /src/shop/worktrees/old was removed",
)  # fmt: skip
STAGE = StageRow("apt", "running", NOW - 12, 0.0, "never run")
BUSY = replace(ROW, name="wt-busy", state="starting", working=True, stages=(STAGE,), urls=())


def test_a_wide_terminal_shows_everything_in_one_line_each() -> None:
    head, first, second, orphan = table.lines([ROW, STOPPED], 160, NOW)
    assert head.split() == [
        "WORKTREE", "BRANCH", "STATE", "HEALTH", "CPU", "MEMORY", "DISK", "IDLE", "URLS",
    ]  # fmt: skip
    assert first.split() == [
        "/src/shop/worktrees/feature", "feature/checkout", "running", "healthy", "12%",
        "3.0/8", "GiB", "5.0", "GiB", "6", "min", "http://localhost:8080",
    ]  # fmt: skip
    assert second.split()[:4] == ["(/src/shop/worktrees/old)", "–", "stopped", "–"]
    assert orphan == "  ▸ the worktree /src/shop/worktrees/old was removed: `vmoat gc` takes it"


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    long = replace(
        ROW, worktree="/" + "x" * 300 + "/end", branch="b" * 100, reasons=("r" * 300,),
        urls=(ROW.urls * 5),
    )  # fmt: skip
    found = table.lines([ROW, STOPPED, BUSY, long], width, NOW)
    assert max(map(len, found)) <= width
    assert all("running" in line or "sto" in line or "starting" in line
               for line in found if line.startswith(("/", "…")))  # fmt: skip


def test_a_narrow_terminal_keeps_what_tells_worktrees_apart_and_their_urls() -> None:
    found = table.lines([ROW], 80, NOW)
    assert "worktrees/feature" in found[1]
    assert "running" in found[1]
    assert "6 min" in found[1]
    assert found[2] == "  http://localhost:8080 web"


def test_what_goes_on_and_what_is_wrong_stands_below() -> None:
    broken = replace(ROW, state="broken", reasons=("QEMU ended: it was killed, or it failed",))
    failed = StageRow("stack", "failed", NOW, 3.0, "`make up` failed with exit code 2")
    text = "\n".join(table.lines([BUSY, broken, replace(ROW, stages=(failed,))], 100, NOW))
    assert "▸ apt: never run (12 s)" in text
    assert "▸ QEMU ended: it was killed, or it failed" in text
    assert "▸ stack failed: `make up` failed with exit code 2" in text


def test_a_path_moves_no_cursor() -> None:
    evil = replace(ROW, worktree="/src/\x1b[2Jx\nroot", branch="\x07b")
    assert all(line.isprintable() for line in table.lines([evil], 120, NOW))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3600, "1 h"), (47 * 3600, "47 h"),
     (48 * 3600, "2 d")],
)  # fmt: skip
def test_time_spans(seconds: float, text: str) -> None:
    assert table.lasting(seconds) == text


def test_a_frame_of_top_fits_and_counts_what_does_not() -> None:
    many = [replace(ROW, name=f"wt-{n}", cpu_percent=float(n)) for n in range(30)]
    lines = top.frame([STOPPED, *many], 120, 12, NOW, 24 * GIB, table.plain)
    assert len(lines) == 12
    assert (
        "30 of 31 up, memory 90.0 GiB held, 240.0 GiB at most of this machine's 24.0 GiB"
        in (lines[0])
    )
    assert "29%" in lines[3], "the busiest first"
    assert lines[-1] == "… 24 more lines"
    assert "there is no VM" in top.frame([], 80, 24, NOW, GIB, table.plain)[-1]


# --- the commands --------------------------------------------------------------------------------


def test_ls_in_any_folder_in_words_and_in_json(world: World) -> None:
    empty = world.vmoat("ls", cwd=world.root)
    assert (empty.stdout, "there is no VM" in empty.stderr) == ("", True)
    assert json.loads(world.vmoat("ls", "--json", cwd=world.root).stdout) == {
        "schema": "vmoat.ls/1", "vms": [],
    }  # fmt: skip
    world.vmoat("up")
    done = world.vmoat("ls", cwd=world.root)
    row = done.stdout.splitlines()[1].split()
    assert row[:4] == [str(world.tree), "work", "running", "healthy"]
    (vm,) = json.loads(world.vmoat("ls", "--json", cwd=world.root).stdout)["vms"]
    assert (vm["name"], vm["state"], vm["health"]) == ("wt-tree", "running", "healthy")
    assert {stage["name"]: stage["state"] for stage in vm["stages"]}["stack"] == "done"
    assert vm["cpu_percent"] == 0.0
    git(world.repo, "worktree", "remove", "--force", str(world.tree))
    gone = world.vmoat("ls", cwd=world.root)
    assert "was removed" in gone.stdout
    assert "gc --dry-run" in gone.stderr


def test_top_without_a_terminal_prints_one_frame_and_ends(world: World) -> None:
    world.vmoat("up")
    done = world.vmoat("top", cwd=world.root)
    assert "1 of 1 up" in done.stdout
    assert "work" in done.stdout
    assert "\x1b" not in done.stdout


class Screen:
    """`vmoat top` on a terminal of 100 × 20, and what a person sees there."""

    def __init__(self, cwd: Path) -> None:
        self.pid, self.master = pty.fork()
        if not self.pid:
            os.chdir(cwd)
            os.environ["TERM"] = "xterm-256color"
            os.execv(sys.executable, [sys.executable, fakes.__file__, "top"])
        ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 100, 0, 0))
        self.screen = pyte.Screen(100, 20)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""

    def until(self, text: str, limit: float = 60) -> str:
        deadline = time.monotonic() + limit
        while text not in self.text() and time.monotonic() < deadline:
            self.read()
        assert text in self.text(), self.text()
        return self.text()

    def text(self) -> str:
        return "\n".join(self.screen.display)

    def read(self) -> bool:
        if select.select([self.master], [], [], 0.1)[0]:
            try:
                data = os.read(self.master, 65536)
            except OSError:  # the other end is closed
                return False
            self.raw += data
            self.stream.feed(data)
        return True

    def end(self, limit: float = 60) -> int:
        """Its exit code."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            self.read()
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                while self.read() and select.select([self.master], [], [], 0)[0]:
                    pass
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError("it did not end")


@pytest.fixture
def screen(world: World) -> Iterator[Screen]:
    world.vmoat("up")
    made = Screen(world.root)
    yield made
    os.close(made.master)


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_top_is_live_and_leaves_the_terminal_as_it_was(
    world: World, screen: Screen, key: bytes
) -> None:
    seen = screen.until("running")
    assert "q" not in seen.splitlines()[-1]
    world.vmoat("down")
    screen.until("stopped")
    os.write(screen.master, key)
    assert screen.end() == 0
    assert screen.raw.endswith(top.LEAVE.encode())
    assert screen.raw.count(top.ENTER.encode()) == 1
    flags = termios.tcgetattr(screen.master)[3]
    assert flags & termios.ECHO
    assert flags & termios.ICANON


class Two:
    """Two worktrees, `one` and `two`, of one repository."""

    def __init__(self, world: World) -> None:
        self.world = world
        for name in ("one", "two"):
            git(world.repo, "worktree", "add", "-q", "-b", name, str(world.root / name))

    def run(self, *words: str, code: int = 0) -> Any:
        return self.world.vmoat(*words, cwd=self.world.repo, code=code)

    def ran(self, name: str) -> Counter[str]:
        """How often each unit and driver call was carried out in a VM."""
        return Counter((fakes.place(name) / "ran").read_text().splitlines())

    def states(self) -> dict[str, str]:
        listed = json.loads(self.run("ls", "--json").stdout)["vms"]
        return {vm["name"]: vm["state"] for vm in listed}


@pytest.fixture
def two(world: World) -> Two:
    return Two(world)


def test_up_in_two_worktrees_works_in_both_at_once(two: Two) -> None:
    folders = [fakes.place(name) for name in ("wt-one", "wt-two")]
    for folder in folders:
        (folder / "hold").touch()

    def let_go() -> None:
        until(lambda: all("apt" in fakes.text(folder / "ran") for folder in folders))
        for folder in folders:
            (folder / "hold").unlink()

    both = threading.Thread(target=let_go)
    both.start()
    done = two.run("up", "-w", "one", "-w", "two")
    both.join()
    assert two.states() == {"wt-one": "running", "wt-two": "running"}
    assert done.stderr.index("--- one") < done.stderr.index("--- two")
    assert "wt-two is healthy" in done.stderr


def test_one_that_fails_stops_no_other_and_its_code_is_the_command_s(two: Two) -> None:
    (fakes.place("wt-one") / "fail-stack").write_text("3")
    done = two.run("up", "-w", "one", "-w", "two", code=1)
    assert two.states() == {"wt-one": "running", "wt-two": "running"}
    assert "wt-two is healthy" in done.stderr
    assert done.stderr.rindex("--- one") < done.stderr.index("ERROR")
    assert "exit code 3" in done.stderr
    unknown = two.run("status", "-w", "one", "-w", "three", code=2)
    assert "no worktree is on branch `three`" in unknown.stderr
    assert "wt-one" in unknown.stdout


def test_the_documents_of_several_say_whose_they_are(two: Two) -> None:
    (fakes.place("wt-two") / "fail-stack").write_text("3")
    done = two.run("up", "--json", "-w", "one", "-w", "two", code=1)
    assert set(names(done.stdout)) == {"event", "error"}
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    ends = {row["branch"]: row["code"] for row in rows if row.get("event") == "run_end"}
    assert ends == {"one": 0, "two": 1}
    assert {row["branch"] for row in rows} == {"one", "two"}
    assert (rows[-1]["schema"], rows[-1]["branch"]) == ("vmoat.error/1", "two")
    assert rows[-1]["stage"] == "stack"
    said = two.run("status", "--json", "-w", "one", "-w", "two").stdout
    assert names(said) == ["status", "status"]
    assert [json.loads(line)["branch"] for line in said.splitlines()] == ["one", "two"]
    none = two.run("up", "--json", "-w", "one", "-w", "nope", code=2)
    assert json.loads(none.stdout.splitlines()[-1])["branch"] == "nope"
    assert set(names(none.stdout)) == {"event", "error"}


@pytest.mark.parametrize(
    ("words", "units"),
    [
        (["--force"], {"apt", "script", "stack"}),
        (["--force", "script"], {"script", "stack"}),
        (["test"], {"test"}),
        ([], set()),
    ],
)
def test_what_is_asked_for_is_done_once_in_each(
    two: Two, words: list[str], units: set[str]
) -> None:
    """The second is through with it while the first is still followed."""
    two.run("up", "-w", "one", "-w", "two")
    (fakes.place("wt-one") / "slow").write_text("0.5")
    before = {name: two.ran(name) for name in ("wt-one", "wt-two")}
    done = two.run("up", *words, "-w", "one", "-w", "two")
    for name in before:
        new = two.ran(name) - before[name]
        assert {unit: new[unit] for unit in ("apt", "script", "stack", "test") if new[unit]} == (
            dict.fromkeys(units, 1)
        )
    assert done.stderr.index("--- one") < done.stderr.index("--- two")


def test_one_that_failed_while_another_was_followed_is_not_tried_again(two: Two) -> None:
    (fakes.place("wt-one") / "slow").write_text("0.5")
    (fakes.place("wt-two") / "fail-stack").write_text("3")
    done = two.run("up", "-w", "one", "-w", "two", code=1)
    assert "exit code 3" in done.stderr
    assert two.ran("wt-two")["stack"] == 1


def test_down_in_two_and_down_everywhere(two: Two) -> None:
    two.run("up", "-w", "one", "-w", "two")
    two.run("down", "-w", "one", "-w", "two")
    assert set(two.states().values()) == {"stopped"}
    two.run("up", "-w", "one", "-w", "two")
    git(two.world.repo, "worktree", "remove", "--force", str(two.world.root / "two"))
    done = two.world.vmoat("down", "--all", cwd=two.world.root)
    assert two.states() == {"wt-one": "stopped", "wt-two": "stopped"}
    assert "wt-one: stopped; its disks stay" in done.stderr
    assert "wt-two: stopped; its worktree" in done.stderr
    assert "no VM runs" in two.world.vmoat("down", "--all", cwd=two.world.root).stderr


def test_a_command_for_one_worktree_refuses_two(two: Two) -> None:
    done = two.run("plan", "-w", "one", "-w", "two", code=2)
    assert "`plan` takes one -w" in done.stderr


def test_the_grace_has_a_unit(world: World) -> None:
    user = paths.config_home() / "config.toml"
    user.parent.mkdir(parents=True)
    user.write_text('[gc]\ngrace = "3 days"\n')
    done = world.vmoat("config", "gc.grace", code=3)
    assert "a time such as" in done.stderr
    user.write_text('[gc]\ngrace = "3d"\n')
    assert "3d" in world.vmoat("config", "gc.grace").stdout


def test_a_vm_of_another_repository_is_sorted_to_it(homes: Path) -> None:
    from vmoat.fleet import rows

    for name in ("b", "a"):
        repo = repository(homes / name / f"repo-{name}", {})
        git(repo, "worktree", "add", "-q", "-b", f"z{name}", str(homes / f"z{name}"))
        instance.claim(worktree.find(homes / f"z{name}"), "wt-", "qemu")
    assert [row.repository for row in rows.rows()] == ["repo-a", "repo-b"]
