"""The host's disk is full: QEMU pauses, and goes on when there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab, Vm, add_worktree, wait_until

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk"),
]

MIB = 2**20


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


def test_a_full_host_disk_pauses_the_vm_and_nothing_is_lost(small: Vm) -> None:
    small.up("vm")
    writer = small.start(
        "exec", "sudo dd if=/dev/urandom of=/var/lib/docker/big bs=1M count=1200 status=none; sync"
    )
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
    assert int(small.ok("sudo stat -c %s /var/lib/docker/big")) == 1200 * MIB
