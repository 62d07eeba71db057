"""Which VM belongs to a worktree: valid, distinct, stable names whatever the folder is called."""

from __future__ import annotations

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import World, git, repository

from vmoat import instance, paths, quick, worktree
from vmoat.errors import VmoatError

VALID = re.compile(r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?")


def claim(folder: Path, prefix: str = "wt-") -> instance.Instance:
    return instance.claim(worktree.find(folder), prefix, "qemu")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("My Project", "wt-my-project"),
        ("feature.x_y", "wt-feature-x-y"),
        ("--force", "wt-force"),
        ("-", None),
        ("日本語", None),
        ("über", "wt-ber"),
        ("a" * 200, None),
        ("it's $HOME \"q\"", "wt-it-s-home-q"),
        ("x\\y", "wt-x-y"),
    ],
)
def test_folder_names(homes: Path, folder: str, name: str | None) -> None:
    mine = claim(repository(homes / folder, {}))
    assert VALID.fullmatch(mine.name)
    assert len(mine.name) <= instance.NAME_LIMIT
    if name:
        assert mine.name == name
    assert claim(homes / folder) == mine, "stable"


@pytest.mark.parametrize("prefix", ["wt-", "WT-", "a", "x--", "p" * 32])
def test_prefixes(homes: Path, prefix: str) -> None:
    first, second = (claim(repository(homes / d / "same", {}), prefix) for d in "ab")
    assert first.name != second.name
    for entry, place in ((first, "a"), (second, "b")):
        assert VALID.fullmatch(entry.name)
        assert claim(homes / place / "same", prefix) == entry


def test_two_long_names_that_begin_alike_and_two_repositories_of_one_name(homes: Path) -> None:
    names = {claim(repository(homes / d / ("x" * 120 + d), {})).name for d in "abc"}
    names |= {claim(repository(homes / d / "same", {})).name for d in "abc"}
    assert len(names) == 6
    assert "wt-same" in names


def test_look_tells_the_name_that_claim_gives_and_writes_nothing(homes: Path) -> None:
    claim(repository(homes / "a" / "same", {}))
    second = repository(homes / "b" / "same", {})
    seen = instance.look(worktree.find(second), "wt-")
    assert not seen.claimed
    assert not (second / ".git" / paths.ID_FILE).exists()
    assert seen.name == claim(second).name


def test_a_moved_worktree_keeps_its_vm(world: World) -> None:
    before = claim(world.tree)
    moved = world.root / "elsewhere"
    git(world.repo, "worktree", "move", str(world.tree), str(moved))
    assert instance.look(worktree.find(moved), "wt-") == before
    assert claim(moved) == before
    owner = instance.read_owner(before.name)
    assert owner is not None
    assert owner.worktree == moved
    os.rename(world.repo, world.root / "repo2")
    assert claim(repository(world.root / "other", {})).name != before.name


def test_a_moved_repository_keeps_its_vm(homes: Path) -> None:
    before = claim(repository(homes / "one", {}))
    os.rename(homes / "one", homes / "two")
    assert claim(homes / "two") == before


def test_removed_and_made_again_at_the_same_path_is_a_new_vm(world: World) -> None:
    before = claim(world.tree)
    (before.folder / "vm.toml").write_text("x = 1\n")
    git(world.repo, "worktree", "remove", "--force", str(world.tree))
    git(world.repo, "worktree", "add", "-q", str(world.tree), "work")
    fresh = instance.look(worktree.find(world.tree), "wt-")
    assert not fresh.claimed
    after = claim(world.tree)
    assert after.vm_id != before.vm_id
    assert after.name == before.name
    assert not (after.folder / "vm.toml").exists()
    kept = [f for f in paths.vms_dir().glob("wt-*") if (f / "vm.toml").exists()]
    assert len(kept) == 1, "the old VM waits for `destroy` under a name of its own"


def test_a_copied_repository_does_not_share_a_vm(homes: Path) -> None:
    first = claim(repository(homes / "one", {}))
    shutil.copytree(homes / "one", homes / "two")
    second = claim(homes / "two")
    assert second.vm_id != first.vm_id
    assert claim(homes / "one") == first
    assert claim(homes / "two") == second


def test_a_copied_worktree_folder_is_refused_with_the_cure(world: World) -> None:
    first = claim(world.tree)
    shutil.copytree(world.tree, world.root / "copy")
    with pytest.raises(VmoatError, match="copy of the worktree") as caught:
        claim(world.root / "copy")
    assert caught.value.code == 2
    assert claim(world.tree) == first


def test_bare_repositories_submodules_and_clones(homes: Path) -> None:
    inner = repository(homes / "inner", {"a": "1"})
    outer = repository(homes / "outer", {"b": "1"})
    git(outer, "submodule", "add", "-q", str(inner), "sub")
    git(homes, "clone", "-q", "--bare", str(inner), str(homes / "bare.git"))
    git(homes / "bare.git", "worktree", "add", "-q", str(homes / "from-bare"))
    found = {claim(p).name for p in (inner, outer, outer / "sub", homes / "from-bare")}
    assert found == {"wt-inner", "wt-outer", "wt-sub", "wt-from-bare"}
    tree = worktree.find(homes / "from-bare")
    assert tree.main() is None
    assert tree.repository_name() == "bare"
    assert worktree.find(outer).gitlinks() == (outer / "sub",)


