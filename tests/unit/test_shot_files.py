"""Where `vmoat shot` writes: what is refused before a browser is started, and what is replaced."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from conftest import World

from vmoat.browser import shot
from vmoat.errors import Code, VmoatError

TAKEN = shot.Shot(shot.PNG + b"picture", {"schema": shot.SCHEMA, "url": "http://localhost/"})


def refused(text: str, words: str, code: Code = Code.USAGE) -> None:
    with pytest.raises(VmoatError, match=words) as caught:
        shot.stem(text)
    assert caught.value.code == code
    assert "--out" in caught.value.hint


@pytest.mark.parametrize("name", ["page", "page.png", "page.json"])
def test_one_name_is_two_files(tmp_path: Path, name: str) -> None:
    assert shot.stem(str(tmp_path / "new" / name)) == tmp_path / "new/page"
    assert os.listdir(tmp_path / "new") == [], "trying left nothing there"


def test_no_file_of_the_project_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "app.json").write_text('{"expo": {}}')
    refused(str(tmp_path / "app"), r"app\.json is there, and no report")
    (tmp_path / "logo.png").write_text("<svg/>")
    refused(str(tmp_path / "logo.png"), r"logo\.png is there, and no picture")
    (tmp_path / "folder.png").mkdir()
    refused(str(tmp_path / "folder"), r"folder\.png is there")
    shot.write(TAKEN, tmp_path / "page")
    assert shot.stem(str(tmp_path / "page")) == tmp_path / "page"


@pytest.mark.parametrize("text", ["", " ", ".", "shots/", "there"])
def test_a_folder_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    refused(text, "is a folder|empty name")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("/proc/vmoat", str(tmp_path / "file")):
        refused(f"{folder}/page", f"nothing can be written in {folder}", Code.MISSING)


def test_it_is_told_before_a_vm_is_asked(world: World) -> None:
    assert "is a folder" in world.vmoat("shot", "--out", ".", code=2).stderr
    assert world.events() == []


def test_a_link_that_a_branch_made_is_replaced_not_followed(tmp_path: Path) -> None:
    """The worktree is the VM's to write: a link there may lead to a file of the user's."""
    mine = tmp_path / "bashrc"
    mine.write_text("mine")
    page = shot.stem(str(tmp_path / "page"))
    for kind in ("png", "json"):
        (tmp_path / f"page.{kind}").symlink_to(mine)
    files = shot.write(TAKEN, page)
    assert mine.read_text() == "mine"
    assert Path(files["png"]).read_bytes() == TAKEN.picture
    assert json.loads(Path(files["json"]).read_text())["files"] == files
    refused_link = tmp_path / "other.json"
    refused_link.symlink_to(tmp_path / "nowhere")
    refused(str(tmp_path / "other"), "is there")
    assert sorted(os.listdir(tmp_path)) == ["bashrc", "other.json", "page.json", "page.png"]


def test_a_shot_without_a_picture_leaves_no_older_one(tmp_path: Path) -> None:
    """An agent that looks at the place that it named would see a page that was good."""
    page = tmp_path / "page"
    shot.write(TAKEN, page)
    files = shot.write(shot.Shot(b"", dict(TAKEN.report)), page)
    assert os.listdir(tmp_path) == ["page.json"]
    assert list(files) == ["json"]


def test_the_files_have_the_users_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files = shot.write(TAKEN, tmp_path / "page")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(os.stat(file).st_mode) for file in files.values()} == {0o640}
