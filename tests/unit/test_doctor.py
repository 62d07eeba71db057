"""What the doctor says on machines of many kinds, fed with their facts."""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from vmoat import doctor, hostfacts, hostfix
from vmoat.commands import machine
from vmoat.doctor import MISSING, NOTE, OK, WARNING, Facts, Finding
from vmoat.drivers.qemu import disks, image
from vmoat.errors import Code, VmoatError
from vmoat.output import Output

EVERYTHING = {
    "qemu-system-x86_64": "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)",
    "qemu-system-aarch64": "QEMU emulator version 10.0.2",
    "git": "git version 2.39.5",
    "bwrap": "bubblewrap 0.8.0",
    "mmdebstrap": "mmdebstrap 1.3.5",
    **dict.fromkeys(
        ("qemu-img", "mke2fs", "passt", "ssh", "ssh-keygen", "tar", "zstd", "openssl", "newuidmap",
         "newgidmap"), "",
    ),
}  # fmt: skip

DEBIAN_12 = Facts(
    programs=EVERYTHING, keyring="trixie", user="ann", python=(3, 11, 2), kvm="open",
    kvm_group="kvm", userns_clone="1", max_userns="95000",
    free_gib={"/home/ann/.local/share/vmoat": 40.0, "/var/tmp": 40.0},
)  # fmt: skip
FRESH = replace(
    DEBIAN_12, keyring="", programs={"git": "git version 2.39.5", "tar": "", "mke2fs": ""}
)
DEBIAN_13 = replace(
    DEBIAN_12, python=(3, 13, 5),
    programs={**EVERYTHING, "qemu-system-x86_64": "QEMU emulator version 10.0.2 (Debian)",
              "virtiofsd": "virtiofsd 1.13.2"},
)  # fmt: skip
UBUNTU_24 = replace(
    DEBIAN_12, python=(3, 12, 3), keyring="old", apparmor=True, apparmor_userns="1",
    sandbox="bwrap: setting up uid map: Permission denied",
    passt_profile="profile passt {\n  owner /tmp/**\t\tw,\n  owner @{HOME}/**\tw,\n}",
)  # fmt: skip


def found(facts: Facts) -> dict[str, Finding]:
    return {finding.name: finding for finding in doctor.examine(facts)}


def states(facts: Facts, state: str) -> list[str]:
    return [name for name, finding in found(facts).items() if finding.verdict.state == state]


def cures(facts: Facts, name: str) -> str:
    return "\n".join(hostfix.cure_lines(found(facts)[name].verdict, facts.manager))


def test_a_complete_debian_12_lacks_nothing() -> None:
    assert doctor.well(doctor.examine(DEBIAN_12))
    assert states(DEBIAN_12, MISSING) == states(DEBIAN_12, WARNING) == []


def test_debian_13_has_a_virtiofsd_that_can_be_used() -> None:
    assert found(DEBIAN_13)["virtiofsd"].verdict.state == OK


@pytest.mark.parametrize("version", ["virtiofsd version 7.2.22 (Debian)", "virtiofsd 1.10.1"])
def test_a_virtiofsd_that_cannot_be_used_is_no_fault(version: str) -> None:
    facts = replace(DEBIAN_12, programs={**EVERYTHING, "virtiofsd": version})
    assert found(facts)["virtiofsd"].verdict.state == NOTE


def test_a_fresh_debian_is_cured_by_one_installation() -> None:
    missing = states(FRESH, MISSING)
    assert missing == [
        "qemu", "qemu-img", "bubblewrap", "passt", "ssh", "ssh-keygen", "mmdebstrap", "keyring",
        "subids", "zstd",
    ]  # fmt: skip
    steps = hostfix.steps(
        doctor.examine(FRESH), manager="apt-get", uid=0, interactive=False, update=True
    )
    assert steps == [
        ["apt-get", "update"],
        ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y",
         "--no-install-recommends", "qemu-system-x86", "qemu-utils", "bubblewrap", "passt",
         "openssh-client", "openssl", "mmdebstrap", "debian-archive-keyring", "uidmap", "zstd"],
    ]  # fmt: skip


