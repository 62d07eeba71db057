"""The tools: their arguments, the command line of each, what becomes of its answer."""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast
from urllib.parse import unquote, urlsplit

from mcp.server.mcpserver import Context, ListRoots, Resolve
from mcp_types import CallToolResult, ContentBlock, ImageContent, ListRootsResult, TextContent
from pydantic import Field

from vmoat.errors import Code
from vmoat.mcpserver import calls
from vmoat.mcpserver.progress import Progress, Report
from vmoat.mcpserver.results import (
    Command,
    Down,
    Fleet,
    Log,
    Plan,
    Run,
    Shot,
    StageRun,
    Status,
    Tunnels,
)

Ctx = Context[Any, Any]

WAIT = 50.0
"""Seconds that `up` and `wait` stay by default: many clients end a call after a minute."""

LINES = 200
CHARACTERS = 16_000
"""Of each stream that an answer shows by default, and at most: the reader pays for every word."""

NOTES = 40
"""Lines of vmoat's own beside a command's output."""

ROWS, WORDS = 20, 500
"""Errors and failed requests of a page that an answer holds, and characters of each text; all of
them are in the report's file."""

PICTURE = 3 * 2**20
"""Bytes; a larger picture is only named: clients refuse messages of several megabytes."""


# --- the worktree


def asked_for(worktree: str, ctx: Ctx) -> tuple[str, ...] | ListRoots:
    """vmoat's words for a call's worktree; where nobody named one, the client's root is asked for.

    A server that an editor starts often stands in the home folder: its own folder comes last.
    """
    if worktree:
        return ("-C", worktree)
    base = cast("tuple[str, ...]", getattr(ctx.mcp_server, "base", ()))
    can = ctx.client_capabilities
    return base if base or can is None or can.roots is None else ListRoots()


def words_of(place: tuple[str, ...] | ListRootsResult) -> list[str]:
    """vmoat's words for the worktree: of the client's roots the first."""
    if isinstance(place, tuple):
        return list(place)
    folders = [unquote(urlsplit(str(root.uri)).path) for root in place.roots]
    return ["-C", folders[0]] if folders else []


Place = Annotated[tuple[str, ...] | ListRootsResult, Resolve(asked_for)]
Worktree = Annotated[
    str, Field(description="a folder of the worktree, absolute; else where the client works")
]
Stages = Annotated[
    Sequence[str], Field(description="only these stages and what they need; else all")
]
Seconds = Annotated[
    float, Field(ge=0, le=86400, description="return after so long; the work goes on")
]
Limit = Annotated[
    float | None, Field(gt=0, le=86400, description="seconds after which the command is ended")
]
Lines = Annotated[int, Field(ge=0, le=5000, description="lines of each stream that are shown")]


# --- the tools


async def plan(ctx: Ctx, place: Place, worktree: Worktree = "", stages: Stages = ()) -> Plan:
    """Each stage, whether `up` would run it, and the one reason why. Touches nothing."""
    ended = await calls.run([*words_of(place), "plan", "--json", "--", *stages])
    return Plan.model_validate(calls.document(ended))


async def up(
    ctx: Ctx,
    place: Place,
    worktree: Worktree = "",
    stages: Stages = (),
    force: Annotated[
        str, Field(description="run this stage though it is up to date; * is all after the VM")
    ] = "",
    wait_seconds: Seconds = WAIT,
) -> Run:
    """Bring the worktree's stack up, healthy, in its own VM; does only what is needed.

    The work is detached: it goes on when this call returns, is cancelled or breaks.
    """
    forced = [] if not force else ["--force"] if force == "*" else [f"--force={force}"]
    words = ["up", "--json", f"--timeout={wait_seconds}", *forced, "--", *stages]
    return await _follow(ctx, [*words_of(place), *words])


async def wait(
    ctx: Ctx, place: Place, worktree: Worktree = "", wait_seconds: Seconds = WAIT
) -> Run:
    """Follow the `up` that goes on; with none, tell how the last ended."""
    return await _follow(ctx, [*words_of(place), "wait", "--json", f"--timeout={wait_seconds}"])


