"""What a Colima guest is given: one script, which unpacks its files once and may run again."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from test_colima_argv import LINUX, check, place, spec

from vmoat.drivers.colima import equip, walled
from vmoat.drivers.colima.equip import Boot, Given
from vmoat.drivers.colima.homes import Place

GIVEN = Given(key="ssh-ed25519 AAAA lima", git_name="Ann", git_email="ann@example.org")


def boot(where: Place | None = None, **more: object) -> Boot:
    return Boot(spec(**more), where or place(), 501, "70c3", "da7a", False)


def unpacked(script: str) -> dict[str, str]:
    found = re.search(r"<<'VMOAT_FILES'.*?\n(.*?)\nVMOAT_FILES", script, re.DOTALL)
    assert found
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(found[1]))) as tar:
        return {
            member.name: tar.extractfile(member).read().decode()  # type: ignore[union-attr]
            for member in tar
            if member.isfile()
        }


def test_the_scripts_are_shell() -> None:
    for text in (
        equip.script(boot(), GIVEN),
        equip.boot_script(boot()),
        equip.clean_script(boot()),
    ):
        subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    check("colima_boot.sh", equip.boot_script(boot()))


def test_lima_would_read_nothing_in_it_as_a_template() -> None:
    assert "{{" not in equip.script(boot(), GIVEN), "provision scripts are Go templates"


def test_the_files_that_vmoat_expects_in_a_guest_are_there() -> None:
    files = unpacked(equip.script(boot(), GIVEN))
    assert files["etc/vmoat/authorized_keys"] == "ssh-ed25519 AAAA lima\n", "root's too"
    assert 'name = "Ann"' in files["etc/vmoat/gitconfig"]
    assert "fsmonitor = false" in files["etc/vmoat/gitconfig"]
    assert "includeIf" not in files["etc/vmoat/gitconfig"], "it is shown no prepared index"
    assert "credsStore" in files["etc/vmoat/docker.json"]
    settings = files["etc/sysctl.d/60-vmoat.conf"].splitlines()
    assert "kernel.panic = 1" in settings, "a kernel that panics starts again"
    for name in ("usr/lib/vmoat/watch", "usr/local/bin/docker-credential-vmoat",
                 "etc/systemd/system/vmoat-watch.service", "etc/vmoat/local.sh"):  # fmt: skip
        assert name in files
    for name in ("etc/hostname", "etc/ssh/ssh_host_ed25519_key", "etc/machine-id", "etc/gitconfig"):
        assert name not in files, "Lima's own"


def test_the_same_files_are_unpacked_once() -> None:
    one = re.search(r'\[ "\$known" != (\w+) \]', equip.script(boot(), GIVEN))
    two = re.search(r'\[ "\$known" != (\w+) \]', equip.script(boot(), GIVEN))
    other = re.search(r'\[ "\$known" != (\w+) \]', equip.script(boot(), Given(key="another")))
    assert one
    assert two
    assert other
    assert one[1] == two[1] != other[1]


def test_no_chown_of_the_helper_reaches_a_host_without_walls() -> None:
    assert equip.watch_helper(False) != equip.watch_helper(True)
    lines = [line for line in equip.watch_helper(False).splitlines() if "sub attribute" in line]
    assert len(lines) == 1
    assert "return 0;" in lines[0].split("syscall")[0]


def test_git_in_an_adopted_vm_is_the_hosts_own() -> None:
    mine = Place(Path("/home/ann/.colima"), "wt-feature", adopted=True)
    assert "\nview /" in equip.boot_script(boot())
    assert "\nview /" not in equip.boot_script(boot(mine))
    assert "\nview /" not in equip.boot_script(boot(git_writable=True))
    assert "data=/mnt/lima-colima-wt-feature\n" in equip.boot_script(boot(mine))


# --- the walls around Lima's QEMU


def test_a_share_of_9p_is_served_from_behind_walls(tmp_path: Path) -> None:
    top = tmp_path / "wt"
    inner, sub = top / "nested" / "other", top / "libs" / "sub"
    for folder in (inner, sub):
        folder.mkdir(parents=True)
    (top / ".git").write_text("gitdir: elsewhere\n")
    (top / "vmoat.toml").write_text("")
    (sub / ".git").write_text("gitdir: elsewhere\n")
    given = spec(
        worktree=top, readonly=(top / "vmoat.toml",), masked=(inner,), gitlinks=(sub,),
    )  # fmt: skip
    words = " ".join(walled.bwrap_words(given, place(), "/usr/bin/qemu-system-x86_64"))
    for path in (top / ".git", top / "vmoat.toml", sub / ".git"):
        assert f"--ro-bind {path} {path}" in words
    assert f"--tmpfs {inner}" in words
    assert f"--bind {top / 'libs'} {top / 'libs'}" in words, "or it could be renamed away"
    assert words.index(f"--bind {top} ") < words.index(f"--ro-bind {top / '.git'}")
    assert "--unshare-net" in words


def test_walls_stand_only_where_qemu_serves_the_share() -> None:
    from dataclasses import replace

    assert walled.wanted(spec(), place(), LINUX)
    assert not walled.wanted(spec(mount_type="sshfs"), place(), LINUX)
    assert not walled.wanted(spec(walls=False), place(), LINUX)
    assert not walled.wanted(spec(), place(), replace(LINUX, sandbox=False))


def test_limas_questions_go_to_qemu_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qemu = tmp_path / "usr" / "bin" / "qemu-system-x86_64"
    qemu.parent.mkdir(parents=True)
    qemu.write_text('#!/bin/sh\necho "asked: $*"\n')
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{qemu.parent}:/usr/bin:/bin")
    where = Place(tmp_path / "home", "vm")
    where.home.mkdir()
    walled.install(spec(), where, LINUX)
    script = where.home / "bin" / "qemu-system-x86_64"
    told = subprocess.run([script, "-M", "none", "-cpu", "help"], capture_output=True, text=True)
    assert told.stdout == "asked: -M none -cpu help\n"
    assert (where.home / "share").resolve() == tmp_path / "usr" / "share", (
        "firmware is sought there"
    )
