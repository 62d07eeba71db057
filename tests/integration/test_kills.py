"""kill -9 of whatever runs: the next ``up`` goes on, and no finished stage runs again."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from lab import Lab, Vm, alive, kill, wait_until

pytestmark = pytest.mark.vm

SETTINGS = {
    "VMOAT_PROVISION_APT": "tree inotify-tools bc",
    "VMOAT_PROVISION_SCRIPT": "mkdir -p build; cp /bin/busybox build/busybox; sh ./slow script",
    "VMOAT_UP_COMMAND": "sh ./slow stack && docker compose up -d --build",
}
"""Stages that say in ``build/marks`` when they begin and end, and last until they may end."""

SLOW = """\
echo begin $1 >>build/marks
while [ -e build/hold-$1 ]; do sleep 0.2; done
echo end $1 >>build/marks
"""


@pytest.fixture
def slow(odd: Vm) -> Vm:
    """The second VM, running: its stages have other settings now, and run in the test."""
    odd.up("vm")
    (odd.worktree / "slow").write_text(SLOW)
    (odd.worktree / "build").mkdir(exist_ok=True)
    marks(odd).unlink(missing_ok=True)
    go_on(odd, "script", "stack")
    odd.env.update(SETTINGS)
    return odd


def hold(vm: Vm, *stages: str) -> None:
    """These stages do not end until ``go_on``."""
    for stage in stages:
        (vm.worktree / "build" / f"hold-{stage}").touch()


def go_on(vm: Vm, *stages: str) -> None:
    for stage in stages:
        (vm.worktree / "build" / f"hold-{stage}").unlink(missing_ok=True)


def marks(vm: Vm) -> Path:
    return vm.worktree / "build" / "marks"


def said(vm: Vm, text: str) -> bool:
    return marks(vm).exists() and text in marks(vm).read_text()


def started(vm: Vm, stage: str, since: float) -> bool:
    return stage in vm.ran(since)


def test_the_worker_is_killed_in_four_stages(lab: Lab, slow: Vm) -> None:
    """QEMU first; then the worker in the middle of vm, apt, script and stack."""
    assert set(slow.processes()) >= {"qemu", "passt", "guard"}
    kill(slow.processes()["qemu"])
    status = slow.status()
    assert status["state"] == "broken"
    assert any("QEMU ended" in reason for reason in status["reasons"])
    began = time.time()
    attempts = {}
    hold(slow, "script", "stack")
    for stage in ("vm", "apt", "script", "stack"):
        since = time.time()
        watcher = slow.start("up")
        if stage == "stack":
            let_go_once_joined(slow, "script", since)
        wait_until(lambda s=stage, t=since: started(slow, s, t), 240)
        if stage == "vm":
            wait_until(lambda: alive(slow.processes().get("qemu", 0)), 60)
        elif stage == "apt":
            wait_until(lambda: unit_runs(slow, "apt"), 60, 0)
        else:
            wait_until(lambda s=stage: said(slow, f"begin {s}"), 60)
        kill(slow.worker(since))
        _, story = watcher.communicate(timeout=60)
        assert watcher.returncode == 5, story
        assert "killed" in story
        if stage != "vm":
            attempts[stage] = attempt(slow, stage)
    since = time.time()
    watcher = slow.start("up")
    let_go_once_joined(slow, "stack", since)
    _, story = watcher.communicate(timeout=400)
    assert watcher.returncode == 0, story
    assert marks(slow).read_text() == "begin script\nend script\nbegin stack\nend stack\n"
    assert {stage: attempt(slow, stage) for stage in attempts} == attempts
    # Each was begun, then joined once; none a third time.
    runs = Counter(slow.ran(began))
    assert max(runs[stage] for stage in ("vm", "apt", "script", "stack")) <= 2, runs
    assert slow.ok("echo 6*7 | bc") == "42"
    assert slow.plan() == {}


def let_go_once_joined(vm: Vm, stage: str, since: float) -> None:
    """A stage whose worker was killed runs on; it ends when an `up` has come to it again."""
    wait_until(lambda: started(vm, stage, since), 240)
    go_on(vm, stage)


def unit_runs(vm: Vm, stage: str) -> bool:
    return vm.sh(f"systemctl is-active vmoat-{stage}.service")[1].strip() == "active"


def attempt(vm: Vm, stage: str) -> str:
    """Which attempt of a stage the guest knows."""
    return vm.root_sh(f"cat /var/lib/vmoat/stages/{stage}/attempt")[1].strip()


def test_everything_is_killed_at_once_and_the_host_restarts(lab: Lab, slow: Vm) -> None:
    slow.up()
    marks(slow).unlink(missing_ok=True)
    hold(slow, "script")
    since = time.time()
    watcher = slow.start("up", "--force", "script")
    wait_until(lambda: said(slow, "begin script"), 60)
    kill(slow.worker(since), watcher.pid, *slow.masters(), *slow.processes().values())
    watcher.communicate(timeout=60)
    # What a restarted host looks like: an empty runtime folder, another boot id.
    runtime = slow.runtime()
    shutil.rmtree(runtime)
    record = slow.folder / "driver.toml"
    lines = record.read_text().splitlines()
    record.write_text(
        "\n".join('host_boot = "of another boot"' if line.startswith("host_boot") else line
                  for line in lines) + "\n"
    )  # fmt: skip
    status = slow.status()
    assert status["state"] == "broken"
    assert "the host was restarted under it" in status["reasons"]
    go_on(slow, "script")
    again = time.time()
    began = time.monotonic()
    slow.up()
    lab.figure("up after everything was killed", time.monotonic() - began, "")
    assert {"vm", "script", "stack"} <= set(slow.ran(again))
    assert "apt" not in slow.ran(again)
    assert slow.status()["healthy"]
    assert slow.plan() == {}


@pytest.mark.long  # as when everything is killed: another restart of the VM
def test_the_network_process_is_killed(slow: Vm) -> None:
    """The guest is cut off: told, and repaired."""
    slow.up()
    kill(slow.processes()["passt"])
    status = slow.status()
    assert status["state"] == "broken"
    assert any("passt" in reason for reason in status["reasons"])
    slow.up()
    assert slow.status()["healthy"]