def test_an_arm_machine_gets_its_own_qemu() -> None:
    facts = replace(FRESH, machine="aarch64")
    assert found(facts)["qemu"].verdict.packages == ("qemu-system-arm",)
    assert found(replace(DEBIAN_12, machine="aarch64"))["qemu"].verdict.state == OK


def test_root_needs_no_subordinate_ids() -> None:
    assert "subids" not in found(replace(FRESH, uid=0, user="root"))


def test_a_user_without_a_range_gets_one_that_nobody_has() -> None:
    facts = replace(DEBIAN_12, subids=(False, False), free_range=165536)
    steps = hostfix.steps(
        doctor.examine(facts), manager="apt-get", uid=1000, interactive=True, update=False
    )
    assert [" ".join(step) for step in steps] == [
        "sudo usermod --add-subuids 165536-231071 --add-subgids 165536-231071 ann"
    ]


def test_a_bare_user_is_cured_at_once() -> None:
    facts = replace(FRESH, subids=(False, True))
    steps = hostfix.steps(
        doctor.examine(facts), manager="apt-get", uid=1000, interactive=False, update=False
    )
    assert "uidmap" in steps[0]
    assert steps[1:] == [["sudo", "-n", "usermod", "--add-subuids", "100000-165535", "ann"]]


def test_without_a_terminal_sudo_must_not_ask() -> None:
    assert hostfix.as_root(["true"], uid=1000, interactive=False) == ["sudo", "-n", "true"]
    assert hostfix.as_root(["true"], uid=0, interactive=False) == ["true"]


def test_an_ordinary_user_without_sudo_is_told_what_root_has_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VmoatError) as caught:
        hostfix.require_root(1000, ["sudo", "-n", "apt-get", "install", "passt"])
    assert caught.value.code == Code.MISSING
    assert caught.value.hint == "as root: apt-get install passt"
    hostfix.require_root(0, ["apt-get"])


def test_ubuntu_24_names_apparmor_and_a_profile_for_bubblewrap_alone() -> None:
    assert states(UBUNTU_24, MISSING) == ["namespaces"]
    text = cures(UBUNTU_24, "namespaces")
    assert "AppArmor" in text
    assert "/etc/apparmor.d/bwrap" in text
    assert "keyring" in states(UBUNTU_24, WARNING)
    assert "/tmp, ~" in found(UBUNTU_24)["passt-profile"].verdict.says
    # A profile that is there already: the sandbox works, whatever the switch says.
    assert found(replace(UBUNTU_24, sandbox=""))["namespaces"].verdict.state == OK


def test_the_fix_never_changes_the_systems_security() -> None:
    steps = hostfix.steps(
        doctor.examine(UBUNTU_24), manager="apt-get", uid=0, interactive=False, update=False
    )
    assert steps == []


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"userns_clone": "0"}, "kernel.unprivileged_userns_clone = 1"),
        ({"max_userns": "0"}, "user.max_user_namespaces = 10000"),
        ({"container": "docker"}, "--security-opt seccomp=unconfined"),
    ],
)
def test_why_there_is_no_sandbox(facts: dict[str, str], words: str) -> None:
    refused = replace(DEBIAN_12, sandbox="bwrap: No permissions to create new namespace", **facts)
    assert found(refused)["namespaces"].verdict.state == MISSING
    assert words in cures(refused, "namespaces")


def test_without_walls_their_tools_are_not_missed() -> None:
    facts = replace(FRESH, walls=False)
    assert not {"bubblewrap", "passt", "namespaces"} & set(found(facts))


@pytest.mark.parametrize(
    ("facts", "state", "words"),
    [
        ({"kvm": ""}, WARNING, "modprobe"),
        ({"kvm": "", "cpu_virtualises": False}, WARNING, "nested"),
        ({"kvm": "", "container": "podman"}, WARNING, "--device /dev/kvm"),
        ({"kvm": "closed"}, WARNING, "sudo usermod -aG kvm ann"),
        ({"kvm": "closed", "kvm_group": ""}, WARNING, "chgrp kvm"),
        ({"kvm_verdict": "fails"}, WARNING, "another kernel"),
        ({"kvm_verdict": "works"}, OK, ""),
    ],
)
def test_kvm(facts: dict[str, str], state: str, words: str) -> None:
    tried = replace(DEBIAN_12, **facts)
    assert found(tried)["kvm"].verdict.state == state
    assert words in cures(tried, "kvm")
    assert doctor.well(doctor.examine(tried))  # software emulation does


