"""init, config, trust: the project's own files."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from vmoat import worktree
from vmoat.commands import context, start
from vmoat.config import init as initial
from vmoat.config import trust as agreed
from vmoat.config.detect import detect
from vmoat.config.lockfiles import filled
from vmoat.config.values import closest
from vmoat.errors import Code, VmoatError
from vmoat.output import Output


def init(args: argparse.Namespace, out: Output) -> int:
    """Write vmoat.toml; an existing config is left alone."""
    tree = _tree(args)
    target = tree.path / initial.NAME
    if args.source:
        source = (tree.path if args.branch else Path(args.path or ".")) / args.source
        migrated = initial.migrate(source, env=os.environ)
        initial.write_new(target, migrated.text)
        out.answer(str(target))
        if migrated.local_text:
            local = initial.write_new(tree.path / "vmoat.local.toml", migrated.local_text)
            out.answer(str(local))
        for note in migrated.notes:
            out.say(note)
        return int(Code.OK)
    detected = detect(tree.path)
    folders = filled(tree.git)
    initial.create(tree.path, detected, list(folders))
    out.answer(str(target))
    if detected.command:
        out.say(f"detected {detected.source}: {detected.command}")
    else:
        out.say("nothing here says how the stack starts: set [up] command")
    if detected.passed_over:
        out.say("passed over: " + ", ".join(detected.passed_over))
    for folder, lock in folders.items():
        out.say(f"{folder} is to lie on the VM's own disk (mounts.local), for there is {lock}")
    return int(Code.OK)


def config(args: argparse.Namespace, out: Output) -> int:
    """Every setting, or those that are named, its value and its origin; USAGE for no setting."""
    ctx = context(args, claim=False)
    rows = ctx.settings.dump()
    for key in args.keys:
        if key not in {row.key for row in rows}:
            raise _unknown_key(key, [row.key for row in rows])
    if args.keys:
        rows = tuple(row for row in rows if row.key in args.keys)
    if args.json:
        out.json({"schema": "vmoat.config/1", "settings": [row._asdict() for row in rows]})
        return int(Code.OK)
    width = max(len(row.key) for row in rows)
    for row in rows:
        out.answer(f"{row.key:<{width}}  {row.value!r:<28}  {row.origin}")
    for warning in ctx.settings.warnings:
        out.warn(warning)
    return int(Code.OK)


def _unknown_key(key: str, known: list[str]) -> VmoatError:
    near = closest(key, known)
    guess = f"did you mean `{near}`?" if near else "`vmoat config` lists the settings"
    return VmoatError(f"there is no setting `{key}`", hint=guess, code=Code.USAGE)


def trust(args: argparse.Namespace, out: Output) -> int:
    """Show what the project's files would widen; remember the agreement to exactly these."""
    tree = _tree(args)
    main = tree.main() if tree.linked else tree.path
    asked = agreed.pending(tree.path, main, env=os.environ, common_dir=tree.common_dir)
    if not asked.wishes:
        out.say("nothing here needs trust")
        return int(Code.OK)
    for wish in asked.wishes:
        out.answer(f"{wish.where}  {wish.key} = {wish.value}")
        out.answer(f"    {wish.why}")
    if asked.trusted:
        out.say("all of this is trusted already")
        return int(Code.OK)
    if not args.yes:
        if not out.interactive:
            raise VmoatError(
                "nothing was trusted: there is nobody to ask",
                hint="read the list above; `vmoat trust --yes` agrees to it",
                code=Code.USAGE,
            )
        if not out.ask("allow this, for exactly these files?"):
            raise VmoatError("nothing was trusted", code=Code.CONFIG)
    agreed.grant(asked)
    out.say("trusted, until a byte of these files changes: " + ", ".join(asked.files))
    return int(Code.OK)


def _tree(args: argparse.Namespace) -> worktree.Worktree:
    return worktree.named(start(args), args.branch or "")
