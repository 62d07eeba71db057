"""`vmoat gc` where records are damaged, links relative, repositories inside of others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import git, repository
from test_fleet_gc import Fleet, a_runtime, age, an_image, disks_of
from test_fleet_gc import fleet as fleet

from vmoat import instance, locks, paths, ssh, worktree
from vmoat.drivers import SshEndpoint
from vmoat.fleet import admission, gc, rows, volumes
from vmoat.state import VmLock, write_toml


def made(mine: instance.Instance) -> None:
    """What the qemu driver notes of a VM that it has made."""
    write_toml(mine.folder / "driver.toml", {"vm_id": mine.vm_id, "phase": "running"})


@pytest.mark.parametrize("damage", [b"", b"\0" * 200, b"x\ny\nz\n", b"0123456789abcdef\n"])
def test_a_vm_whose_owner_file_is_damaged_is_left_and_found_again(
    fleet: Fleet, damage: bytes
) -> None:
    tree = fleet.world.tree
    mine = fleet.vm(tree, running=True)
    made(mine)
    disks = disks_of(mine.vm_id, data=True)
    age(disks)
    (mine.folder / "owner").write_bytes(damage)
    told = fleet.gc()
    assert told["items"] == []
    (left,) = told["left"]
    assert "its owner file is damaged" in left["why"]
    assert "vmoat destroy wt-tree" in left["why"]
    assert (disks / "data.qcow2").exists()
    fleet.world.vmoat("browser-args", cwd=tree)
    (row,) = rows.rows()
    assert (row.name, row.vm_id, row.state) == (mine.name, mine.vm_id, "running")


def test_while_an_id_cannot_be_told_no_disks_are_nobody_s(fleet: Fleet) -> None:
    mine = fleet.vm(fleet.world.tree)
    disks = disks_of(mine.vm_id, data=True)
    age(disks)
    (mine.folder / "owner").write_bytes(b"")
    assert fleet.plan() == []


def test_a_vm_whose_owner_file_is_damaged_can_be_destroyed(fleet: Fleet) -> None:
    mine = fleet.vm(fleet.world.tree)
    (mine.folder / "owner").write_bytes(b"")
    fleet.world.vmoat("destroy", "-f", mine.name, cwd=fleet.root)
    assert not mine.folder.exists()


def test_a_vm_whose_owner_file_is_damaged_still_takes_its_room(fleet: Fleet) -> None:
    mine = fleet.vm(fleet.world.tree, running=True)
    made(mine)
    (mine.folder / admission.ROOM).write_text("4\n")
    (mine.folder / "owner").write_bytes(b"")
    assert [(one.name, one.memory) for one in admission.taken()] == [(mine.name, 4.0)]
    done = fleet.world.vmoat("down", "--all", cwd=fleet.root, code=5)
    assert f"{mine.name} is not stopped" in done.stderr
    assert "its owner file is damaged" in done.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("current", b"\xff\xfe"),
        ("stages.toml", b'[done.vm.spec]\ncpus = "many"\n'),
        ("volumes.toml", b"names = 5\n"),
        ("orphan.toml", b'since = "x"\n'),
    ],
)
def test_a_damaged_record_of_one_vm_is_in_no_other_s_way(
    fleet: Fleet, name: str, text: bytes
) -> None:
    mine, other = fleet.removed("one"), fleet.removed("other")
    (mine.folder / name).write_bytes(text)
    found = json.loads(fleet.world.vmoat("ls", "--json", cwd=fleet.root).stdout)
    assert [row["name"] for row in found["vms"]] == [mine.name, other.name]
    assert other.name in [item.name for item in fleet.plan() if item.action == "remove"]


def test_disks_that_are_not_to_be_seen_are_not_taken_for_gone(fleet: Fleet) -> None:
    """They may lie on a disk of this machine that is not mounted now."""
    mine = fleet.removed("away")
    made(mine)
    an_image("oldimage")
    shutil.rmtree(paths.data_home() / "fake" / mine.name)
    (item,) = fleet.plan()
    assert (item.name, item.action) == (mine.name, "keep")


def test_disks_that_were_removed_by_hand_are_gone(fleet: Fleet) -> None:
    mine, other = fleet.removed("bare"), fleet.vm(fleet.world.tree)
    made(mine)
    disks_of(other.vm_id, data=True)
    shutil.rmtree(paths.data_home() / "fake" / mine.name)
    (item,) = fleet.plan()
    assert (item.name, item.action) == (mine.name, "remove")


@pytest.mark.skipif(not shutil.which("bwrap"), reason="mounts with bubblewrap")
def test_a_repository_that_is_mounted_twice_has_one_vm(fleet: Fleet) -> None:
    mine = fleet.vm(fleet.world.repo)
    there = fleet.root / "there"
    there.mkdir()
    words = ["bwrap", "--dev-bind", "/", "/", "--bind", str(fleet.world.repo), str(there),
             "--chdir", str(there), *fleet.world.argv("browser-args")]  # fmt: skip
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    assert [(row.name, row.vm_id) for row in rows.rows()] == [(mine.name, mine.vm_id)]
    fleet.world.vmoat("browser-args", cwd=fleet.world.repo)
    assert [(row.name, row.vm_id) for row in rows.rows()] == [(mine.name, mine.vm_id)]
    assert fleet.plan() == []


def by_relative_path(worktree: Path, git_dir: Path) -> str:
    return os.path.relpath(git_dir, worktree)


def by_link(worktree: Path, git_dir: Path) -> str:
    link = worktree.parent / "link"
    link.symlink_to(git_dir.parent)
    return str(link / git_dir.name)


@pytest.mark.parametrize("named", [by_relative_path, by_link])
def test_a_worktree_that_is_there_keeps_its_vm_however_it_names_its_repository(
    fleet: Fleet, named: Callable[[Path, Path], str]
) -> None:
    """``git worktree add --relative-paths``, or a ``.git`` file by hand; git has pruned it."""
    tree = fleet.world.tree
    git_dir = fleet.world.repo / ".git/worktrees/tree"
    (tree / ".git").write_text(f"gitdir: {named(tree, git_dir)}\n")
    fleet.vm(tree)
    shutil.rmtree(git_dir)
    told = fleet.gc()
    assert told["items"] == []
    assert "git worktree repair" in told["left"][0]["why"]


def test_a_clone_inside_a_bare_repository_s_folder_that_was_moved_is_left(fleet: Fleet) -> None:
    bare = fleet.root / "all"
    git(fleet.root, "clone", "-q", "--bare", str(fleet.world.repo), str(bare))
    inner = repository(bare / "inner", {})
    mine = fleet.vm(inner)
    os.rename(inner, fleet.root / "inner")
    assert fleet.plan() == []
    (row,) = rows.rows()
    assert f"the repository at {inner} is not there" in row.left
    assert mine.folder.exists()


def with_submodule(fleet: Fleet) -> Path:
    other = repository(fleet.root / "other", {"a": "1"})
    git(fleet.world.repo, "submodule", "add", "-q", str(other), "sub")
    return fleet.world.repo / "sub"


def test_a_submodule_s_vm_has_the_grace_when_another_clone_takes_the_place(fleet: Fleet) -> None:
    sub = with_submodule(fleet)
    mine = fleet.vm(sub)
    os.rename(fleet.world.repo, fleet.root / "old")
    repository(fleet.world.repo, {})
    (item,) = fleet.plan()
    assert (item.name, item.action) == (mine.name, "keep")


def test_a_submodule_s_vm_goes_with_the_submodule(fleet: Fleet) -> None:
    sub = with_submodule(fleet)
    mine = fleet.vm(sub)
    git(fleet.world.repo, "submodule", "deinit", "-f", "sub")
    assert fleet.plan() == []
    shutil.rmtree(fleet.world.repo / ".git/modules/sub")
    (item,) = fleet.plan()
    assert (item.name, item.action) == (mine.name, "remove")


def test_a_submodule_s_worktree_s_vm_goes_with_it(fleet: Fleet) -> None:
    sub = with_submodule(fleet)
    stays = fleet.vm(fleet.tree("sub-stays", sub))
    folder = fleet.tree("sub-goes", sub)
    mine = fleet.vm(folder)
    git(sub, "worktree", "remove", "--force", str(folder))
    assert [item.name for item in fleet.plan()] == [mine.name]
    fleet.gc()
    assert [row.name for row in rows.rows()] == [stays.name]




def test_a_vm_that_is_being_claimed_is_left(fleet: Fleet) -> None:
    """Its folder is there a moment before its worktree's id file."""
    mine = fleet.vm(fleet.world.tree)
    file = fleet.world.repo / ".git/worktrees/tree" / paths.ID_FILE
    text = file.read_text()
    file.unlink()
    plan = gc.plan(rows.rows(), grace=1, current="", now=time.time())
    with locks.in_turn(paths.vms_dir() / instance.CLAIMS):
        (item,) = gc.carry_out(plan)
        file.write_text(text)
    assert (item.done, item.note) == (False, "a VM gets its name just now")
    assert mine.folder.exists()


