"""The tools: their arguments, the command line of each, what becomes of its answer."""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mcp_types import CallToolResult, ContentBlock, ImageContent, TextContent
from pydantic import Field

from vmoat.errors import Code
from vmoat.mcpserver import bounds, calls
from vmoat.mcpserver.invocation import Ctx, Invocation, Vmoat
from vmoat.mcpserver.results import (
    Command,
    Down,
    Fleet,
    FleetVm,
    Log,
    Plan,
    Run,
    Shot,
    StageRun,
    Status,
    Tunnels,
)

WAIT = 50.0
"""Seconds that `up` and `wait` stay by default: many clients end a call after a minute."""

LINES = 200
"""Of each stream that an answer shows by default."""

PICTURE = 3 * 2**20
"""Bytes; a larger picture is only named: clients refuse messages of several megabytes."""

Worktree = Annotated[
    str,
    Field(description="absolute path of the git worktree, or of a folder in it; "
          "without one, where the client works"),
]
Stages = Annotated[
    Sequence[str],
    Field(description="names as `plan` lists them: only these stages and what they need; "
          "without any, all"),
]
Seconds = Annotated[
    float, Field(ge=0, le=86400, description="return after so many seconds; the work goes on")
]
Limit = Annotated[
    float | None,
    Field(gt=0, le=86400, description="seconds after which the command is ended; null: never"),
]
Lines = Annotated[int, Field(ge=0, le=5000, description="last lines of each stream to show")]


async def plan(vmoat: Vmoat, worktree: Worktree = "", stages: Stages = ()) -> Plan:
    """Tell of each stage whether `up` would run it, and the one reason why. Touches nothing."""
    return Plan(**await vmoat.document("plan", "--json", "--", *stages))


async def up(
    vmoat: Vmoat,
    worktree: Worktree = "",
    stages: Stages = (),
    force: Annotated[
        str,
        Field(description="run this stage though it is up to date; `*` runs all that is done "
              "inside the VM"),
    ] = "",
    wait_seconds: Seconds = WAIT,
) -> Run:
    """Bring the worktree's stack up, healthy, in its own VM; does only what is needed.

    The work is detached: it goes on when this call returns, is cancelled or breaks.
    """
    forced = [] if not force else ["--force"] if force == "*" else [f"--force={force}"]
    return await _follow(
        vmoat, "up", "--json", f"--timeout={wait_seconds}", *forced, "--", *stages
    )


async def wait(vmoat: Vmoat, worktree: Worktree = "", wait_seconds: Seconds = WAIT) -> Run:
    """Follow the `up` that goes on; where none does, tell how the last one ended."""
    return await _follow(vmoat, "wait", "--json", f"--timeout={wait_seconds}")


async def status(vmoat: Vmoat, worktree: Worktree = "") -> Status:
    """Tell what is true now: VM, stack, health, containers, tunnels, disk."""
    return Status(**await vmoat.document("status", "--json"))


async def run_tests(
    vmoat: Vmoat,
    worktree: Worktree = "",
    arguments: Annotated[
        Sequence[str], Field(description="words that are added to the project's test command")
    ] = (),
    bring_up: Annotated[
        bool, Field(description="first bring up what is not up; false: fail where it is not")
    ] = True,
    timeout: Limit = None,
    tail: Lines = LINES,
) -> Command:
    """Run the project's tests in the VM. A failing test is an answer with its exit code, no error.

    Cancelling ends the tests in the VM.
    """
    words = ["test", *([] if bring_up else ["--no-up"]), "--", *arguments]
    return await _command(vmoat, words, timeout, tail)


async def execute(
    vmoat: Vmoat,
    command: Annotated[
        str, Field(min_length=1, description="a line for bash, run at the worktree's path")
    ],
    worktree: Worktree = "",
    timeout: Limit = None,
    tail: Lines = LINES,
) -> Command:
    """Run a shell command in the VM, which `up` has started, without a terminal.

    It sees the worktree's files at the same path. Cancelling ends it.
    """
    return await _command(vmoat, ["exec", "--", command], timeout, tail)


