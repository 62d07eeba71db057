"""The walls, attacked as root in the VM."""

from __future__ import annotations

import os
import secrets
import socket
import stat
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Vm, git

pytestmark = pytest.mark.vm

METADATA = "169.254.169.254"


@pytest.fixture
def trap(tmp_path: Path) -> tuple[str, Path]:
    """A repository's config that runs a program at ``git status``, and the mark that it leaves."""
    mark = tmp_path / "ran"
    script = f"#!/bin/sh\\ntouch {mark}\\n"
    return (
        "rm -rf /tmp/evil; git init -q /tmp/evil; cd /tmp/evil; "
        f"printf '{script}' >run; chmod +x run; git config core.fsmonitor $PWD/run; cd -; ",
        mark,
    )


def host_status(worktree: Path) -> None:
    """What the user types next."""
    env = {**os.environ, "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory",
           "GIT_CONFIG_VALUE_0": "*"}  # fmt: skip
    for words in (["status"], ["diff"], ["ls-files", "-m"]):
        subprocess.run(["git", "-C", worktree, *words], check=True, capture_output=True, env=env)


@pytest.mark.parametrize(
    "attack",
    [
        "cp -r /tmp/evil {wt}/evil; echo 'gitdir: {wt}/evil/.git' >{wt}/.git",
        "cp -r /tmp/evil {wt}/evil; mv {wt}/.git {wt}/old; mv {wt}/evil/.git {wt}/.git",
        "cp -r /tmp/evil {wt}/evil; rm -rf {wt}/.git; cp -r {wt}/evil/.git {wt}/.git",
        "ln {wt}/.git {wt}/hard; echo 'gitdir: {wt}/evil/.git' >{wt}/hard",
        "umount -l {wt}/.git; umount {wt}/.git; cp /tmp/evil/.git/config {wt}/.git/config",
        "chmod 777 {wt}/.git; truncate -s0 {wt}/.git; sed -i s,gitdir.*,x, {wt}/.git",
        "git -C {wt} config core.fsmonitor /tmp/evil/run",
    ],
)
def test_nothing_of_the_guests_runs_at_the_hosts_git_status(
    vm: Vm, trap: tuple[str, Path], attack: str
) -> None:
    plant, mark = trap
    before = (vm.worktree / ".git").read_bytes()
    config = (vm.main / ".git" / "config").read_bytes()
    vm.root_sh(plant + attack.format(wt=f"'{vm.worktree}'"))
    host_status(vm.worktree)
    assert not mark.exists()
    assert (vm.worktree / ".git").read_bytes() == before
    assert (vm.main / ".git" / "config").read_bytes() == config
    vm.root_sh(
        f"rm -rf '{vm.worktree}/evil' '{vm.worktree}/hard'; git config --unset core.fsmonitor"
    )


def test_the_hosts_git_folder_is_read_only(vm: Vm) -> None:
    head = git(vm.main, "rev-parse", "HEAD").stdout
    code, out = vm.root_sh(
        "cd /run/vmoat/git/common && touch objects/x refs/heads/x config hooks/post-checkout"
    )
    assert code != 0
    assert out.count("Read-only file system") == 4
    code, _ = vm.sh("git commit -q --allow-empty -m in-the-vm && git config core.hooksPath x")
    assert code == 0
    assert git(vm.main, "rev-parse", "HEAD").stdout == head
    assert "in-the-vm" not in git(vm.worktree, "log", "--format=%s").stdout
    assert "hookspath" not in git(vm.main, "config", "--local", "--list").stdout
    vm.sh("git reset -q --soft HEAD~1; git config --unset core.hooksPath")


def test_configs_are_read_only(vm: Vm) -> None:
    code, out = vm.root_sh("echo x >>vmoat.toml; mv vmoat.toml y; rm vmoat.toml")
    assert code != 0
    assert out.count("Read-only file system") + out.count("Device or resource busy") == 3


def test_nothing_else_of_the_host_is_there(vm: Vm, lab: object) -> None:
    secret = Path.home() / f".vmoat-test-{secrets.token_hex(4)}"
    secret.write_text("secret")
    try:
        _, out = vm.root_sh(f"cat '{secret}'; ls '{vm.main}'")
        assert "No such file" in out
        assert "secret" not in out.replace(str(secret), "")
        assert "vmoat.toml" not in out, "the main checkout's files"
    finally:
        secret.unlink()
    exports = vm.root_sh("grep -l . /sys/bus/virtio/drivers/9pnet_virtio/*/mount_tag | wc -l")[1]
    assert exports.split()[-1] in ("2",), "the worktree and the git view"


def test_files_belong_to_the_owner_and_none_is_setuid(vm: Vm) -> None:
    script = (
        "set +e; mkdir t; cd t; cp /bin/true s; chmod 4755 s; cp /bin/true g; chmod 2755 g; "
        "install -m 6755 /bin/true i; echo x >o; chown 12345:12345 o; "
        "mknod b b 8 0; mknod c c 1 3; "
        "cp /bin/true k; setcap cap_net_raw+ep k; umask 0; perl -e "
        '\'use Fcntl; sysopen(F,"p",O_CREAT|O_WRONLY,04755) or print "$!\\n"\'; chown -R 0:0 .'
    )
    vm.root_sh(script)
    owner = vm.worktree.stat()
    found = list((vm.worktree / "t").iterdir())
    assert {path.name for path in found} >= {"s", "g", "o", "k"}
    for path in [vm.worktree / "t", *found]:
        facts = path.lstat()
        assert (facts.st_uid, facts.st_gid) == (owner.st_uid, owner.st_gid), path
        assert not facts.st_mode & (stat.S_ISUID | stat.S_ISGID), path
        assert stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode), path
        assert "security.capability" not in os.listxattr(path)
    vm.root_sh("rm -rf t")


