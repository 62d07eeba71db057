"""What the host does to VMs: its disk is full, and QEMU pauses until there is room; it sleeps.

Nothing else wants the golden VM by then: it stands still while the other one fills its disk.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab, Vm, add_worktree, fetch, wait_until
from ports import free_port

pytestmark = pytest.mark.vm

BIG = 1200 * 2**20
"""Bytes, more than the small disk has."""

STILL = 38
"""Seconds: longer than ssh's ServerAliveInterval times ServerAliveCountMax."""


class Sleep:
    """A VM whose QEMU and network stand still, as while the host sleeps."""

    def __init__(self, vm: Vm) -> None:
        pids = list(vm.processes().values())
        self.tree = [*pids, *(child for pid in pids for child in _children(pid))]
        self._send(signal.SIGSTOP)
        self.until = time.monotonic() + STILL

    def end(self) -> None:
        """Not before the time is over."""
        time.sleep(max(0.0, self.until - time.monotonic()))
        self.wake()

    def wake(self) -> None:
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        for pid in self.tree:
            os.kill(pid, number)


def _children(pid: int) -> list[int]:
    direct = [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return [*direct, *(below for child in direct for below in _children(child))]


@pytest.fixture(scope="module")
def tunnel(golden: Vm, first_up: str) -> Iterator[str]:
    """The URL of a tunnel to the golden VM."""
    port = free_port()
    assert golden.cli("tunnel", f"8080:{port}").returncode == 0
    yield f"http://localhost:{port}/"
    golden.cli("untunnel")


@pytest.fixture(scope="module")
def sleep(golden: Vm, tunnel: str) -> Iterator[Sleep]:
    """The golden VM's, begun with the first test of this file."""
    begun = Sleep(golden)
    yield begun
    begun.wake()


@pytest.fixture
def small(lab: Lab, repository: Path) -> Iterator[Vm]:
    """A VM whose disks are on a file system of 900 MiB."""
    home = lab.make_home(lab.folder / "small")
    disks = home.data / "disks"
    disks.mkdir(mode=0o700)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=900m,mode=700", "tmpfs", disks], check=True
    )
    vm = lab.vm(add_worktree(repository, lab.folder / "wt" / "small", "small"), repository, home)
    try:
        yield vm
    finally:
        lab.destroy(vm)
        subprocess.run(["umount", disks], check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_host_disk_pauses_the_vm_and_nothing_is_lost(sleep: Sleep, small: Vm) -> None:
    small.up("vm")
    # Zeros would take no room there.
    write = f"yes | head -c {BIG} >/var/lib/docker/big; sync"
    writer = small.start("exec", "sudo", "sh", "-c", write)
    status = wait_until(lambda: s if (s := small.status())["state"] == "paused" else None, 400, 1)
    assert any("disk is full" in reason for reason in status["reasons"])
    story = small.up("vm", code=7)
    assert "the host's disk is full" in story
    assert small.status()["state"] == "paused"
    disks = small.home.data / "disks"
    subprocess.run(["mount", "-o", "remount,size=3g", disks], check=True)
    assert "goes on" in small.up("vm")
    assert small.status()["state"] == "running"
    writer.communicate(timeout=120)
    assert int(small.ok("sudo stat -c %s /var/lib/docker/big")) == BIG


def test_after_a_long_stop_everything_is_back(vm: Vm, sleep: Sleep, tunnel: str) -> None:
    """As after the host slept: the master has given up meanwhile."""
    sleep.end()
    assert vm.clock_error() < 4
    assert fetch(tunnel)
    assert vm.status()["state"] == "running"