def test_a_name_that_is_freed_is_worked_on_meanwhile(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gc that took the old VM's lock then would remove the new one."""
    tree = fleet.world.tree
    old = fleet.vm(tree)
    git(fleet.world.repo, "worktree", "add", "-q", "-b", "other", str(fleet.root / "other"))
    git(fleet.world.repo, "worktree", "remove", "--force", str(tree))
    git(fleet.world.repo, "worktree", "add", "-q", str(tree), "work")
    rename, seen = os.rename, []

    def noted(source: Path, target: Path) -> None:
        if source == old.folder:
            seen.append(VmLock(source).held())
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", noted)
        mine = instance.claim(worktree.find(tree), "wt-", "fake")
    assert (mine.name, seen) == (old.name, [True])


def test_a_clock_that_is_set_back_hides_no_volumes(fleet: Fleet) -> None:
    fleet.world.vmoat("up")
    fleet.world.vmoat("down")
    folder = paths.vm_dir("wt-tree")
    later = time.time() + 86_400
    os.utime(folder / volumes.RECORD, (later, later))
    assert volumes.known(folder) == ()
    fleet.world.vmoat("up")
    os.utime(folder / volumes.RECORD, (later, later))
    assert volumes.known(folder) is None
    fleet.world.vmoat("down")
    assert volumes.known(folder) == ()


def test_a_vm_that_is_lost_again_has_its_grace_anew(fleet: Fleet) -> None:
    """Its repository came back in between, and nobody started it."""
    repo, old, other = fleet.world.repo, fleet.root / "old", fleet.root / "another"
    mine = fleet.vm(repo)
    os.rename(repo, old)
    repository(repo, {})
    assert [i["action"] for i in fleet.gc()["items"]] == ["keep"]
    (mine.folder / volumes.KEPT).write_text("since = 1000000000.0\n")
    os.rename(repo, other)
    os.rename(old, repo)
    told = fleet.gc("--dry-run")
    assert (told["items"], (mine.folder / volumes.KEPT).exists()) == ([], True)
    fleet.gc()
    os.rename(repo, old)
    os.rename(other, repo)
    assert [i["action"] for i in fleet.gc()["items"]] == ["keep"]


def test_the_sockets_of_a_state_folder_whose_path_ends_with_ours_are_left(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.vm(fleet.world.tree)
    monkeypatch.setattr(paths, "runtime_home", lambda: fleet.root / "tmp")
    other = Path(f"/chroot{paths.vms_dir()}")
    a_runtime("a" * 12, other)
    ours = a_runtime("b" * 12, paths.vms_dir())
    assert [item.name for item in fleet.plan()] == [str(ours)]
    end = SshEndpoint("127.0.0.1", 1, "me", paths.vms_dir() / "wt-x/ssh/key", Path("/k"))
    (ours / "ssh_config").write_text("\n    ".join(ssh._common(end, "me", False)))
    assert [item.name for item in fleet.plan()] == [str(ours)]
