"""The way of every day: up, up again, an edit, a seed, ports, logs."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path

import pytest
from lab import PAGE, PORT, SEED, Lab, Vm, fetch, told, wait_until

pytestmark = pytest.mark.vm


def page(vm: Vm) -> str:
    """The page as it is served inside."""
    return vm.ok(f"curl -fsS http://localhost:{PORT}/")


def test_the_first_up_ends_with_a_healthy_stack(golden: Vm, first_up: str) -> None:
    assert "healthy" in first_up
    status = golden.status()
    assert (status["state"], status["healthy"], status["reasons"]) == ("running", True, [])
    assert [c["service"] for c in status["containers"]] == ["web"]
    assert page(golden) == "first version"
    assert golden.ok("command -v tree") == "/usr/bin/tree"
    for name in ("provisioned", "prepared"):
        assert (golden.worktree / "build" / name).read_text() == f"{name}\n"
    assert (golden.worktree / SEED).read_text() == "GREETING=from-main\n"
    assert (golden.worktree / "out" / "started").read_text() == "from-main\n"


def test_files_that_the_vm_wrote_belong_to_the_host_user(vm: Vm) -> None:
    owner = vm.worktree.stat()
    for name in ("build/provisioned", "build/busybox"):
        info = (vm.worktree / name).stat()
        assert (info.st_uid, info.st_gid) == (owner.st_uid, owner.st_gid)
        assert not info.st_mode & 0o6000


def test_the_second_up_does_nothing(lab: Lab, vm: Vm) -> None:
    vm.up()
    since, times = time.time(), []
    for _ in range(3):
        began = time.monotonic()
        story = vm.up()
        times.append(time.monotonic() - began)
        assert "nothing to do" in story
    assert vm.ran(since) == []
    lab.figure("no-op up (best of 3)", min(times), "≤ 1.0 s")
    assert min(times) < 4


def test_the_second_up_asks_the_guest_at_most_twice(vm: Vm) -> None:
    vm.up()
    story = vm.up("-v")
    calls = [line for line in story.splitlines() if re.search(r"\bssh -F ", line)]
    trips = [line for line in calls if " -O " not in line and " -M " not in line]
    assert len(trips) <= 2, story


def test_status_and_name_are_quick(lab: Lab, vm: Vm) -> None:
    for command, limit in (("status", "≤ 0.6 s"), ("name", "≤ 3 × python3 -c pass")):
        times = []
        for _ in range(3):
            began = time.monotonic()
            assert vm.cli(command).returncode == 0
            times.append(time.monotonic() - began)
        lab.figure(f"{command} (best of 3)", min(times), limit)
        assert min(times) < 3


def test_the_url_answers_through_the_tunnel(vm: Vm) -> None:
    done = vm.cli("tunnel")
    assert done.returncode == 0, told(done)
    assert re.fullmatch(r"http://localhost:\d+\n", done.stdout)
    url = done.stdout.strip()
    assert fetch(url) == (vm.worktree / PAGE).read_text()
    again = vm.cli("tunnel", "--json")
    first = json.loads(again.stdout)["tunnels"][0]
    assert first | {"service": "web", "guest": PORT, "url": url} == first
    assert [t["url"] for t in vm.status()["tunnels"]] == [url]
    assert vm.cli("untunnel").returncode == 0
    with pytest.raises(OSError, match=r"refused|reset|closed"):
        fetch(url)
    assert vm.cli("tunnel").stdout.strip() == url  # the same one next time
    vm.cli("untunnel")


def test_an_edit_is_served_after_the_next_up(vm: Vm) -> None:
    (vm.worktree / PAGE).write_text("second version\n")
    assert vm.plan() == {"stack": f"{PAGE} changed"}
    since = time.time()
    vm.up()
    assert page(vm) == "second version"
    assert vm.ran(since)[0] == "stack"
    assert not {"apt", "script", "prepare", "vm"} & set(vm.ran(since))


@pytest.mark.long  # two starts of the stack; what is decided is test_fingerprint's
def test_an_edit_while_the_stack_starts_is_served_after_the_next_up(vm: Vm) -> None:
    vm.up()
    wait = "until [ -e build/edited ]; do sleep 0.2; done"
    line = f"docker compose up -d --build; touch build/now; {wait}"
    for mark in ("now", "edited"):
        (vm.worktree / "build" / mark).unlink(missing_ok=True)
    (vm.worktree / PAGE).write_text("in time\n")
    since = time.time()
    watcher = vm.start("up", env={"VMOAT_UP_COMMAND": line})
    wait_until((vm.worktree / "build" / "now").exists, 120)
    (vm.worktree / PAGE).write_text("too late\n")
    (vm.worktree / "build" / "edited").touch()
    watcher.communicate(timeout=120)
    assert page(vm) == "in time"
    assert vm.ran(since)[0] == "stack"
    vm.up()
    assert page(vm) == "too late"
    assert vm.plan() == {}


def test_an_ignored_file_does_not_run_the_stack_again(vm: Vm) -> None:
    vm.up()
    vm.ok("echo more >>out/started; date >build/report")
    (vm.worktree / "out" / "from-the-host").write_text("x")
    assert vm.plan() == {}
    assert "nothing to do" in vm.up()


def test_an_edited_seed_runs_the_stack_again(vm: Vm) -> None:
    vm.up()
    (vm.worktree / SEED).write_text("GREETING=edited\n")
    assert vm.plan().get("stack") == f"{SEED} changed"
    vm.up()
    assert (vm.worktree / "out" / "started").read_text().endswith("edited\n")
    assert (vm.main / SEED).read_text() == "GREETING=from-main\n"


def test_an_input_of_a_stage_runs_it_and_the_stack(vm: Vm) -> None:
    vm.up()
    with open(vm.worktree / "prepare.sh", "a") as script:
        script.write("echo twice >>build/prepared\n")
    assert list(vm.plan())[:2] == ["prepare", "stack"]
    vm.up()
    assert (vm.worktree / "build" / "prepared").read_text() == "prepared\nprepared\ntwice\n"
    assert vm.plan() == {}


def test_logs_of_the_stack_a_service_and_a_stage(vm: Vm) -> None:
    vm.up()
    every = vm.cli("logs")
    assert every.returncode == 0
    assert "started" in every.stdout
    assert len(vm.cli("logs", "web", "--tail", "1").stdout.splitlines()) == 1
    assert "tree" in vm.cli("logs", "--stage", "apt").stdout
    console = vm.cli("logs", "--console")
    assert "vmoat-boot: ready" in console.stdout
    none = vm.cli("logs", "nobody")
    assert (none.returncode, "web" in none.stderr) == (2, True)


def test_logs_follow_what_comes(vm: Vm) -> None:
    follower = vm.start("logs", "-f", "--tail", "0")
    try:
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.append(follower.stdout.readline()))
        reader.start()
        write = "busybox sh -c 'echo a new line >/proc/1/fd/1'"
        for _ in range(20):  # it may not have come to its following yet
            vm.ok(f"docker exec $(docker ps -q | head -1) {write}")
            reader.join(3)
            if lines:
                break
        assert lines == ["a new line\n"]
    finally:
        follower.terminate()
        follower.communicate(timeout=60)


def test_a_bundle_holds_all_that_is_known(vm: Vm, tmp_path: Path) -> None:
    target = tmp_path / "a bundle"
    done = vm.cli("logs", "--bundle", str(target))
    assert done.returncode == 0, told(done)
    names = {file.name for file in target.iterdir()}
    assert {"console.txt", "events.ndjson", "journal.txt", "docker.txt", "config.json"} <= names
    assert "web" in (target / "docker.txt").read_text()


def test_status_tells_the_room_in_the_guest(vm: Vm) -> None:
    space = vm.status()["guest"]
    assert space["/"]["free"] > 0
    assert space["/var/lib/docker"]["bytes"] > 8 * 2**30


def test_an_up_without_the_terminal_says_what_it_does(vm: Vm) -> None:
    story = vm.up("--force", "prepare")
    assert "▸ prepare: --force" in story
    assert re.search(r"✓ stack \(\d", story)


def test_events_for_programs(vm: Vm) -> None:
    done = vm.cli("up", "--force", "seed", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows[0]["event"] == "run_start"
    assert rows[-1] | {"event": "run_end", "code": 0} == rows[-1]
    wait_until(lambda: vm.plan() == {}, 30)
