"""Shares by virtiofs, where this machine has a virtiofsd that can be used."""

from __future__ import annotations

import os

import pytest
from lab import Lab, Vm, kill

from vmoat.drivers.qemu import virtiofs

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(bool(virtiofs.unusable()), reason=f"no virtiofs: {virtiofs.unusable()}"),
]


@pytest.fixture
def shared(second: Vm) -> Vm:
    second.env["VMOAT_VM_MOUNT_TYPE"] = "virtiofs"
    return second


def test_a_share_by_virtiofs_behaves(lab: Lab, shared: Vm) -> None:
    """The driver's own check has passed in the guest, and the host sees what it should."""
    shared.up()
    assert shared.status()["mount"] == "virtiofs"
    assert shared.status()["healthy"]
    assert "virtiofs" in shared.ok("findmnt -n -o FSTYPE -T .")
    shared.ok("cd build && /usr/bin/perl /usr/lib/vmoat/check-share .")
    assert (shared.worktree / "build" / "file").read_text() == "mapped and appended"
    assert os.readlink(shared.worktree / "build" / "link") == "file"
    for text in ("one", "two"):
        (shared.worktree / "build" / "edit").write_text(text)
        assert shared.ok("cat build/edit") == text, "a host's edit is seen at once"


def test_the_walls_hold_over_virtiofs(shared: Vm) -> None:
    shared.up("vm")
    link = (shared.worktree / ".git").read_bytes()
    code, out = shared.root_sh("echo x >.git; mv .git y; rm .git; echo x >>vmoat.toml")
    assert code != 0
    assert out.count("Read-only file system") + out.count("Device or resource busy") == 4, out
    assert (shared.worktree / ".git").read_bytes() == link
    shared.root_sh("cd build; touch o; chown 12345:12345 o; cp /bin/true s; chmod 6755 s")
    shared.root_sh("mknod build/c c 1 3")
    owner = shared.worktree.stat()
    for path in (shared.worktree / "build").iterdir():
        info = path.lstat()
        assert (info.st_uid, info.st_gid) == (owner.st_uid, owner.st_gid)
        assert not info.st_mode & 0o6000
    assert not (shared.worktree / "build" / "c").exists()


def test_a_virtiofsd_that_died_is_told_and_repaired(shared: Vm) -> None:
    shared.up("vm")
    kill(shared.processes()["virtiofsd-worktree"])
    status = shared.status()
    assert status["state"] == "broken"
    assert any("virtiofsd-worktree" in reason for reason in status["reasons"])
    shared.up("vm")
    assert shared.status()["state"] == "running"
    assert shared.ok("cat index.html")
