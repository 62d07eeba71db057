"""Locks on files: one holder, also while their file is removed and made again."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from vmoat import locks
from vmoat.browser import profiles


def test_one_at_a_time_and_others_see_it(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with locks.in_turn(file):
        assert locks.held(file)
        with locks.tried(file) as mine:
            assert not mine
    assert not locks.held(file)
    with locks.tried(tmp_path / "none") as mine:
        assert mine
    assert os.listdir(tmp_path) == ["lock"]


def test_a_lock_that_was_removed_while_waited_for_is_taken_anew(tmp_path: Path) -> None:
    """Else two would hold it: who waited the removed file, the next one the new."""
    file = tmp_path / "lock"
    waits, in_it, through = threading.Event(), threading.Event(), threading.Event()

    def second() -> None:
        with locks.in_turn(file, waits.set):
            in_it.set()
            through.wait(60)

    other = threading.Thread(target=second)
    with locks.in_turn(file):
        other.start()
        assert waits.wait(60)
        file.unlink()
    assert in_it.wait(60)
    try:
        assert file.exists()
        with locks.tried(file) as mine:
            assert not mine, "the second holds the file that has the name"
    finally:
        through.set()
        other.join()


def test_two_commands_that_clear_at_once_do_not_fail(homes: Path) -> None:
    """The left profiles of killed ones are removed by whoever comes, several at a time."""
    vm = "0123456789abcdef"
    folder = profiles.home(vm, ["chromium"])
    for number in range(40):
        (folder / f"shot-{number}" / "Default").mkdir(parents=True)
        (folder / f"shot-{number}.lock").touch()
    failed: list[BaseException] = []
    start = threading.Barrier(4)

    def clear() -> None:
        start.wait(60)
        try:
            with profiles.throwaway(vm, ["chromium"]) as mine:
                assert mine.is_dir()
        except BaseException as error:
            failed.append(error)

    several = [threading.Thread(target=clear) for _ in range(4)]
    for one in several:
        one.start()
    for one in several:
        one.join()
    assert failed == []
    assert os.listdir(folder) == []


def test_a_lock_that_cannot_be_made_names_its_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Exception, match=str(tmp_path / "file")), locks.in_turn(
        tmp_path / "file" / "lock"
    ):
        pass
