"""QEMU, bubblewrap and passt are called exactly as the golden files say."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vmoat.drivers import Owner
from vmoat.drivers.qemu import argv, meta, network
from vmoat.drivers.qemu.sandbox import Bind, Identity, bwrap_argv, system_binds
from vmoat.drivers.qemu.shares import Export

GOLDEN = Path(__file__).parents[1] / "golden"


def check(name: str, text: str) -> None:
    file = GOLDEN / name
    if os.environ.get("GOLDEN") == "write":
        file.write_text(text)
    assert text == file.read_text(), f"{name} differs; GOLDEN=write accepts the change"


def job(machine: str, accel: str, **more: object) -> argv.Launch:
    fields: dict[str, object] = {
        "machine": machine,
        "program": f"/usr/bin/{argv.MACHINES[machine].program}",
        "name": "vmoat-0123456789abcdef",
        "cpus": 4,
        "memory_mib": 8192,
        "accel": accel,
        "paths": argv.SANDBOX_PATHS,
        "cmdline": "console=ttyS0 loglevel=5 quiet\n",
        "exports": (
            Export("worktree", "/vm/share/worktree", "/home/u/a, b", True, "/home/u/a, b"),
            Export("git", "/vm/git", "/run/vmoat/git", False, "/s/git/view"),
        ),
        "qmp_fd": 5,
        "sandboxed": True,
        "net_fd": 6,
        "console_fd": 7,
    }
    return argv.Launch(**{**fields, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(("machine", "accel"), [("x86_64", "kvm"), ("x86_64", "tcg")])
def test_qemu_on_x86_is_called_as_agreed(machine: str, accel: str) -> None:
    check(f"qemu_{machine}_{accel}.txt", "\n".join(argv.qemu_argv(job(machine, accel))) + "\n")


def test_qemu_on_arm_has_its_own_board_console_and_kernel_arguments() -> None:
    words = argv.qemu_argv(job("aarch64", "kvm"))
    check("qemu_aarch64_kvm.txt", "\n".join(words) + "\n")
    assert "console=ttyAMA0" in words[words.index("-append") + 1]
    assert "ttyS0" not in " ".join(words)


def test_without_walls_the_user_network_and_the_hosts_paths_are_used() -> None:
    paths = argv.Paths("/i/kernel", "/i/initrd", "/i/root.qcow2", "/d,/s", "/d,/d", "/m,/meta.tar")
    words = argv.qemu_argv(
        job("x86_64", "tcg", sandboxed=False, net_fd=-1, console_fd=-1, paths=paths,
            console_log="/s/console.log", ssh_port=2222)
    )  # fmt: skip
    check("qemu_x86_64_open.txt", "\n".join(words) + "\n")
    text = "\n".join(words)
    assert "-sandbox" not in words
    assert "path=/home/u/a,, b," in text, "commas are doubled in QEMU's older options"
    assert json.loads(words[words.index("-netdev") + 1])["hostfwd"] == [
        {"str": "tcp:127.0.0.1:2222-:22"}
    ]


def test_the_users_own_arguments_come_last() -> None:
    words = argv.qemu_argv(job("x86_64", "tcg", extra=("-device", "usb-ehci")))
    assert words[-2:] == ["-device", "usb-ehci"]


def system() -> list[str]:
    links = {"/bin", "/sbin", "/lib", "/lib64"}
    return system_binds(["/usr/bin/qemu"], islink=links.__contains__, exists=lambda _: False)


@pytest.mark.parametrize(
    ("name", "identity"), [("user", Identity()), ("owner", Identity((1001, 1002)))]
)
def test_the_sandbox_holds_nothing_but_what_is_named(name: str, identity: Identity) -> None:
    words = bwrap_argv(
        ["/usr/bin/qemu", "-x"],
        [Bind("/home/u/wt", "/vm/share/worktree", True), Bind("/home/u/wt/.git", "/vm/.git")],
        bwrap="/usr/bin/bwrap",
        setpriv="/usr/bin/setpriv",
        identity=identity,
        seccomp_fd=8,
        info_fd=9,
        system=system(),
    )
    check(f"qemu_bwrap_{name}.txt", "\n".join(words) + "\n")
    assert "--unshare-net" in words
    assert words.count("--bind") == 1
    sources = {words[at + 1] for at, word in enumerate(words) if "bind" in word}
    assert not {"/", "/home", "/etc", "/var", "/root", "/run"} & sources


def test_a_qemu_outside_of_usr_brings_its_own_folder(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "qemu"
    program.parent.mkdir()
    program.touch()
    words = system_binds([str(program)], islink=lambda _: False, exists=lambda _: False)
    assert words[-3:] == ["--ro-bind", str(tmp_path), str(tmp_path)]


def test_passt_maps_no_gateway_and_lets_only_ssh_in() -> None:
    old = network.passt_argv(
        "/usr/bin/passt", fd=4, ssh_port=2222, run_as=(1001, 1002), options="--no-map-gw"
    )
    check("qemu_passt_2023.txt", "\n".join(old) + "\n")
    new = network.passt_argv(
        "/usr/bin/passt", fd=4, ssh_port=2222, run_as=None, options="--map-host-loopback ADDR"
    )
    check("qemu_passt_2025.txt", "\n".join(new) + "\n")


def mounts(**more: object) -> meta.Mounts:
    exports = (
        Export("worktree", "/vm/share/worktree", "/srv/it's $HOME/wt", True),
        Export("share0", "/vm/share/0", "/srv/data", False),
        Export("git", "/vm/git", "/run/vmoat/git", False),
    )
    return meta.Mounts(exports, common_dir="/srv/it's $HOME/.git", **more)  # type: ignore[arg-type]


def test_the_guests_boot_script_mounts_in_order_and_quotes_paths() -> None:
    text = meta.boot_script(mounts(inside_git=(("alternate0", "/srv/mirror/objects"),)))
    check("qemu_boot.sh", text)
    lines = [
        line.split(" ")[0:4] for line in text.splitlines() if line.startswith(("share ", "view "))
    ]
    assert lines[0][2] == "git", "the view stands on the git export"


def test_what_the_guest_is_told() -> None:
    identity = meta.Identity(
        name="wt-a",
        owner=Owner("o'hara", 1001, 1002),
        token="t0",
        disk_id="d0",
        data_id="d1",
        authorized_key="ssh-ed25519 AAAA vmoat\n",
        host_key="PRIVATE\n",
        git_name='A "B"',
        git_email="a@b",
    )
    files = meta.guest_files(
        identity, mounts(), proxies={"http_proxy": "http://p:1", "no_proxy": "a,b"},
        certificates=["CERT"],
    )  # fmt: skip
    assert "VMOAT_USER='o'\"'\"'hara'" in files["etc/vmoat/env"][1]
    assert files["etc/ssh/ssh_host_ed25519_key"] == (0o600, "PRIVATE\n")
    assert files["etc/vmoat/extra.crt"][1] == "CERT\n"
    assert 'Acquire::http::Proxy "http://p:1";' in files["etc/apt/apt.conf.d/95vmoat-proxy"][1]
    assert json.loads(files["etc/vmoat/docker.json"][1])["proxies"]["default"] == {
        "httpProxy": "http://p:1",
        "noProxy": "a,b",
    }
    assert 'name = "A \\"B\\""' in files["etc/gitconfig"][1]


def test_a_proxy_that_is_no_longer_set_does_not_stay() -> None:
    identity = meta.Identity("a", Owner("u", 1, 1), "t", "d", "d", "k", "h")
    files = meta.guest_files(identity, mounts())
    assert files["etc/profile.d/vmoat-proxy.sh"][1] == ""
    assert files["etc/apt/apt.conf.d/95vmoat-proxy"][1] == ""
    assert files["etc/vmoat/extra.crt"][1] == ""


def test_dockerd_alone_pulls_through_the_image_cache() -> None:
    identity = meta.Identity("a", Owner("u", 1, 1), "t", "d", "d", "k", "h")
    proxies = {"https_proxy": "http://corp:3128", "no_proxy": "corp"}
    files = meta.guest_files(identity, mounts(), proxies=proxies, cache="CERTIFICATE\n")
    units = [path for path in files if path.startswith("etc/systemd/system/docker.service.d/")]
    last = files[max(units)][1]
    assert 'Environment="HTTPS_PROXY=http://127.0.0.1:46871"' in last, "it comes after the host's"
    assert 'Environment="NO_PROXY=localhost,' in last
    assert 'Environment="SSL_CERT_DIR=/etc/vmoat/image-cache"' in last
    assert files["etc/vmoat/image-cache/ca.crt"] == (0o644, "CERTIFICATE\n")
    others = "".join(text for path, (_, text) in files.items() if path not in units)
    assert "46871" not in others
    assert "corp:3128" in files["etc/profile.d/vmoat-proxy.sh"][1]


def test_without_a_cache_none_of_it_stays() -> None:
    identity = meta.Identity("a", Owner("u", 1, 1), "t", "d", "d", "k", "h")
    files = meta.guest_files(identity, mounts())
    assert files[meta.CACHE_UNIT][1] == files["etc/vmoat/image-cache/ca.crt"][1] == ""


def test_the_tar_is_the_same_every_time() -> None:
    files = {"etc/a/b": (0o600, "x"), "etc/l": (0o777, "->/etc/a/b")}
    assert meta.tar_bytes(files) == meta.tar_bytes(dict(files))
