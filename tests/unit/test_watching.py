"""What the host changes in a worktree, told to the guest: real git, inotify and helper."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import git, repository

from vmoat.companion import feed
from vmoat.companion.tree import Listing, Tree, differences
from vmoat.companion.watching import Change, Journal, Watching, wait_until
from vmoat.worktree import find

HELPER = Path(__file__).parents[2] / "templates/guest/rootfs/usr/lib/vmoat/watch"


class Told:
    """A watch on a repository and what it told."""

    def __init__(self, repo: Path, cookies: Path) -> None:
        self.repo = repo
        self.changes: list[Change] = []
        self.watching = Watching(Tree(find(repo)), cookies, self.changes.extend)
        self.thread = threading.Thread(target=self.watching.run, daemon=True)
        self.thread.start()
        assert self.watching.begun.wait(60), self.watching.failure

    def names(self) -> set[str]:
        """What was told until now, and is forgotten."""
        assert self.watching.settle(60), self.watching.failure
        found = {change.name for change in self.changes}
        self.changes.clear()
        return found


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    files = {
        ".gitignore": "node_modules/\n*.log\n", "src/a.js": "1", "src/deep/b.js": "1",
        "ü 'x'/c": "1",
    }  # fmt: skip
    repo = repository(tmp_path / "repo", files)
    (repo / "node_modules" / "left").mkdir(parents=True)
    (repo / "node_modules" / "left" / "index.js").write_text("1")
    found = Told(repo, tmp_path / "seen")
    yield found
    found.watching.stop()
    found.thread.join(60)


def test_saves_of_every_kind_are_told(told: Told) -> None:
    (told.repo / "src/a.js").write_text("22")
    (told.repo / "src/new.js").write_text("1")
    (told.repo / "ü 'x'/c.tmp").write_text("atomic")
    os.replace(told.repo / "ü 'x'/c.tmp", told.repo / "ü 'x'/c")
    os.unlink(told.repo / "src/deep/b.js")
    assert told.names() >= {"src/a.js", "src/new.js", "ü 'x'/c", "src/deep/b.js"}


def test_the_last_state_of_a_file_is_told(told: Told) -> None:
    for size in range(50):
        (told.repo / "src/a.js").write_text("x" * size)
    told.watching.settle(60)
    last = [change for change in told.changes if change.name == "src/a.js"][-1]
    assert last.state is not None
    assert last.state[1] == 49
    os.unlink(told.repo / "src/a.js")
    told.watching.settle(60)
    assert told.changes[-1] == Change("src/a.js", None)


def test_what_git_ignores_is_left_out_and_costs_no_watch(told: Told) -> None:
    (told.repo / "node_modules/left/index.js").write_text("22")
    (told.repo / "node_modules/right").mkdir()
    assert told.names() == set()
    assert told.watching.listing.folders == {"", "src", "src/deep", "ü 'x'"}
    (told.repo / "node_modules").rename(told.repo / "kept")
    assert "kept/left/index.js" in told.names()
    assert "kept/left" in told.watching.listing.folders


def test_new_folders_are_watched_with_what_is_in_them(told: Told) -> None:
    (told.repo / "a/b/c").mkdir(parents=True)
    (told.repo / "a/b/c/one").write_text("1")
    assert told.names() >= {"a", "a/b", "a/b/c", "a/b/c/one"}
    (told.repo / "a/b/c/two").write_text("1")
    assert told.names() == {"a/b/c/two"}
    shutil.rmtree(told.repo / "a")
    assert told.names() >= {"a", "a/b/c/one", "a/b/c/two"}
    assert "a/b" not in told.watching.listing.folders


def test_a_folder_that_is_made_again_at_once_is_watched(told: Told) -> None:
    """As `git checkout`, a build or an unpacked archive does it."""
    for round_ in range(10):
        shutil.rmtree(told.repo / "src")
        (told.repo / "src/deep").mkdir(parents=True)
        (told.repo / "src/deep/b.js").write_text("1" * round_)
        time.sleep(0.02 * (round_ % 3))
        assert told.names() >= {"src", "src/deep/b.js"}
        (told.repo / "src/deep/b.js").write_text("x" * round_)
        (told.repo / "src/c.js").write_text("x")
        assert told.names() == {"src/deep/b.js", "src/c.js"}


def test_a_folder_that_is_moved_is_told_at_both_ends(told: Told) -> None:
    (told.repo / "src/deep").rename(told.repo / "away")
    assert told.names() >= {"src/deep", "away", "away/b.js"}
    (told.repo / "away/b.js").write_text("22")
    assert told.names() == {"away/b.js"}


def test_a_gitignore_that_changes_counts_at_once(told: Told) -> None:
    (told.repo / ".gitignore").write_text("*.log\n")
    told.names()
    (told.repo / "node_modules/left/index.js").write_text("22")
    assert told.names() == {"node_modules/left/index.js"}
    (told.repo / ".gitignore").write_text("node_modules/\nsrc/\n")
    told.names()
    (told.repo / "node_modules/left/index.js").write_text("333")
    assert told.names() == set()


def test_links_and_other_repositories_are_not_followed(told: Told, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (told.repo / "link").symlink_to(tmp_path / "outside")
    git(told.repo, "worktree", "add", "-q", "-b", "inner", str(told.repo / "inner"))
    told.names()
    (tmp_path / "outside/x").write_text("1")
    (told.repo / "inner/src/a.js").write_text("22")
    assert told.names() == set()


def test_a_submodule_is_watched(told: Told, tmp_path: Path) -> None:
    other = repository(tmp_path / "other", {"lib/x": "1", ".gitignore": "out/\n"})
    git(told.repo, "submodule", "add", "-q", str(other), "vendor/other")
    again = Told(told.repo, tmp_path / "again")
    (told.repo / "vendor/other/lib/x").write_text("22")
    (told.repo / "vendor/other/out").mkdir()
    assert "vendor/other/lib/x" in again.names()
    again.watching.stop()
    again.thread.join(60)


def test_a_branch_switch_of_thousands_of_files_is_told_whole(told: Told) -> None:
    for number in range(3000):
        folder = told.repo / f"many/{number % 60}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(number)).write_text("1")
    git(told.repo, "add", "-A")
    git(told.repo, "commit", "-qm", "many")
    told.names()
    git(told.repo, "checkout", "-q", "-b", "other", "HEAD^")
    gone = told.names()
    assert {f"many/{n % 60}/{n}" for n in range(3000)} <= gone
    git(told.repo, "checkout", "-q", "main")
    back = told.names()
    assert {f"many/{n % 60}/{n}" for n in range(3000)} <= back
    assert len(told.watching.listing.files) >= 3000


def test_a_watch_that_cannot_begin_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever starts a dev server would wait a minute for it."""
    monkeypatch.setitem(sys.modules, "watchfiles._rust_notify", None)
    watching = Watching(Tree(find(repository(tmp_path / "repo", {}))), tmp_path / "seen", print)
    watching.run()
    assert "watchfiles" in watching.failure


