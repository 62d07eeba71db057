"""What goes wrong in a project: each ends with its exit code and its own last words."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from lab import Vm

pytestmark = pytest.mark.vm


@pytest.fixture(autouse=True, scope="module")
def _up_again(golden: Vm, first_up: str) -> Iterator[None]:
    yield
    golden.up()
    assert golden.status()["healthy"]


def test_a_package_that_does_not_exist(vm: Vm) -> None:
    story = vm.up("apt", code=1, env={"VMOAT_PROVISION_APT": "tree no-such-package-here"})
    assert "no-such-package-here" in story
    assert "logs --stage apt" in story
    assert "no-such-package-here" in vm.cli("logs", "--stage", "apt").stdout


def test_a_script_that_fails(vm: Vm) -> None:
    story = vm.up("script", code=1, env={"VMOAT_PROVISION_SCRIPT": "echo why it broke; exit 9"})
    assert "exit code 9" in story
    assert "why it broke" in story
    vm.up("script")


def test_a_start_command_that_fails(vm: Vm) -> None:
    story = vm.up(code=1, env={"VMOAT_UP_COMMAND": "echo no such luck; false"})
    assert "no such luck" in story
    assert vm.cli("logs", "--stage", "stack").stdout == "no such luck\n"


def test_a_container_that_crashes_ends_it_at_once(vm: Vm) -> None:
    line = (
        "docker run -d --name crash shop-web busybox sh -c "
        "'echo last words of the dying; sleep 1; exit 3'"
    )
    began = time.monotonic()
    story = vm.up(code=1, env={"VMOAT_UP_COMMAND": line, "VMOAT_HEALTH_URL": "http://localhost:1/"})
    assert time.monotonic() - began < 120
    assert "ended with exit code 3" in story
    assert "last words of the dying" in story
    status = vm.status()
    assert (status["healthy"], "crash" in status["health"]) == (False, True)
    vm.ok("docker rm -f crash")


def test_a_health_url_that_never_answers(vm: Vm) -> None:
    env = {"VMOAT_HEALTH_URL": "http://localhost:1/never", "VMOAT_HEALTH_TIMEOUT": "4"}
    story = vm.up(code=6, env=env)
    assert "http://localhost:1/never" in story
    assert "started" in story  # the container's last lines


def test_a_command_that_stops_watching_leaves_the_work(vm: Vm) -> None:
    story = vm.up("prepare", "--force", "prepare", "--timeout", "0.5", code=6)
    assert "vmoat wait" in story
    assert vm.cli("wait").returncode == 0
    assert vm.plan() == {} or "stack" in vm.plan()


def test_the_guests_disk_is_full(vm: Vm) -> None:
    """``status`` tells it, ``up`` says it, and works again once there is room."""
    full = "/var/lib/docker/full"
    code, out = vm.root_sh(
        f"fallocate -l $(df --output=avail -B1 /var/lib/docker | tail -1) {full}; "
        "dd if=/dev/zero of=/var/lib/docker/rest bs=4k count=100000 2>/dev/null; df /var/lib/docker"
    )
    assert code == 0, out
    (vm.worktree / "index.html").write_text("a page for which there is no room\n" * 9)
    try:
        assert vm.status()["guest"]["/var/lib/docker"]["free"] < 2**20
        story = vm.up(code=1)
        assert "the VM's disk is full" in story
        assert full in story, "the culprit"
        assert "docker system prune" in story
    finally:
        vm.root_sh(f"rm -f {full} /var/lib/docker/rest")
    vm.up()
