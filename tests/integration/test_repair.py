"""Things break, or are broken by hand: ``status`` tells the truth, ``up`` repairs."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from lab import Lab, Vm, alive, kill, wait_until

pytestmark = pytest.mark.vm


def test_the_containers_are_removed_inside(second: Vm) -> None:
    second.ok("docker rm -f $(docker ps -aq)")
    assert second.status()["healthy"] is False
    assert "is gone" in second.plan()["stack"]
    since = time.time()
    second.up()
    assert second.ran(since)[0] == "stack"
    assert second.status()["healthy"]


def test_dockerd_is_stopped_inside(second: Vm) -> None:
    code, out = second.root_sh("systemctl stop docker.socket docker.service")
    assert code == 0, out
    status = second.status()
    assert any("dockerd" in reason for reason in status["reasons"])
    second.up()
    status = second.status()
    assert (status["healthy"], status["reasons"]) == (True, [])


@pytest.mark.long  # a whole shutdown and two boots
def test_the_guest_is_rebooted_from_inside(second: Vm) -> None:
    """Its QEMU goes on, with another boot: nothing that was started there runs any more."""
    before = second.ok("cat /proc/sys/kernel/random/boot_id")
    console = second.folder / "console.log"
    second.root_sh("systemctl reboot", timeout=60)
    wait_until(lambda: "reboot: Restarting system" in console.read_text(errors="replace"), 120)
    since = time.time()
    second.up()
    assert second.ok("cat /proc/sys/kernel/random/boot_id") != before
    assert "stack" in second.ran(since)
    assert not {"apt", "script"} & set(second.ran(since))
    assert second.status()["healthy"]
    assert second.plan() == {}


def test_down_and_up_again(lab: Lab, second: Vm) -> None:
    """The down command runs in the worktree, with the stack's environment; one that fails is told,
    and ends nothing.
    """
    second.ok("docker volume create keepsake")
    mark = second.worktree / "build" / "down"
    line = "docker compose stop; echo $PWD $COMPOSE_PROJECT_NAME >build/down; echo last; exit 3"
    began = time.monotonic()
    done = second.cli("down", env={"VMOAT_DOWN_COMMAND": line})
    assert done.returncode == 0
    lab.figure("down", time.monotonic() - began, "")
    assert "exit code 3" in done.stderr
    assert "last" in done.stderr
    assert mark.read_text() == f"{second.worktree} shop\n"
    status = second.status()
    assert (status["state"], status["reasons"]) == ("stopped", [])
    assert second.living() == []
    assert second.cli("down").returncode == 0  # once more: nothing to do
    since = time.time()
    began = time.monotonic()
    second.up()
    seconds = time.monotonic() - began
    lab.figure("up after down", seconds, "≤ 75 s")
    assert seconds < 240
    assert second.ran(since) == ["vm", "stack", *second.ran(since)[2:]]
    assert "keepsake" in second.ok("docker volume ls -q")


@pytest.fixture
def machine(odd: Vm) -> Vm:
    """The second worktree's VM, running in whatever way the test before left it, with a stack or
    without: what is broken here is below that, and a boot that changes nothing takes half a minute.
    """
    if not alive(odd.processes().get("qemu", 0)):
        odd.up("vm")
    return odd


def test_without_walls_by_the_users_own_config(machine: Vm, tmp_path: Path) -> None:
    """QEMU's own network, proxies and a further certificate of the host's."""
    certificate = tmp_path / "extra.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "/dev/null",
         "-subj", "/CN=vmoat test", "-out", certificate], check=True, capture_output=True,
    )  # fmt: skip
    env = {"VMOAT_WALLS": "false", "http_proxy": "http://proxy.invalid:3128",
           "no_proxy": "localhost,127.0.0.1", "SSL_CERT_FILE": str(certificate)}  # fmt: skip
    story = machine.up("vm", env=env)
    assert "walls changed" in story
    said = machine.cli("exec", "env; cat /etc/ssl/certs/ca-certificates.crt", env=env).stdout
    assert "http_proxy=http://proxy.invalid:3128" in said
    assert "HTTP_PROXY=http://proxy.invalid:3128" in said
    assert certificate.read_text().split("\n")[2] in said
    assert machine.cli("exec", "cat index.html", env=env).stdout
    assert set(machine.processes()) == {"qemu"}


def test_the_system_disk_is_truncated(machine: Vm) -> None:
    """It is made again, within the walls; what was installed on it has to run again, and the plan
    says so.
    """
    disk = machine.disks / "system.qcow2"
    kill(machine.processes()["qemu"])
    with open(disk, "r+b") as file:
        file.truncate(disk.stat().st_size // 2)
    status = machine.status()
    assert status["state"] == "broken"
    assert any("system.qcow2" in reason for reason in status["reasons"])
    story = machine.up("vm")
    assert "damaged" in story
    assert {"qemu", "passt", "guard"} <= set(machine.processes())
    plan = machine.plan()
    assert plan["apt"] == "a new disk"
    assert {"script", "stack"} <= set(plan)


@pytest.mark.long  # as with the system disk
def test_docker_s_disk_is_truncated(machine: Vm) -> None:
    """The user's volumes were on it: nothing is thrown away without a word."""
    assert machine.cli("down").returncode == 0
    disk = machine.disks / "data.qcow2"
    whole = disk.read_bytes()
    with open(disk, "r+b") as file:
        file.truncate(len(whole) // 2)
    assert machine.status()["state"] == "broken"
    story = machine.up("vm", code=5)
    assert "vmoat destroy" in story
    disk.write_bytes(whole)
    assert machine.status()["state"] == "stopped"


@pytest.mark.long  # as with truncated ones: another VM made anew
def test_the_disks_are_deleted_by_hand(machine: Vm) -> None:
    """... under a VM that runs: it must not go on with files that nobody can see any more."""
    qemu = machine.processes()["qemu"]
    shutil.rmtree(machine.disks)
    assert machine.status()["state"] == "broken"
    machine.up("vm")
    assert not alive(qemu)
    assert machine.plan()["apt"] == "a new disk"
    assert machine.status()["state"] == "running"


def test_destroy_leaves_no_byte(machine: Vm) -> None:
    name, folder, disks, runtime = machine.name, machine.folder, machine.disks, machine.runtime()
    pids = [*machine.processes().values(), *machine.masters()]
    assert all(alive(pid) for pid in pids)
    refused = machine.cli("destroy")
    assert (refused.returncode, "-f" in refused.stderr) == (2, True)
    assert all(alive(pid) for pid in pids)
    done = machine.cli("destroy", "-f")
    assert done.returncode == 0, done.stderr
    assert name in done.stderr
    wait_until(lambda: not any(alive(pid) for pid in pids), 60)
    assert [path for path in (folder, disks, runtime) if path.exists()] == []
    assert leftovers(machine, name) == []
    assert machine.cli("destroy", "-f").returncode == 0
    assert machine.status()["state"] == "absent"


def leftovers(vm: Vm, name: str) -> list[Path]:
    """Files of a VM that still are somewhere below vmoat's folders, the git folder or /tmp."""
    places = [vm.home.state, vm.home.data / "disks", vm.main / ".git"]
    found = [path for place in places for path in place.rglob(f"*{name}*")]
    found += list((vm.main / ".git").rglob("vmoat-id*"))
    mine = [path for path in found if path.name != "vmoat-id" or name in path.read_text()]
    return mine + list(Path("/tmp").glob(f"*{name}*"))
