"""Well, not yet, or never: what the guest says of the stack, judged."""

from __future__ import annotations

import time
from typing import Any

import pytest
from conftest import World
from fakes import container

from vmoat import health, tunnels
from vmoat.errors import VmoatError
from vmoat.facts import Facts

URL = "http://localhost/"


@pytest.mark.parametrize(
    ("facts", "url", "healthy", "reason"),
    [
        ({}, "", True, ""),
        ({"docker": False}, "", False, "dockerd does not answer"),
        ({"docker": False, "units": {"stack": "active"}}, "", True, ""),
        ({"units": {"stack": "exited 3"}}, "", False, "exit code 3"),
        ({"health_code": 204}, URL, True, ""),
        ({"health_code": 503}, URL, False, "answers 503"),
        ({"health_code": 302}, URL, False, "answers 302"),
        ({"health_code": 0}, URL, False, "does not answer"),
        ({"containers": (container(state="exited", exit_code=0),)}, "", True, ""),
        ({"containers": (container(state="exited", exit_code=2),)}, "", False, "exit code 2"),
        ({"containers": (container(state="exited", exit_code=2, oneoff=True),)}, "", True, ""),
        ({"containers": (container(state="restarting", restarts=9),)}, "", False, "keeps"),
        ({"containers": (container(state="restarting", restarts=1),)}, "", False, "restarting"),
        ({"containers": (container(health="starting"),)}, "", False, "is starting"),
        ({"containers": (container(health="healthy"),)}, "", True, ""),
        ({"containers": (container(up_seconds=1),)}, "", False, "only just started"),
        ({"containers": (container(up_seconds=1),)}, URL, False, "does not answer"),
        ({"containers": (container(up_seconds=5, restarts=9),)}, "", False, "after 9 restarts"),
        ({"containers": (container(up_seconds=30, restarts=9),)}, "", True, ""),
        ({"containers": (container(up_seconds=1, health="healthy"),)}, "", True, ""),
    ],
)
def test_verdicts(facts: dict[str, Any], url: str, healthy: bool, reason: str) -> None:
    verdict = health.judge_facts(Facts(**{"docker": True, **facts}), url)
    assert verdict.healthy == healthy
    assert reason in verdict.reason


def test_what_somebody_started_beside_the_stack_is_not_judged() -> None:
    web, helper = container(project="shop"), container("x", project="", state="exited", exit_code=1)
    other = container("y", project="other", state="exited", exit_code=137)
    facts = Facts(docker=True, containers=(web, helper, other))
    judged = health.stack_containers
    assert judged(facts, frozenset({"id-web"}), "shop") == [web]
    assert judged(facts, frozenset({"id-web", "id-x"}), "shop") == [web, helper], "made by CMD_UP"
    assert judged(facts, frozenset(), "shop") == [web, helper, other], "nothing is known yet"


def test_a_vm_that_died_is_not_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "POLL", 600.0)
    monkeypatch.setenv("VMOAT_HEALTH_TIMEOUT", "600")
    ctx = world.context()
    ctx.driver.create(ctx.spec, print)
    began = time.monotonic()
    with pytest.raises(VmoatError, match="the VM is stopped") as caught:
        health.wait(ctx)
    assert caught.value.code == 5
    assert time.monotonic() - began < 60


def test_a_service_that_ended_is_not_well() -> None:
    facts = Facts(docker=True, units={"stack": "exited 0"})
    assert health.judge_facts(facts, "").healthy
    verdict = health.judge_facts(facts, "", service=True)
    assert (verdict.healthy, verdict.over) == (False, True)


@pytest.mark.parametrize(
    ("facts", "healthy", "reason"),
    [
        ({"units": {"stack": "active"}, "running_for": {"stack": 5}}, False, "does not listen"),
        ({"units": {"stack": "active"}, "running_for": {"stack": 5}, "owned": frozenset({80})},
         True, ""),
        ({"units": {"stack": "active"}, "running_for": {"stack": 2}, "owned": frozenset({80})},
         False, "only just started"),
        ({"units": {"stack": "active"}, "running_for": {"stack": 5}, "containers": (container(),)},
         False, "does not listen"),
        ({"units": {"stack": "active"}, "running_for": {"stack": 20}, "containers": (container(),)},
         True, ""),
        ({"units": {"stack": "active"}, "running_for": {"stack": 500}}, True, ""),
        ({"units": {"stack": "gone"}}, False, "does not run"),
    ],
)  # fmt: skip
def test_a_service_without_a_url_is_well_once_it_listens(
    facts: dict[str, Any], healthy: bool, reason: str
) -> None:
    """Or runs containers that are, or has shown that it never listens."""
    verdict = health.judge_facts(Facts(**{"docker": True, **facts}), "", service=True)
    assert (verdict.healthy, reason in verdict.reason) == (healthy, True)


def test_a_url_that_never_answers_is_6_after_its_limit(world: World) -> None:
    world.context()
    world.set("health", "0")
    (world.tree / "vmoat.toml").write_text(
        (world.tree / "vmoat.toml").read_text().replace("timeout = 5", "timeout = 1")
    )
    done = world.vmoat("up", code=6)
    assert "http://localhost:8080/ does not answer" in done.stderr


def test_a_container_that_crashed_is_1_at_once(world: World) -> None:
    world.context()
    world.set("cold", "")
    world.set("containers", '[{"name": "db", "state": "exited", "exit_code": 3}]')
    done = world.vmoat("up", code=1)
    assert "db ended with exit code 3" in done.stderr
    assert "vmoat logs db" in done.stderr


def test_a_remembered_port_and_one_in_use(world: World) -> None:
    import socket

    world.work()
    ctx = world.context()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(VmoatError, match="in use"):
            tunnels.ensure(ctx, [(80, port)])
        (first,) = tunnels.ensure(ctx, [(port, 0)])
        assert first.host in tunnels.SPARE
    tunnels.close(ctx)
    assert tunnels.ensure(ctx, [(port, 0)]) == [first], "the same one next time"


def test_a_dev_server_beside_a_database_has_its_own_ports(world: World) -> None:
    """A service's sockets count although a container publishes something too."""
    ctx = world.context()
    ctx.driver.create(ctx.spec, print)
    ctx.driver.start(ctx.spec, print)
    world.set("containers", '[{"name": "db", "ports": [[5432, 5432]]}]')
    assert tunnels.wanted(world.context()) == [(5432, 0, "db")]
    world.set("stack-unit", "active")
    assert tunnels.wanted(world.context()) == [(5000, 0, ""), (5432, 0, "db")]


def test_one_port_of_the_guest_on_two_of_the_host(world: World) -> None:
    ctx = world.context()
    ctx.driver.create(ctx.spec, print)
    ctx.driver.start(ctx.spec, print)
    guest = ctx.guest
    guest.forward(8080, 15001)
    guest.forward(8080, 15002)
    assert [t.host for t in tunnels.ensure(ctx, [(8080, 15002)])] == [15002]
    assert [t.host for t in tunnels.ensure(ctx, [(8080, 0)])] == [15001]
    assert sorted(guest.forwards()) == [15001, 15002]