@pytest.mark.parametrize(
    ("programs", "name"),
    [
        ({"qemu-system-x86_64": "QEMU emulator version 6.2.0 (Debian 1:6.2)"}, "qemu"),
        ({"git": "git version 2.25.1"}, "git"),
    ],
)
def test_versions_that_are_too_old(programs: dict[str, str], name: str) -> None:
    facts = replace(DEBIAN_12, programs={**EVERYTHING, **programs})
    assert states(facts, MISSING) == [name]
    assert "too old" in found(facts)[name].verdict.says


def test_an_image_that_is_there_needs_no_tools_to_build_one() -> None:
    programs = {k: v for k, v in EVERYTHING.items() if k not in ("mmdebstrap", "newuidmap")}
    facts = replace(
        DEBIAN_12, programs=programs, keyring="", free_gib={"/data": 3.0}, image_ready=True
    )
    assert doctor.well(doctor.examine(facts))
    assert states(replace(facts, image_ready=False), MISSING) == [
        "mmdebstrap", "keyring", "subids", "disk",
    ]  # fmt: skip


def test_room() -> None:
    assert "smaller vm.memory" in cures(replace(DEBIAN_12, memory_gib=(16, 3.5)), "memory")
    full = replace(DEBIAN_12, free_gib={"/data": 40.0, "/var/tmp": 1.0})
    assert "/var/tmp" in found(full)["disk"].verdict.says
    sealed = replace(DEBIAN_12, unwritable=("/home/ann/.local/state/vmoat",))
    assert "/home/ann/.local/state/vmoat" in found(sealed)["folders"].verdict.says
    assert "XDG_STATE_HOME" in cures(sealed, "folders")
    assert not doctor.well(doctor.examine(sealed))


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, "`sudo apt-get install chromium` (Ubuntu: `sudo snap"),
        ({"wsl": 2}, "in WSL (one of Windows does not do)"),
        ({"system": "Darwin", "driver": "colima", "manager": ""}, "brew install --cask"),
        ({"manager": ""}, "install one, or name yours in `browser.command`"),
        ({"browser_fault": "the program `/x` of browser.command is not there"},
         "vmoat config browser.command"),
    ],
)
def test_without_a_browser_there_is_a_note_how_to_get_one(
    facts: dict[str, object], words: str
) -> None:
    without = replace(DEBIAN_12, **facts)
    assert found(without)["browser"].verdict.state == NOTE
    assert words in cures(without, "browser")
    assert found(without)["browser"].verdict.packages == (), "big, and not for all: no --fix"


def test_a_browser_that_is_there_is_named() -> None:
    verdict = found(replace(DEBIAN_12, browser="Chromium 140.0"))["browser"].verdict
    assert (verdict.state, verdict.says) == (OK, "Chromium 140.0")


def test_other_systems() -> None:
    mac = Facts(system="Darwin", machine="arm64", manager="", programs={"git": "git 2.39"})
    assert list(found(mac)) == ["platform", "python"]
    assert not doctor.well(doctor.examine(mac))
    assert found(replace(DEBIAN_12, machine="riscv64"))["platform"].verdict.state == MISSING
    assert found(replace(DEBIAN_12, wsl=1))["platform"].verdict.state == MISSING
    assert found(replace(DEBIAN_12, wsl=2))["platform"].verdict.state == NOTE