def test_at_rest_it_costs_next_to_nothing(tmp_path: Path) -> None:
    """≤ 2 % of a core over 50,000 files; fewer here, for what wakes it is not their number."""
    repo = repository(tmp_path / "repo", {f"d{n % 500}/{n}": "" for n in range(5000)})
    found = Told(repo, tmp_path / "seen")
    shares = []
    for _ in range(10):  # other tests' threads in this process may still come to their end
        before, began = time.process_time(), time.monotonic()
        time.sleep(1)
        shares.append((time.process_time() - before) / (time.monotonic() - began))
        if shares[-1] < 0.02:
            break
    found.watching.stop()
    found.thread.join(60)
    assert min(shares) < 0.02, [f"{share:.1%}" for share in shares]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0


def test_git_is_told_what_changed_since_it_asked() -> None:
    journal = Journal()
    journal.add([Change("a", (1, 1))])
    token = journal.token()
    journal.add([Change("b", None)])
    assert journal.since(token) == ["b"]
    assert journal.since(journal.token()) == []
    assert Journal().since(token) is None
    assert journal.since("") is None


def test_two_lists_differ_in_what_is_new_gone_or_changed() -> None:
    before = Listing({"", "x"}, {"a": (1, 1), "b": (1, 1), "c": (1, 1)})
    now = Listing({"", "y"}, {"a": (1, 1), "b": (2, 1), "d": (1, 1)})
    assert set(differences(before, now)) == {"b", "c", "d", "x", "y"}


