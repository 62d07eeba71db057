"""No answer of the MCP server is larger than an agent can bear, and each says what is left out."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from conftest import World
from mcp import Client
from mcp_types import TextContent
from mcpclient import session

from vmoat import proc
from vmoat.mcpserver import bounds, calls
from vmoat.mcpserver.server import Server, failed


def test_output_is_bounded_and_says_so(world: World) -> None:
    assert world.work() == 0

    async def play() -> None:
        async with session(world) as client:
            lines = await client.call_tool("exec", {"command": "seq 20000", "tail": 2})
            assert lines.structured_content["stdout"] == "19999\n20000\n"
            assert lines.structured_content["stdout_dropped"] == 108894 - 12
            line = {"command": "head -c 9000000 /dev/zero | tr '\\0' x"}
            one = await client.call_tool("exec", line)
            assert one.structured_content["stdout"] == "x" * bounds.CHARACTERS
            assert one.structured_content["stdout_dropped"] == 9000000 - bounds.CHARACTERS

    anyio.run(play)


def test_a_tail_keeps_the_end_and_counts_the_rest() -> None:
    tail = calls.Tail(limit=10)
    for _ in range(1000):
        tail.add(b"0123456")
    assert tail.text() == "4560123456"
    assert tail.dropped == 7000 - 10


PAGE = """\
import json, sys
words = sys.argv[1:]
assert words[-4:] == ["shot", "--json", "--full", "--"] or words[-1] == "web", words
with open("page.png", "wb") as file:
    file.write(b"\\x89PNG" + bytes(3 * 2**20 if words[-1] == "web" else 0))
errors = [{"text": "boom", "line": 7}] + [{"text": "x" * 2000}] * 99
print(json.dumps({"schema": "vmoat.shot/1", "ok": False, "title": "t" * 2000, "errors": errors,
                  "failed_requests": [], "omitted": 5,
                  "files": {"png": file.name, "json": "page.json"}}))
sys.exit(1)
"""
"""`vmoat shot` with a browser that shows a page with an error; a huge one of the service web."""


def test_a_picture_comes_along_and_a_huge_one_is_only_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(proc, "own_argv", lambda *words: [sys.executable, "-c", PAGE, *words])

    async def play() -> None:
        async with Client(Server()) as client:
            seen = await client.call_tool("shot", {"full": True})
            assert not seen.is_error, "a page with errors is an answer"
            assert seen.structured_content["exit_code"] == 1
            errors = seen.structured_content["errors"]
            assert errors[0] == {"text": "boom", "line": 7}
            assert (len(errors), seen.structured_content["omitted"]) == (20, 5)
            assert seen.structured_content["left_out"] == ["errors: 80 more"]
            assert len(seen.content[0].text) < bounds.CHARACTERS
            text, picture = seen.content
            assert json.loads(text.text) == seen.structured_content
            assert base64.b64decode(picture.data) == b"\x89PNG"
            assert len((await client.call_tool("shot", {"page": "web"})).content) == 1

    anyio.run(play)


SAYS = """\
import pathlib, sys
sys.stdout.write(pathlib.Path("answer").read_text())
"""
"""A vmoat that answers what the test has written into a file."""


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """What a tool makes of such an answer of its command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(proc, "own_argv", lambda *words: [sys.executable, "-c", SAYS])

    def ask(tool: str, *documents: dict[str, Any]) -> Any:
        Path("answer").write_text("".join(f"{json.dumps(row)}\n" for row in documents))

        async def play() -> Any:
            async with Client(Server()) as client:
                return await client.call_tool(tool)

        answer = anyio.run(play)
        assert not answer.is_error, answer.content
        assert json.loads(answer.content[0].text) == answer.structured_content
        assert len(answer.content[0].text) < 70_000
        return answer.structured_content

    return ask


def url(port: int) -> dict[str, Any]:
    return {"service": "web", "guest": port, "host": port, "url": f"http://localhost:{port}",
            "open": True}  # fmt: skip


