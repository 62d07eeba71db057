"""A tool's `vmoat …`: in the worktree that the call means, with the client told how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, cast
from urllib.parse import unquote, urlsplit

from mcp.server.mcpserver import Context, ListRoots, Resolve
from mcp_types import ListRootsResult

from vmoat.mcpserver import calls
from vmoat.mcpserver.bounds import bounded
from vmoat.mcpserver.calls import Ended, OnLine
from vmoat.mcpserver.progress import Progress

Ctx = Context[Any, Any]


class Invocation:
    """``place`` are vmoat's words for the worktree."""

    def __init__(self, ctx: Ctx, place: Sequence[str] = ()) -> None:
        self._ctx = ctx
        self._place = tuple(place)
        self.progress = Progress(self._report)

    async def run(
        self,
        *words: str,
        on_out: OnLine | None = None,
        on_err: OnLine | None = None,
        limit: float | None = None,
    ) -> Ended:
        """Run it to its end; see ``calls.run``."""
        async with self.progress.running():
            return await calls.run(
                [*self._place, *words], on_out=on_out, on_err=on_err,
                on_story=self.progress.story, limit=limit,
            )  # fmt: skip

    async def finish(self, *words: str) -> Ended:
        """The same for what is left to end by itself; see ``calls.finish``."""
        async with self.progress.running():
            return await calls.finish([*self._place, *words])

    async def document(self, *words: str) -> dict[str, Any]:
        """What a command answers in JSON, bounded; raises CommandError."""
        return bounded(calls.document(await self.run(*words)))

    async def _report(self, seconds: float, text: str) -> None:
        """Nothing is sent where the client did not ask for it."""
        await self._ctx.report_progress(seconds, message=text)


def asked_for(worktree: str, ctx: Ctx) -> tuple[str, ...] | ListRoots:
    """vmoat's words for a call's worktree; where nobody named one, the client's root is asked for.

    A server that an editor starts often stands in the home folder: its own folder comes last.
    """
    if worktree:
        return ("-C", worktree)
    base = cast("tuple[str, ...]", getattr(ctx.mcp_server, "base", ()))
    can = ctx.client_capabilities
    return base if base or can is None or can.roots is None else ListRoots()


Place = Annotated[tuple[str, ...] | ListRootsResult, Resolve(asked_for)]


def invocation(ctx: Ctx, place: Place) -> Invocation:
    """Of the client's roots the first is meant."""
    if isinstance(place, tuple):
        return Invocation(ctx, place)
    folders = [unquote(urlsplit(str(root.uri)).path) for root in place.roots]
    return Invocation(ctx, ["-C", folders[0]] if folders else [])


Vmoat = Annotated[Invocation, Resolve(invocation)]
