"""Records survive kill -9 and strange names; locks end with their process; logs can be followed."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmoat import locks, state
from vmoat.fleet import use
from vmoat.state import RunLog, StageStore, VmLock


def test_a_record_and_its_attempt_change_in_one_write(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    first = store.attempt("apt", "key")
    assert StageStore(tmp_path).attempt("apt", "key") == first, "a later process joins"
    assert StageStore(tmp_path).unfinished("apt")
    store.save("apt", {"made": "1", "none": None, "parts": ("a", "b\udcff")})
    again = StageStore(tmp_path)
    assert again.values("apt") == {"made": "1", "parts": ["a", "b\udcff"]}
    assert again.unfinished("apt") == ""
    assert again.attempt("apt", "key") != first


def test_another_work_is_another_attempt(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    assert store.attempt("apt", "one") != store.attempt("apt", "two")


def test_a_damaged_record_counts_as_none(tmp_path: Path) -> None:
    for text in (b"", b"done = 3\n", b"\xff\xfe", b"[done\n", b"[done]\napt = 4\n"):
        (tmp_path / "stages.toml").write_bytes(text)
        store = StageStore(tmp_path)
        assert store.values("apt") == {}
        assert store.unfinished("apt") == ""
        store.save("apt", {"made": "x"})
        assert StageStore(tmp_path).values("apt")["made"] == "x"


def test_a_lock_ends_with_its_process_and_names_it(tmp_path: Path) -> None:
    lock = VmLock(tmp_path)
    pid = os.fork()
    if not pid:
        VmLock(tmp_path).take()
        time.sleep(30)
        os._exit(0)
    while not lock.held():
        time.sleep(0.01)
    assert not lock.take()
    assert lock.holder() == pid
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert lock.holder() == 0
    assert lock.take(wait=1)


@contextlib.contextmanager
def asking(question: Callable[[], object]) -> Iterator[None]:
    """Others ask without a pause, as `vmoat top` and a dashboard on a busy machine."""
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            question()

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_lock_that_others_only_ask_for_is_free(tmp_path: Path) -> None:
    lock = VmLock(tmp_path)
    assert lock.take()
    lock.free()
    with asking(VmLock(tmp_path).held):
        for _ in range(20):
            assert lock.take()
            lock.free()
            with locks.tried(lock.file) as mine:
                assert mine


def test_a_vm_that_others_only_ask_for_is_not_being_stopped(tmp_path: Path) -> None:
    use.mark(tmp_path)
    with asking(lambda: use.held(tmp_path)):
        for _ in range(20):
            with use.used(tmp_path, lambda: pytest.fail("it waits for a stop")):
                pass


def test_a_half_line_is_no_event_and_old_logs_go(tmp_path: Path) -> None:
    for number in range(state.KEEP_RUNS + 5):
        log = RunLog(tmp_path, f"run{number:02}")
        log.open()
    log.write("line", text="a\udcffb\n")
    with open(log.file, "ab") as file:
        file.write(b'{"event": "li')
    assert [e["event"] for e in log.events()] == ["line"]
    assert len(list((tmp_path / "runs").iterdir())) == state.KEEP_RUNS
    current = state.current_run(tmp_path)
    assert current is not None
    assert current.run_id == log.run_id
