"""What a client may do to `vmoat mcp` by mistake or by malice: each call ends, alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from conftest import World
from mcp import Client
from mcpclient import WAITS, ask, call, gone, session, started, until
from timing import LIMIT

from vmoat import proc
from vmoat.mcpserver import bounds
from vmoat.mcpserver.server import Server


def refusal(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a server says to a call that no command is started for."""

    async def play() -> Any:
        async with Client(Server()) as client:
            return await client.call_tool(tool, arguments)

    answer = anyio.run(play)
    assert answer.is_error
    assert len(answer.content[0].text) < 3000
    return dict(answer.structured_content)


# --- arguments


@pytest.mark.parametrize(
    ("place", "why"),
    [("/nowhere/x", "there is no folder /nowhere/x"), ("{tmp}", "is not inside a git worktree"),
     ("/etc/passwd", "cannot be entered"), ("/" + "x" * 5000, "xxx…")],
)  # fmt: skip
def test_a_worktree_that_is_none(tmp_path: Path, place: str, why: str) -> None:
    found = refusal("status", {"worktree": place.replace("{tmp}", str(tmp_path))})
    assert why in found["message"]
    assert "-C PATH" in found["hint"]
    assert found["exit_code"] == 2


def test_a_misspelt_argument_brings_nothing_down(world: World) -> None:
    assert world.work() == 0
    refused = ask(world, "down", worktre="/w/another")
    assert refused.structured_content["message"] == "`down` has no argument `worktre`"
    assert refused.structured_content["hint"] == "its arguments are: worktree"
    assert "stop" not in world.ran()


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("exec", {"command": ["ls"]}, "`command`: Input should be a valid string"),
        ("exec", {}, "`command`: Field required"),
        ("exec", {"command": "ls", "timeout": -1}, "`timeout`: Input should be greater than 0"),
        ("logs", {"tail": "all"}, "`tail`: Input should be a valid integer"),
        ("plan", {"stages": {"x": "y" * 2**20}}, "`stages`: "),
        ("ls", {"all": True}, "`ls` has no argument `all`"),
        ("exec", {"command": "echo a\0b"}, "no argument can hold that: embedded null byte"),
        ("exec", {"command": "echo \ud800"}, "`command`: Input should be a valid string"),
        ("exec", {"command": "echo " + "x" * 300_000}, "the arguments are too long"),
        ("test", {"arguments": ["word"] * 300_000}, "the arguments are too long"),
    ],
)
def test_arguments_that_nobody_can_use(
    tool: str, arguments: dict[str, Any], message: str
) -> None:
    found = refusal(tool, arguments)
    assert found["message"].startswith(message)
    assert found["exit_code"] == 2
    assert found["hint"]


def test_a_crash_of_the_server_itself_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*words: str) -> list[str]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(proc, "own_argv", broken)
    found = refusal("status", {})
    assert (found["message"], found["exit_code"]) == ("Too many open files", 4)
    assert "ulimit -n" in found["hint"]


def test_a_port_may_be_a_number(world: World) -> None:
    assert world.work() == 0
    tunnels = ask(world, "tunnel", ports=[8080]).structured_content["tunnels"]
    assert [row["guest"] for row in tunnels] == [8080]


def test_lines_that_are_no_protocol(world: World) -> None:
    """The server answers the next that is some."""
    with subprocess.Popen(
        world.argv("mcp"), cwd=world.tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, errors="surrogateescape",
    ) as server:  # fmt: skip
        assert server.stdin is not None
        assert server.stdout is not None
        half = call(1, "plan", {"stages": ["x"]}).replace('"x"', '"\\ud800"')
        for line in ("hello\n", "{}\n", "\udcff\udcfe\n", "[" * 5000 + "\n", "\0\n", half):
            server.stdin.write(line)
        server.stdin.write(call(7, "plan", {}))
        server.stdin.flush()
        answer: dict[str, Any] = {}
        while answer.get("id") != 7:
            answer = json.loads(server.stdout.readline())
            assert answer["jsonrpc"] == "2.0"
        server.stdin.close()
        assert server.wait(LIMIT) == 0
    assert answer["result"]["structuredContent"]["name"] == "wt-tree"


# --- what a command prints


