"""A look at all VMs: what each row tells, from files and processes of this machine alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import World, git, repository
from timing import quickest, until

from vmoat import instance, paths, worktree
from vmoat.fleet import load, places, rows, use
from vmoat.fleet.rows import Row
from vmoat.forwards import RECORD, Record
from vmoat.state import RunLog, VmLock


def only() -> Row:
    found = rows.rows()
    assert len(found) == 1
    return found[0]


def test_a_vm_that_is_up_tells_where_it_is_how_it_is_and_what_its_stages_did(world: World) -> None:
    begun = time.time()
    world.vmoat("up")
    row = only()
    assert (row.name, row.repository, row.branch) == ("wt-tree", "repo", "work")
    assert row.worktree == str(world.tree)
    assert (row.state, row.health, row.working) == ("running", "healthy", False)
    assert begun - 1 <= row.used_at <= time.time()
    stages = {stage.name: stage for stage in row.stages}
    assert list(stages)[:2] == ["image", "vm"]
    assert (stages["stack"].state, stages["stack"].reason) == ("done", "never run")
    assert begun - 1 <= stages["stack"].at <= time.time()
    assert row.memory_size_bytes == world.context().settings.vm_memory << 30
    assert (row.worktree_exists, row.orphan, row.left) == (True, "", "")


def test_a_stage_that_failed_says_why_and_the_vm_is_unhealthy(world: World) -> None:
    world.place.mkdir(parents=True, exist_ok=True)
    world.set("fail-stack", "3")
    world.vmoat("up", code=1)
    row = only()
    failed = [stage for stage in row.stages if stage.state == "failed"]
    assert [stage.name for stage in failed] == ["stack"]
    assert "exit code 3" in failed[0].reason
    assert row.health == "unhealthy"


def test_a_vm_that_is_down_is_of_unknown_health(world: World) -> None:
    world.vmoat("up")
    world.vmoat("down")
    assert (only().state, only().health) == ("stopped", "unknown")


def test_the_stages_of_a_run_that_goes_on(world: World) -> None:
    mine = world.context().instance
    log = RunLog(mine.folder, "ab12")
    lock = VmLock(mine.folder)
    assert lock.take()
    log.open()
    log.write("run_start", pid=os.getpid(), targets=[], force=[])
    log.write("graph", stages=["image", "vm", "apt", "stack"])
    log.write("stage_end", stage="image", outcome="skipped", seconds=0.0)
    log.write("stage_start", stage="vm", reason="there is no VM yet")
    log.write("line", text='x "event": "stage_end" ' + "y" * 200_000)
    row = only()
    states = [(stage.name, stage.state) for stage in row.stages]
    assert states == [
        ("image", "done"), ("vm", "running"), ("apt", "waiting"), ("stack", "waiting"),
    ]  # fmt: skip
    assert (row.working, row.state) == (True, "starting")
    assert time.time() - row.used_at < 60
    lock.free()  # the worker was killed
    row = only()
    assert [(stage.name, stage.state) for stage in row.stages][1] == ("vm", "interrupted")
    assert not row.working


def test_a_stage_of_an_earlier_run_is_told_where_the_last_one_did_not_come_to_it(
    world: World,
) -> None:
    world.vmoat("up")
    world.set("fail-apt", "4")
    world.vmoat("up", "--force", "apt", code=1)
    stages = {stage.name: stage.state for stage in only().stages}
    assert stages["apt"] == "failed"
    assert stages["stack"] == "done"


def test_a_moved_worktree_is_followed_without_any_command_in_it(world: World) -> None:
    world.context()
    moved = world.root / "else where"
    git(world.repo, "worktree", "move", str(world.tree), str(moved))
    row = only()
    assert row.worktree == str(moved)
    assert (row.worktree_exists, row.orphan) == (True, "")


def test_the_last_linked_worktree_that_is_removed_leaves_an_orphan(world: World) -> None:
    world.context()
    git(world.repo, "worktree", "remove", "--force", str(world.tree))
    assert not (world.repo / ".git" / "worktrees").exists(), "git removes it with the last"
    row = only()
    assert row.orphan == f"the worktree {world.tree} was removed"
    assert (row.worktree_exists, row.repository) == (False, "repo")


def test_a_worktree_made_again_at_the_same_path_leaves_an_orphan(world: World) -> None:
    mine = world.context().instance
    (mine.folder / "vm.toml").write_text("x = 1\n")
    git(world.repo, "worktree", "remove", "--force", str(world.tree))
    git(world.repo, "worktree", "add", "-q", str(world.tree), "work")
    world.context()
    found = {row.name: row.orphan for row in rows.rows()}
    assert found.pop("wt-tree") == ""
    assert list(found.values()) == [f"the worktree {world.tree} was made anew and has another VM"]


def test_a_folder_that_was_removed_without_git_is_git_s_to_let_go(world: World) -> None:
    world.context()
    shutil.rmtree(world.tree)
    row = only()
    assert (row.worktree_exists, row.orphan) == (False, "")
    assert "git worktree prune" in row.left
    git(world.repo, "worktree", "prune")
    assert only().orphan


def test_a_repository_that_is_not_there_or_not_mounted_proves_nothing(world: World) -> None:
    world.context()
    os.rename(world.repo, world.root / "away")
    world.repo.mkdir()  # its mount point
    row = only()
    assert row.orphan == ""
    assert "is not there" in row.left


def test_a_locked_worktree_is_never_an_orphan(world: World) -> None:
    world.context()
    git(world.repo, "worktree", "lock", str(world.tree))
    shutil.rmtree(world.tree)
    (world.repo / ".git/worktrees/tree" / paths.ID_FILE).unlink()
    row = only()
    assert row.orphan == ""
    assert "locked" in row.left


def test_a_worktree_on_a_disk_that_is_not_mounted_proves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """git has pruned it meanwhile, as it does after three months."""
    real = os.path.ismount
    mounted = lambda path: Path(path) == world.tree or real(path)  # noqa: E731
    monkeypatch.setattr(os.path, "ismount", mounted)
    world.context()
    owner = instance.read_owner("wt-tree")
    assert owner is not None
    assert world.tree in owner.mounts
    monkeypatch.setattr(os.path, "ismount", real)
    git(world.repo, "worktree", "remove", "--force", str(world.tree))
    row = only()
    assert (row.orphan, row.left) == ("", f"{world.tree} is not mounted")


def test_an_id_file_that_cannot_be_read_or_is_damaged_proves_nothing(world: World) -> None:
    world.context()
    file = world.repo / ".git/worktrees/tree" / paths.ID_FILE
    file.write_text("")
    assert (only().orphan, only().left) == ("", "its id file is damaged")
    file.unlink()
    file.symlink_to(file.name)  # ELOOP
    assert only().orphan == ""
    assert "cannot be read" in only().left


def test_names_of_repositories_and_branches(homes: Path) -> None:
    outer = repository(homes / "outer", {"a": "1"})
    inner = repository(homes / "inner", {"a": "1"})
    git(outer, "submodule", "add", "-q", str(inner), "sub")
    git(homes, "clone", "-q", "--bare", str(inner), str(homes / "bare.git"))
    git(homes / "bare.git", "worktree", "add", "-q", "-b", "a/b", str(homes / "from-bare"))
    git(outer, "checkout", "-q", "--detach")
    wanted = {"outer": ("outer", ""), "outer/sub": ("sub", "main"), "from-bare": ("bare", "a/b")}
    for folder, names in wanted.items():
        git_dir = worktree.find(homes / folder).git_dir
        assert (places.repository(git_dir), places.branch(git_dir)) == names


def test_tunnels_are_urls_with_their_services_open_or_not(world: World) -> None:
    mine = world.context().instance
    with Record(mine.folder / RECORD).change() as table:
        table[9001] = 8080
    (mine.folder / "services.toml").write_text('8080 = "web"\n')
    (url,) = only().urls
    assert (url.service, url.guest, url.host, url.url) == (
        "web",
        8080,
        9001,
        "http://localhost:9001",
    )
    assert not url.open, "there is no master"


def test_the_tunnel_command_writes_down_whose_ports_they_are(world: World) -> None:
    world.vmoat("up")
    world.set("containers", '[{"name": "web", "ports": [[8080, 8080]]}]')
    world.vmoat("tunnel")
    assert [(url.service, url.guest) for url in only().urls] == [("web", 8080)]


def test_a_command_inside_is_a_use(world: World) -> None:
    world.vmoat("up")
    long_ago(world.context().instance.folder)
    assert only().used_at == 1000
    world.vmoat("exec", "true")
    assert time.time() - only().used_at < 60


def test_a_session_that_goes_on_is_a_use_now(world: World) -> None:
    world.vmoat("up")
    folder = world.context().instance.folder
    words = world.argv("exec", "echo there; until [ -e over ]; do sleep 0.05; done")
    with subprocess.Popen(
        words, cwd=world.tree, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as session:
        assert session.stdout is not None
        try:
            assert session.stdout.readline() == "there\n"
            long_ago(folder)
            assert time.time() - only().used_at < 60
        finally:
            (world.tree / "over").touch()
    long_ago(folder)
    assert only().used_at == 1000


def long_ago(folder: Path) -> None:
    for file in [folder / use.MARK, *(folder / "runs").iterdir()]:
        os.utime(file, (1000, 1000))


def test_cpu_and_memory_are_those_of_the_processes_and_their_children() -> None:
    burn = "import os, time; os.fork()\nwhile time.process_time() < 0.3: pass\n"
    process = subprocess.Popen([sys.executable, "-c", burn + "time.sleep(300)"])
    try:
        until(lambda: load.measure([process.pid])[0] >= 0.5)
        seconds, memory = load.measure([process.pid])
        assert seconds >= 0.5, "both count"
        assert memory > 2 << 20
    finally:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), 9)
        process.kill()
        process.wait()
    assert load.measure([process.pid]) == (0.0, 0)


def test_ps_of_macos_is_read() -> None:
    assert load.parse_ps("  2048   0:01.50\n 1024  1:00:02.25\n") == (3603.75, 3072 * 1024)


def test_the_percentage_is_since_the_look_before() -> None:
    before = Row("a", "1", "qemu", "/w", "b", "r", "running", cpu_seconds=10.0, looked=100.0)
    now = Row("a", "1", "qemu", "/w", "b", "r", "running", cpu_seconds=13.0, looked=102.0)
    assert rows._since(now, before).cpu_percent == 150.0
    assert rows._since(now, None).cpu_percent is None


def test_a_vm_of_an_unknown_driver_is_a_row_and_no_error(homes: Path) -> None:
    mine = instance.claim(worktree.find(repository(homes / "one", {})), "wt-", "vbox")
    row = only()
    assert (row.name, row.state) == (mine.name, "broken")
    assert "vbox" in row.reasons[0]


def test_twenty_vms_take_less_than_a_third_of_a_second(homes: Path) -> None:
    for number in range(20):
        mine = instance.claim(worktree.find(repository(homes / f"r{number}", {})), "wt-", "qemu")
        log = RunLog(mine.folder, "aa")
        log.open()
        for line in range(2000):
            log.write("line", text=f"line {line}")
    assert len(rows.rows()) == 20
    assert quickest(rows.rows, 0.3) < 0.3
