"""The script of a stage's unit, run by this machine's bash: restarts, exit codes, a bounded log."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from vmoat import stages


class Unit:
    """A job's script in a folder of its own, as root in the guest would run it."""

    def __init__(self, folder: Path, command: str, *, service: bool = False) -> None:
        self.folder = folder
        job = stages.Job("unit", command, "a1", "root", str(folder))
        text = stages.run_script(job, service=service)
        text = text.replace(stages.folder("unit"), str(folder))
        text = text.replace(stages.log_path("unit"), str(folder / "log"))
        # a cgroup with somebody else in it, for as long as the file says
        text = re.sub(r"^group=.*$", f"group={folder}/procs", text, flags=re.MULTILINE)
        (folder / "procs").write_text("1\n2\n")
        (folder / "run").write_text(text)

    def start(self, **replace: str) -> subprocess.Popen[bytes]:
        text = (self.folder / "run").read_text()
        for old, new in replace.items():
            text = text.replace(old.replace("_", " "), new)
        return subprocess.Popen(
            ["bash", "-c", text], start_new_session=True, env={**os.environ, "HOME": "/"}
        )

    def run(self, **replace: str) -> str:
        """To its end; returns the exit code that it kept."""
        assert self.start(**replace).wait(120) == 0
        return (self.folder / "rc").read_text().split()[1]

    @property
    def log(self) -> list[str]:
        return (self.folder / "log").read_text().splitlines()


@pytest.fixture(autouse=True)
def _no_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASH_ENV", "")


def test_a_stage_runs_once_and_keeps_its_exit_code(tmp_path: Path) -> None:
    unit = Unit(tmp_path, "echo once; exit 7")
    assert unit.run() == "7"
    assert unit.log == ["once"]
    pid, since = (tmp_path / "pid").read_text().split()
    assert int(pid) > 1
    assert abs(time.time() - int(since)) < 60


def test_a_service_that_dies_is_started_again(tmp_path: Path) -> None:
    command = "echo up; [ -e second ] && exit 0; touch second; kill -9 $$"
    unit = Unit(tmp_path, command, service=True)
    assert unit.run() == "0"
    assert unit.log[0] == "up"
    assert "ended with exit code 137 and is started again (1 of 3)" in unit.log[-2]
    assert unit.log[-1] == "up"


def test_a_service_that_keeps_failing_ends_with_its_last_exit_code(tmp_path: Path) -> None:
    unit = Unit(tmp_path, "echo no port; exit 4", service=True)
    began = time.monotonic()
    assert unit.run() == "4"
    assert unit.log.count("no port") == 1 + stages.RESTARTS
    assert time.monotonic() - began > 5, "with growing pauses"


def test_a_service_whose_program_is_missing_is_not_tried_again(tmp_path: Path) -> None:
    unit = Unit(tmp_path, "exec no-such-program-here", service=True)
    assert unit.run() == "127"
    assert sum("no-such-program-here" in line for line in unit.log) == 1


def test_a_log_without_end_is_cut_and_keeps_the_newest_lines(tmp_path: Path) -> None:
    """100,000 lines for a limit of 50 kB: what is on disk stays small, and ends with the last.

    That comes by itself: of a burst, what is written in the moment of a cut is lost.
    """
    burst = "for i in $(seq 99999); do echo line $i; [ $((i % 500)) ] || :; done"
    command = f"{burst}; sleep 1; echo line 100000; sleep 1"
    unit = Unit(tmp_path, command)
    limits = {
        f"read_-rt_{stages.LOG_POLL}_": "read -rt 0.05 ",
        str(stages.LOG_LIMIT): "50000", str(stages.LOG_KEPT): "20000",
    }  # fmt: skip
    assert unit.run(**limits) == "0"
    kept = (tmp_path / "log.old").read_text().splitlines() + unit.log
    assert kept[-1] == "line 100000"
    assert len(kept) < 100_000
    assert (tmp_path / "log.old").stat().st_size <= 20_000
    numbers = [int(line.split()[1]) for line in kept[1:]]
    assert numbers == sorted(numbers)


def test_stopping_a_service_is_no_reason_to_start_it_again(tmp_path: Path) -> None:
    unit = Unit(tmp_path, "echo up; exec sleep 600", service=True)
    process = unit.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "log").exists() or not unit.log:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)  # as systemd does, with all of the cgroup
    process.wait(60)
    time.sleep(1.5)
    assert unit.log == ["up"]
    assert not (tmp_path / "rc").exists()
