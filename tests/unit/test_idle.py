"""A VM that nobody uses is stopped, one that is used in any way is not, and the next command has it
again.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fakes
import pytest
from conftest import World, git
from timing import until

from vmoat import copying, netports, parser, paths, sshproxy
from vmoat.commands import inside
from vmoat.companion import process
from vmoat.companion.idleness import LOAD, Clock, guest_cpu
from vmoat.errors import Code, VmoatError
from vmoat.fleet import idle, sleep, stopping, use
from vmoat.netports import Traffic
from vmoat.output import Output
from vmoat.state import VmLock

SECONDS = 1
NOTHING = Traffic(frozenset(), frozenset())


# -- the clock --


def test_nothing_for_a_while_is_idle() -> None:
    clock = Clock(100)
    clock.traffic(110, NOTHING)
    clock.docker(110, frozenset())
    clock.load(110, 50.0)
    clock.load(170, 50.0 + 60 * LOAD)
    assert clock.idle(170) == 70


def test_a_command_and_an_open_connection_are_uses() -> None:
    clock = Clock(100)
    clock.used(120, "a command")
    assert clock.idle(125) == 5
    clock.traffic(130, Traffic(frozenset({"8080 50000"}), frozenset()))
    assert clock.idle(131) == 1


def test_a_connection_that_came_and_went_is_one_use_and_not_a_minute_of_it() -> None:
    clock = Clock(100)
    for now in (110, 115, 120, 165):
        clock.traffic(now, Traffic(frozenset(), frozenset({"50000 8080"})))
    assert clock.idle(165) == 55
    clock.traffic(170, Traffic(frozenset(), frozenset({"50000 8080", "50001 8080"})))
    assert clock.idle(170) == 0


def test_a_short_question_to_dockerd_is_no_use_and_a_long_one_is() -> None:
    clock = Clock(100)
    clock.docker(110, frozenset({"1"}))  # `vmoat status`, and another one later
    clock.docker(115, frozenset({"2"}))
    assert clock.idle(115) == 15
    clock.docker(120, frozenset({"2", "3"}))
    assert clock.idle(120) == 0


def test_load_counts_from_one_look_to_the_next() -> None:
    clock = Clock(100)
    clock.load(160, 1000)  # all of it since the boot: says nothing of now
    assert clock.idle(160) == 60
    clock.load(220, 1000 + 60 * LOAD + 1)
    assert clock.idle(220) == 0
    clock.load(500, 1000 + 280)  # the host slept, or the guest was not asked
    assert clock.idle(500) == 280


def test_what_the_guest_says_of_its_cpu() -> None:
    assert guest_cpu("cpu 100 20 300 5000 400 7 3 9 0 0\n") == 4.3
    for broken in ("", "cpu", "bash: /proc/stat: Permission denied", "cpu a b c d e f g"):
        assert guest_cpu(broken) is None


# -- what is seen of connections --


def test_connections_over_a_port_are_seen_open_and_a_minute_after() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert netports.traffic([port]) == NOTHING, "who only listens uses nothing"
        client = socket.create_connection(("127.0.0.1", port))
        peer, _ = server.accept()
        assert netports.traffic([port]).open
        assert netports.traffic([port + 1]) == NOTHING
        client.close()
        peer.close()
        until(lambda: not netports.traffic([port]).open)
        assert netports.traffic([port]).over
    assert netports.traffic([]) == NOTHING


def test_the_same_on_ipv6() -> None:
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this host has no ::1")
    with server, socket.create_connection(server.getsockname()[:2]):
        assert netports.traffic([server.getsockname()[1]]).open


def test_what_netstat_prints_on_macos() -> None:
    text = """\
Active Internet connections (including servers)
Proto Recv-Q Send-Q  Local Address          Foreign Address        (state)
tcp4       0      0  127.0.0.1.8080         127.0.0.1.62345        ESTABLISHED
tcp6       0      0  ::1.62346              ::1.8080               TIME_WAIT
tcp4       0      0  192.168.1.7.62347      10.1.2.3.8080          ESTABLISHED
tcp4       0      0  127.0.0.1.8080         *.*                    LISTEN
"""
    assert list(netports.netstat_rows(text)) == [
        (8080, 62345, "ESTABLISHED"),
        (62346, 8080, "TIME_WAIT"),
    ]


def test_users_of_a_unix_socket(tmp_path: Path) -> None:
    place = tmp_path / "a socket"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(place))
        server.listen()
        assert netports.socket_users(place) == frozenset()
        client.connect(str(place))
        peer, _ = server.accept()
        with peer:
            assert len(netports.socket_users(place)) == 1


# -- a whole VM, its companion beside it --


@pytest.fixture
def brief(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world in which a VM may be idle for a second."""
    monkeypatch.setenv("VMOAT_VM_IDLE", f"{SECONDS}s")
    yield world
    process.end(paths.vm_id("wt-tree"))


