"""`vmoat gc`: what is removed, what is kept, and what nothing is concluded from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import pytest
from conftest import World, git, repository
from timing import until

from vmoat import dockercontext, instance, paths, worktree
from vmoat.drivers.qemu import image
from vmoat.errors import VmoatError
from vmoat.fleet import gc, leftovers, removal, rows, volumes
from vmoat.state import VmLock

OLD = 1_000_000_000.0
"""Long before any grace."""


class Fleet:
    """Many VMs on a machine without any: the driver's are files, all else is real."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.root = world.root
        self.processes: list[subprocess.Popen[bytes]] = []

    def tree(self, name: str, repo: Path | None = None) -> Path:
        """A linked worktree."""
        folder = self.root / name
        git(repo or self.world.repo, "worktree", "add", "-q", "-b", name, str(folder))
        return folder

    def vm(self, folder: Path, *, running: bool = False) -> instance.Instance:
        """The VM of a worktree, made and shut down in order, without volumes."""
        mine = instance.claim(worktree.find(folder), "wt-", "fake")
        place = paths.data_home() / "fake" / mine.name
        place.mkdir(parents=True)
        (place / "disk").write_text("disk")
        (mine.folder / "stages.toml").write_text('[done.vm]\nboot = "boot"\n')
        if running:
            (place / "boot").write_text("boot")
            (place / "local").write_text("")
        else:
            volumes.record(mine.folder, [])
        return mine

    def removed(self, name: str, **more: Any) -> instance.Instance:
        """The VM of a worktree that git has removed."""
        folder = self.tree(name)
        mine = self.vm(folder, **more)
        git(self.world.repo, "worktree", "remove", "--force", str(folder))
        return mine

    def start(self, argv: list[str], **more: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, **more)
        self.processes.append(process)
        return process

    def gc(self, *words: str, code: int = 0) -> dict[str, Any]:
        """`vmoat gc --json`, from a folder that is no worktree."""
        done = self.world.vmoat("gc", "--json", *words, cwd=self.root, code=code)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def plan(self, **more: Any) -> list[gc.Item]:
        """In this process."""
        facts = {"grace": 3600.0, "current": image.digest(""), "now": time.time(), **more}
        return gc.plan(rows.rows(), **facts).items

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def fleet(world: World) -> Iterator[Fleet]:
    made = Fleet(world)
    yield made
    made.close()


def a_runtime(vm_id: str, vms: Path) -> Path:
    """The folder of sockets of a VM of that id, of the state folder that holds ``vms``."""
    folder = paths.make_private(paths.make_private(paths.runtime_home()) / vm_id[:12])
    key = vms / "wt-gone" / "ssh" / "id_ed25519"
    text = f"Host vmoat\n    ProxyCommand sleep 60\n    IdentityFile {key}\n"
    (folder / "ssh_config").write_text(text)
    return folder


def an_image(digest: str, *, old: bool = True) -> Path:
    folder = paths.images_dir() / digest
    folder.mkdir(parents=True)
    for part in image.PARTS:
        (folder / part).write_text("x")
    (folder.parent / f".{digest}.lock").write_text("")
    if old:
        age(folder)
    return folder


def disks_of(vm_id: str, *, data: bool, stands_on: str = "") -> Path:
    folder = paths.data_home() / "disks" / vm_id
    folder.mkdir(parents=True)
    (folder / "system.qcow2").write_text("x")
    state = paths.state_home()
    (folder / "disks.toml").write_text(f'system = "s"\nimage = "{stands_on}"\nstate = "{state}"\n')
    if data:
        (folder / "data.qcow2").write_text("x" * 10_000)
    return folder


def age(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (OLD, OLD))


def a_context(name: str, vm_id: str, socket: str) -> Path:
    file = dockercontext.meta_file(name, dockercontext.config_folder(os.environ))
    file.parent.mkdir(parents=True)
    file.write_text(dockercontext.text(name, vm_id, f"unix://{socket}", Path("/w")))
    return file.parent


