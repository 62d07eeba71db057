"""Whatever happens to the worker, the next `up` goes on from the last finished stage."""

from __future__ import annotations

import errno
import json
import os
import signal
import time

import fakes
import pytest
from conftest import World, git
from timing import until

from vmoat import watch
from vmoat.state import cancel_run, current_run, require_lock

STAGES = ("image", "vm", "apt", "script", "seed", "gen", "stack", "health")
UNITS = ("apt", "script", "gen", "stack")


def once(world: World) -> dict[str, int]:
    """How often each thing was done."""
    ran = world.ran()
    return {name: ran.count(name) for name in ("image", "create", "boot", *UNITS)}


def test_a_run_does_every_stage_once_and_in_order(world: World) -> None:
    assert world.work() == 0
    done = [e for e in world.ran() if e in ("image", "create", "boot", *UNITS)]
    assert done == ["image", "create", "boot", "apt", "script", "gen", "stack"]
    assert (world.tree / ".env").read_text() == "SECRET=1\n"
    assert world.work() == 0
    assert once(world) == dict.fromkeys(once(world), 1)


@pytest.mark.parametrize("point", ["start", "middle", "end", "saved"])
@pytest.mark.parametrize("stage", STAGES)
def test_kill_9_of_the_worker_costs_no_finished_stage(
    world: World, stage: str, point: str
) -> None:
    if point == "middle" and stage in ("seed", "health"):
        pytest.skip("nothing of these runs outside the worker")
    world.context()
    world.set("die", f"{stage} {point}")
    if stage == "health":
        world.set("cold", "")
    assert world.work() == 137
    before = world.events().count(f"begin {stage}")
    assert before == 1
    assert world.work() == 0
    assert once(world) == dict.fromkeys(once(world), 1), world.events()
    if point == "saved":
        assert world.events().count(f"begin {stage}") == 1
    if point in ("middle", "end") and stage in UNITS:
        assert f"join {stage}" in world.events()


def test_kill_9_at_any_moment(world: World) -> None:
    """From outside, blindly, again and again: it gets done, and nothing twice."""
    world.context()
    world.set("slow", "0.15")
    for round_ in range(12):
        pid = world.fork_worker()
        time.sleep(0.05 + round_ * 0.07)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert world.work() == 0
    assert once(world) == dict.fromkeys(once(world), 1), world.events()


def test_a_failed_stage_is_tried_again_and_says_so(world: World) -> None:
    world.context()
    world.set("fail-script", "3")
    assert world.work() == 1
    assert "script" in str(world.last_end()["message"])
    assert "stack" not in world.ran()
    (world.place / "fail-script").unlink()
    assert world.work() == 0
    assert once(world)["script"] == 2
    assert once(world)["apt"] == 1


def test_a_failure_that_the_worker_did_not_live_to_tell_is_tried_again(world: World) -> None:
    world.context()
    world.set("fail-script", "3")
    world.set("die", "script middle")
    assert world.work() == 137
    assert world.work() == 1, "the running unit is joined, and its failure told"
    (world.place / "fail-script").unlink()
    assert world.work() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_cancelling_stops_the_unit_and_the_next_run_goes_on(
    world: World, number: signal.Signals
) -> None:
    world.context()
    world.hold()
    pid = world.fork_worker()
    until(lambda: "apt" in world.ran())
    os.kill(pid, number)
    assert world.join(pid) == 130
    assert world.last_end()["code"] == 130
    assert "stopped apt" in world.ran()
    world.go_on()
    assert world.work() == 0
    assert once(world)["boot"] == 1
    assert once(world)["apt"] == 2, "a stopped unit is begun anew"


def test_a_signal_at_the_very_beginning_ends_it_without_a_trace(world: World) -> None:
    world.context()
    for pause in (0.0, 0.005, 0.01, 0.02):
        pid = world.fork_worker()
        time.sleep(pause)
        os.kill(pid, signal.SIGINT)
        os.waitpid(pid, 0)
    assert world.work() == 0


