"""When shares go by virtiofs, how its server is called, and what is believed of it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from test_qemu_argv import check, job
from test_qemu_shares import spec

from vmoat import paths
from vmoat.drivers.qemu import argv, verdicts, virtiofs
from vmoat.drivers.qemu.shares import Export
from vmoat.errors import Code, VmoatError

WORKTREE = Export("worktree", "/vm/share/worktree", "/w", True)


@pytest.fixture
def server(homes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtiofsd of this test's own, which only tells its version."""
    program = homes / "virtiofsd"
    say(program, "virtiofsd 1.13.2")
    monkeypatch.setattr(virtiofs, "program", lambda: str(program))
    monkeypatch.setattr(virtiofs, "descriptors", lambda: 1 << 20)
    return program


def say(program: Path, line: str) -> None:
    program.write_text(f"#!/bin/sh\necho '{line}'\n")
    program.chmod(0o755)


def kinds(homes: Path, **more: object) -> list[str]:
    return list(virtiofs.kinds(spec(homes, **more)))


def test_the_calls(server: Path) -> None:
    words = [
        virtiofs.argv("/v", WORKTREE, fd=7, uid=uid, gid=gid) for uid, gid in ((1001, 1002), (0, 0))
    ]
    words.append(argv.qemu_argv(job("x86_64", "tcg", share_fds=(("worktree", 9),))))
    check("qemu_virtiofs.txt", "\n\n".join("\n".join(each) for each in words) + "\n")


def test_it_is_preferred_where_it_can_be_used(homes: Path, server: Path) -> None:
    assert kinds(homes) == ["virtiofs", "9p"]
    assert kinds(homes, mount_type="sshfs") == ["virtiofs", "9p"], "Colima's word, not ours"
    assert kinds(homes, mount_type="9p") == ["9p"]
    assert kinds(homes, walls=False) == ["9p"]


@pytest.mark.parametrize("version", ["virtiofsd version 7.2.22 (Debian)", "virtiofsd 1.10.1", "?"])
def test_an_old_one_is_not_used(homes: Path, server: Path, version: str) -> None:
    say(server, version)
    assert kinds(homes) == ["9p"]
    with pytest.raises(VmoatError, match=r"1\.13") as caught:
        kinds(homes, mount_type="virtiofs")
    assert caught.value.code == Code.MISSING


def test_too_few_open_files_are_no_ground_for_it(
    homes: Path, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtiofs, "descriptors", lambda: 1024)
    assert kinds(homes) == ["9p"]
    assert kinds(homes, mount_type="virtiofs") == ["virtiofs"], "who asks for it gets it"


def test_a_guests_verdict_holds_until_the_program_changes(homes: Path, server: Path) -> None:
    verdicts.remember("virtiofs", str(server), False, "locks")
    assert kinds(homes) == ["9p"]
    say(server, "virtiofsd 1.14.0 ")
    assert kinds(homes) == ["virtiofs", "9p"]
    verdicts.remember("kvm", "/qemu", True)
    assert (verdicts.remembered("kvm", "/qemu"), virtiofs.remembered()) == ("works", "")


@pytest.fixture
def checked(homes: Path) -> Path:
    """What the guest's check leaves in its folder."""
    folder = paths.vm_dir("wt-a") / "check"
    folder.mkdir(parents=True)
    (folder / "file").write_text("mapped and appended")
    (folder / "file").chmod(0o640)
    (folder / "link").symlink_to("file")
    (folder / "folder").mkdir()
    return folder


def test_what_the_guest_and_the_host_find_is_the_verdict(checked: Path) -> None:
    well = f"[ 1.0] {virtiofs.WELL}\n"
    assert virtiofs.verdict("wt-a", well) == ""
    assert "did not end" in virtiofs.verdict("wt-a", "vmoat-boot: ready")
    assert virtiofs.verdict("wt-a", f"[ 1.0] {virtiofs.FAILS}locks (No)\n") == "locks (No)"
    (checked / "file").chmod(0o4640)
    assert "set-user-id" in virtiofs.verdict("wt-a", well)
    (checked / "file").chmod(0o600)
    assert "mode bits" in virtiofs.verdict("wt-a", well)
    (checked / "link").unlink()
    (checked / "link").write_text("a symlink as a plain file")
    assert "does not see" in virtiofs.verdict("wt-a", well)


def test_the_guests_check_passes_on_a_good_file_system(tmp_path: Path) -> None:
    """The same script, on this machine's own."""
    import subprocess

    from vmoat.drivers.qemu.image import recipe_folder

    script = recipe_folder() / "rootfs/usr/lib/vmoat/check-share"
    done = subprocess.run(["perl", script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name.name for name in tmp_path.iterdir()} == {"file", "link", "folder"}
    assert os.readlink(tmp_path / "link") == "file"
    again = subprocess.run(["perl", script, "/proc"], capture_output=True, text=True)
    assert (again.returncode, "cannot be made" in again.stdout) == (1, True)


def test_a_share_that_is_served_is_not_qemus(homes: Path) -> None:
    from vmoat.drivers.qemu import assemble, shares

    plan = shares.worktree_plan(replace(spec(homes), worktree=homes), homes)
    left = assemble._without(plan, virtiofs.served(plan.exports))
    assert plan.binds
    assert left.binds == []