async def status(ctx: Ctx, place: Place, worktree: Worktree = "") -> Status:
    """What is true now: VM, stack, health, containers, tunnels, disk."""
    return Status.model_validate(
        calls.document(await calls.run([*words_of(place), "status", "--json"]))
    )


async def run_tests(
    ctx: Ctx,
    place: Place,
    worktree: Worktree = "",
    arguments: Annotated[
        Sequence[str], Field(description="words that are added to the project's test command")
    ] = (),
    bring_up: Annotated[bool, Field(description="first bring up what is not up")] = True,
    timeout: Limit = None,
    tail: Lines = LINES,
) -> Command:
    """Run the project's tests in the VM. A failing test is an answer with its exit code, no error.

    Cancelling ends the tests in the VM.
    """
    words = ["test", *([] if bring_up else ["--no-up"]), "--", *arguments]
    return await _command(ctx, [*words_of(place), *words], timeout, tail)


async def execute(
    ctx: Ctx,
    place: Place,
    command: Annotated[str, Field(min_length=1, description="a line for bash, in the worktree")],
    worktree: Worktree = "",
    timeout: Limit = None,
    tail: Lines = LINES,
) -> Command:
    """Run a shell command in the VM, in the worktree, without a terminal. Cancelling ends it."""
    return await _command(ctx, [*words_of(place), "exec", "--", command], timeout, tail)


async def logs(
    ctx: Ctx,
    place: Place,
    worktree: Worktree = "",
    service: Annotated[str, Field(description="only this service of the stack")] = "",
    stage: Annotated[str, Field(description="the output of this stage's last run instead")] = "",
    console: Annotated[bool, Field(description="the guest's console instead")] = False,
    tail: Lines = LINES,
) -> Log:
    """The end of the stack's logs, of a stage's, or of the console's."""
    words = ["logs", f"--tail={tail}"]
    words += ["--console"] if console else [f"--stage={stage}"] if stage else []
    ended = await calls.run([*words_of(place), *words, "--", *([service] if service else [])])
    if ended.code != 0:
        raise calls.failure(ended)
    text, dropped = shown(ended.out.text(), tail * 50)  # several services: `tail` lines of each
    return Log(text=text, dropped=ended.out.dropped + dropped)


async def tunnel(
    ctx: Ctx,
    place: Place,
    worktree: Worktree = "",
    ports: Annotated[
        Sequence[str], Field(description="GUEST or GUEST:HOST; else what the stack publishes")
    ] = (),
) -> Tunnels:
    """Forward ports of the VM to this machine's localhost, and give their URLs."""
    ended = await calls.run([*words_of(place), "tunnel", "--json", "--", *ports])
    return Tunnels.model_validate(calls.document(ended))


async def shot(
    ctx: Ctx,
    place: Place,
    worktree: Worktree = "",
    page: Annotated[
        str, Field(description="a service, or a URL as it is in the VM; else the health URL's")
    ] = "",
    full: Annotated[bool, Field(description="the whole page, not only the window")] = False,
    out: Annotated[
        str,
        Field(description="the PNG to write on the host, its report beside it as .json; "
              "else both in vmoat's own folder"),
    ] = "",
) -> Annotated[CallToolResult, Shot]:
    """Take a picture of a page, with its console errors and failed requests."""
    words = ["shot", "--json", *([f"--out={out}"] if out else []), *(["--full"] if full else [])]
    ended = await calls.run([*words_of(place), *words, "--", *([page] if page else [])])
    # A page with errors, and one that does not load in time, are answers.
    found = calls.document(ended, codes=(Code.OK, Code.STAGE, Code.TIMEOUT))
    return with_picture(Shot(**{**bounded(found), "exit_code": ended.code}))