def test_plan_and_up_with_hundreds_of_stages(answers: Callable[..., Any]) -> None:
    stages = [{"stage": f"s{n}", "runs": True, "reason": "x" * 9000} for n in range(60)]
    plan = answers("plan", {"name": "wt-a", "stages": stages})
    assert [row["stage"] for row in plan["stages"]] == [f"s{n}" for n in range(50)]
    assert plan["stages"][0]["reason"] == "x" * 500 + "…"
    assert plan["left_out"] == ["stages: 10 more"]
    events = [{"event": "stage_start", "stage": f"s{n}", "reason": "new"} for n in range(300)]
    up = answers("up", *events)
    assert (len(up["stages"]), up["left_out"]) == (50, ["stages: 250 more"])


def test_status_with_a_hundred_ports(answers: Callable[..., Any]) -> None:
    container = {"name": "n", "service": "s", "state": "running", "health": "", "ports": [1] * 99}
    status = answers("status", {
        "name": "wt-a", "worktree": "/w/\udcff", "branch": "", "state": "running",
        "reasons": ["r"] * 60, "working": False, "healthy": None, "health": "h" * 2**20,
        "containers": [container] * 80, "tunnels": [url(port) for port in range(8000, 8100)],
        "guest": {f"/mnt/{n}": {"free": 1} for n in range(99)},
    })  # fmt: skip
    assert status["left_out"] == [
        "reasons: 10 more", "containers: 30 more", "containers.ports: 4450 more",
        "tunnels: 50 more", "guest: 49 more",
    ]  # fmt: skip
    assert status["health"] == "h" * 500 + "…"
    assert status["worktree"] == "/w/?", "its name is no text"


def test_tunnel_with_hundreds(answers: Callable[..., Any]) -> None:
    tunnels = answers("tunnel", {"tunnels": [url(n) for n in range(1000, 1300)]})
    assert tunnels["left_out"] == ["tunnels: 250 more"]


def test_ls_with_two_hundred_worktrees(answers: Callable[..., Any]) -> None:
    """Those that run come first, then the last used; of each what an agent needs."""
    vms = [
        {"name": f"wt-{n}", "worktree": f"/w/{n}", "branch": "a", "repository": "shop",
         "state": "running" if n == 150 else "stopped", "working": False, "health": "healthy",
         "urls": [url(8080)] * (30 if n == 150 else 1), "memory_bytes": 1, "disk_bytes": 2,
         "used_at": float(n), "orphan": "", "stages": [{"name": "apt"}] * 9}
        for n in range(200)
    ]  # fmt: skip
    answer = answers("ls", {"vms": vms})
    names = [vm["name"] for vm in answer["vms"]]
    assert (names[:3], len(names)) == (["wt-150", "wt-199", "wt-198"], 50)
    assert answer["left_out"] == ["vms: 150 more", "vms.urls: 20 more"]
    assert answer["vms"][0]["urls"][0]["url"] == "http://localhost:8080"
    assert "stages" not in answer["vms"][0]


def test_an_error_keeps_its_last_lines() -> None:
    details = [f"line {n} " + "x" * 9000 for n in range(1000)]
    error = calls.CommandError("m" * 9000, "h" * 9000, 1, details, "apt", ["vmoat up"])
    answer = failed(error)
    assert answer.structured_content is not None
    assert answer.structured_content["message"] == "m" * 2000 + "…"
    kept = answer.structured_content["details"]
    assert (kept[0], len(kept)) == ("(960 lines before)", 41)
    assert kept[-1].startswith("line 999 ")
    text = answer.content[0]
    assert isinstance(text, TextContent)
    assert len(text.text) < 30_000


def test_an_argument_of_a_wrong_type_is_not_sent_back_whole() -> None:
    async def play() -> Any:
        async with Client(Server()) as client:
            return await client.call_tool("plan", {"stages": {"x": "y" * 2**20}})

    refused = anyio.run(play)
    assert refused.is_error
    assert "stages" in refused.content[0].text
    assert len(refused.content[0].text) < 2000