def test_records_are_what_the_helper_reads() -> None:
    listing = Listing({"", "ü"}, {"ü/a b": (1, 2)})
    assert list(feed.listing_records("/w t", listing)) == [
        b"R /w t", "D ü".encode(), "F ü/a b".encode(), b"E",
    ]  # fmt: skip
    assert feed.change_record(Change("a b", (5, 7))) == b"M 5 7 a b"
    assert feed.change_record(Change("a b", None)) == b"X a b"
    assert feed.answer_record("3", "t", ["x", "y"]) == b"A 3 t\nx\ny\n"
    assert feed.answer_record("3", "t", None) == b"A 3 t\n/\n"
    assert feed.answer_record("3", "t", ["x\ny"]) == b"A 3 t\n/\n"


# --- the guest's helper, on this machine


class Helper:
    """The guest's helper, and a feed that tells it of a folder."""

    def __init__(self, top: Path, place: Path, *more: str) -> None:
        self.top = top
        self.socket = place / "w"
        self.process = subprocess.Popen(
            ["perl", str(HELPER), str(self.socket), str(place / "state"), *more],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert wait_until(self.socket.exists, 60)
        self.feed = feed.Feed(lambda token: ("t2", ["x", "y z"] if token == "t1" else None))

    def list(self) -> None:
        listing = Listing({""}, {})
        for folder, inner, files in os.walk(self.top):
            name = os.path.relpath(folder, self.top)
            listing.folders |= {os.path.normpath(f"{name}/{one}") for one in inner}
            listing.files |= {os.path.normpath(f"{name}/{one}"): (0, 0) for one in files}
        assert wait_until(lambda: self.feed.connect(self.socket, str(self.top), listing), 60)
        assert self.feed.listed.wait(60)

    def tell(self, *names: str) -> None:
        batch = []
        for name in names:
            try:
                info = os.lstat(self.top / name)
                batch.append(Change(name, (info.st_mtime_ns, info.st_size)))
            except OSError:
                batch.append(Change(name, None))
        self.feed.tell(batch)
        assert wait_until(lambda: not self.feed._sent, 60)

    def end(self) -> str:
        self.feed.close()
        self.process.terminate()
        return self.process.communicate(timeout=60)[1]


IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE = 2, 4, 8


class Inotify:
    """A program that watches, as inotify(7) has it."""

    def __init__(self, *paths: Path) -> None:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        for path in paths:
            assert libc.inotify_add_watch(self.fd, os.fsencode(path), 0xFFF) >= 0

    def read(self) -> list[tuple[int, str]]:
        import struct

        found, data = [], b""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.fd, 65536):
                data += chunk
        while data:
            _, mask, _, length = struct.unpack_from("iIII", data)
            found.append((mask, data[16 : 16 + length].rstrip(b"\0").decode()))
            data = data[16 + length :]
        return found

    def close(self) -> None:
        os.close(self.fd)


@pytest.fixture
def helper(tmp_path: Path) -> Iterator[Helper]:
    top = tmp_path / "top"
    (top / "src/folder").mkdir(parents=True)
    (top / "src/a").write_text("1")
    (top / "src/run.sh").write_text("#!/bin/sh\n")
    (top / "src/run.sh").chmod(0o755)
    found = Helper(top, tmp_path)
    found.list()
    yield found
    assert found.end() == ""


