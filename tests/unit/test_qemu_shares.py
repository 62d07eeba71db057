"""What of the worktree a VM may write, as mounts in QEMU's sandbox."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmoat.drivers import Owner, Share, VmSpec
from vmoat.drivers.qemu import look, shares
from vmoat.errors import VmoatError


def spec(worktree: Path, **more: object) -> VmSpec:
    fields: dict[str, object] = {
        "name": "wt-a",
        "vm_id": "0123456789abcdef",
        "cpus": 2,
        "memory_gib": 2,
        "disk_gib": 10,
        "worktree": worktree,
        "git_dir": worktree / ".git",
        "common_dir": worktree / ".git",
        "owner": Owner("u", os.getuid(), os.getgid()),
    }
    return VmSpec(**{**fields, **more})  # type: ignore[arg-type]


@pytest.fixture
def top(tmp_path: Path) -> Path:
    folder = tmp_path / "wt"
    (folder / ".git").mkdir(parents=True)
    return folder


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def binds(plan: shares.Plan) -> list[tuple[str, str, bool]]:
    return [
        (bind.source, bind.target.removeprefix(shares.ROOT), bind.writable) for bind in plan.binds
    ]


def test_a_plain_clones_git_folder_is_hidden(top: Path, empty: Path) -> None:
    plan = shares.worktree_plan(spec(top), empty)
    assert binds(plan) == [
        (str(top), "/worktree", True),
        (str(empty), "/worktree/.git", False),
    ]
    assert plan.wanted == ["/vm/share/worktree/.git"]


def test_a_linked_worktrees_git_file_is_read_only(top: Path, empty: Path) -> None:
    (top / ".git").rmdir()
    (top / ".git").write_text("gitdir: x\n")
    plan = shares.worktree_plan(spec(top), empty)
    assert binds(plan)[1] == (str(top / ".git"), "/worktree/.git", False)


def test_folders_above_a_protected_path_are_mount_points_too(top: Path, empty: Path) -> None:
    dot_git = top / "libs" / "deep" / "sub" / ".git"
    dot_git.parent.mkdir(parents=True)
    dot_git.write_text("gitdir: x\n")
    plan = shares.worktree_plan(spec(top, readonly=(dot_git, top / "vmoat.toml")), empty)
    assert binds(plan)[1:] == [
        (str(empty), "/worktree/.git", False),
        (str(top / "libs"), "/worktree/libs", True),
        (str(top / "libs/deep"), "/worktree/libs/deep", True),
        (str(top / "libs/deep/sub"), "/worktree/libs/deep/sub", True),
        (str(dot_git), "/worktree/libs/deep/sub/.git", False),
    ], "and a config file that does not exist is nothing"


def test_a_submodule_that_is_not_checked_out_is_made_and_read_only(top: Path, empty: Path) -> None:
    plan = shares.worktree_plan(spec(top), empty, (top / "a" / "sub",))
    assert (top / "a" / "sub").is_dir()
    assert (str(top / "a/sub"), "/worktree/a/sub", False) in binds(plan)
    assert (str(top / "a"), "/worktree/a", True) in binds(plan)


def test_a_checked_out_submodule_is_writable_but_for_its_git_file(top: Path, empty: Path) -> None:
    (top / "sub").mkdir()
    (top / "sub" / ".git").write_text("gitdir: x\n")
    plan = shares.worktree_plan(spec(top), empty, (top / "sub",))
    assert (str(top / "sub"), "/worktree/sub", True) in binds(plan)
    assert (str(top / "sub/.git"), "/worktree/sub/.git", False) in binds(plan)


def test_a_nested_worktree_is_hidden_with_everything_in_it(top: Path, empty: Path) -> None:
    nested = top / "trees" / "b"
    (nested / "sub").mkdir(parents=True)
    (nested / "sub" / ".git").write_text("x")
    plan = shares.worktree_plan(
        spec(top, masked=(nested,), readonly=(nested / "sub" / ".git",)), empty
    )
    assert (str(empty), "/worktree/trees/b", False) in binds(plan)
    assert not [row for row in binds(plan) if row[1].startswith("/worktree/trees/b/")]


@pytest.mark.parametrize("name", ["sub", "sub/inner"])
def test_a_link_on_the_way_to_a_protected_path_is_refused(
    top: Path, empty: Path, tmp_path: Path, name: str
) -> None:
    secret = tmp_path / "secret"
    (secret / "inner").mkdir(parents=True)
    (top / "sub").symlink_to(secret)
    with pytest.raises(VmoatError, match="symbolic link"):
        shares.worktree_plan(spec(top), empty, (top / name,))


def test_a_git_that_is_a_link_is_refused(top: Path, empty: Path, tmp_path: Path) -> None:
    (top / ".git").rmdir()
    (top / ".git").symlink_to(tmp_path)
    with pytest.raises(VmoatError, match="symbolic link"):
        shares.worktree_plan(spec(top), empty)


def test_with_a_writable_git_folder_only_a_git_file_stays_read_only(top: Path, empty: Path) -> None:
    assert len(shares.worktree_plan(spec(top, git_writable=True), empty).binds) == 1


def test_a_line_break_in_a_path_is_refused(tmp_path: Path, empty: Path) -> None:
    folder = tmp_path / "a\nb"
    folder.mkdir()
    with pytest.raises(VmoatError, match="line break") as found:
        shares.worktree_plan(spec(folder), empty)
    assert found.value.code == 3


def test_the_users_shares_stand_at_their_own_paths(top: Path, empty: Path, tmp_path: Path) -> None:
    plan = shares.worktree_plan(spec(top), empty)
    shares.add_shares(spec(top, shares=(Share(tmp_path, False),)), plan)
    export = plan.exports[-1]
    assert (export.guest, export.inside, export.writable) == (str(tmp_path), "/vm/share/0", False)
    assert not plan.binds[-1].writable
    with pytest.raises(VmoatError, match="not a folder"):
        shares.add_shares(spec(top, shares=(Share(top / "none", False),)), plan)


def test_a_mount_that_is_gone_is_noticed() -> None:
    assert look.missing_mounts(os.getpid(), ["/proc", "/not/there"]) == ["/not/there"]
    assert look.missing_mounts(1 << 30, ["/x"]) == [], "no such process: status says so elsewhere"
    assert look._unescape("/a\\040b\\134c") == "/a b\\c"
