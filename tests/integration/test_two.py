"""Two at once: worktrees that do not meet, and commands that join."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from lab import PAGE, SEED, Lab, Vm, at_once, wait_until

pytestmark = pytest.mark.vm


def test_two_worktrees_at_once(lab: Lab, golden: Vm, first_up: str, odd: Vm) -> None:
    """The second one's folder has quotes, blanks and a ``$`` in its name."""
    began = time.monotonic()
    (golden.worktree / PAGE).write_text("the golden page\n")
    with at_once(golden.up, odd.up) as answers:
        pass
    lab.figure("second worktree's first up (another at once)", time.monotonic() - began, "")
    assert all("healthy" in story for story in answers)
    assert golden.ok("curl -fsS localhost:8080") == "the golden page"
    assert odd.ok("curl -fsS localhost:8080") == "first version"
    assert (odd.worktree / "build" / "provisioned").read_text() == "provisioned\n"
    assert (odd.worktree / SEED).exists()
    assert golden.name != odd.name
    assert odd.plan() == {}


def test_worktrees_do_not_see_each_other(golden: Vm, second: Vm) -> None:
    for mine, other in ((golden, second), (second, golden)):
        assert mine.ok("pwd") == str(mine.worktree)
        assert mine.cli("exec", "ls", str(other.worktree)).returncode != 0
        mine.ok(f"docker volume create only-{mine.name}")
        assert f"only-{mine.name}" not in other.ok("docker volume ls -q")
        assert len(mine.ok("docker ps -q").splitlines()) == 1
    assert golden.cli("tunnel").stdout != second.cli("tunnel").stdout
    for vm in (golden, second):
        vm.cli("untunnel")


WAITS = "while [ -e build/hold ]; do sleep 0.2; done"


def test_two_ups_at_once_in_one_worktree(second: Vm) -> None:
    """One works, one joins; a shell that dies under `up` loses nothing."""
    marks, hold = (second.worktree / "build" / name for name in ("marks", "hold"))
    marks.unlink(missing_ok=True)
    hold.touch()
    env = {"VMOAT_PROVISION_SCRIPT": f"echo begin >>build/marks; {WAITS}; echo end >>build/marks"}
    since = time.time()
    first = second.start("up", "script", env=env, start_new_session=True)
    wait_until(marks.exists, 60)
    others = [second.start("up", "script", env=env) for _ in range(2)]
    for other in others:
        assert any("joining" in line for line in other.stderr)
    os.killpg(first.pid, signal.SIGHUP)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=60)
    hold.unlink()
    for other in others:
        other.communicate(timeout=180)
    assert [other.returncode for other in others] == [0, 0]
    assert marks.read_text() == "begin\nend\n"
    assert second.ran(since) == ["script"]


def test_who_joins_gets_the_same_exit_code(odd: Vm, tmp_path: Path) -> None:
    odd.up("vm")  # no stack is wanted here
    hold = odd.worktree / "build" / "hold"
    hold.touch()
    env = {"VMOAT_PROVISION_SCRIPT": f"{WAITS}; exit 5"}
    files = [tmp_path / str(number) for number in range(3)]
    processes = []
    for file in files:
        with open(file, "w") as stderr:
            processes.append(odd.start("up", "script", env=env, stderr=stderr))
    wait_until(lambda: sum("joining" in file.read_text() for file in files) == 2, 120)
    hold.unlink()
    for process in processes:
        process.communicate(timeout=180)
    told = [file.read_text() for file in files]
    assert [process.returncode for process in processes] == [1, 1, 1], told
    assert all("exit code 5" in text for text in told)
    odd.up("script")
