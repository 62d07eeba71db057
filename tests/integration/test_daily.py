"""A working day: services, tunnels that stay, an editor's connection, and room that comes back."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Vm, fetch, kill, told, wait_until
from ports import free_port

from vmoat import channels, dockercontext

pytestmark = pytest.mark.vm

SERVER = """\
use IO::Socket::INET; $| = 1;
my $s = IO::Socket::INET->new(LocalPort => 8090, Listen => 5, ReuseAddr => 1) or die "no: $!";
print "serving\\n";
while (my $c = $s->accept) {
  my $l = <$c>; print $c "HTTP/1.0 200 OK\\r\\n\\r\\nserved\\n"; close $c;
}
"""


@pytest.fixture(scope="module")
def service(golden: Vm, first_up: str) -> Iterator[dict[str, str]]:
    """Settings that make a small web server the stack, a service without a health URL."""
    (golden.worktree / "build").mkdir(exist_ok=True)
    (golden.worktree / "build" / "server.pl").write_text(SERVER)
    yield {
        "VMOAT_UP_COMMAND": "exec perl build/server.pl", "VMOAT_UP_SERVICE": "true",
        "VMOAT_HEALTH_URL": "",
    }  # fmt: skip
    golden.up()
    assert golden.status()["healthy"]


def test_what_was_deleted_inside_is_the_hosts_again(vm: Vm) -> None:
    """On both disks, without a hand; ext4 tells of it with its next commit."""
    size = 48 << 20
    disks = [vm.disks / name for name in ("system.qcow2", "data.qcow2")]

    def weights() -> list[int]:
        return [disk.stat().st_blocks * 512 for disk in disks]

    code, out = vm.root_sh(f"head -c {size} /dev/urandom | tee /root/big >/data/big && sync")
    assert code == 0, out
    full = weights()
    assert vm.root_sh("rm /root/big /data/big")[0] == 0
    wait_until(lambda: all(w < f - size // 2 for w, f in zip(weights(), full, strict=True)), 60)


def names_of(context: Path) -> list[str]:
    """What the docker context's endpoint says of its containers; [] where nobody answers."""
    host = json.loads(context.read_text())["Endpoints"]["docker"]["Host"]
    socket = Path(host.removeprefix("unix://"))
    try:
        status, text = channels.get(socket, "/containers/json", "docker")
    except (OSError, ValueError):
        return []
    return [name for row in json.loads(text) for name in row["Names"]] if status == 200 else []