def test_outside_git_is_a_usage_error(homes: Path) -> None:
    (homes / "empty").mkdir()
    with pytest.raises(VmoatError, match="not inside a git worktree") as caught:
        worktree.find(homes / "empty")
    assert caught.value.code == 2
    for place in ("nowhere", "x" * 5000):
        with pytest.raises(VmoatError) as caught:
            worktree.find(homes / place)
        assert caught.value.code == 2


def _claim_in_a_process(folder: Path) -> None:
    pid = os.fork()
    if not pid:
        code = 1
        try:
            claim(folder)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def test_many_at_once_never_collide(homes: Path) -> None:
    """Eight repositories of one name, each claimed by three processes at the same time."""
    folders = [repository(homes / str(n) / "same", {}) for n in range(8)]
    with ThreadPoolExecutor(24) as pool:
        list(pool.map(_claim_in_a_process, folders * 3))
    mine = [claim(folder) for folder in folders]
    assert len({m.name for m in mine}) == len({m.vm_id for m in mine}) == 8
    assert len(list(paths.vms_dir().glob("wt-*"))) == 8, "no orphans"


def test_a_claim_that_was_killed_half_way_leaves_no_trace(homes: Path) -> None:
    folder = repository(homes / "one", {})
    first = claim(folder)
    (folder / ".git" / paths.ID_FILE).unlink()
    again = claim(folder)
    assert again.name == first.name
    assert len(list(paths.vms_dir().glob("wt-*"))) == 1


def test_a_forged_id_file_opens_no_other_path(homes: Path) -> None:
    folder = repository(homes / "one", {})
    for text in ("0123456789abcdef ../../etc", "x y", "", "0123456789abcdef wt-one\0", "é" * 9):
        (folder / ".git" / paths.ID_FILE).write_text(text)
        assert instance.known(worktree.find(folder)) is None


def test_an_unwritable_state_folder_is_named(homes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (homes / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(homes / "file"))
    with pytest.raises(VmoatError, match=str(homes / "file")) as caught:
        claim(repository(homes / "one", {}))
    assert caught.value.code == 4


def test_the_quick_answer_is_the_slow_one_or_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.tree)
    assert quick.state_home() == str(paths.state_home())
    assert quick.name() == ""
    name = claim(world.tree).name
    assert quick.name() == name
    (world.tree / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(world.tree / "deep" / "er")
    assert quick.name() == name
    monkeypatch.chdir(world.repo / ".git" / "worktrees")
    assert quick.name() == ""
    monkeypatch.chdir(world.repo)
    assert quick.name() == ""
    repository(world.tree / "deep" / "own", {})
    monkeypatch.chdir(world.tree / "deep" / "own")
    assert quick.name() == ""
    shutil.copytree(world.repo, world.root / "copy")
    claim(world.repo)
    shutil.copy(world.repo / ".git" / paths.ID_FILE, world.root / "copy" / ".git")
    monkeypatch.chdir(world.root / "copy")
    assert quick.name() == ""
    moved = world.root / "moved"
    git(world.repo, "worktree", "move", "--force", str(world.tree), str(moved))
    monkeypatch.chdir(moved)
    assert quick.name() == ""


def test_a_vm_stays_with_the_driver_that_made_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """... whatever the settings say later, also for `destroy NAME`, and through a move."""
    before = claim(world.tree)
    git(world.repo, "worktree", "move", str(world.tree), str(world.root / "moved"))
    world.tree = world.root / "moved"
    assert claim(world.tree) == before
    owner = instance.read_owner(before.name)
    assert owner is not None
    assert owner.driver == "qemu"
    world.set("disk", "made")
    monkeypatch.setenv("VMOAT_DRIVER", "colima")  # the fakes take every name
    ctx = world.context()
    assert any("made by the driver qemu" in warning for warning in ctx.settings.warnings)
    (world.place / "disk").unlink()
    assert world.context().settings.warnings == ()
    owner = instance.read_owner(before.name)
    assert owner is not None
    assert owner.driver == "colima"


def test_a_bare_repository_names_its_worktrees_by_branch(world: World) -> None:
    bare = world.root / "bare.git"
    git(world.repo, "clone", "-q", "--bare", str(world.repo), str(bare))
    git(bare, "worktree", "add", "-q", "-b", "side", str(world.root / "side"))
    assert worktree.named(bare, "side").path == world.root / "side"
    assert world.vmoat("-w", "side", "name", cwd=bare).stdout == "wt-side\n"
    nowhere = world.vmoat("-w", "side", "name", cwd=world.root, code=2)
    assert "not inside a git worktree" in nowhere.stderr
