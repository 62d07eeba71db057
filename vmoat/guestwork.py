"""What the stages that work inside the guest share: units with attempts, inputs, the boot."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from vmoat.context import Context
from vmoat.errors import Code, VmoatError
from vmoat.fingerprint import Fingerprints, globbed
from vmoat.stage import digest

LAST_LINES = 15


def run_unit(
    ctx: Context, name: str, command: str, *, key: Any, root: bool = False,
    timeout: float | None = None,
) -> None:
    """Run a stage's command as a unit of the guest, to its end; joins one that still runs.

    ``key`` is what the work is for: an attempt at the same work that a killed worker left behind
    is joined, or its kept result taken.  Raises STAGE with the command's last lines when it
    fails.
    """  # fmt: skip
    ctx.refresh_guest()
    attempt = ctx.store.attempt(name, digest(name, command, key))
    last: deque[str] = deque(maxlen=LAST_LINES)

    def on_line(line: str) -> None:
        last.append(line)
        ctx.say(line)

    ctx.running_unit = name
    code = ctx.guest.stage(
        name, command, attempt=attempt, root=root, on_line=on_line, timeout=timeout
    )
    ctx.running_unit = ""
    if code != 0:
        ctx.store.attempt_failed(name, f"it failed last time (exit code {code})")
        raise VmoatError(
            f"`{name}` failed with exit code {code}",
            hint=f"its whole output: `vmoat logs --stage {name}`; `vmoat up` tries again",
            code=Code.STAGE,
            details=tuple(last),
        )


def fingerprints(ctx: Context) -> Fingerprints:
    return Fingerprints(ctx.worktree.path, ctx.instance.folder / "files.json")


def inputs_digest(ctx: Context, patterns: Iterable[str]) -> str:
    """The content of a stage's inputs; "" where it has none."""
    names = list(patterns)
    if not names:
        return ""
    return digest(fingerprints(ctx).of(globbed(ctx.worktree.path, names)))


def boot_of(ctx: Context) -> str:
    """The guest's boot, known by the host's token and the kernel's own id together.

    Clones of one memory image report the same kernel id, and a reboot from inside keeps the
    host's token.
    """
    facts = ctx.facts()
    return f"{ctx.status.boot}/{facts.boot_id}" if facts else ""