@pytest.mark.parametrize(
    ("manager", "words"),
    [
        ("dnf", ["dnf", "qemu-system-x86-core", "qemu-img", "debian-keyring", "shadow-utils"]),
        ("pacman", ["pacman", "-Sy", "qemu-system-x86", "openssh"]),
        ("zypper", ["zypper", "qemu-x86", "qemu-tools"]),
    ],
)
def test_other_package_managers(manager: str, words: list[str]) -> None:
    facts = replace(FRESH, manager=manager)
    (step,) = hostfix.steps(
        doctor.examine(facts), manager=manager, uid=0, interactive=False, update=True
    )
    assert set(words) <= set(step)
    if manager == "pacman":
        assert "mmdebstrap" not in step
        assert "vmoat image import" in cures(facts, "mmdebstrap")


def test_without_a_known_manager_packages_are_named() -> None:
    facts = replace(FRESH, manager="")
    assert "install passt" in cures(facts, "passt")
    found_steps = hostfix.steps(
        doctor.examine(facts), manager="", uid=0, interactive=False, update=True
    )
    assert found_steps == []


def test_every_missing_thing_has_a_cure() -> None:
    bare = Facts(programs={}, free_gib={"/data": 1.0}, unwritable=("/x",), subids=(False, False))
    for finding in doctor.examine(bare):
        if finding.verdict.state in (MISSING, WARNING):
            assert hostfix.cure_lines(finding.verdict, "apt-get"), finding.name


# --- facts ---------------------------------------------------------------------------------------


def test_facts_that_are_read_from_text() -> None:
    assert hostfacts.free_range("ann:100000:65536\nbob:165536:65536") == 231072
    assert hostfacts.free_range("") == 100000
    meminfo = "MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 4194304 kB\n"
    assert hostfacts.memory(meminfo) == (8.0, 4.0)
    assert hostfacts.wsl("5.15.90.1-microsoft-standard-WSL2") == 2
    assert hostfacts.wsl("4.4.0-19041-Microsoft") == 1
    assert hostfacts.wsl("6.1.0-32-amd64") == 0


def test_keyrings(tmp_path: Path) -> None:
    assert hostfacts.keyring((tmp_path,)) == ""
    (tmp_path / "debian-archive-keyring.gpg").touch()
    assert hostfacts.keyring((tmp_path,)) == "old"
    (tmp_path / "debian-archive-trixie-stable.gpg").touch()
    assert hostfacts.keyring((tmp_path,)) == "trixie"


def test_fresh_containers_have_no_package_lists(tmp_path: Path) -> None:
    (tmp_path / "partial").mkdir()
    assert hostfix.lists_missing(tmp_path)
    (tmp_path / "mirror_debian_dists_trixie_InRelease").touch()
    assert not hostfix.lists_missing(tmp_path)


# --- the command ---------------------------------------------------------------------------------


