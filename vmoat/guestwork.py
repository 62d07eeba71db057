"""What the stages that work inside the guest share: units with attempts, inputs, the boot."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from vmoat import space
from vmoat.context import Context
from vmoat.errors import Code, VmoatError
from vmoat.facts import Facts
from vmoat.fingerprint import Fingerprints, globbed
from vmoat.stage import digest

LAST_LINES = 15

ANSWER_LIMIT = 60.0
"""Seconds for a guest that is busy to let us in, before it counts as lost."""


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
    attempt = ctx.store.attempt(name, attempt_key(name, command, key))
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
        no_room = space.suspicion(ctx.guest)
        raise VmoatError(
            f"`{name}` failed with exit code {code}" + (f": {no_room.message}" if no_room else ""),
            hint=no_room.hint
            if no_room
            else f"its whole output: `vmoat logs --stage {name}`; `vmoat up` tries again",
            code=Code.STAGE,
            details=tuple(last),
        )


def attempt_key(name: str, command: str, key: Any) -> str:
    """What an attempt is known by: the same work is joined, other work begins anew."""
    return digest(name, command, key)


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


def boot_now(ctx: Context) -> str:
    """The same for what goes on record; raises VM where the guest does not answer."""
    required_facts(ctx)
    return boot_of(ctx)


def required_facts(ctx: Context, *, docker: bool = False) -> Facts:
    """The guest's facts, for what goes on record; raises VM where it does not answer.

    ``docker``: dockerd has to have answered as well.
    """
    for _ in range(3):
        facts = ctx.facts()
        if facts is not None and (facts.docker or not docker):
            return facts
        ctx.forget_facts()
        ctx.guest.connect(ANSWER_LIMIT)
    if facts is None:
        raise ctx.guest.lost()
    raise VmoatError(
        "dockerd does not answer in the VM",
        hint="`vmoat ssh 'sudo journalctl -u docker'` says why; `vmoat up` tries again",
        code=Code.VM,
    )