def everything(*tops: Path) -> set[Path]:
    return {path for top in tops for path in (top, *top.rglob("*")) if "fake" not in path.parts}


def test_a_dry_run_names_what_gc_then_removes_and_nothing_else(fleet: Fleet) -> None:
    """Twenty VMs' worth of state, fifteen of them orphans of every kind."""
    world, root = fleet.world, fleet.root

    # Five that stay.
    fleet.vm(world.repo, running=True)
    moved = fleet.vm(world.tree)
    git(world.repo, "worktree", "move", str(world.tree), str(root / "elsewhere"))
    away = repository(root / "away", {})
    fleet.vm(away)
    os.rename(away, root / "not-mounted")
    away.mkdir()  # the mount point
    locked = fleet.tree("locked")
    fleet.vm(locked)
    git(world.repo, "worktree", "lock", str(locked))
    shutil.rmtree(locked)
    (world.repo / ".git/worktrees/locked" / paths.ID_FILE).unlink()

    # VMs that are nobody's.
    expected = {("vm", fleet.removed("gone").name)}
    bare = root / "bare.git"
    git(root, "clone", "-q", "--bare", str(world.repo), str(bare))
    last = root / "last"
    git(bare, "worktree", "add", "-q", "-b", "last", str(last))
    expected |= {("vm", fleet.vm(last).name)}
    git(bare, "worktree", "remove", "--force", str(last))
    pruned = fleet.tree("pruned")
    expected |= {("vm", fleet.vm(pruned).name)}
    shutil.rmtree(pruned)
    git(world.repo, "worktree", "prune")
    deleted = fleet.tree("deleted")
    fleet.vm(deleted)
    shutil.rmtree(deleted)  # of those that stay: git still lists it
    never = fleet.tree("never")
    expected |= {("vm", instance.claim(worktree.find(never), "wt-", "fake").name)}
    git(world.repo, "worktree", "remove", str(never))
    cut = paths.vms_dir() / "wt-cut"
    (cut / "ssh").mkdir(parents=True)
    expected |= {("vm", "wt-cut")}
    unnamed = repository(root / "unnamed", {})
    expected |= {("vm", fleet.vm(unnamed).name)}
    (unnamed / ".git" / paths.ID_FILE).unlink()
    grace_over = fleet.removed("grace-over")
    volumes.record(grace_over.folder, ["db"])
    (grace_over.folder / volumes.KEPT).write_text(f"since = {OLD}\n")
    expected |= {("vm", grace_over.name)}

    # One is stopped and kept: it may have volumes, for it runs and does not answer.
    runs = fleet.removed("runs", running=True)

    # What VMs that are gone have left.
    half = disks_of("a" * 16, data=False)
    whole = disks_of("b" * 16, data=True, stands_on="olderimage")
    age(whole)
    young = disks_of("c" * 16, data=True, stands_on="stoodon")
    expected |= {("disks", str(half)), ("disks", str(whole))}
    sockets = a_runtime(os.urandom(8).hex(), paths.vms_dir())
    master = fleet.start(["ssh", "-F", str(sockets / "ssh_config"), "-M", "-N", "--", "vmoat"])
    expected |= {("sockets", str(sockets))}
    buried = paths.vms_dir() / "wt-buried"
    buried.mkdir()
    with open(buried / "companion.log", "wb") as log:
        companion = fleet.start(["sleep", "60"], stderr=log)
    shutil.rmtree(buried)
    expected |= {("process", f"{companion.pid} (sleep)")}
    a_context("vmoat-wt-old", "d" * 16, "/nowhere/at/all/to-docker")
    expected |= {("context", "vmoat-wt-old")}
    claim = paths.vms_dir() / ("." + "e" * 16)
    claim.mkdir()
    (paths.vms_dir() / ".claims").touch()
    expected |= {("draft", str(claim))}
    half_disk = paths.disks_dir(moved.name)
    half_disk.mkdir(parents=True)
    (half_disk / ".new-1234-data.raw").write_text("x")
    expected |= {("draft", str(half_disk / ".new-1234-data.raw"))}

    # Images.
    for digest in (image.digest(""), "stoodon", "olderimage", "oldimage"):
        an_image(digest)
    an_image("newimage", old=False)
    expected |= {("image", "olderimage"), ("image", "oldimage")}
    (paths.images_dir() / ".killed.x1.draft").mkdir()
    expected |= {("draft", str(paths.images_dir() / ".killed.x1.draft"))}
    (paths.images_dir() / ".forgotten.lock").touch()
    expected |= {("lock", str(paths.images_dir() / ".forgotten.lock"))}

    # Things of others.
    foreign = a_runtime(os.urandom(8).hex(), root / "another" / "vms")
    a_context("mine", "", "/run/docker.sock")
    kept_context = a_context("vmoat-wt-elsewhere", moved.vm_id, "/nowhere/to-docker")
    assert len(rows.rows()) + 7 == 20
    assert len(expected) + 1 >= 15

    tops = (paths.state_home(), paths.data_home(), dockercontext.config_folder(os.environ))
    before = everything(*tops, world.repo, bare, unnamed, sockets, foreign)
    told = fleet.gc("--dry-run")
    assert everything(*tops, world.repo, bare, unnamed, sockets, foreign) == before
    assert {(i["kind"], i["name"]) for i in told["items"] if i["action"] == "remove"} == expected
    stays = {i["name"]: i["action"] for i in told["items"] if i["action"] != "remove"}
    assert stays == {runs.name: "stop", str(young): "keep"}
    assert all(i["why"] for i in told["items"])
    assert {entry["name"] for entry in told["left"]} == {"wt-away", "wt-locked", "wt-deleted"}
    assert (master.poll(), companion.poll()) == (None, None)

    did = fleet.gc()
    assert {(i["kind"], i["name"]) for i in did["items"] if i["done"]} == {
        *expected, ("vm", runs.name),
    }  # fmt: skip
    assert {row.name for row in rows.rows()} == {
        "wt-repo", "wt-tree", "wt-away", "wt-locked", "wt-deleted", runs.name,
    }  # fmt: skip
    assert next(row for row in rows.rows() if row.name == runs.name).state == "stopped"
    assert next(row for row in rows.rows() if row.name == "wt-repo").state == "running"
    assert None not in (master.wait(60), companion.wait(60))
    gone = before - everything(*tops, world.repo, bare, unnamed, sockets, foreign)
    removed = [paths.vm_dir(name) for kind, name in expected if kind == "vm"]
    removed += [Path(name) for kind, name in expected if name.startswith("/")]
    removed += [paths.images_dir() / name for kind, name in expected if kind == "image"]
    removed += [paths.images_dir() / f".{n}.lock" for kind, n in expected if kind == "image"]
    removed += [tops[2] / "contexts/meta" / f.name for f in (tops[2] / "contexts/meta").iterdir()]
    old_context = dockercontext.meta_file("vmoat-wt-old", tops[2]).parent
    assert {p for p in gone if not any(p == t or t in p.parents for t in removed)} == {
        old_context, old_context / "meta.json",
    }  # fmt: skip
    assert not [t for t in removed[: len(expected)] if t.exists() and t.parent != tops[2]]
    assert (foreign.exists(), kept_context.exists(), half_disk.exists()) == (True, True, True)
    shutil.rmtree(foreign)

    again = fleet.gc()
    assert [i["name"] for i in again["items"]] == [runs.name, str(young)]
    assert not any(i["done"] for i in again["items"])