# --- the network


@pytest.fixture
def listener() -> Iterator[tuple[int, list[str]]]:
    """Listens on every address of this host, TCP and UDP; who came is noted."""
    came: list[str] = []
    tcp = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    port: int = tcp.getsockname()[1]
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    udp.bind(("::", port))

    def serve_tcp() -> None:
        while True:
            try:
                link, who = tcp.accept()
            except OSError:
                return
            came.append(f"tcp {who}")
            link.close()

    def serve_udp() -> None:
        while True:
            try:
                data, who = udp.recvfrom(100)
            except OSError:
                return
            if not data:
                return
            came.append(f"udp {who}")

    threads = [threading.Thread(target=work, daemon=True) for work in (serve_tcp, serve_udp)]
    for thread in threads:
        thread.start()
    yield port, came
    tcp.shutdown(socket.SHUT_RDWR)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as wake:
        wake.sendto(b"", ("::1", port))  # ends the thread, which shutdown does not for UDP
    for thread in threads:
        thread.join(5)
    tcp.close()
    udp.close()


def own_addresses() -> list[str]:
    out = subprocess.run(["ip", "-o", "-4", "addr"], capture_output=True, text=True).stdout
    return [line.split()[3].partition("/")[0] for line in out.splitlines()]


def test_the_hosts_listeners_are_out_of_reach(vm: Vm, listener: tuple[int, list[str]]) -> None:
    port, came = listener
    with socket.create_connection(("127.0.0.1", port), 5):
        pass  # it does listen
    targets = dict.fromkeys(["10.0.2.2", "0.0.0.1", "10.0.2.3", *own_addresses(), METADATA])
    script = f"""
    try() {{ timeout 4 bash -c "exec 3<>/dev/tcp/$1/{port}" 2>/dev/null && echo "reached $1"
             echo x >/dev/udp/$1/{port}; }}
    sysctl -qw net.ipv4.conf.all.route_localnet=1 net.ipv4.conf.eth0.route_localnet=1
    ip route del local 127.0.0.0/8 dev lo table local
    ip route del local 127.0.0.1 dev lo table local
    ip route add 127.0.0.0/8 via 10.0.2.2 dev eth0 src 10.0.2.15
    ip route add 127.0.0.1 via 10.0.2.2 dev eth0 src 10.0.2.15
    ip -6 addr add fd77::2/64 dev eth0; ip -6 route add default dev eth0
    for a in {" ".join(targets)} 127.1.2.3 ::1 ::ffff:127.0.0.1 64:ff9b::7f00:1 fe80::1%eth0; do
      try $a &
    done
    wait
    ip route del 127.0.0.0/8; ip route del 127.0.0.1
    ip route add local 127.0.0.0/8 dev lo table local
    ip route add local 127.0.0.1 dev lo table local
    ip -6 route del default dev eth0; ip -6 addr del fd77::2/64 dev eth0
    """
    _, out = vm.root_sh(script, timeout=240)
    assert "reached" not in out
    assert len(came) == 1, "our own look, nobody else"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can add an address to this host")
def test_the_clouds_metadata_is_out_of_reach(vm: Vm, listener: tuple[int, list[str]]) -> None:
    port, came = listener
    subprocess.run(["ip", "addr", "add", f"{METADATA}/32", "dev", "lo"], check=True)
    try:
        _, out = vm.root_sh(f"timeout 5 curl -sv http://{METADATA}:{port}/ 2>&1")
    finally:
        subprocess.run(["ip", "addr", "del", f"{METADATA}/32", "dev", "lo"], check=True)
    assert came == []
    assert "refused" in out.lower()


def test_the_internets_names_still_resolve(vm: Vm) -> None:
    """Where this machine itself resolves names."""
    # the one that the guest's own apt uses
    name = vm.ok("grep -rhoE 'https?://[^/ ]+' /etc/apt/sources.list* | head -n 1").split("/")[2]
    try:
        socket.getaddrinfo(name, 80)
    except OSError:
        pytest.skip("this machine resolves no names")
    assert vm.ok(f"getent ahostsv4 {name}")


def test_only_ssh_is_open_on_the_host_and_only_on_loopback(vm: Vm) -> None:
    driver = tomllib.loads((vm.folder / "driver.toml").read_text())
    pids = [pid for _, pid, _ in driver["processes"]]
    out = subprocess.run(["ss", "-Hlntup"], capture_output=True, text=True).stdout
    rows = [line.split() for line in out.splitlines() if any(f"pid={p}," in line for p in pids)]
    assert rows, "at least ssh's port"
    assert {row[4].rpartition(":")[0] for row in rows} == {"127.0.0.1"}
