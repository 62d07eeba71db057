"""Folders of the worktree on the VM's own disk: which may be, and when they are laid again."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from conftest import CONFIG, World, git

from vmoat import facts, localfolders
from vmoat.config.settings import HostSize, Settings, load
from vmoat.errors import Code, VmoatError
from vmoat.worktree import find

GOLDEN = Path(__file__).parents[1] / "golden"


# --- the setting


def settings(folder: Path, text: str, name: str = "vmoat.toml") -> Settings:
    (folder / name).write_text(text)
    return load(folder, folder, env={}, flags={}, host=HostSize(8, 32), common_dir=folder)


def test_the_list_in_both_forms(homes: Path) -> None:
    one, two = homes / "one", homes / "two"
    one.mkdir()
    two.mkdir()
    read = settings(one, '[mounts]\nlocal = ["./web//node_modules/", "a b"]\n')
    assert read.mounts_local == ("web/node_modules", "a b")
    read = settings(two, 'MOUNTS_LOCAL=(target "a b")\n', "vmoat.conf")
    assert read.mounts_local == ("target", "a b")


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ('["/tmp/x"]', "not relative"),
        ('["../x"]', "leaves it"),
        ('["."]', "the whole worktree"),
        ('["libs/.GIT/hooks"]', "names a git folder"),
        ('["vmoat.toml"]', "vmoat's own config"),
        ('["a", "a/"]', "names 'a' twice"),
        ('["a/b", "a"]', "names 'a/b', which lies in 'a'"),
        (r'["a\nb"]', "must hold paths"),
        ('"target"', "must be a list"),
    ],
)
def test_what_cannot_be_local(homes: Path, names: str, why: str) -> None:
    with pytest.raises(VmoatError, match=r"vmoat\.toml:2: mounts\.local ") as caught:
        settings(homes, f"[mounts]\nlocal = {names}\n")
    assert why in caught.value.message
    assert caught.value.code == Code.CONFIG


# --- the host's side


def test_a_folder_with_tracked_files_is_refused(world: World) -> None:
    (world.tree / "dist").mkdir()
    (world.tree / "dist" / "kept [1].js").touch()
    git(world.tree, "add", "dist")
    tree = find(world.tree)
    with pytest.raises(VmoatError, match=r"names dist, where git tracks dist/kept \[1\]\.js") as e:
        localfolders.require(tree, ["node_modules", "dist"])
    assert e.value.code == Code.CONFIG
    localfolders.require(tree, ["dis", "dist2"])


def test_an_empty_folder_is_made_and_one_that_is_there_is_left(world: World) -> None:
    (world.tree / "web" / "node_modules").mkdir(parents=True)
    (world.tree / "web" / "node_modules" / "hosts.js").write_text("x")
    localfolders.require(find(world.tree), ["web/node_modules", "it's $x/.venv"])
    assert [p.name for p in (world.tree / "web" / "node_modules").iterdir()] == ["hosts.js"]
    assert list((world.tree / "it's $x" / ".venv").iterdir()) == []
    assert (world.tree / "it's $x").stat().st_uid == world.tree.stat().st_uid


@pytest.mark.parametrize("name", ["link", "link/inner"])
def test_a_symbolic_link_is_not_followed(world: World, name: str) -> None:
    elsewhere = world.root / "elsewhere"
    elsewhere.mkdir()
    (world.tree / "link").symlink_to(elsewhere)
    with pytest.raises(VmoatError, match="is a symbolic link") as caught:
        localfolders.require(find(world.tree), [name])
    assert caught.value.code == Code.CONFIG
    assert list(elsewhere.iterdir()) == []


def test_a_file_in_the_way_and_a_nested_worktree_are_refused(world: World) -> None:
    (world.tree / "file").touch()
    with pytest.raises(VmoatError, match="is no folder"):
        localfolders.require(find(world.tree), ["file"])
    git(world.repo, "worktree", "add", "-q", "-b", "inner", str(world.tree / "trees" / "inner"))
    with pytest.raises(VmoatError, match="another worktree"):
        localfolders.require(find(world.tree), ["trees"])


# --- the guest's side


def test_the_guests_script_is_the_golden_one() -> None:
    text = localfolders.script("/w/it's $x", ["node_modules", "web/it's"], (1000, 100))
    golden = GOLDEN / "local.sh"
    if os.environ.get("GOLDEN") == "write":
        golden.write_text(text)
    assert text == golden.read_text()
    subprocess.run(["sh", "-n"], input=text.encode(), check=True)
    assert localfolders.script("/w", [], (1, 1)) == ""


def test_facts_tell_which_folders_are_laid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, top = tmp_path / "store", tmp_path / "it's top"
    monkeypatch.setattr(localfolders, "STORE", str(store))
    for name in ("a b", "c"):
        (store / name).mkdir(parents=True)
    top.mkdir()
    (top / "a b").symlink_to(store / "a b")  # as good as a mount for the question
    (top / "c").mkdir()
    probe = facts.Probe(worktree=str(top), local=("a b", "c", "d"))
    script = facts.script(probe, 0).replace("sudo", "false")
    answer = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert facts.parse(answer.stdout).local == {"a b"}


# --- the stage


LOCAL = '[mounts]\nlocal = ["node_modules", "web/target"]\n'


def configure(world: World, text: str) -> None:
    (world.tree / "vmoat.toml").write_text(CONFIG + text)


def reason(world: World) -> str:
    rows = {line.split()[0]: line.split(None, 2)[2] for line in plan(world)}
    return rows["local"]


def plan(world: World) -> list[str]:
    return world.vmoat("plan").stdout.splitlines()


def test_they_are_there_from_the_first_boot_on(world: World) -> None:
    configure(world, LOCAL)
    assert world.work() == 0
    assert (world.tree / "web" / "target").is_dir()
    assert reason(world) == "up to date"
    assert all(" skip " in line for line in plan(world))


def test_a_changed_list_is_laid_in_a_vm_that_runs(world: World) -> None:
    assert world.work() == 0
    configure(world, LOCAL)
    assert reason(world) == "never run"
    assert world.work() == 0
    assert world.ran().count("boot") == 1, "without a restart"
    assert world.ran().count("gen") == 2, "what is installed there is installed again"
    configure(world, LOCAL.replace(', "web/target"', ""))
    assert reason(world) == "the list changed: -web/target"
    assert world.work() == 0
    configure(world, "")
    assert reason(world) == "the list changed: -node_modules"
    assert world.work() == 0
    assert reason(world) == "up to date"


def test_a_boot_alone_runs_nothing_again(world: World) -> None:
    configure(world, LOCAL)
    assert world.work() == 0
    before = [world.ran().count(name) for name in ("lay", "apt", "gen")]
    world.vmoat("down")
    assert {line.split()[0] for line in plan(world) if " run " in line} == {
        "vm", "stack", "health",
    }  # fmt: skip
    assert world.work() == 0
    assert [world.ran().count(name) for name in ("lay", "apt", "gen")] == before


def test_a_mount_that_was_lost_is_laid_again_and_nothing_else(world: World) -> None:
    configure(world, LOCAL)
    assert world.work() == 0
    world.set("local", "web/target")
    assert reason(world) == "node_modules is not mounted"
    (world.tree / "node_modules").rmdir()
    assert reason(world) == "node_modules is no folder on the host any more"
    before = world.ran().count("gen")
    assert world.work() == 0
    assert (world.tree / "node_modules").is_dir()
    assert reason(world) == "up to date"
    assert world.ran().count("gen") == before


def test_one_that_a_reboot_from_inside_brought_back_is_dropped(world: World) -> None:
    configure(world, LOCAL)
    assert world.work() == 0
    configure(world, LOCAL.replace(', "web/target"', ""))
    assert world.work() == 0
    world.set("local", "node_modules\nweb/target")
    assert reason(world) == "web/target is still mounted"


def test_a_tracked_folder_starts_nothing(world: World) -> None:
    configure(world, '[mounts]\nlocal = ["lib"]\n')
    (world.tree / "lib").mkdir()
    (world.tree / "lib" / "x").touch()
    git(world.tree, "add", "lib/x")
    done = world.vmoat("up", code=3)
    assert "where git tracks lib/x" in done.stderr
    assert "boot" not in world.ran()


def test_a_command_gives_a_removed_folder_back(world: World) -> None:
    configure(world, LOCAL)
    assert world.work() == 0
    (world.tree / "node_modules").rmdir()
    (world.tree / "web" / "target").rmdir()
    (world.tree / "web" / "target").symlink_to(world.root)
    world.vmoat("exec", "true")
    assert (world.tree / "node_modules").is_dir()
    assert reason(world) == "web/target is no folder on the host any more"
    assert "is a symbolic link" in world.vmoat("up", code=3).stderr
