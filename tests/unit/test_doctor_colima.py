"""What the doctor says where the driver is colima."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_doctor import DEBIAN_12, found, states

from vmoat import doctor
from vmoat.doctor import MISSING, NOTE, OK, WARNING

PROGRAMS = {
    **DEBIAN_12.programs, "colima": "colima version 0.10.3", "limactl": "limactl version 2.2.0",
    "docker": "", "ssh-keyscan": "",
}  # fmt: skip
HERE = replace(DEBIAN_12, driver="colima", uid=1000, programs=PROGRAMS, worktree="/home/ann/app")
MAC = replace(
    HERE, system="Darwin", machine="aarch64", kvm="",
    programs={k: v for k, v in PROGRAMS.items() if not k.startswith(("qemu", "bwrap"))},
)  # fmt: skip


def test_a_machine_with_colima_lacks_nothing() -> None:
    assert doctor.well(doctor.examine(HERE))
    assert states(HERE, MISSING) == []
    assert "bubblewrap" not in found(HERE), "what the qemu driver needs is not asked for"


def test_a_mac_is_no_fault_and_needs_no_qemu() -> None:
    assert doctor.well(doctor.examine(MAC))
    assert found(MAC)["platform"].verdict.says == "macOS on aarch64"
    assert not {"qemu", "qemu-img", "kvm"} & set(found(MAC))


@pytest.mark.parametrize("name", ["colima", "limactl"])
def test_what_is_missing_or_old_is_named_with_its_cure(name: str) -> None:
    check = "colima" if name == "colima" else "lima"
    without = replace(HERE, programs={k: v for k, v in PROGRAMS.items() if k != name})
    assert states(without, MISSING) == [check]
    assert "brew install colima" in found(without)[check].verdict.cure
    old = replace(HERE, programs={**PROGRAMS, name: f"{name} version 0.8.4"})
    assert states(old, MISSING) == [check]
    own = replace(HERE, programs={**PROGRAMS, name: f"{name} version development"})
    assert found(own)[check].verdict.state == OK


def test_root_is_sent_away() -> None:
    assert states(replace(HERE, uid=0), MISSING) == ["platform"]


def test_wsl_is_told_of_windows_disks_and_nested_virtualisation() -> None:
    fine = replace(HERE, wsl=2, kvm="open")
    assert found(fine)["wsl"].verdict.state == OK
    there = found(replace(fine, worktree="/mnt/c/src/app"))["wsl"].verdict
    assert (there.state, "Windows disk" in there.says) == (WARNING, True)
    none = found(replace(fine, kvm=""))["wsl"].verdict
    assert (none.state, "nestedVirtualization" in none.cure) == (WARNING, True)
    assert "wsl" not in found(HERE)


def test_the_walls_that_stay_open_are_told() -> None:
    behind = found(HERE)["walls"].verdict
    assert behind.state == NOTE
    assert "loopback" in behind.says
    assert "can write the worktree's .git" not in behind.says, "bubblewrap holds it"
    assert "can write the worktree's .git" in found(MAC)["walls"].verdict.says
    refused = replace(HERE, sandbox="no user namespaces")
    assert "can write the worktree's .git" in found(refused)["walls"].verdict.says


def test_vms_of_another_tool_are_listed() -> None:
    told = found(replace(HERE, foreign=("wt-a", "wt-b")))["vms"].verdict
    assert (told.state, "wt-a, wt-b" in told.says) == (NOTE, True)
