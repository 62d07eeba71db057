"""Programs end in time, with all their children; failures are a line to paste."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from timing import until

from vmoat import proc
from vmoat.errors import VmoatError


def test_what_it_printed_and_how_it_ended() -> None:
    done = proc.run(["sh", "-c", "cat; printf 'a\\377'; echo e >&2; exit 3"], check=False)
    assert (done.rc, done.out, done.err) == (3, "a\udcff", "e\n")
    assert proc.run(["cat"], input="héllo").out == "héllo"
    assert proc.run(["sh", "-c", 'echo "$X$PWD"'], env={"X": "1"}, cwd="/").out == "1/\n"


def test_a_time_limit_ends_grandchildren_that_hold_the_pipe(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    words = ["sh", "-c", f"sleep 600 & echo $! >{file}.new; mv {file}.new {file}; wait"]
    started = time.monotonic()
    for limit in (0.4, 4, 40):  # until there is a grandchild
        with pytest.raises(VmoatError) as caught:
            proc.run(words, timeout=limit)
        assert caught.value.code == 6
        if file.exists():
            break
    assert time.monotonic() - started < 300
    until(lambda: gone(int(file.read_text())))


def gone(pid: int) -> bool:
    """Whether a process has ended, waited for or not."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_failures_say_what_to_paste_and_what_is_missing() -> None:
    with pytest.raises(VmoatError, match=r"`sh -c 'echo no >&2; exit 4'` failed") as caught:
        proc.run(["sh", "-c", "echo no >&2; exit 4"])
    assert caught.value.details == ("no",)
    with pytest.raises(VmoatError, match="not installed") as caught:
        proc.run(["no-such-program"])
    assert caught.value.code == 4