async def down(ctx: Ctx, place: Place, worktree: Worktree = "") -> Down:
    """Stop the stack (and an `up` at work) and power the VM off; its disks stay."""
    ended = await calls.finish([*words_of(place), "down"])
    if ended.code != 0:
        raise calls.failure(ended)
    return Down(message="\n".join(ended.story()))


async def ls(ctx: Ctx) -> Fleet:
    """Every worktree's VM on this machine: state, health, URLs, memory, disk, last use."""
    return Fleet.model_validate(calls.document(await calls.run(["ls", "--json"])))


# --- what they share


def reporter(ctx: Ctx) -> Report:
    """What tells the client of a call how far it is; nothing is sent where it did not ask."""

    async def report(seconds: float, text: str) -> None:
        await ctx.report_progress(seconds, message=text)

    return report


async def _follow(ctx: Ctx, words: Sequence[str]) -> Run:
    """An `up --json` or `wait --json`, reported as it goes."""
    progress, seen = Progress(reporter(ctx)), Seen()

    def take(line: str) -> None:
        seen.take(line)
        progress.event(line)

    async with progress.running():
        ended = await calls.run(words, on_out=take)
    if ended.code not in (Code.OK, Code.TIMEOUT):
        raise calls.failure(ended)
    error = calls.failure(ended) if ended.code else None
    return Run(
        done=error is None,
        message=f"{error.message}; {error.hint}" if error else seen.message or "done",
        stages=list(seen.stages.values()),
        warnings=[text for text in ended.story() if text.startswith("warning: ")],
    )


class Seen:
    """The stages of a run, from its events."""

    def __init__(self) -> None:
        self.stages: dict[str, StageRun] = {}
        self.message = ""

    def take(self, line: str) -> None:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            event = json.loads(line)
            kind, name = event["event"], event.get("stage", "")
            if kind == "stage_start":
                self.stages[name] = StageRun(stage=name, outcome="running", reason=event["reason"])
            elif kind == "stage_end":
                entry = self.stages.setdefault(name, StageRun(stage=name, outcome=""))
                entry.outcome, entry.seconds = event["outcome"], event["seconds"]
            elif kind == "run_end":
                self.message = event["message"]


async def _command(
    ctx: Ctx, words: Sequence[str], limit: float | None, lines: int
) -> Command:
    """A command in the VM; raises CommandError where vmoat failed before it ran."""
    progress = Progress(reporter(ctx))
    async with progress.running():
        ended = await calls.run(
            words, on_out=progress.output, on_err=progress.output, on_story=progress.story,
            limit=limit,
        )  # fmt: skip
    if ended.error():
        raise calls.failure(ended)
    stdout, out_dropped = shown(ended.out.text(), lines)
    stderr, err_dropped = shown(ended.err.text(), lines)
    return Command(
        exit_code=ended.code, timed_out=ended.timed_out, stdout=stdout, stderr=stderr,
        stdout_dropped=ended.out.dropped + out_dropped,
        stderr_dropped=ended.err.dropped + err_dropped, notes=ended.story()[-NOTES:],
    )  # fmt: skip


def shown(whole: str, lines: int) -> tuple[str, int]:
    """The last lines of a text, and how many bytes came before them."""
    kept = "".join(whole.splitlines(keepends=True)[-lines:] if lines else [])[-CHARACTERS:]
    return kept, len(whole.encode()) - len(kept.encode())


def bounded(report: dict[str, Any]) -> dict[str, Any]:
    """A page's report in as many words as an answer may have: the page wrote most of them."""
    result = {key: shortened(value) for key, value in report.items() if key != "files"}
    left_out = 0
    for key in ("errors", "failed_requests"):
        rows = report.get(key, [])
        left_out += len(rows) - len(rows[:ROWS])
        result[key] = [{name: shortened(text) for name, text in row.items()} for row in rows[:ROWS]]
    return {**result, "omitted": report["omitted"] + left_out, "files": report["files"]}


def shortened(value: Any) -> Any:
    """A text of a page's, cut; anything else as it is."""
    return value[:WORDS] + "…" if isinstance(value, str) and len(value) > WORDS else value


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
