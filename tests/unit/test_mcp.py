"""`vmoat mcp`, spoken to by the official SDK's own client over stdio."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import fakes
import pytest
from conftest import World
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

TOOLS = ["plan", "up", "wait", "status", "test", "exec", "logs", "tunnel", "shot", "down", "ls"]


@pytest.fixture(params=["legacy", "auto"])
def mode(request: pytest.FixtureRequest) -> str:
    """The handshake of 2025 and before, and the protocol of 2026 without one."""
    return str(request.param)


@contextlib.asynccontextmanager
async def session(world: World, mode: str = "auto", **options: Any) -> AsyncIterator[Client]:
    """A client and its server in the worktree."""
    command, *words = world.argv(*options.pop("words", ()), "mcp")
    server = StdioServerParameters(
        command=command, args=words, env=dict(os.environ), cwd=options.pop("cwd", world.tree)
    )
    async with Client(stdio_client(server), mode=mode, **options) as client:
        yield client


def ask(world: World, tool: str, mode: str = "auto", **arguments: Any) -> Any:
    """One call in a session of its own."""

    async def call() -> Any:
        async with session(world, mode) as client:
            return await client.call_tool(tool, arguments)

    return anyio.run(call)


def test_a_whole_session(world: World, mode: str) -> None:
    """Initialise, list, up with progress, a failing test with its exit code, down."""
    world.context()
    told: list[tuple[float, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message))

    async def play() -> None:
        async with session(world, mode) as client:
            listed = (await client.list_tools()).tools
            assert [tool.name for tool in listed] == TOOLS
            assert all(tool.output_schema and tool.description for tool in listed)

            plan = await client.call_tool("plan")
            assert {s["stage"] for s in plan.structured_content["stages"] if s["runs"]} >= {"vm"}

            up = await client.call_tool("up", progress_callback=hear)
            assert not up.is_error
            assert up.structured_content["done"] is True
            done = [s["stage"] for s in up.structured_content["stages"] if s["outcome"] == "done"]
            assert done == ["image", "vm", "apt", "seed", "script", "gen", "stack"]

            config = world.tree / "vmoat.toml"
            config.write_text(config.read_text().replace("echo tests", "sh fails.sh"))
            (world.tree / "fails.sh").write_text('echo "2 of $1 failed"; echo bad >&2; exit 7\n')
            failing = await client.call_tool("test", {"arguments": ["it's 3"]})
            assert not failing.is_error, "a test that fails is an answer"
            assert failing.structured_content["exit_code"] == 7
            assert failing.structured_content["stdout"] == "2 of it's 3 failed\n"
            assert failing.structured_content["stderr"].endswith("bad\n")

            status = await client.call_tool("status")
            assert status.structured_content["state"] == "running"
            down = await client.call_tool("down")
            assert "stopped" in down.structured_content["message"]

    anyio.run(play)
    assert "stop" in world.ran()
    messages = [message for _, message in told]
    assert any("▸ vm: " in str(message) for message in messages)
    assert any("✓ stack" in str(message) for message in messages)
    assert [at for at, _ in told] == sorted({at for at, _ in told}), "progress grows"


def test_an_error_has_message_hint_and_exit_code(world: World) -> None:
    refused = ask(world, "exec", command="true")
    assert refused.is_error
    assert refused.structured_content["exit_code"] == 125
    assert refused.structured_content["message"] == "the VM wt-tree is absent"
    assert refused.structured_content["hint"] == "`vmoat up` starts it"
    assert "→ `vmoat up` starts it" in refused.content[0].text


def test_a_failed_stage_is_a_tool_error_with_its_last_lines(world: World) -> None:
    world.context()
    world.set("fail-script", "3")
    failed = ask(world, "up")
    assert failed.is_error
    assert failed.structured_content["exit_code"] == 1
    assert "script" in failed.structured_content["message"]
    assert "script" in failed.structured_content["details"], "what the command said"
    again = ask(world, "wait")
    assert again.is_error
    assert again.structured_content == failed.structured_content


def test_the_commands_own_125_is_no_error(world: World) -> None:
    ask(world, "up")
    assert ask(world, "exec", command="exit 125").structured_content["exit_code"] == 125


def test_up_returns_in_time_and_wait_follows(world: World) -> None:
    world.context()
    world.set("slow", "0.7")

    async def play() -> None:
        async with session(world) as client:
            first = (await client.call_tool("up", {"wait_seconds": 0.5})).structured_content
            assert first["done"] is False
            assert "`vmoat wait` follows it" in first["message"]
            assert [s["outcome"] for s in first["stages"]][-1] == "running"
            rest = (await client.call_tool("wait", {"wait_seconds": 30})).structured_content
            assert rest["done"] is True

    anyio.run(play)
    assert world.reasons() == {}


async def until(what: Callable[[], Any], limit: float = 15) -> None:
    with anyio.fail_after(limit):
        while not what():
            await anyio.sleep(0.05)


def test_a_cancelled_up_goes_on(world: World, mode: str) -> None:
    world.context()
    world.set("slow", "1")

    async def play() -> None:
        async with session(world, mode) as client, anyio.create_task_group() as group:
            group.start_soon(client.call_tool, "up")
            await until(lambda: "apt" in world.ran())
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                status = await client.call_tool("status")
                assert status.structured_content["working"] is True, "the server lives, so does it"
                rest = await client.call_tool("wait", {"wait_seconds": 30})
                assert rest.structured_content["done"] is True

    anyio.run(play)
    assert world.reasons() == {}


WAITS = "echo $PPID >pid; exec sleep 97"
"""A command in the guest (here: a child of `vmoat exec`), which says whose child it is."""


def gone(file: Path) -> bool:
    """Whether the `vmoat exec` that wrote its pid has ended."""
    return not Path(f"/proc/{file.read_text().strip()}").exists()


def started(file: Path) -> bool:
    return bool(fakes.text(file))


def test_cancelling_exec_ends_it(world: World, mode: str) -> None:
    ask(world, "up")
    file = world.tree / "pid"

    async def play() -> None:
        async with session(world, mode) as client:
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "exec", {"command": WAITS})
                await until(lambda: started(file))
                group.cancel_scope.cancel()
            await until(lambda: gone(file))
            after = await client.call_tool("exec", {"command": "echo well"})
            assert after.structured_content["stdout"] == "well\n"

    anyio.run(play)


def test_a_command_is_ended_at_its_time_limit(world: World) -> None:
    ask(world, "up")
    ended = ask(world, "exec", command="echo began; exec sleep 97", timeout=1.5)
    assert ended.structured_content["timed_out"] is True
    assert ended.structured_content["exit_code"] == 128 + signal.SIGTERM
    assert ended.structured_content["stdout"] == "began\n"


@pytest.mark.parametrize("how", ["end of stdin", "SIGKILL", "SIGTERM"])
def test_the_server_takes_what_watches_with_it_and_leaves_the_work(world: World, how: str) -> None:
    world.context()
    ask(world, "up")
    world.set("slow", "2")
    file = world.tree / "pid"
    with subprocess.Popen(
        world.argv("mcp"), cwd=world.tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        for number, (tool, arguments) in enumerate(
            [("exec", {"command": WAITS}), ("up", {"force": "gen"})], 1
        ):
            server.stdin.write(call(number, tool, arguments))
            server.stdin.flush()
        anyio.run(until, lambda: started(file) and world.ran().count("gen") == 2)
        if how == "end of stdin":
            server.stdin.close()
        else:
            server.send_signal(getattr(signal, how))
        anyio.run(until, lambda: gone(file))
        assert server.wait(15) == {"end of stdin": 0}.get(how, -getattr(signal, how, 0))
    assert world.vmoat("wait").returncode == 0
    assert world.reasons() == {}


def call(number: int, tool: str, arguments: dict[str, Any]) -> str:
    """A request of the protocol of 2026, which needs no handshake."""
    import json

    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": tool, "arguments": arguments, "_meta": meta}
    row = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
    return json.dumps(row) + "\n"
