"""An edit is seen, a touch is not; what git ignores does not count, a seed does."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
from conftest import World, git, repository
from vmoat.tasks.stack import Contents, contents, parts, served, told, what_changed

from vmoat import worktree
from vmoat.fingerprint import Fingerprints, globbed, tracked_and_new


def look(world: World) -> dict[str, str]:
    return parts(contents(world.context(claim=False)).files)


@pytest.mark.parametrize(
    ("name", "change", "seen"),
    [
        ("app.py", lambda f: f.write_text("2"), "app.py"),
        ("app.py", lambda f: os.utime(f, (1, 1)), ""),
        ("app.py", lambda f: f.chmod(0o755), "app.py"),
        ("app.py", lambda f: f.unlink(), "app.py"),
        ("new/file", lambda f: f.write_text("1"), "new"),
        ("out", lambda f: f.write_text("1"), ""),
        (".env", lambda f: f.write_text("SECRET=2"), ".env"),
        ("link", lambda f: f.symlink_to("/etc/hostname"), "link"),
        ("bytes\udcff", lambda f: f.write_text("1"), "bytes\udcff"),
    ],
)
def test_what_is_an_edit(world: World, name: str, change: object, seen: str) -> None:
    (world.tree / ".env").write_text("SECRET=1")
    before = look(world)
    file = world.tree / name
    file.parent.mkdir(exist_ok=True)
    change(file)  # type: ignore[operator]
    assert told(what_changed(before, look(world))) == seen


def test_an_edit_right_after_the_look_with_the_same_size_is_seen(homes: Path) -> None:
    """Within one time stamp of the file system nothing but the content differs."""
    (homes / "f").write_text("1")
    prints = Fingerprints(homes, homes / "state" / "cache")
    before = prints.of(["f"])
    info = (homes / "f").stat()
    (homes / "f").write_text("2")
    os.utime(homes / "f", ns=(info.st_atime_ns, info.st_mtime_ns))
    assert Fingerprints(homes, homes / "state" / "cache").of(["f"]) != before


def test_strange_files_hold_nobody_up(homes: Path) -> None:
    os.mkfifo(homes / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(homes / "socket"))
    (homes / "folder").mkdir()
    (homes / "folder" / "to").symlink_to(homes)
    (homes / "loop").symlink_to("loop")
    names = ["pipe", "socket", "folder", "loop", "missing", "x" * 300]
    found = Fingerprints(homes, homes / "cache").of(names)
    assert set(found) == {"folder/to", "loop"}


def test_a_broken_cache_is_no_cache(homes: Path) -> None:
    (homes / "f").write_text("1")
    for text in ("", "[]", "{", '{"f": 3}', '{"f": [1]}'):
        (homes / "cache").write_text(text)
        assert Fingerprints(homes, homes / "cache").of(["f"])["f"]


def test_submodules_count_and_nested_repositories_do_not(homes: Path) -> None:
    inner = repository(homes / "inner", {"a": "1"})
    outer = repository(homes / "outer", {"b": "1"})
    git(outer, "submodule", "add", "-q", str(inner), "sub")
    repository(outer / "nested", {"c": "1"})
    (outer / "sub" / "fresh").write_text("1")
    tracked, new = tracked_and_new(worktree.find(outer))
    assert sorted(tracked) == [".gitmodules", "b", "sub/a"]
    assert new == ["sub/fresh"]


def test_globs_name_files_and_folders(world: World) -> None:
    assert sorted(globbed(world.tree, ["*.py", "gen.*", "none*"])) == ["app.py", "gen.txt"]


def test_five_thousand_files_that_did_not_change_cost_no_wait(homes: Path) -> None:
    folder = homes / "big"
    for part in range(50):
        (folder / f"d{part}").mkdir(parents=True)
        for number in range(100):
            (folder / f"d{part}" / f"f{number}").write_bytes(b"x")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    old = time.time() - 100
    for file in folder.glob("d*/f*"):
        os.utime(file, (old, old))
    tree = worktree.find(folder)
    time.sleep(2.1)  # younger files are read each time
    first = Fingerprints(folder, homes / "cache").of(tracked_and_new(tree)[0])
    best = 9.9
    for _ in range(3):
        started = time.process_time()
        again = Fingerprints(folder, homes / "cache").of(tracked_and_new(tree)[0])
        best = min(best, time.process_time() - started)
    assert again == first
    assert len(again) == 5_000
    assert best < 0.1, "20,000 in 0.4 s of the processor"


# --- what changed while the stack started


def test_an_edit_while_the_stack_starts_is_served_next_time() -> None:
    before = Contents({"src/a": "1", "b": "1"}, {})
    after = Contents({"src/a": "2", "b": "1"}, {})
    record = served(before, after, {})
    assert record["changed"] == {"src/a": 1}
    assert what_changed(record["inputs"], parts(after.files)) == ["src"]


def test_what_the_stack_writes_each_time_does_not_run_it_for_ever() -> None:
    """A tracked file that changed in three runs after each other is the stack's own."""
    known: dict[str, int] = {}
    for number in range(3):
        after = Contents({"lock": f"{number + 1}"}, {})
        record = served(Contents({"lock": f"{number}"}, {}), after, known)
        known = record["changed"]
        runs_again = what_changed(record["inputs"], parts(after.files)) == ["lock"]
        assert runs_again == (number < 2)


def test_what_git_does_not_know_is_the_stacks_own() -> None:
    after = Contents({"a": "1"}, {"made/by/it": "1"})
    record = served(Contents({"a": "1"}, {}), after, {})
    assert (record["changed"], record["inputs"]) == ({}, parts(after.files))


def test_a_tracked_file_that_came_or_went_while_the_stack_started() -> None:
    after = Contents({"came": "1"}, {})
    record = served(Contents({"gone": "1"}, {}), after, {})
    assert what_changed(record["inputs"], parts(after.files)) == ["came", "gone"]
