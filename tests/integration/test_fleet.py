"""ls and gc with a real VM: what is told of it, and that no byte of a removed one's stays."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import Lab, Vm, add_worktree, alive, git, told, wait_until

pytestmark = pytest.mark.vm


@pytest.fixture
def spare(lab: Lab, repository: Path) -> Iterator[Vm]:
    """A VM that runs, without a stack, and alone in its state folder: gc would take what other
    tests have left."""
    tree = add_worktree(repository, lab.folder / "wt" / "spare", "spare")
    vm = lab.vm(tree, repository, lab.make_home(lab.folder / "fleet"))
    vm.up("vm")
    name = vm.name
    yield vm
    vm.cli("destroy", "-f", name, cwd=vm.home.root, timeout=120)  # its worktree may be gone


def listed(vm: Vm, name: str) -> dict[str, Any]:
    """The row of a VM, asked for from outside of every worktree."""
    began = time.monotonic()
    done = vm.cli("ls", "--json", cwd=vm.home.root, timeout=60)
    assert done.returncode == 0, told(done)
    assert time.monotonic() - began < 60
    rows = json.loads(done.stdout)["vms"]
    return next((row for row in rows if row["name"] == name), {})


def used_now(vm: Vm, name: str) -> bool:
    before = time.time()
    return bool(listed(vm, name)["used_at"] >= before)


def gc(vm: Vm, *words: str, **env: str) -> list[dict[str, Any]]:
    done = vm.cli("gc", "--json", *words, cwd=vm.home.root, env=env, timeout=200)
    assert done.returncode == 0, told(done)
    items: list[dict[str, Any]] = json.loads(done.stdout)["items"]
    return items


def test_ls_and_gc_from_the_first_start_to_the_last_byte(spare: Vm) -> None:
    name, disks, runtime = spare.name, spare.disks, spare.runtime()
    make = "docker volume create pg-data && docker volume create"
    wait_until(lambda: spare.root_sh(make)[0] == 0, 60)
    row = listed(spare, name)
    assert (row["state"], row["branch"], row["repository"]) == ("running", "spare", "shop")
    assert row["memory_bytes"] > 100 << 20
    assert row["memory_size_bytes"] == 2 << 30
    assert row["disk_bytes"] > 1 << 20
    assert row["cpu_seconds"] > 1
    assert row["cpu_percent"] is not None
    assert time.time() - row["used_at"] < 300
    assert {stage["name"]: stage["state"] for stage in row["stages"]}["vm"] == "done"

    session = spare.start("exec", "sleep 300")
    wait_until(lambda: used_now(spare, name), 60)
    time.sleep(2)
    assert used_now(spare, name), "while it lasts"
    session.kill()
    session.communicate()
    assert gc(spare) == [], "it is somebody's"

    pids, machine = spare.living(), list(spare.processes().values())
    assert machine
    git(spare.main, "worktree", "remove", "--force", str(spare.worktree))
    assert "was removed" in listed(spare, name)["orphan"]
    (item,) = gc(spare, "--dry-run")
    assert (item["name"], item["action"], item["volumes"]) == (name, "stop", ["pg-data"])
    assert all(alive(pid) for pid in machine), "a dry run"
    (item,) = gc(spare)
    assert (item["action"], item["done"]) == ("stop", True)
    assert listed(spare, name)["state"] == "stopped"
    wait_until(lambda: not any(alive(pid) for pid in pids), 60)
    assert disks.exists()
    (item,) = gc(spare)
    assert (item["action"], item["done"]) == ("keep", False)

    (item,) = gc(spare, VMOAT_GC_GRACE="1s")
    assert (item["action"], item["done"]) == ("remove", True)
    assert listed(spare, name) == {}
    assert not any(place.exists() for place in (disks, runtime, spare.home.state / "vms" / name))
    assert gc(spare) == []