def arguments(**given: object) -> argparse.Namespace:
    base = {"path": None, "branch": None, "fix": False, "yes": False, "json": False}
    return argparse.Namespace(**{**base, **given})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("STATE", "DATA", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def out() -> Output:
    return Output(io.StringIO(), io.StringIO())


def said(stream: object) -> str:
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


def test_the_report(place: Path, out: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostfacts, "gather", lambda settings: FRESH)
    assert machine.doctor(arguments(), out) == Code.MISSING
    assert "missing  bwrap is not installed (the walls around a VM)" in said(out.stdout)
    assert "→ sudo apt-get install -y --no-install-recommends bubblewrap" in said(out.stdout)
    assert "doctor --fix" in said(out.stderr)


def test_the_report_as_json(place: Path, out: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostfacts, "gather", lambda settings: DEBIAN_12)
    assert machine.doctor(arguments(json=True), out) == Code.OK
    report = json.loads(said(out.stdout))
    assert report["ok"] is True
    assert {row["state"] for row in report["checks"]} <= {OK, NOTE}


def test_fix_shows_runs_and_checks_again(
    place: Path, out: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    facts = iter([replace(FRESH, uid=0), replace(DEBIAN_12, uid=0)])
    monkeypatch.setattr(hostfacts, "gather", lambda settings: next(facts))
    monkeypatch.setattr(hostfix, "lists_missing", lambda: True)
    monkeypatch.setattr(hostfix, "run", lambda argv, interactive: ran.append(list(argv)) or 0)
    assert machine.doctor(arguments(fix=True), out) == Code.OK
    assert [" ".join(step[:4]) for step in ran] == [
        "apt-get update", "env DEBIAN_FRONTEND=noninteractive apt-get install",
    ]  # fmt: skip
    assert said(out.stderr).startswith("[vmoat] apt-get update\n")


def test_an_installation_that_fails_is_tried_once_with_fresh_lists(
    place: Path, out: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = iter([100, 0, 100])
    monkeypatch.setattr(hostfacts, "gather", lambda settings: replace(FRESH, uid=0))
    monkeypatch.setattr(hostfix, "lists_missing", lambda: False)
    monkeypatch.setattr(hostfix, "run", lambda argv, interactive: next(codes))
    assert machine.doctor(arguments(fix=True), out) == Code.MISSING
    assert "ended with exit code 100" in said(out.stderr)


# --- image ---------------------------------------------------------------------------------------


def an_image(mirror: str, digest: str = "") -> str:
    digest = digest or image.digest(mirror)
    folder = image.folder(digest)
    folder.mkdir(parents=True)
    for part in image.PARTS:
        (folder / part).write_bytes(b"x" * 4096)
    (folder / "image.toml").write_text(f'digest = "{digest}"\nbuilt = "2026-01-01T00:00:00"\n')
    return digest


def a_disk(place: Path, name: str, digest: str) -> None:
    folder = place / "data" / "vmoat" / "disks" / name
    folder.mkdir(parents=True)
    disks.write_record(folder, {"system": "1", "image": digest})


MIRROR = ""


def call(out: Output, action: str, operand: str = "", **given: object) -> str:
    args = arguments(action=action, operand=operand, force=given.pop("force", False), **given)
    assert machine.image(args, out) == Code.OK
    return said(out.stdout)


def test_image_outside_a_repository(place: Path, out: Output) -> None:
    assert call(out, "digest") == image.digest(MIRROR) + "\n"


def test_the_users_config_names_the_mirror(place: Path, out: Output) -> None:
    config = place / "config" / "vmoat" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('image.mirror = "http://mirror.example/debian"\nvm.mount = "/home"\n')
    assert call(out, "digest") == image.digest("http://mirror.example/debian") + "\n"


def test_image_ls(place: Path, out: Output) -> None:
    digest = an_image(MIRROR)
    an_image(MIRROR, "0123456789abcdef")
    a_disk(place, "wt-feature", digest)
    rows = call(out, "ls").splitlines()
    assert len(rows) == 2
    (row,) = (row for row in rows if row.startswith(digest))
    assert row.endswith("current; under wt-feature")


def test_image_rm_refuses_one_that_a_vm_stands_on(place: Path, out: Output) -> None:
    digest = an_image(MIRROR)
    a_disk(place, "wt-feature", digest)
    with pytest.raises(VmoatError, match="wt-feature") as caught:
        call(out, "rm", digest)
    assert caught.value.code == Code.USAGE
    assert image.ready(digest)
    call(out, "rm", digest, force=True)
    assert not image.ready(digest)


def test_image_build_again_refuses_one_that_a_vm_stands_on(place: Path, out: Output) -> None:
    digest = an_image(MIRROR)
    a_disk(place, "wt-feature", digest)
    with pytest.raises(VmoatError, match="cannot be built again"):
        call(out, "build", force=True)
    assert call(out, "build") == digest + "\n"  # it is there


def test_image_export_and_import(place: Path, out: Output) -> None:
    digest = an_image(MIRROR)
    file = place / "image.tar.zst"
    call(out, "export", str(file))
    image.remove(digest)
    assert call(out, "import", str(file)).endswith(digest + "\n")
    assert image.ready(digest)


@pytest.mark.parametrize(
    ("action", "operand"),
    [("rm", ""), ("export", ""), ("import", ""), ("ls", "x"), ("rm", ".."), ("rm", "."),
     ("rm", "0000")],
)  # fmt: skip
def test_image_usage(place: Path, out: Output, action: str, operand: str) -> None:
    digest = an_image(MIRROR)
    with pytest.raises(VmoatError) as caught:
        call(out, action, operand)
    assert caught.value.code == Code.USAGE
    assert image.ready(digest)