def test_output_that_is_no_text(world: World) -> None:
    assert world.work() == 0

    async def play() -> None:
        async with session(world) as client:
            odd = await client.call_tool("exec", {"command": r"printf 'a\0\377\033[31mb\r\nc'"})
            assert odd.structured_content["stdout"] == "a\0�\x1b[31mb\r\nc"
            noise = "head -c 10000000 /dev/urandom; head -c 10000000 /dev/zero | tr '\\0' y >&2"
            much = (await client.call_tool("exec", {"command": noise})).structured_content
            assert much["exit_code"] == 0
            assert much["stderr"] == "y" * bounds.CHARACTERS
            assert much["stderr_dropped"] == 10_000_000 - bounds.CHARACTERS
            assert len(much["stdout"]) <= bounds.CHARACTERS
            left = {"command": "sleep 60 >/dev/null & echo left; echo $! >sleeper"}
            assert (await client.call_tool("exec", left)).structured_content["stdout"] == "left\n"

    anyio.run(play)
    subprocess.run(["kill", (world.tree / "sleeper").read_text().strip()], check=True)


BREAKS = """\
import sys
from vmoat.errors import VmoatError
from vmoat.output import Output
print("test 1: ok\\ntest 2:")
Output().error(VmoatError("the connection broke", hint="`vmoat status`", code=125))
sys.exit(125)
"""


def test_how_far_a_command_came_when_the_connection_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "own_argv", lambda *words: [sys.executable, "-c", BREAKS])
    found = refusal("test", {})
    assert (found["message"], found["exit_code"]) == ("the connection broke", 125)
    assert found["details"] == ["test 1: ok", "test 2:"]
    assert found["next"] == ["vmoat status"]


# --- cancelling


DOCKER = """\
#!/bin/bash
echo $PPID >pid
while kill -0 $PPID 2>/dev/null; do sleep 0.1; done
"""
"""`docker logs` that ends with who asked, and not before."""


@pytest.mark.parametrize("tool", ["test", "logs"])
def test_cancelling_ends_what_reads_and_tests(
    world: World, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert world.work() == 0
    config = world.tree / "vmoat.toml"
    config.write_text(config.read_text().replace("echo tests", WAITS))
    world.set("containers", json.dumps([{"name": "web", "service": "web", "state": "running"}]))
    docker = world.root / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(docker.parent), prepend=":")
    file = world.tree / "pid"

    async def play() -> None:
        async with session(world) as client:
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, tool)
                await until(lambda: started(file))
                group.cancel_scope.cancel()
            await until(lambda: gone(file))
            assert not (await client.call_tool("status")).is_error

    anyio.run(play)


# --- at once


MEETS = "touch {mine}; until [ -e {other} ]; do sleep 0.05; done; pwd"
"""Ends only where the other command runs at the same time."""


def test_calls_at_once_in_one_worktree_and_in_two(world: World) -> None:
    """Each runs while the others do, and has its own answer."""
    assert world.work() == 0
    world.vmoat("up", cwd=world.repo)
    meet = {name: str(world.root / name) for name in "abc"}
    answers: dict[str, Any] = {}

    async def play() -> None:
        async with session(world) as client:

            async def run(name: str, other: str, worktree: Path) -> None:
                command = MEETS.format(mine=meet[name], other=meet[other]) + f"; echo {name}"
                arguments = {"command": command, "worktree": str(worktree), "timeout": LIMIT}
                answers[name] = (await client.call_tool("exec", arguments)).structured_content

            async with anyio.create_task_group() as group:
                group.start_soon(run, "a", "b", world.tree)
                group.start_soon(run, "b", "c", world.tree)
                group.start_soon(run, "c", "a", world.repo)

    anyio.run(play)
    assert {name: answer["stdout"].split() for name, answer in answers.items()} == {
        "a": [str(world.tree), "a"], "b": [str(world.tree), "b"], "c": [str(world.repo), "c"],
    }  # fmt: skip


def test_two_ups_at_once_share_the_work(world: World) -> None:
    world.context()
    ends: list[bool] = []

    async def play() -> None:
        async with session(world) as client:

            async def up() -> None:
                ends.append((await client.call_tool("up")).structured_content["done"])

            async with anyio.create_task_group() as group:
                group.start_soon(up)
                group.start_soon(up)

    anyio.run(play)
    assert ends == [True, True]
    assert world.ran().count("gen") == 1