def runs(world: World) -> bool:
    return (world.place / "boot").exists()


def stays_up(world: World, seconds: float = 2.5 * SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert runs(world)
        time.sleep(0.05)


def test_an_idle_vm_is_stopped_and_the_next_command_starts_it(brief: World) -> None:
    brief.vmoat("up")
    folder = paths.vm_dir("wt-tree")
    until(lambda: sleep.of(folder) and not runs(brief))
    asleep = sleep.of(folder)
    assert asleep is not None
    assert asleep.at - use.last(folder) >= SECONDS
    assert "stop" in brief.ran()
    assert "for being idle" in brief.vmoat("plan").stdout
    assert "for being idle; the next command starts it" in brief.vmoat("status").stderr
    done = brief.vmoat("exec", "echo", "hello")
    assert done.stdout == "hello\n"
    assert "wt-tree was stopped at " in done.stderr
    assert "for being idle: starting it again" in done.stderr
    assert brief.ran().count("boot") == 2
    until(lambda: not runs(brief))
    tunnel = brief.vmoat("tunnel", "5000", "--json")
    tunnels = json.loads(tunnel.stdout)["tunnels"]
    assert tunnels[0]["guest"] == 5000, "the events of the start are no part of the answer"


def test_what_a_person_stopped_stays_stopped(brief: World) -> None:
    brief.vmoat("up")
    until(lambda: sleep.of(paths.vm_dir("wt-tree")) and not runs(brief))
    assert "not running" in brief.vmoat("down").stderr
    assert "`vmoat up` starts it" in brief.vmoat("exec", "true", code=125).stderr


def test_a_command_keeps_it_awake_as_long_as_it_runs(brief: World) -> None:
    brief.vmoat("up")
    session = subprocess.Popen(
        brief.argv("exec", "touch out; exec sleep 600"), cwd=brief.tree,
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        until((brief.tree / "out").exists)  # it may have had to start the VM again
        stays_up(brief)
        assert idle.words(idle.since("wt-tree")) == "in use"
    finally:
        os.killpg(session.pid, signal.SIGKILL)
        session.wait()
    until(lambda: not runs(brief))


def test_a_copy_is_a_use_as_long_as_it_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.vmoat("up")
    fakes.install(monkeypatch.setattr)
    seen: list[bool] = []
    folder = paths.vm_dir("wt-tree")
    monkeypatch.setattr(copying, "copy", lambda *_, **__: seen.append(use.held(folder)))
    args = parser.parse(["-C", str(world.tree), "cp", "app.py", "vm:/tmp/"])
    assert inside.copy(args, Output()) == 0
    assert seen == [True]
    assert not use.held(folder)


def test_who_only_looks_uses_nothing(world: World) -> None:
    """A dashboard or a `top` that is left open keeps no VM awake: it looks as these do."""
    world.vmoat("up")
    folder = paths.vm_dir("wt-tree")
    os.utime(folder / use.MARK, (1000, 1000))
    for words in (["status"], ["ls", "--json"], ["plan"], ["top"]):
        world.vmoat(*words)
    world.vmoat("logs", "--follow", code=None)  # the guest's own program for it is not here
    assert use.last(folder) == 1000


def test_an_open_tunnel_connection_keeps_it_awake(brief: World) -> None:
    """This process is the ssh master that listens for the tunnel."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        brief.set("master", str(os.getpid()))
        client = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
        brief.vmoat("up")
        stays_up(brief)
        client.close()
        peer.close()
        until(lambda: not runs(brief))


def test_load_keeps_it_awake(brief: World) -> None:
    """A container that computes, and nobody watches."""
    working = threading.Event()

    def work() -> None:
        began = time.monotonic()
        while not working.wait(0.05):
            ticks = int(800 * (time.monotonic() - began))  # of eight CPUs
            brief.set("cpu", f"cpu {ticks} 0 0 9 0 0 0 0 0 0")

    worker = threading.Thread(target=work)
    worker.start()
    try:
        brief.vmoat("up")
        stays_up(brief)
    finally:
        working.set()
        worker.join()
    until(lambda: not runs(brief))


def test_without_the_setting_nothing_is_stopped(
    brief: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VMOAT_VM_IDLE")
    brief.vmoat("up")
    stays_up(brief)


# -- stopping --


def test_one_that_is_used_after_all_is_not_stopped(world: World) -> None:
    world.vmoat("up")
    folder = paths.vm_dir("wt-tree")
    assert not stopping.stop("wt-tree", 60), "used a moment ago"
    long_ago(folder)
    with use.used(folder):
        long_ago(folder)
        assert not stopping.stop("wt-tree", 60)
    long_ago(folder)
    lock = VmLock(folder)
    assert lock.take()
    assert not stopping.stop("wt-tree", 60), "somebody works on it"
    lock.free()
    assert runs(world)
    assert stopping.stop("wt-tree", 60, "wt-other")
    assert not runs(world)
    assert "to make room for wt-other" in world.vmoat("plan").stdout


def long_ago(folder: Path) -> None:
    os.utime(folder / use.MARK, (time.time() - 3600,) * 2)


def test_a_command_waits_for_a_stop_that_goes_on(world: World) -> None:
    world.vmoat("up")
    folder = paths.vm_dir("wt-tree")
    with use.unused(folder) as mine:
        assert mine
        command = subprocess.Popen(
            world.argv("exec", "echo", "there"), cwd=world.tree, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert command.stderr is not None
        assert "is just being stopped" in command.stderr.readline()
        fakes.FakeDriver().stop("wt-tree")
        sleep.begin(folder, "")
    out, said = command.communicate(timeout=60)
    assert command.returncode == 0
    assert out == "there\n"
    assert "starting it again" in said


def test_a_command_is_not_told_of_a_stop_by_those_who_only_ask(tmp_path: Path) -> None:
    """`vmoat top`, the dashboard and the companion look again and again."""
    over = threading.Event()
    seen: set[bool] = set()

    def ask() -> None:
        while not over.is_set():
            seen.add(use.held(tmp_path))

    use.mark(tmp_path)
    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    told: list[str] = []
    try:
        until(lambda: False in seen)
        for _ in range(50):
            with use.used(tmp_path, lambda: told.append("is just being stopped")):
                pass
        with use.used(tmp_path):
            until(lambda: True in seen)
    finally:
        over.set()
        for asker in askers:
            asker.join()
    assert told == []


def test_a_vm_whose_stop_was_killed_sleeps_all_the_same(world: World) -> None:
    world.vmoat("up")
    long_ago(paths.vm_dir("wt-tree"))
    (world.place / "die").write_text("stop end")
    assert stopping.begin("wt-tree", 60).wait(30) == -signal.SIGKILL
    assert not runs(world)
    done = world.vmoat("exec", "echo", "there")
    assert done.stdout == "there\n"
    assert "starting it again" in done.stderr


def test_a_stop_that_fails_is_no_sleep(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: object) -> None:
        raise VmoatError("QEMU does not end", code=Code.VM)

    world.vmoat("up")
    long_ago(paths.vm_dir("wt-tree"))
    monkeypatch.setattr(stopping, "shut_down", fail)
    with pytest.raises(VmoatError):
        stopping.stop("wt-tree", 60)
    assert sleep.of(paths.vm_dir("wt-tree")) is None


def test_a_clock_that_was_set_back_keeps_no_vm_awake_until_it_has_caught_up(world: World) -> None:
    world.vmoat("up")
    folder = paths.vm_dir("wt-tree")
    os.utime(folder / use.MARK, (time.time() + 86_400,) * 2)
    assert not stopping.stop("wt-tree", 0.2), "nobody knows when it was used"
    until(lambda: stopping.stop("wt-tree", 0.2))
    assert not runs(world)


def test_another_ssh_client_waits_for_a_stop_that_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told that the VM is stopped; it is never connected to one that goes down."""
    world.vmoat("up")
    ended: list[int] = []
    client = threading.Thread(target=lambda: ended.append(sshproxy.main(["wt-tree"])))
    connected: list[str] = []
    monkeypatch.setattr(sshproxy.socket, "create_connection", lambda *_, **__: connected.append(""))
    with use.unused(paths.vm_dir("wt-tree")) as mine:
        assert mine
        client.start()
        client.join(0.3)  # were it not to wait, it would be connected by now
        fakes.FakeDriver().stop("wt-tree")
    client.join(30)
    assert ended == [Code.VM]
    assert connected == []


def test_the_vm_of_a_removed_worktree_is_stopped_too(world: World) -> None:
    world.vmoat("up")
    long_ago(paths.vm_dir("wt-tree"))
    world.tree.rename(world.root / "elsewhere")
    assert stopping.stop("wt-tree", 60)
    assert not runs(world)


def test_the_stack_of_a_worktree_that_was_moved_is_stopped_as_well(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`git worktree move`, and no command since."""
    monkeypatch.setenv("VMOAT_DOWN_COMMAND", "echo bye")
    world.vmoat("up")
    git(world.repo, "worktree", "move", str(world.tree), str(world.root / "elsewhere"))
    long_ago(paths.vm_dir("wt-tree"))
    assert stopping.stop("wt-tree", 60)
    assert [event for event in world.events() if "CMD_DOWN" in event]
