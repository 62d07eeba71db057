"""What a stage of the lifecycle is: its name, what it comes after, its check and its work."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from vmoat.context import Context
from vmoat.state import Values

Check = Callable[[Context, Values], str]
"""Takes what the stage recorded when it last succeeded; returns why it has to run, "" if it
has not to."""

Work = Callable[[Context], Values]
"""Does it; returns what to record.  Raises VmoatError."""


@dataclass(frozen=True)
class Stage:
    """One node of the graph."""

    name: str
    help: str
    after: tuple[str, ...]
    check: Check
    work: Work
    always: bool = False
    """Asked each time; what comes after it does not run just because it has."""
    asked_for: Callable[[Context], bool] = lambda ctx: True
    """Whether the project's config gives it anything to do."""

    def why(self, ctx: Context) -> str:
        """The one reason to run it now; "" when what it made still holds."""
        if not self.asked_for(ctx):
            return ""
        if self.name in ctx.forced:
            return "--force"
        values = ctx.store.values(self.name)
        unfinished = ctx.store.unfinished(self.name)
        if unfinished and not self.always:
            return unfinished
        # Its own reason first: it says more than that something before it has run.
        if reason := self.check(ctx, values):
            return reason
        upstream = values.get("upstream", {})
        for name in self.after if values else ():
            made = ctx.store.values(name).get("made")
            if made is not None and upstream.get(name) != made:
                return f"`{name}` has run since"
        return ""

    def run(self, ctx: Context) -> Values:
        """Do the work; the record says what it was made from."""
        values = dict(self.work(ctx))
        ctx.forget_facts()
        # A stage may name what it made (the VM names its disk): then a run that made the same
        # thing again, such as a boot, is no reason for what comes after it.
        if not self.always:
            values.setdefault("made", secrets.token_hex(6))
        values["upstream"] = {
            name: made
            for name in self.after
            if (made := ctx.store.values(name).get("made")) is not None
        }
        return values


def list_changes(had: Iterable[str], wanted: Iterable[str]) -> str:
    """What was added to a list of names, and taken from it: ``+a -b``; "" where nothing was."""
    had, wanted = set(had), set(wanted)
    added = [f"+{name}" for name in sorted(wanted - had)]
    return " ".join([*added, *(f"-{name}" for name in sorted(had - wanted))])


def digest(*parts: Any) -> str:
    """A short fingerprint of data."""
    text = json.dumps(parts, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
