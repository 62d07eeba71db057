"""Seed files: nothing is read from, or written to, a place outside of the two checkouts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from vmoat.config.seed import check_seed, included
from vmoat.errors import Code, VmoatError


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    main, tree = tmp_path / "main", tmp_path / "tree"
    main.mkdir()
    tree.mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "key").write_text("secret")
    (main / ".env").write_text("x")
    return main, tree


def refused(pair: tuple[Path, Path], path: str) -> VmoatError:
    main, tree = pair
    with pytest.raises(VmoatError) as caught:
        check_seed(tree, main, path, "vmoat.toml:3")
    assert caught.value.code == Code.CONFIG
    assert caught.value.hint
    assert caught.value.message.startswith("vmoat.toml:3: ")
    return caught.value


def test_what_is_to_be_done(pair: tuple[Path, Path]) -> None:
    main, tree = pair
    assert check_seed(tree, main, "./.env").state == "copy"
    assert check_seed(tree, main, ".env").target == tree / ".env"
    (tree / ".env").write_text("mine")
    assert check_seed(tree, main, ".env").state == "there"
    assert check_seed(tree, main, "none").state == "missing"
    (main / "conf").mkdir()
    assert check_seed(tree, main, "conf/").state == "copy"


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../outside/key", "a/../../outside/key", "~/x", "", "a\0b", "a\nb",
             ".git", ".git/config", "sub/.git/config", ".GIT/config", "."]
)  # fmt: skip
def test_paths_that_leave(pair: tuple[Path, Path], path: str) -> None:
    refused(pair, path)


@pytest.mark.parametrize("side", ["main", "tree"])
@pytest.mark.parametrize(("link", "seed"), [("key", "key"), ("dir", "dir/key"), ("dir", "dir/new")])
def test_symlinks_that_leave_on_either_side(
    pair: tuple[Path, Path], tmp_path: Path, side: str, link: str, seed: str
) -> None:
    outside = tmp_path / "outside"
    (tmp_path / side / link).symlink_to(outside / "key" if link == "key" else outside)
    error = refused(pair, seed)
    assert str(outside) in error.message
    assert seed in error.message


def test_a_dangling_symlink_that_leaves(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (pair[1] / ".env").symlink_to(tmp_path / "outside" / "not-yet")
    refused(pair, ".env")


def test_symlinks_that_stay_are_fine_and_loops_are_not(pair: tuple[Path, Path]) -> None:
    main, tree = pair
    (main / "real").write_text("x")
    (main / "link").symlink_to("real")
    assert check_seed(tree, main, "link").state == "copy"
    (tree / "gitlink").symlink_to(".git")
    refused(pair, "gitlink/config")
    (main / "loop").symlink_to("loop")
    refused(pair, "loop")


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_an_unreadable_seed(pair: tuple[Path, Path]) -> None:
    (pair[0] / ".env").chmod(0)
    assert "can't be read: Permission denied" in refused(pair, ".env").message


def test_a_pipe_is_no_seed(pair: tuple[Path, Path]) -> None:
    os.mkfifo(pair[0] / "pipe")
    assert "neither file nor folder" in refused(pair, "pipe").message


def test_worktreeinclude_takes_only_what_git_ignores(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *words], check=True, capture_output=True, text=True
        )
        return done.stdout

    git("init", "-q")
    assert included(tmp_path, git) == ()
    (tmp_path / "sub").mkdir()
    for name in (".env", ".env.example", "sub/.env", "sub/ünicode .env", "other", "tracked.env"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".gitignore").write_text(".env\n*.env\n!tracked.env\nother\n")
    git("init", "-q", str(tmp_path / "nested"))
    (tmp_path / "nested" / ".env").write_text("x")
    git("add", "tracked.env")
    (tmp_path / ".worktreeinclude").write_text("# mine\n*.env*\n!sub/.env\n")
    assert included(tmp_path, git) == (".env", "sub/ünicode .env")
