"""Seeds come whole, once, as the worktree's owner's, and through no symlink."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from conftest import World

from vmoat.config.seed import Seed
from vmoat.errors import VmoatError
from vmoat.seeds import copy, differs, seeds


def seed(root: Path, path: str) -> Seed:
    return Seed(path, root / "main" / path, root / "tree" / path, "copy")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "main").mkdir()
    (tmp_path / "tree").mkdir()
    return tmp_path


def test_a_file_and_a_folder_arrive_whole(root: Path) -> None:
    folder = root / "main" / "deep" / "conf"
    folder.mkdir(parents=True)
    (folder / "a").write_text("1")
    (folder / "a").chmod(0o4750)
    (folder / "link").symlink_to("a")
    os.mkfifo(folder / "pipe")
    copy(seed(root, "deep/conf"))
    made = root / "tree" / "deep" / "conf"
    assert sorted(os.listdir(made)) == ["a", "link"]
    assert (made / "link").readlink() == Path("a")
    assert stat.S_IMODE((made / "a").stat().st_mode) == 0o750, "never setuid"
    assert os.listdir(made.parent) == ["conf"], "no draft stays"


def test_one_that_came_meanwhile_is_left_alone(root: Path) -> None:
    (root / "main" / ".env").write_text("main")
    (root / "tree" / ".env").write_text("mine")
    copy(seed(root, ".env"))
    assert (root / "tree" / ".env").read_text() == "mine"


@pytest.mark.parametrize("side", ["main", "tree"])
def test_a_link_swapped_in_leads_nowhere(root: Path, side: str) -> None:
    (root / "main" / "conf").mkdir()
    (root / "main" / "conf" / "a").write_text("1")
    (root / "outside").mkdir()
    (root / "outside" / "a").write_text("secret")
    if side == "main":
        (root / "main" / "conf").rename(root / "gone")
    (root / side / "conf").symlink_to(root / "outside")
    with pytest.raises(VmoatError, match="cannot be copied"):
        copy(seed(root, "conf/a"))
    assert os.listdir(root / "outside") == ["a"]
    assert not (root / "tree" / "conf" / "a").exists() or side == "tree"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_as_root_the_copy_is_the_owners(root: Path) -> None:
    os.chown(root / "tree", 1234, 1234)
    (root / "main" / "d").mkdir()
    (root / "main" / "d" / "f").write_text("1")
    copy(seed(root, "d/f"))
    owners = {(root / "tree" / p).stat().st_uid for p in ("d", "d/f")}
    assert owners == {1234}


def test_plan_says_when_a_seed_differs(world: World) -> None:
    world.work()
    (world.tree / ".env").write_text("mine")
    assert [differs(s) for s in seeds(world.context())] == [True]
    assert "the seed .env differs" in world.vmoat("plan").stderr
    (world.repo / ".worktreeinclude").write_text("out\n.env\n")
    (world.repo / "out").write_text("x")
    assert [s.path for s in seeds(world.context())] == [".env", "out"]


def test_an_unreadable_seed_is_a_config_error(world: World) -> None:
    (world.repo / ".env").unlink()
    os.mkfifo(world.repo / ".env")
    done = world.vmoat("up", code=3)
    assert ".env" in done.stderr
    assert world.ran() == []