def test_a_hang_up_does_not_end_it(world: World) -> None:
    world.context()
    world.hold()
    pid = world.fork_worker()
    until(lambda: "apt" in world.ran())
    os.kill(pid, signal.SIGHUP)
    world.go_on()
    assert world.join(pid) == 0


def test_a_second_worker_leaves_at_once(world: World) -> None:
    world.context()
    world.hold()
    first = world.fork_worker()
    until(lambda: "apt" in world.ran())
    assert world.work() == 7
    world.go_on()
    assert world.join(first) == 0
    assert once(world)["apt"] == 1


def test_a_worker_that_was_asked_before_another_run_ended_does_nothing(world: World) -> None:
    """Two `up` at one instant, the first fails fast: the second must not try again."""
    from vmoat import worker

    ctx = world.context()
    world.set("fail-apt", "5")
    late = worker.Request("late", str(world.tree), str(ctx.instance.folder), seen="")
    assert world.work() == 1
    pid = os.fork()
    if not pid:
        os._exit(worker.main([late.dumps()]))
    assert world.join(pid) == 7
    assert once(world)["apt"] == 1


def test_a_defect_of_ours_ends_in_the_log_not_in_silence(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*words: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("vmoat.graph.run", broken)
    assert world.work() == 1
    end = world.last_end()
    assert "defect" in str(end["message"])
    assert "ZeroDivisionError" in str(end["details"])


def test_a_project_whose_config_broke_meanwhile_is_told(world: World) -> None:
    ctx = world.context()
    assert ctx is not None

    (world.tree / "vmoat.toml").write_text("[up\n")
    from vmoat import worker

    request = worker.Request("x", str(world.tree), str(ctx.instance.folder))
    child = os.fork()
    if not child:
        os._exit(worker.main([request.dumps()]))
    assert world.join(child) == 3

    assert fakes.text(world.place / "ran") == ""


def test_a_full_disk_in_the_middle_of_a_stage_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no VmoatError too: doit would swallow it."""

    def no_room(*words: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/disk")

    monkeypatch.setattr(fakes.FakeDriver, "create", no_room)
    assert world.work() == 4
    assert "/disk: No space left" in str(world.last_end()["message"])


def test_a_command_that_writes_a_tracked_file_is_joined_after_kill_9(world: World) -> None:
    text = (world.tree / "vmoat.toml").read_text()
    (world.tree / "vmoat.toml").write_text(text.replace("echo up", "date +%N >>app.py"))
    world.context()
    world.set("die", "stack end")
    assert world.work() == 137
    assert world.work() == 0
    assert once(world)["stack"] == 1
    assert (world.tree / "app.py").read_text().count("\n") == 1


def test_an_edit_after_a_killed_workers_stack_ended_is_served_at_once(world: World) -> None:
    world.context()
    world.set("die", "stack end")
    assert world.work() == 137
    later = time.time() + 5
    (world.tree / "app.py").write_text("edited")
    os.utime(world.tree / "app.py", (later, later))
    assert world.work() == 0
    assert once(world)["stack"] == 2
    assert world.work() == 0
    assert once(world)["stack"] == 2


def test_a_forced_stack_is_not_a_killed_workers_result(world: World) -> None:
    world.context()
    world.set("die", "stack end")
    assert world.work() == 137
    assert world.work(force=("stack",)) == 0
    assert once(world)["stack"] == 2


def test_stopped_containers_are_started_again(world: World) -> None:
    """Those that serve end with 0 when they are told to stop."""
    world.context()
    web, job = {"name": "web", "ports": [[80, 80]], "project": "repo"}, {"name": "job"}
    world.set("containers", json.dumps([web, {"name": "job", "project": "repo"}]))
    assert world.work() == 0
    gone = [{**c, "state": "exited", "exit_code": 0, "ports": []} for c in (web, job)]
    world.set("containers", json.dumps([job, gone[0]]))
    assert world.reasons()["stack"] == "the container web is exited"
    world.set("containers", json.dumps([web, gone[1]]))
    assert world.reasons() == {}, "a job may be done"
    world.set("containers", json.dumps(gone))
    assert "exited" in world.reasons()["stack"]


def test_down_does_not_interrupt_another_down(world: World) -> None:
    ctx = world.context()
    assert world.work() == 0
    lock = require_lock(ctx.instance.folder, "another down")
    before = signal.signal(signal.SIGINT, lambda *_: pytest.fail("interrupted"))
    try:
        cancel_run(ctx.instance.folder)
    finally:
        signal.signal(signal.SIGINT, before)
        lock.free()


def test_down_ends_an_up_that_builds_the_image(world: World) -> None:
    world.context()
    world.hold()
    pid = world.fork_worker()
    until(lambda: "apt" in world.ran())
    world.vmoat("down")
    assert world.join(pid) == 130


def test_a_wish_is_done_with_the_config_of_its_time(world: World) -> None:
    world.context()
    world.hold()
    pid = world.fork_worker("apt")
    until(lambda: "apt" in world.ran())
    text = (world.tree / "vmoat.toml").read_text()
    (world.tree / "vmoat.toml").write_text(text.replace("echo up", "echo another"))
    world.vmoat("up", "--detach")
    world.go_on()
    assert world.join(pid) == 0
    assert world.reasons() == {}


def test_a_retry_is_joined_after_kill_9(world: World) -> None:
    """The first start failed of a dependency; the second is the one that a killed worker left."""
    text = (world.tree / "vmoat.toml").read_text()
    line = "[ -e out ] || { touch out; echo dependency failed to start; exit 1; }"
    (world.tree / "vmoat.toml").write_text(text.replace("echo up", line))
    world.context()
    world.set("die", "stack end")
    assert world.work() == 137
    assert once(world)["stack"] == 2
    assert world.work() == 0
    assert once(world)["stack"] == 2


def test_a_migration_that_ends_well_is_no_reason_to_run_the_stack_again(world: World) -> None:
    running = [{"name": "web"}, {"name": "migrate"}]
    world.context()
    world.set("containers", json.dumps(running))
    assert world.work() == 0
    running[1] |= {"state": "exited", "exit_code": 0}  # type: ignore[dict-item]
    world.set("containers", json.dumps(running))
    assert world.work() == 0
    assert once(world)["stack"] == 1


def test_what_is_asked_for_while_a_run_works_is_done_after_it(world: World) -> None:
    """`up --detach` during `provision`: nobody stays who could ask again."""
    world.context()
    world.hold()
    pid = world.fork_worker("apt")
    until(lambda: "apt" in world.ran())
    world.vmoat("up", "--detach")
    world.go_on()
    assert world.join(pid) == 0
    assert once(world)["stack"] == 1
    log = current_run(world.context().instance.folder)
    assert log is not None
    assert not log.wish(["stack"], []), "a run that is over takes none"


def test_a_dead_run_is_not_what_another_lock_holder_works_on(world: World) -> None:
    ctx = world.context()
    world.set("die", "script start")
    assert world.work() == 137
    lock = require_lock(ctx.instance.folder, "down")
    assert watch.active(ctx) is None
    lock.free()


def test_two_ups_at_once_run_an_every_up_stage_once(world: World) -> None:
    text = (world.tree / "vmoat.toml").read_text()
    (world.tree / "vmoat.toml").write_text(text + 'every = "up"\n')
    world.context()
    world.hold()
    pid = world.fork_worker()
    until(lambda: "apt" in world.ran())
    second = world.start("up")
    assert second.stderr is not None
    assert any("joining" in line for line in second.stderr)
    world.go_on()
    assert world.join(pid) == second.wait(60) == 0
    second.communicate()
    assert once(world) == dict.fromkeys(once(world), 1)


def test_a_worker_of_a_removed_worktree_does_not_write_into_the_next_ones_vm(world: World) -> None:
    world.context()
    world.hold()
    pid = world.fork_worker()
    until(lambda: "apt" in world.ran())
    git(world.repo, "worktree", "remove", "--force", str(world.tree))
    git(world.repo, "worktree", "add", "-q", str(world.tree), "work")
    after = world.context()
    world.go_on()
    assert world.join(pid) == 130
    assert after.store.values("image") == {}
    after.store.reload()
    assert after.store.values("image") == {}
