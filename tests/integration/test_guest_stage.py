"""Stages as units of a real guest (fixture ``guest``: a connected ``Guest``)."""

from __future__ import annotations

import threading
import time
import uuid

import pytest
from lab import at_once

from vmoat.errors import Code, VmoatError
from vmoat.guest import Guest
from vmoat.stages import StageGone

pytestmark = pytest.mark.vm

SLOW = "for i in 1 2 3 4 5 6 7 8 9; do echo line $i; sleep 0.5; done; exit 5"


@pytest.fixture
def name() -> str:
    return f"t-{uuid.uuid4().hex[:8]}"


def stage(guest: Guest, name: str, command: str, attempt: str, root: bool = False) -> object:
    lines: list[str] = []
    rc = guest.stage(
        name, command, attempt=attempt, cwd="/tmp", root=root, on_line=lines.append
    )  # fmt: skip
    return rc, lines


def test_a_stage_runs_in_the_users_login_shell(guest: Guest, name: str) -> None:
    command = "id -un; shopt -q login_shell && echo login; echo '100% $x'; echo e >&2; exit 3"
    assert stage(guest, name, command, "a") == (3, [guest.endpoint.user, "login", "100% $x", "e"])


def test_a_finished_attempt_keeps_its_exit_code_and_output(guest: Guest, name: str) -> None:
    assert stage(guest, name, "echo once; exit 3", "a") == (3, ["once"])
    assert stage(guest, name, "echo never", "a") == (3, ["once"])
    assert stage(guest, name, "echo anew", "b", root=True) == (0, ["anew"])


def test_two_that_start_one_attempt_at_once_start_it_once(guest: Guest, name: str) -> None:
    """A killed worker's session may still be about to launch what the next worker asks for."""
    command = f"echo began >>/tmp/{name}; sleep 1; wc -l </tmp/{name}"
    with at_once(*[lambda: stage(guest, name, command, "a")] * 3) as answers:
        pass
    assert answers == [(0, ["1"])] * 3


def test_a_follower_that_loses_its_connection_misses_no_line(guest: Guest, name: str) -> None:
    cut = threading.Timer(2.5, guest.close)
    cut.start()
    assert stage(guest, name, SLOW, "a") == (5, [f"line {n}" for n in range(1, 10)])


def test_another_attempt_stops_the_running_one(guest: Guest, name: str) -> None:
    gone: list[BaseException] = []

    def first() -> None:
        try:
            stage(guest, name, "sleep 60", "a")
        except StageGone as error:
            gone.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    deadline = time.monotonic() + 60
    while guest.service_state(name) != "active" and time.monotonic() < deadline:
        time.sleep(0.3)
    assert stage(guest, name, "echo new", "b") == (0, ["new"])
    thread.join(60)
    assert len(gone) == 1


def test_a_time_limit_stops_the_stage(guest: Guest, name: str) -> None:
    with pytest.raises(VmoatError) as caught:
        guest.stage(name, "sleep 60", attempt="a", cwd="/tmp", timeout=4)
    assert caught.value.code == Code.TIMEOUT
    assert guest.service_state(name) == "gone"


def test_a_service_runs_until_it_is_stopped(guest: Guest, name: str) -> None:
    guest.service(name, "sleep 600", cwd="/tmp")
    assert guest.service_state(name) == "active"
    guest.stop_stage(name)
    assert guest.service_state(name) == "gone"


def test_a_service_that_ended_tells_its_exit_code(guest: Guest, name: str) -> None:
    guest.service(name, "exit 7", cwd="/tmp")
    deadline = time.monotonic() + 60
    while guest.service_state(name) != "exited 7":
        assert time.monotonic() < deadline
        time.sleep(0.3)