def test_the_hosts_docker_reaches_the_vm_by_its_context(vm: Vm) -> None:
    """Also after the master was killed, without a vmoat command."""
    folder = Path(vm.home.env()["DOCKER_CONFIG"])
    context = dockercontext.meta_file(f"vmoat-{vm.name}", folder)
    inside = sorted("/" + name for name in vm.ok("docker ps --format '{{.Names}}'").split())
    assert inside
    assert sorted(names_of(context)) == inside
    if shutil.which("docker"):
        done = subprocess.run(
            ["docker", "--context", f"vmoat-{vm.name}", "ps", "--format", "{{.Names}}"],
            env=vm.home.env(), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert sorted("/" + name for name in done.stdout.split()) == inside, done.stderr
    kill(*vm.masters())
    wait_until(lambda: sorted(names_of(context)) == inside, 60)
    assert "DOCKER_HOST=unix://" in vm.cli("env", "--shell", "sh").stdout


def test_status_tells_what_each_part_weighs(vm: Vm) -> None:
    done = vm.cli("status", "-v", "--json")
    weights = json.loads(done.stdout)["weights"]
    assert weights["docker"]["images"] > 2**20, "the stack's image"
    assert set(weights["docker"]) == {"images", "containers", "volumes", "build cache"}
    host = weights["host"]
    assert host["memory"] > 200 << 20
    assert host["system"] + host["data"] <= vm.status()["disk_bytes"] + 2**20
    assert "for all VMs" in vm.cli("status").stdout


def test_the_build_cache_has_a_bound(vm: Vm) -> None:
    """dockerd collects it by itself, from a tenth of its disk on."""
    rules = vm.ok("docker buildx inspect default")
    assert "GC Policy rule#" in rules
    assert "Keep Bytes" in rules


def test_a_tunnel_outlives_its_master(vm: Vm) -> None:
    """Killed, or its sockets removed: the next command brings the same port back."""
    port = free_port()
    url = f"http://localhost:{port}/"
    assert vm.cli("tunnel", f"8080:{port}").stdout == f"http://localhost:{port}\n"
    try:
        kill(*vm.masters())
        assert vm.ok("echo back") == "back"
        assert fetch(url)
        for file in vm.runtime().glob("ssh*"):
            file.unlink()
        assert vm.ok("echo back") == "back"
        assert fetch(url)
        assert [t["host"] for t in vm.status()["tunnels"]] == [port]
        kill(*(pid for pid in vm.masters() if pid not in _reached(vm)))
    finally:
        vm.cli("untunnel")
    kill(*vm.masters())
    assert vm.status()["tunnels"] == []


def _reached(vm: Vm) -> set[int]:
    """The masters that answer on their sockets."""
    config = vm.runtime() / "ssh_config"
    found = set()
    for alias in ("vmoat", "vmoat-root"):
        said = subprocess.run(
            ["ssh", "-F", config, "-O", "check", alias], capture_output=True, text=True
        ).stderr
        found.update(int(word) for word in said.replace(")", "=").split("=") if word.isdigit())
    return found


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed on this machine")
def test_an_editors_connection(vm: Vm, tmp_path: Path) -> None:
    """What VS Code does: a shell fed by a pipe, a dynamic forward and a fixed one.

    Both forwards end with it.
    """
    config = tmp_path / "config"
    config.write_text(vm.cli("ssh-config").stdout)
    proxy, one = free_port(), free_port()
    forwards = ["-D", str(proxy), "-L", f"{one}:localhost:8080"]
    argv = ["ssh", "-T", "-F", config, *forwards, vm.name, "bash"]
    editor = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert editor.stdin is not None
    assert editor.stdout is not None
    editor.stdin.write("echo ready $((6 * 7))\n")
    editor.stdin.flush()
    assert editor.stdout.readline() == "ready 42\n"
    page = fetch(f"http://localhost:{one}/")
    socks = ["--noproxy", "", "--socks5-hostname", f"localhost:{proxy}", "http://localhost:8080/"]
    done = subprocess.run(["curl", "-s", "-m", "60", *socks], capture_output=True, text=True)
    assert done.stdout == page
    editor.communicate(timeout=60)
    with pytest.raises(OSError, match="refused"):
        fetch(f"http://localhost:{one}/")


def test_a_service_listens_and_is_started_again(vm: Vm, service: dict[str, str]) -> None:
    story = vm.up(env=service)
    assert "healthy" in story
    report = json.loads(vm.cli("status", "--json", env=service).stdout)
    assert report["service"] == {"state": "active", "ports": [8090]}
    assert vm.cli("up", env=service).stderr.count("up to date") == 1
    assert vm.root_sh("pkill -9 -f 'perl build/server.p[l]'")[0] == 0
    wait_until(lambda: "serving" in _after_restart(vm, service), 30)
    assert vm.ok("curl -s localhost:8090") == "served"
    assert "tail" not in vm.cli("logs", "stack", env=service).stderr


def _after_restart(vm: Vm, service: dict[str, str]) -> str:
    log = vm.cli("logs", "stack", env=service).stdout
    return log.partition("is started again (1 of 3)")[2]


def test_a_service_that_keeps_failing_is_told_with_its_last_lines(
    vm: Vm, service: dict[str, str]
) -> None:
    broken = {**service, "VMOAT_UP_COMMAND": "echo the port is gone; exit 4"}
    done = vm.cli("up", env=broken)
    assert done.returncode == 1, told(done)
    assert "ended with exit code 4" in done.stderr
    assert "the port is gone" in done.stderr.rpartition("ERROR")[2]
    report = json.loads(vm.cli("status", "--json", env=broken).stdout)
    assert (report["service"]["state"], report["healthy"]) == ("exited 4", False)
