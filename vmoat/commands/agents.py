"""schema, skill, hook: what agents and git itself use."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from vmoat.errors import Code, VmoatError, as_error

if TYPE_CHECKING:
    import argparse

    from vmoat.output import Output

STATES = {
    "absent": "not made yet",
    "stopped": "powered off",
    "broken": "broken (`vmoat up` repairs it)",
}
"""A VM's states as a sentence has them; the others are said as they are."""


def schema(args: argparse.Namespace, out: Output) -> int:
    """The names of the forms, each with its command, or one form's schema."""
    from vmoat import schemas

    known = schemas.names()
    if args.name and args.name not in known:
        raise VmoatError(
            f"there is no schema `{args.name}`", hint="the schemas are: " + ", ".join(known),
            code=Code.USAGE,
        )  # fmt: skip
    if args.name:
        out.answer(schemas.read(args.name))
        return int(Code.OK)
    width = max(map(len, known))
    for name in known:
        out.answer(f"{name:<{width}}  {json.loads(schemas.read(name))['title']}")
    return int(Code.OK)


def skill(args: argparse.Namespace, out: Output) -> int:
    """Install the skill; the folder on stdout."""
    from pathlib import Path

    from vmoat import skill, worktree
    from vmoat.commands import start

    if args.dir:
        folder = Path(args.dir)
    else:
        folder = skill.folder_of(worktree.named(start(args), args.branch or "").path)
    out.answer(str(skill.install(folder)))
    return int(Code.OK)


def hook(args: argparse.Namespace, out: Output) -> int:
    """Install or remove git's hook; be it; the plugin's facts."""
    from vmoat import worktree

    actions = {"install": _install, "remove": _remove, "run": _run, "facts": _facts}
    if args.words and args.action != "run":
        raise VmoatError(f"`hook {args.action}` takes no words", code=Code.USAGE)
    # In a hook, they name its repository to each git that would be started from here on.
    for name in worktree.PLACE:
        os.environ.pop(name, None)
    actions[args.action](args, out)
    return int(Code.OK)


def _install(args: argparse.Namespace, out: Output) -> None:
    from vmoat import githook, worktree
    from vmoat.commands import start
    from vmoat.commands.machine import user_settings

    hooks = githook.folder(worktree.named(start(args), args.branch or ""))
    out.answer(str(githook.install(hooks)))
    if (hooks / githook.KEPT).exists():
        out.say(f"the hook that was there is {githook.KEPT} now, and runs first")
    if not user_settings().hook_up:
        out.say("it does nothing yet: with hook.up = true in your own config.toml, a new worktree "
                "is brought up in the background")  # fmt: skip


def _remove(args: argparse.Namespace, out: Output) -> None:
    from vmoat import githook, worktree
    from vmoat.commands import start

    gone = githook.remove(githook.folder(worktree.named(start(args), args.branch or "")))
    out.say("the hook is removed" if gone else "there is no hook of vmoat's")


def _run(args: argparse.Namespace, out: Output) -> None:
    """What git's hook calls.  Nothing fails here: git's own command would fail with it."""
    from vmoat import githook

    if not githook.is_new(args.words):
        return
    try:
        _bring_up(args, out)
    except Exception as error:
        out.error(as_error(error))


def _bring_up(args: argparse.Namespace, out: Output) -> None:
    from vmoat import parser, worktree
    from vmoat.commands import lifecycle, start
    from vmoat.commands.machine import user_settings

    # The user's own word: the branch's config must not start what nobody asked for.
    if not user_settings().hook_up or not worktree.find(start(args)).linked:
        return
    where = ["-C", args.path] if args.path else []
    lifecycle.up(parser.parse([*where, "up", "--detach"]), out)


def _facts(args: argparse.Namespace, out: Output) -> None:
    """What a session of an agent should know at its start, as Claude Code's hooks say it.

    Nothing where the project has nothing to do with VMs.  The guest is not asked.
    """
    from vmoat import watch
    from vmoat.commands import context
    from vmoat.config.table import PROJECT_FILES

    ctx = context(args, claim=False, tolerant=True)
    configured = any((ctx.worktree.path / name).is_file() for name in PROJECT_FILES)
    if not configured and not ctx.instance.claimed:
        return
    text = facts(ctx.instance.name, ctx.status.state, working=watch.active(ctx) is not None)
    told = {"hookEventName": "SessionStart", "additionalContext": text}
    out.answer(json.dumps({"hookSpecificOutput": told}))


def facts(name: str, state: str, *, working: bool) -> str:
    """The two lines."""
    at_work = ", an `up` is at work (`vmoat wait` follows it)" if working else ""
    return (
        f"This worktree has a VM of its own, {name}: {STATES.get(state, state)}{at_work}.\n"
        "Run its stack and tests there, never on the host: `vmoat up --detach`, `vmoat wait "
        "--timeout 8 --tail 3`, `vmoat test --tail 60` (skill vmoat; `vmoat help agents`)."
    )
