"""The official SDK's client with a server of ours, for the tests."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import fakes
from conftest import World
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from timing import LIMIT


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


async def until(what: Callable[[], Any], limit: float = LIMIT) -> None:
    with anyio.fail_after(limit):
        while not what():
            await anyio.sleep(0.05)


WAITS = "echo $PPID >pid; exec sleep 977"
"""A command in the guest (here: a child of `vmoat exec`), which says whose child it is."""


def gone(file: Path) -> bool:
    """Whether the `vmoat exec` that wrote its pid has ended."""
    return not Path(f"/proc/{file.read_text().strip()}").exists()


def started(file: Path) -> bool:
    return bool(fakes.text(file))


def call(number: int, tool: str, arguments: dict[str, Any]) -> str:
    """A request of the protocol of 2026, which needs no handshake."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": tool, "arguments": arguments, "_meta": meta}
    row = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
    return json.dumps(row) + "\n"
