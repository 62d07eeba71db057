"""A VM that nobody uses is stopped; five that want the room of two have it one after another."""

from __future__ import annotations

import socket
import time
from urllib.parse import urlsplit

import pytest
from lab import PAGE, Lab, Vm, add_worktree, alive, fetch, make_repository, wait_until

from vmoat.companion.idleness import CPU_SCRIPT, LOAD, guest_cpu

pytestmark = pytest.mark.vm

IDLE = 5.0
STOP_LIMIT = 90.0
"""Seconds for a look, `docker compose stop` and the power-off under emulation."""


def state(vm: Vm) -> str:
    return str(vm.status()["state"])


def cpu(vm: Vm) -> float:
    used = guest_cpu(vm.ok(CPU_SCRIPT))
    assert used is not None
    return used


@pytest.mark.long  # its threshold is a unit test's
def test_a_stack_that_nobody_uses_is_no_load(lab: Lab, vm: Vm) -> None:
    """The two questions are themselves most of what is counted."""
    time.sleep(5)  # what the tests before left to do
    before, began = cpu(vm), time.monotonic()
    time.sleep(30)
    share = (cpu(vm) - before) / (time.monotonic() - began)
    lab.figure("CPU of a guest that nobody uses", share, f"CPUs, load is above {LOAD}")
    assert share < LOAD


def test_an_idle_vm_is_stopped_and_a_command_has_it_again(lab: Lab, second: Vm) -> None:
    second.env["VMOAT_VM_IDLE"] = f"{IDLE:g}s"
    page = (second.worktree / PAGE).read_text()
    try:
        second.up()
        url = second.cli("tunnel", "8080").stdout.strip()
        port = urlsplit(url).port
        assert port
        with socket.create_connection(("127.0.0.1", port)):
            time.sleep(2 * IDLE)
            assert state(second) == "running", "a connection over a tunnel is open"
        began = time.monotonic()
        wait_until(lambda: state(second) == "stopped", IDLE + STOP_LIMIT, pause=1)
        lab.figure(f"idle for {IDLE:g} s, and stopped", time.monotonic() - began, "")
        began = time.monotonic()
        done = second.cli("exec", "curl", "-fsS", "localhost:8080")
        assert done.returncode == 0, done.stderr
        assert done.stdout == page
        assert "for being idle: starting it again" in done.stderr
        lab.figure("`exec` in a VM that was stopped for it", time.monotonic() - began, "")
        assert fetch(url) == page, "its tunnel is back"
    finally:
        del second.env["VMOAT_VM_IDLE"]
        second.up()


@pytest.mark.long
def test_five_at_once_where_two_fit(lab: Lab) -> None:
    main = make_repository(lab.folder / "many")
    home = lab.make_home(lab.folder / "home-of-many")  # where no other VM takes any room
    vms = []
    for number in range(5):
        folder = add_worktree(main, lab.folder / "wt" / f"many{number}", f"m{number}")
        vm = lab.vm(folder, main, home)
        vm.env.update(VMOAT_VM_MEMORY="1", VMOAT_VM_CPU="1", VMOAT_FLEET_MEMORY="2")
        vms.append(vm)
    began = time.monotonic()
    ups = {vm.name: vm.start("up", "vm") for vm in vms}
    left = list(vms)
    try:
        while left:
            running = [vm.name for vm in vms if alive(vm.processes().get("qemu", 0))]
            assert len(running) <= 2
            for vm in left:
                if ups[vm.name].poll() is not None:
                    assert ups[vm.name].returncode == 0, ups[vm.name].communicate()
                    assert vm.cli("down").returncode == 0
                    left.remove(vm)
                    break
            assert time.monotonic() - began < 900
            time.sleep(0.5)
    finally:
        for process in ups.values():
            process.kill()
            process.communicate()
        for vm in vms:
            vm.cli("destroy", "-f")
    lab.figure("five VMs, two at a time", time.monotonic() - began, "")