async def logs(
    vmoat: Vmoat,
    worktree: Worktree = "",
    service: Annotated[str, Field(description="only this service of the stack")] = "",
    stage: Annotated[
        str, Field(description="the output of this stage's last run, in place of the stack's logs")
    ] = "",
    console: Annotated[
        bool, Field(description="the guest's console, in place of anything else")
    ] = False,
    tail: Annotated[
        int, Field(ge=0, le=5000, description="last lines to show, of each service")
    ] = LINES,
) -> Log:
    """Read the end of the stack's logs, of a stage's output, or of the console."""
    words = ["logs", f"--tail={tail}"]
    words += ["--console"] if console else [f"--stage={stage}"] if stage else []
    ended = await vmoat.run(*words, "--", *([service] if service else []))
    if ended.code != 0:
        raise calls.failure(ended)
    text, dropped = bounds.end(ended.out.text(), tail * 50)  # of several services
    return Log(text=text, dropped=ended.out.dropped + dropped)


async def tunnel(
    vmoat: Vmoat,
    worktree: Worktree = "",
    ports: Annotated[
        Sequence[str | int],
        Field(description="GUEST, a port in the VM, or GUEST:HOST, with the port it gets here; "
              "without any, those that the stack publishes"),
    ] = (),
) -> Tunnels:
    """Forward ports of the VM to this machine's localhost, and give their URLs."""
    return Tunnels(**await vmoat.document("tunnel", "--json", "--", *map(str, ports)))


async def shot(
    vmoat: Vmoat,
    worktree: Worktree = "",
    page: Annotated[
        str,
        Field(description="a service, or a URL as it is in the VM (http://localhost:3000/a); "
              "without one, the health URL's page"),
    ] = "",
    full: Annotated[bool, Field(description="the whole page, not only the window")] = False,
    out: Annotated[
        str,
        Field(description="the PNG to write on the host, its report beside it as .json; "
              "without one, both are written in vmoat's own folder"),
    ] = "",
) -> Annotated[CallToolResult, Shot]:
    """Take a picture of a page, with its console errors and failed requests."""
    words = ["shot", "--json", *([f"--out={out}"] if out else []), *(["--full"] if full else [])]
    ended = await vmoat.run(*words, "--", *([page] if page else []))
    # A page with errors, and one that does not load in time, are answers.
    found = calls.document(ended, codes=(Code.OK, Code.STAGE, Code.TIMEOUT))
    report = {**bounds.bounded(found, bounds.PAGE_ROWS), "files": found["files"]}
    return with_picture(Shot(**report, exit_code=ended.code))


async def down(vmoat: Vmoat, worktree: Worktree = "") -> Down:
    """Stop the stack (and an `up` at work) and power the VM off; its disks stay."""
    ended = await vmoat.finish("down")
    if ended.code != 0:
        raise calls.failure(ended)
    return Down(message="\n".join(bounds.last(ended.story())))


async def ls(ctx: Ctx) -> Fleet:
    """List every worktree's VM on this machine: state, health, URLs, memory, disk, last use.

    Those that run come first, then the last used.
    """
    found = calls.document(await Invocation(ctx).run("ls", "--json"))
    vms = [FleetVm(**vm) for vm in found["vms"]]
    vms.sort(key=lambda vm: (vm.state in ("absent", "stopped"), -vm.used_at))
    return Fleet(**bounds.bounded({**found, "vms": [vm.model_dump() for vm in vms]}))


# --- what they share


