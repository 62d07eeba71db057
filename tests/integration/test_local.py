"""Folders of the worktree on the VM's own disk, and copies between it and the host."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab, Vm, alive, kill, told

pytestmark = pytest.mark.vm

MODULES, ADDED = "node_modules", "build/cache"
FACTOR, SLACK = 1.2, 0.5
"""What an installation may cost there beside one on the guest's own disk; seconds of noise."""

INSTALL = (Path(__file__).parent / "install.sh").read_text()


@pytest.fixture(scope="module")
def local(odd: Vm) -> Iterator[Vm]:
    """The second VM with two local folders, laid while it runs."""
    odd.up()
    (odd.worktree / ".gitignore").write_text(".env\nbuild/\nout/\nnode_modules/\n")
    (odd.worktree / MODULES).mkdir()
    (odd.worktree / MODULES / "hosts-own").write_text("kept")
    boot = odd.processes()
    odd.env["VMOAT_MOUNTS_LOCAL"] = MODULES
    odd.up("local")
    assert odd.processes() == boot, "without a restart"
    yield odd
    odd.env.clear()
    shutil.rmtree(odd.worktree / MODULES)
    odd.up("local")


def test_the_hosts_folder_stays_as_it_was(local: Vm) -> None:
    assert local.ok("ls -A node_modules; id -u; stat -c %u node_modules").split() == [
        str(local.worktree.stat().st_uid)
    ] * 2
    local.ok("mkdir node_modules/pkg; echo 1 >node_modules/pkg/a")
    assert [p.name for p in (local.worktree / MODULES).iterdir()] == ["hosts-own"]
    assert "local" not in local.plan()


def test_an_installation_costs_what_it_costs_on_the_guests_disk(lab: Lab, local: Vm) -> None:
    line = f"bash -c {shlex.quote(INSTALL)} bash 200 3 /var/tmp node_modules"
    own, here = (int(word) / 1000 for word in local.ok(line).split())
    lab.figure("2,000 files: the guest's own disk", own, "")
    lab.figure("2,000 files: a local folder", here, f"<= {FACTOR * own:.2f}")
    assert here <= FACTOR * own + SLACK


def test_a_host_that_removes_the_folder_takes_nothing(local: Vm) -> None:
    shutil.rmtree(local.worktree / MODULES)
    assert local.ok("cat node_modules/pkg/a; ls -d node_modules") == "1\nnode_modules"
    assert list((local.worktree / MODULES).iterdir()) == []
    local.root_sh("umount -l node_modules")  # as a share does that looks names up again
    assert local.plan()["local"] == "node_modules is not mounted"
    assert local.ok("cat node_modules/pkg/a") == "1", "a command brings it back by itself"
    assert "local" not in local.plan()


def test_copies_go_both_ways(local: Vm, tmp_path: Path) -> None:
    local.ok("cd node_modules/pkg && echo tool >tool && chmod 755 tool && ln -s tool link")
    done = local.cli("cp", "-r", "vm:node_modules/pkg", str(tmp_path / "got"))
    assert done.returncode == 0, told(done)
    assert (tmp_path / "got" / "tool").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "got" / "link").is_symlink()
    (tmp_path / "got" / "it's").write_text("from the host\n")
    done = local.cli("cp", "-r", str(tmp_path / "got"), "vm:/tmp/")
    assert done.returncode == 0, told(done)
    assert local.ok("cat \"/tmp/got/it's\"; readlink /tmp/got/link") == "from the host\ntool"
    done = local.cli("cp", "vm:no-such", str(tmp_path))
    assert done.returncode == 1
    assert "no-such in the VM is not there" in done.stderr


def test_all_of_it_survives_kill_9_of_everything(local: Vm) -> None:
    """... right after the command that wrote it, with the runtime folder gone: a host's reboot;
    what is added meanwhile is laid by the boot."""
    local.ok("cd node_modules && mkdir late && tar -C late -xf /var/tmp/vmoat-install/pack.tar")
    kill(*(pid for pid in local.living() if alive(pid)))
    shutil.rmtree(local.runtime())
    local.env["VMOAT_MOUNTS_LOCAL"] = f"{MODULES},{ADDED}"
    local.up("local")
    local.ok(f"mountpoint -q {ADDED} && touch {ADDED}/inside")
    assert list((local.worktree / ADDED).iterdir()) == [], "laid by the boot"
    found = local.ok("find node_modules/late -type f -size 700c | wc -l; cat node_modules/pkg/a")
    assert found.split() == ["2000", "1"]
    assert list((local.worktree / MODULES).iterdir()) == []