def test_volumes_are_kept_for_the_grace_listed_and_then_removed(fleet: Fleet) -> None:
    mine = fleet.removed("db")
    volumes.record(mine.folder, ["pg-data", "0" * 64])
    (item,) = fleet.plan()
    assert (item.action, item.volumes) == ("keep", ("pg-data",))
    assert "it has the volumes pg-data" in item.why
    done = fleet.world.vmoat("gc", cwd=fleet.root)
    assert "kept" in done.stdout
    assert "removed in 72 h" in done.stdout
    assert mine.folder.exists()
    quiet = fleet.world.vmoat("gc", "--quiet", cwd=fleet.root)
    assert (quiet.stdout, quiet.stderr) == ("", "")
    (item,) = fleet.plan(grace=72 * 3600.0, now=time.time() + 73 * 3600)
    assert item.action == "remove"
    assert (item.action, mine.folder.exists()) == ("remove", True)


def test_the_grace_is_the_user_s_setting(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = fleet.removed("db")
    volumes.record(mine.folder, ["pg-data"])
    monkeypatch.setenv("VMOAT_GC_GRACE", "1s")
    fleet.gc()
    assert mine.folder.exists(), "from when it was found"
    time.sleep(1.1)
    fleet.gc()
    assert not mine.folder.exists()


def test_what_a_vm_may_have_is_unknown_once_it_has_run_since(fleet: Fleet) -> None:
    mine = fleet.removed("one")
    assert volumes.known(mine.folder) == ()
    later = time.time() + 5
    os.utime(mine.folder / "stages.toml", (later, later))
    assert volumes.known(mine.folder) is None
    (item,) = fleet.plan()
    assert (item.action, item.why.rpartition("; ")[2]) == ("keep", "it may have volumes")
    (mine.folder / volumes.RECORD).unlink()
    assert volumes.known(mine.folder) is None


def test_a_vm_without_disks_has_no_volumes(fleet: Fleet) -> None:
    mine = fleet.removed("one")
    (mine.folder / volumes.RECORD).unlink()
    shutil.rmtree(paths.data_home() / "fake" / mine.name)
    assert [item.action for item in fleet.plan()] == ["remove"]


def test_a_broken_vm_is_stopped_before_it_is_kept(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its QEMU may live, and hold memory."""
    mine = fleet.removed("broken", running=True)
    real = fakes.FakeDriver.status
    broken = lambda self, name: replace(real(self, name), state="broken")  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(fakes.FakeDriver, "status", broken)
        plan = gc.plan(rows.rows(), grace=3600, current="", now=time.time())
        assert [item.action for item in plan.items] == ["stop"]
        (item,) = gc.carry_out(plan)
    assert item.done
    assert [row.state for row in rows.rows() if row.name == mine.name] == ["stopped"]


def test_a_gc_beside_work_on_the_vm_leaves_it_and_does_not_wait(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = fleet.removed("busy")
    lock = VmLock(mine.folder)
    assert lock.take()
    take, waits = VmLock.take, []

    def noted(self: VmLock, *, wait: float = 0) -> bool:
        waits.append(wait)
        return take(self, wait=wait)

    with monkeypatch.context() as patch:
        patch.setattr(VmLock, "take", noted)
        (item,) = gc.carry_out(gc.plan(rows.rows(), grace=1, current="", now=time.time()))
    assert waits == [0]
    assert (item.done, item.failed) == (False, False)
    assert item.note == f"process {os.getpid()} works on it"
    lock.free()
    assert fleet.gc()["items"][0]["done"]
    assert not mine.folder.exists()


def test_a_worktree_that_came_back_between_the_look_and_the_removal_is_left(fleet: Fleet) -> None:
    folder = fleet.tree("back")
    mine = fleet.vm(folder)
    file = fleet.world.repo / ".git/worktrees/back" / paths.ID_FILE
    text = file.read_text()
    file.unlink()
    plan = gc.plan(rows.rows(), grace=1, current="", now=time.time())
    file.write_text(text)
    (item,) = gc.carry_out(plan)
    assert (item.done, item.note) == (False, "its worktree is there again")
    assert mine.folder.exists()


def test_disks_whose_vm_is_claimed_between_the_look_and_the_removal_are_left(fleet: Fleet) -> None:
    paths.make_private(paths.vms_dir())
    folder = disks_of("f" * 16, data=False)
    plan = gc.plan(rows.rows(), grace=1, current="", now=time.time())
    assert [item.name for item in plan.items] == [str(folder)]
    fresh = paths.make_private(paths.vms_dir() / "wt-fresh")
    (fresh / "owner").write_text("f" * 16 + "\n/g\n/w\n")
    gc.carry_out(plan)
    assert folder.exists()


def test_a_state_folder_that_is_not_there_proves_nothing(fleet: Fleet) -> None:
    paths.make_private(paths.vms_dir())
    disks_of("a" * 16, data=False)
    assert len(fleet.plan()) == 1
    shutil.rmtree(paths.vms_dir(), ignore_errors=True)
    assert fleet.plan() == []


def test_images_that_several_data_folders_share_are_left(fleet: Fleet) -> None:
    elsewhere = fleet.root / "shared"
    elsewhere.mkdir()
    paths.images_dir().parent.mkdir(parents=True, exist_ok=True)
    paths.images_dir().symlink_to(elsewhere)
    an_image("oldimage")
    fleet.vm(fleet.tree("any"))
    assert fleet.plan() == []


def test_an_image_that_is_being_built_is_left(fleet: Fleet) -> None:
    import fcntl

    fleet.vm(fleet.tree("any"))
    (paths.images_dir() / ".building.x1.draft").mkdir(parents=True)
    with open(paths.images_dir() / ".building.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert fleet.plan() == []
    assert [item.kind for item in fleet.plan()] == ["draft"]


def test_one_that_fails_stops_no_other_and_ends_with_an_error(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = fleet.removed("bad"), fleet.removed("good")
    real = removal.remove

    def remove(mine: instance.Instance, driver: str) -> None:
        if mine.name == bad.name:
            raise VmoatError("the disk is stuck")
        real(mine, driver)

    monkeypatch.setattr(removal, "remove", remove)
    items = gc.carry_out(gc.plan(rows.rows(), grace=1, current="", now=time.time()))
    assert [(item.name, item.failed, item.note) for item in items] == [
        (bad.name, True, "the disk is stuck"), (good.name, False, ""),
    ]  # fmt: skip
    assert not good.folder.exists()


@pytest.mark.parametrize("step", ["delete", "context", "release"])
def test_a_gc_that_was_killed_half_way_is_finished_by_the_next(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    mine = fleet.removed("one")

    def die(*words: Any) -> None:
        raise KeyboardInterrupt

    place = {
        "delete": (instance, "release"), "context": (dockercontext, "remove"),
        "release": (shutil, "rmtree"),
    }[step]  # fmt: skip
    if step == "release":
        (mine.folder / "owner").unlink()  # as its own removal may have got to first
    plan = gc.plan(rows.rows(), grace=1, current="", now=time.time())
    with monkeypatch.context() as patch:
        patch.setattr(*place, die)
        with pytest.raises(KeyboardInterrupt):
            gc.carry_out(plan)
    assert mine.folder.exists()
    (item,) = fleet.gc()["items"]
    assert (item["name"], item["action"], item["done"]) == (mine.name, "remove", True)
    assert not mine.folder.exists()
    assert fleet.gc()["items"] == []


def test_two_at_once_do_not_meet(fleet: Fleet) -> None:
    with gc.alone():
        done = fleet.world.vmoat("gc", cwd=fleet.root, code=7)
    assert "another gc is at work" in done.stderr
    assert "there is nothing to remove" in fleet.world.vmoat("gc", cwd=fleet.root).stderr


def test_a_process_whose_log_alone_was_removed_is_left(fleet: Fleet) -> None:
    mine = fleet.vm(fleet.tree("any"))
    with open(mine.folder / "companion.log", "wb") as log:
        process = fleet.start(["sleep", "60"], stderr=log)
    (mine.folder / "companion.log").unlink()
    assert fleet.plan() == []
    assert process.poll() is None


def test_the_disks_of_a_vm_that_runs_for_another_state_folder_are_left(fleet: Fleet) -> None:
    paths.make_private(paths.vms_dir())
    disks_of("a" * 16, data=False)
    fleet.start(["bash", "-c", "sleep 60; :", "qemu", "-name", "guest=vmoat-" + "a" * 16])
    until(lambda: leftovers._runs_elsewhere("a" * 16) is not False)
    assert fleet.plan() == []


def test_the_disks_of_another_state_folder_are_left(fleet: Fleet) -> None:
    folder = disks_of("d" * 16, data=True)
    (folder / "disks.toml").write_text('system = "s"\nimage = ""\nstate = "/elsewhere"\n')
    age(folder)
    assert fleet.plan() == []


def test_a_worktree_whose_repository_was_cloned_anew_keeps_its_vm(fleet: Fleet) -> None:
    fleet.vm(fleet.tree("kept"))
    os.rename(fleet.world.repo, fleet.root / "old")
    repository(fleet.world.repo, {})
    assert fleet.plan() == []
    (row,) = rows.rows()
    assert "git worktree repair" in row.left


def test_a_main_checkout_that_was_moved_away_has_the_grace_to_come_back(fleet: Fleet) -> None:
    """Another repository is cloned in its place, and gets the VM's name."""
    repo, old = fleet.world.repo, fleet.root / "old"
    fleet.world.vmoat("up", cwd=repo)
    (row,) = rows.rows()
    os.rename(repo, old)
    repository(repo, {})
    (item,) = fleet.plan()
    assert (item.action, item.volumes) == ("stop", ())
    assert f"another repository is at {repo}; it may have volumes" in item.why
    fleet.world.vmoat("browser-args", cwd=repo)  # which gives it a VM's name
    assert [one.name for one in rows.rows()] == [row.name, f"{row.name}-{row.vm_id[:8]}"]
    status = json.loads(fleet.world.vmoat("status", "--json", cwd=old).stdout)
    assert status["name"] == f"{row.name}-{row.vm_id[:8]}"
    fleet.world.vmoat("browser-args", cwd=old)
    assert {one.vm_id: one.worktree for one in rows.rows()}.pop(row.vm_id) == str(old)
    assert fleet.plan() == []


def moved(repo: Path, old: Path) -> None:
    os.rename(repo, old)


def moved_and_back(repo: Path, old: Path) -> None:
    os.rename(repo, old)
    repository(repo, {})
    shutil.rmtree(repo)
    os.rename(old, repo)


def cloned_anew(repo: Path, old: Path) -> None:
    os.rename(repo, old)
    repository(repo, {})


def moved_to_another_disk(repo: Path, old: Path) -> None:
    """Copied, and the first one removed: the next may get its inode."""
    shutil.copytree(repo, old, symlinks=True)
    shutil.rmtree(repo)
    repository(repo, {})


def made_anew(repo: Path, old: Path) -> None:
    shutil.rmtree(repo / ".git")
    git(repo, "init", "-q", "-b", "main")


def copied(repo: Path, old: Path) -> None:
    subprocess.run(["cp", "-a", str(repo), str(old)], check=True)


def restored(repo: Path, old: Path) -> None:
    """From a backup that has the id file; every inode is another."""
    copied(repo, old)
    shutil.rmtree(repo)
    (repo.parent / "in the way").mkdir()
    copied(old, repo)
    shutil.rmtree(old)


@pytest.mark.parametrize(
    ("happens", "action"),
    [
        (moved, ""),
        (moved_and_back, ""),
        (copied, ""),
        (restored, ""),
        (cloned_anew, "keep"),
        (moved_to_another_disk, "keep"),
        (made_anew, "keep"),
    ],
)
def test_what_becomes_of_a_main_checkout_s_vm(
    fleet: Fleet, happens: Callable[[Path, Path], None], action: str
) -> None:
    """It may be somebody's: it is left, or kept for the grace, and never removed at once, though
    it is known to have no volumes.
    """
    repo = fleet.world.repo
    mine = fleet.vm(repo)
    happens(repo, fleet.root / "old")
    assert [item.action for item in fleet.plan()] == ([action] if action else [])
    fleet.gc()
    assert mine.folder.exists()
    assert (paths.data_home() / "fake" / mine.name / "disk").exists()


@pytest.mark.parametrize("happens", [cloned_anew, moved_to_another_disk])
def test_a_linked_worktree_inside_goes_with_the_repository_and_has_the_grace(
    fleet: Fleet, happens: Callable[[Path, Path], None]
) -> None:
    mine = fleet.vm(fleet.tree("repo/inside"))
    happens(fleet.world.repo, fleet.root / "old")
    (item,) = fleet.plan()
    assert item.action == "keep"
    git(fleet.root / "old", "worktree", "repair", str(fleet.root / "old" / "inside"))
    found = json.loads(
        fleet.world.vmoat("status", "--json", cwd=fleet.root / "old" / "inside").stdout
    )
    assert found["name"] == mine.name


def test_a_worktree_that_is_removed_from_a_restored_repository_goes_at_once(fleet: Fleet) -> None:
    folder = fleet.tree("gone")
    mine = fleet.vm(folder)
    restored(fleet.world.repo, fleet.root / "old")
    fleet.world.vmoat("browser-args", cwd=folder)  # which meets its repository again
    git(fleet.world.repo, "worktree", "remove", "--force", str(folder))
    (item,) = fleet.plan()
    assert (item.name, item.action) == (mine.name, "remove")
    assert item.why == f"the worktree {folder} was removed"


def test_a_colima_home_of_another_state_folder_is_left(fleet: Fleet) -> None:
    home = paths.data_home() / "colima" / ("f" * 12)
    home.mkdir(parents=True)
    for known in (None, "/elsewhere"):
        if known:
            (home / ".vmoat-state").write_text(known)
        age(home)
        assert fleet.plan() == []


def test_a_vm_that_is_somebody_s_again_has_its_grace_anew(fleet: Fleet) -> None:
    fleet.world.vmoat("up")
    mark = paths.vm_dir("wt-tree") / volumes.KEPT
    mark.write_text(f"since = {OLD}\n")
    fleet.world.vmoat("down")
    fleet.world.vmoat("up")
    assert not mark.exists()


def test_a_down_that_cannot_ask_for_volumes_leaves_them_unknown(fleet: Fleet) -> None:
    fleet.world.vmoat("up")
    volumes.record(paths.vm_dir("wt-tree"), [])
    fleet.world.set("fail-volumes", "1")
    fleet.world.vmoat("up", "--force", "script")
    fleet.world.vmoat("down")
    assert volumes.known(paths.vm_dir("wt-tree")) is None


def test_a_colima_home_that_no_vm_knows_is_kept_for_the_grace_and_then_removed(
    fleet: Fleet,
) -> None:
    mine = fleet.vm(fleet.tree("any"))
    homes = paths.data_home() / "colima"
    for short in ("a" * 12, mine.vm_id[:12], "layers"):
        (homes / short / "_lima").mkdir(parents=True)
        (homes / short / ".vmoat-state").write_text(str(paths.state_home()))
    (item,) = fleet.plan()
    assert (item.kind, item.name, item.action) == ("home", str(homes / ("a" * 12)), "keep")
    age(homes / ("a" * 12))
    assert [i["done"] for i in fleet.gc()["items"]] == [True]
    assert sorted(f.name for f in homes.iterdir()) == sorted([mine.vm_id[:12], "layers"])


def test_a_dry_run_is_told_in_words(fleet: Fleet) -> None:
    mine = fleet.removed("gone")
    done = fleet.world.vmoat("gc", "--dry-run", cwd=fleet.root)
    (line,) = done.stdout.splitlines()
    why = f"the worktree {fleet.root / 'gone'} was removed (4 KiB)"
    assert line == f"would remove   vm {mine.name}: {why}"
    assert "would be free again" in done.stderr
    said = fleet.world.vmoat("gc", "--quiet", cwd=fleet.root)
    assert said.stdout.startswith("removed        vm wt-gone: ")
    assert said.stderr == ""