def test_a_change_is_raised_without_touching_the_file(helper: Helper) -> None:
    watch = Inotify(helper.top / "src", helper.top / "src/a")
    before = os.stat(helper.top / "src/a")
    helper.tell("src/a")
    masks = 0
    for mask, name in watch.read():
        assert name in ("", "a")
        masks |= mask
    assert masks & IN_CLOSE_WRITE
    assert masks & (IN_MODIFY | IN_ATTRIB)
    after = os.stat(helper.top / "src/a")
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
    watch.close()


def test_a_program_that_may_be_started_is_never_opened_for_writing(helper: Helper) -> None:
    watch = Inotify(helper.top / "src")
    helper.tell("src/run.sh")
    masks = [mask for mask, name in watch.read() if name == "run.sh"]
    assert any(mask & IN_ATTRIB for mask in masks)
    assert not any(mask & IN_CLOSE_WRITE for mask in masks)
    watch.close()


def test_what_is_gone_or_new_wakes_who_watches_the_folder(helper: Helper) -> None:
    watch = Inotify(helper.top / "src")
    helper.tell("src/was there a moment ago")
    assert [mask for mask, _ in watch.read() if mask & IN_ATTRIB]
    helper.tell("src/folder")
    assert "folder" in [name for mask, name in watch.read() if mask & IN_ATTRIB]
    watch.close()


def test_what_the_guest_wrote_itself_is_not_said_twice(helper: Helper) -> None:
    """The helper runs where the writer runs: what the host then tells is an echo."""
    for number in range(3):
        (helper.top / "src/a").write_text("x" * number)
        (helper.top / "src/fresh").write_text("y" * number)
    (helper.top / "src/made").mkdir()
    (helper.top / "src/run.sh").unlink()
    time.sleep(0.2)
    watch = Inotify(helper.top / "src")
    helper.tell("src/a", "src/fresh", "src/made", "src/run.sh")
    assert watch.read() == []
    # the host's own save, a moment later, is none
    helper.feed.tell([Change("src/a", (1, 1))])
    assert wait_until(lambda: any(name == "a" for _, name in watch.read()), 60)
    watch.close()


def test_a_write_is_remembered_from_the_last_one_on(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "src").mkdir(parents=True)
    (top / "src/log").write_text("")
    helper = Helper(top, tmp_path, "3")
    watch = None
    try:
        helper.list()
        for number in range(8):  # for longer than it is remembered
            (top / "src/log").write_text("x" * number)
            time.sleep(0.5)
        watch = Inotify(top / "src")
        helper.tell("src/log")
        assert watch.read() == []
        time.sleep(3.5)
        helper.tell("src/log")
        assert any(name == "log" for _, name in watch.read())
    finally:
        if watch:
            watch.close()
        said = helper.end()
    assert said == ""


def test_git_asks_through_the_helper(helper: Helper) -> None:
    def ask(token: str) -> bytes:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(60)
            link.connect(str(helper.socket))
            link.sendall(f"q {token}\0".encode())
            answer = b""
            while chunk := link.recv(4096):
                answer += chunk
        return answer

    assert ask("t1") == b"t2\0x\0y z\0"
    assert ask("other") == b"t2\0/\0"
    helper.feed.close()
    assert wait_until(lambda: ask("t1").endswith(b"/\0"), 60)


def test_a_lost_connection_is_made_up_for(helper: Helper) -> None:
    helper.feed.close()
    helper.feed.tell([Change("src/a", (1, 1))])
    watch = Inotify(helper.top / "src")
    helper.list()
    assert wait_until(lambda: not helper.feed._sent and not helper.feed._waiting, 60)
    assert any(name == "a" for _, name in watch.read())
    watch.close()


def test_the_next_boot_knows_the_folders(helper: Helper, tmp_path: Path) -> None:
    state = (tmp_path / "state").read_bytes().split(b"\0")
    assert os.fsencode(helper.top) in state
    assert b"src" in state