async def _follow(vmoat: Invocation, *words: str) -> Run:
    """An `up --json` or `wait --json`, reported as it goes."""
    seen = Seen()

    def take(line: str) -> None:
        seen.take(line)
        vmoat.progress.event(line)

    ended = await vmoat.run(*words, on_out=take)
    # A stack that was not healthy in time ends with the same code, and nothing goes on.
    if ended.code not in (Code.OK, Code.TIMEOUT) or (ended.code and seen.over):
        raise calls.failure(ended)
    error = calls.failure(ended) if ended.code else None
    return Run(**bounds.bounded({
        "done": error is None,
        "message": f"{error.message}; {error.hint}" if error else seen.message or "done",
        "stages": [stage.model_dump() for stage in seen.stages.values()],
        "warnings": [text for text in ended.story() if text.startswith("warning: ")],
    }))  # fmt: skip


class Seen:
    """The stages of a run, from its events."""

    def __init__(self) -> None:
        self.stages: dict[str, StageRun] = {}
        self.message = ""
        self.over = False

    def take(self, line: str) -> None:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            event = calls.loads(line)
            kind, name = event["event"], event.get("stage", "")
            if kind == "stage_start":
                self.stages[name] = StageRun(stage=name, outcome="running", reason=event["reason"])
            elif kind == "stage_end":
                entry = self.stages.setdefault(name, StageRun(stage=name, outcome=""))
                entry.outcome, entry.seconds = event["outcome"], event["seconds"]
            elif kind == "run_end":
                self.message, self.over = event["message"], True


async def _command(
    vmoat: Invocation, words: Sequence[str], limit: float | None, lines: int
) -> Command:
    """A command in the VM; raises CommandError where vmoat failed before it ran or under it."""
    tell = vmoat.progress.output
    ended = await vmoat.run(*words, on_out=tell, on_err=tell, limit=limit)
    if ended.error():
        error = calls.failure(ended)
        # The connection may have broken in the middle: how far it came is worth reading.
        error.details += (*ended.out.text().splitlines(), *ended.err.text().splitlines())
        raise error
    stdout, out_dropped = bounds.end(ended.out.text(), lines)
    stderr, err_dropped = bounds.end(ended.err.text(), lines)
    return Command(
        exit_code=ended.code, timed_out=ended.timed_out, stdout=stdout, stderr=stderr,
        stdout_dropped=ended.out.dropped + out_dropped,
        stderr_dropped=ended.err.dropped + err_dropped, notes=bounds.last(ended.story()),
    )  # fmt: skip


def with_picture(answer: Shot) -> CallToolResult:
    """The answer with the picture itself, where it is not too large for a message."""
    content: list[ContentBlock] = [TextContent(type="text", text=answer.model_dump_json(indent=2))]
    picture = answer.files.get("png")
    if picture and os.stat(picture).st_size <= PICTURE:
        data = base64.b64encode(Path(picture).read_bytes()).decode()
        content.append(ImageContent(type="image", data=data, mime_type="image/png"))
    return CallToolResult(content=content, structured_content=answer.model_dump())


@dataclass(frozen=True)
class Tool:
    """A tool and what it does to the world; see MCP's ToolAnnotations."""

    name: str
    title: str
    call: Callable[..., Awaitable[Any]]
    reads: bool = False
    """It changes nothing."""
    destroys: bool = False
    """It may destroy something: the user's own commands."""
    repeatable: bool = True

    @property
    def description(self) -> str:
        return " ".join((self.call.__doc__ or "").split())


TOOLS = (
    Tool("plan", "What up would do", plan, reads=True),
    Tool("up", "Bring the stack up in its VM", up),
    Tool("wait", "Follow the work", wait, reads=True),
    Tool("status", "What is true now", status, reads=True),
    Tool("test", "Run the tests in the VM", run_tests, destroys=True, repeatable=False),
    Tool("exec", "Run a command in the VM", execute, destroys=True, repeatable=False),
    Tool("logs", "Read logs", logs, reads=True),
    Tool("tunnel", "Ports on localhost", tunnel),
    Tool("shot", "Picture of a page", shot),
    Tool("down", "Power the VM off", down),
    Tool("ls", "All VMs", ls, reads=True),
)
