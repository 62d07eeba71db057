"""Colima's command lines on the platforms that it runs on, and what Lima is told beside them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vmoat.drivers import Owner, Share, VmSpec
from vmoat.drivers.colima import argv, walled, words
from vmoat.drivers.colima.argv import Host
from vmoat.drivers.colima.homes import Place
from vmoat.drivers.colima.walls import wsl_warnings
from vmoat.errors import Code, VmoatError

GOLDEN = Path(__file__).parent.parent / "golden"

LINUX = Host("Linux", "x86_64", kvm=False, kvm_there=True, sandbox=True)
"""Debian 12, where /dev/kvm opens and QEMU dies of it (``failed to set MSR 0x10a``)."""
APPLE = Host("Darwin", "aarch64", macos=15, rosetta=True)
INTEL_MAC = Host("Darwin", "x86_64", macos=12)
"""Before vz: no ``--vm-type`` there (Colima's cmd/start.go)."""
WSL = Host("Linux", "x86_64", kvm=True, kvm_there=True, wsl=2)
HOSTS = {"linux": LINUX, "macos_apple": APPLE, "macos_12_intel": INTEL_MAC, "wsl2": WSL}


def spec(home: str = "/home/ann", **more: Any) -> VmSpec:
    given: dict[str, Any] = {
        "name": "wt-feature", "vm_id": "0123456789abcdef", "cpus": 4, "memory_gib": 8,
        "disk_gib": 60, "worktree": Path(f"{home}/src/feature"),
        "git_dir": Path(f"{home}/src/app/.git/worktrees/feature"),
        "common_dir": Path(f"{home}/src/app/.git"), "owner": Owner("ann", 501, 20),
    }  # fmt: skip
    return VmSpec(**{**given, **more})


def place(home: str = "/home/ann") -> Place:
    return Place(Path(f"{home}/.local/share/vmoat/colima/0123456789ab"), "vm")


def check(name: str, text: str) -> None:
    golden = GOLDEN / name
    if os.environ.get("GOLDEN") == "write":
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("system", HOSTS)
def test_the_command_line_and_its_surroundings(system: str) -> None:
    host = HOSTS[system]
    home = "/Users/ann" if host.mac else "/home/ann"
    wanted, where = spec(home), place(home)
    behind = walled.wanted(wanted, where, host)
    env = argv.environment(where, host, walled=behind)
    lines = [f"{key}={value}" for key, value in env.items()]
    lines += ["", *argv.start(wanted, where, host)]
    lines += ["", " ".join(argv.stop(where)), " ".join(argv.stop(where, force=True))]
    lines += ["", argv.override(wanted, host, "#!/bin/sh\n: what the guest needs\n")]
    if behind:
        lines += walled.bwrap_words(wanted, where, "/usr/bin/qemu-system-x86_64")
    check(f"colima_{system}.txt", "\n".join(lines) + "\n")


def test_a_link_in_place_of_what_is_protected_is_refused(tmp_path: Path) -> None:
    """bubblewrap would follow it, and mount what it points at."""
    outside, top = tmp_path / "ssh", tmp_path / "wt"
    (outside / "sub" / ".git").mkdir(parents=True)
    top.mkdir()
    (top / ".git").write_text("gitdir: /x\n")
    (top / "libs").symlink_to(outside)
    for more in ({"gitlinks": (top / "libs" / "sub",)}, {"masked": (top / "libs" / "sub",)}):
        with pytest.raises(VmoatError, match="libs is a symbolic link") as caught:
            walled.bwrap_words(replace(spec(), worktree=top, **more), place(), "/bin/qemu")
        assert caught.value.code == Code.VM


def test_a_nested_worktree_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    top = tmp_path / "wt"
    top.mkdir()
    gone = replace(spec(), worktree=top, masked=(top / "gone",))
    assert str(top / "gone") not in walled.bwrap_words(gone, place(), "/bin/qemu")


def test_an_adopted_vm_keeps_its_mounts_and_its_home() -> None:
    mine = Place(Path("/home/ann/.colima"), "wt-feature", adopted=True)
    text = " ".join(argv.start(spec(), mine, LINUX))
    assert text.startswith("colima start -p wt-feature --cpus 4 --memory 8 --disk 60 ")
    assert "--mount" not in text
    assert "--template" not in text
    assert "DOCKER_CONFIG" not in argv.environment(mine, LINUX), "its context is the user's"
    assert argv.delete(mine)[-1] == "--data"


def test_no_port_of_the_guest_appears_unless_the_user_asks() -> None:
    first = json.loads(argv.override(spec(), LINUX, ""))["portForwards"][0]
    assert first == {
        "guestIP": "0.0.0.0", "guestIPMustBeZero": False, "proto": "any", "ignore": True,
    }  # fmt: skip
    asked = spec(start_args=("--port-forwarder", "grpc"))
    assert "portForwards" not in json.loads(argv.override(asked, LINUX, ""))


def test_the_git_folder_is_shared_read_only_once() -> None:
    assert argv.mounts(spec()) == [
        (Path("/home/ann/src/feature"), True), (Path("/home/ann/src/app/.git"), False),
    ]  # fmt: skip
    main = Path("/home/ann/src/app")
    inside = spec(worktree=main, git_dir=main / ".git", common_dir=main / ".git")
    assert argv.mounts(inside) == [(main, True)], "Colima refuses a folder in another"
    assert argv.mounts(spec(git_writable=True))[1][1]


def test_folders_that_colima_would_refuse_are_refused_by_name() -> None:
    inner = spec(shares=(Share(Path("/home/ann/src"), writable=False),))
    with pytest.raises(VmoatError, match="/home/ann/src/feature and /home/ann/src:") as caught:
        argv.start(inner, place(), LINUX)
    assert (caught.value.code, "mounts.share" in caught.value.hint) == (Code.CONFIG, True)
    beside = spec(shares=(Share(Path("/home/ann/src/feature-data"), writable=True),))
    assert "/home/ann/src/feature-data:w" in argv.start(beside, place(), LINUX)


@pytest.mark.parametrize("name", ["a:b", "a$HOME", "a{{b", "a\nb"])
def test_a_path_that_colima_reads_otherwise_is_refused(name: str) -> None:
    with pytest.raises(VmoatError) as caught:
        argv.start(spec(worktree=Path("/w") / name), place(), LINUX)
    assert caught.value.code == Code.CONFIG


def test_a_comma_in_a_path_survives_the_list_that_it_stands_in() -> None:
    words_ = argv.start(spec(worktree=Path('/w/a,b "c"')), place(), LINUX)
    assert words_[words_.index("--mount") + 1] == '"/w/a,b ""c"":w"', "as pflag reads CSV"


def test_virtiofs_never_becomes_sshfs_on_linux() -> None:
    assert argv.mount_type(spec(mount_type="virtiofs"), LINUX) == "9p"
    assert argv.mount_type(spec(mount_type="virtiofs"), APPLE) == "virtiofs"
    assert argv.mount_type(spec(mount_type="9p"), APPLE) == "virtiofs"
    assert argv.mount_type(spec(mount_type="sshfs"), LINUX) == "sshfs", "who asks for it gets it"


def test_images_for_intel_run_on_apple_silicon_with_and_without_rosetta() -> None:
    assert "--vz-rosetta" in argv.start(spec(), place(), APPLE)
    without = argv.start(spec(), place(), replace(APPLE, rosetta=False))
    assert "--binfmt=false" not in without
    assert "--vz-rosetta" not in argv.start(spec(kind="qemu"), place(), APPLE)


def test_a_kvm_that_works_is_left_to_lima() -> None:
    assert "QEMU_SYSTEM_X86_64" not in argv.environment(place(), WSL)
    none = argv.environment(place(), replace(LINUX, kvm_there=False))
    assert "QEMU_SYSTEM_X86_64" not in none, "Lima sees by itself that there is none"
    assert none["LIMA_USERNET_RESOLVE_IP_ADDRESS_TIMEOUT"] == "15"


def test_wsl_is_told_what_is_slow() -> None:
    assert wsl_warnings("/home/ann/app", kvm=True) == []
    assert "Windows disk" in wsl_warnings("/mnt/c/src/app", kvm=True)[0][0]
    assert "nestedVirtualization" in wsl_warnings("/mnt/cdrom", kvm=False)[0][1]


# --- what Colima says

STARTED = (GOLDEN / "colima_start.log").read_text()


def test_a_start_is_told_without_limas_own_noise() -> None:
    told = [text for text in map(words.told, STARTED.splitlines()) if text]
    assert told[0] == "colima: starting colima [profile=vm]"
    assert "colima: vm: creating and starting ..." in told
    assert "colima: Waiting for the essential requirement 1 of 3: `ssh`" in told
    assert not [text for text in told if "hostagent" in text or "Terminal" in text]
    assert words.fields(STARTED.splitlines()[-1])["msg"] == "done"


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        ("error starting vm: error at 'creating and starting': disk image must be downloaded from "
         "'https://x', hash failure: y", "--force-disk-image"),
        ("error starting vm: qemu-img not found, run 'brew install qemu' to install", "qemu-utils"),
        ("error starting vm: error at 'creating and starting': exit status 1: "
         "failed to resolve the IP address", "--console"),
        ("unknown flag: --vz-rosetta", "too old"),
        ("write /x: no space left on device", "make room"),
    ],
)  # fmt: skip
def test_last_words_have_a_cure(said: str, cure: str) -> None:
    log = STARTED + f'time="2026-11-25T08:00:00Z" level=fatal msg="{said}"\n'
    assert cure in words.cure(log)
    assert words.last_words(log)[-1].startswith(said[:20])


# --- what only a new VM can have


def test_a_kind_or_mount_type_of_the_config_restarts_nothing_that_could_not_have_it() -> None:
    from vmoat.tasks import vm

    from vmoat.drivers import load

    fixed = load("colima").features.fixed
    old = vm.facts_of(spec())
    asked = vm.facts_of(spec(kind="qemu", mount_type="sshfs"))
    assert vm.what_changed(old, asked, fixed) == ""
    assert vm.what_changed(old, asked) != "", "another driver gives them to the VM that there is"
    assert "memory" in vm.what_changed(old, vm.facts_of(spec(memory_gib=4, kind="vz")), fixed)
