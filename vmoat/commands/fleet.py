"""ls, top, gc: all VMs of this user at once."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING

from vmoat.errors import Code, VmoatError
from vmoat.fleet import table
from vmoat.fleet.rows import Row, as_json, rows
from vmoat.output import Output

if TYPE_CHECKING:
    from vmoat.fleet.gc import Item

CPU_SECONDS = 0.2
"""Between the two looks that `ls` tells the load by."""


def ls(args: argparse.Namespace, out: Output) -> int:
    """A row for each VM: from facts of this machine, no guest is asked."""
    found = rows()
    if any(row.up for row in found):
        time.sleep(CPU_SECONDS)
        found = rows(found)
    if args.json:
        out.json({"schema": "vmoat.ls/1", "vms": [as_json(row) for row in found]})
        return int(Code.OK)
    if not found:
        out.say("there is no VM; `vmoat up` in a worktree makes one")
        return int(Code.OK)
    terminal = out.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else table.WIDE
    for line in table.lines(found, width, time.time(), _paint(terminal)):
        out.answer(line)
    if any(row.orphan for row in found):
        out.say("`vmoat gc --dry-run` shows what would be removed")
    return int(Code.OK)


def _paint(terminal: bool) -> table.Paint:
    bare = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return table.coloured if terminal and not bare else table.plain


def top(args: argparse.Namespace, out: Output) -> int:
    """The same, live; without a terminal one frame."""
    from vmoat.fleet import top as live

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if live.is_terminal():
        live.run(rows, memory, sys.stdin, out.stdout, _paint(True))
        return int(Code.OK)
    first = rows()
    time.sleep(CPU_SECONDS)
    for line in live.frame(rows(first), table.WIDE, 1_000_000, time.time(), memory, table.plain):
        out.answer(line)
    return int(Code.OK)


def gc(args: argparse.Namespace, out: Output) -> int:
    """Remove what nobody needs any more; say what, and why."""
    from vmoat.commands.machine import user_settings
    from vmoat.config import amounts
    from vmoat.fleet import gc as work

    settings = user_settings()
    grace = float(amounts.seconds(settings.gc_grace))
    current = _current_image(settings.image_mirror)

    def tell(item: Item) -> None:
        if not args.json:
            _tell(item, args, out)

    if args.dry_run:
        plan = work.plan(rows(), grace=grace, current=current, now=time.time())
        items = plan.items
        for item in items:
            tell(item)
    else:
        with work.alone():
            plan = work.plan(rows(), grace=grace, current=current, now=time.time())
            items = work.carry_out(plan, tell)
    if args.json:
        out.json(_report(items, plan.left, dry_run=args.dry_run))
    if not args.json and not args.quiet:
        _summary(items, plan.left, args, out)
    if failed := [item for item in items if item.failed]:
        raise VmoatError(
            f"{len(failed)} of {len(items)} could not be removed",
            hint="`vmoat gc` tries again",
            code=Code.VM,
            details=[f"{item.kind} {item.name}: {item.note}" for item in failed],
        )
    return int(Code.OK)


def _current_image(mirror: str) -> str:
    from vmoat.drivers.qemu import image

    try:
        return image.digest(mirror)
    except VmoatError:  # no image is made for this machine
        return ""


def _tell(item: Item, args: argparse.Namespace, out: Output) -> None:
    """One line of the answer; quietly, only what was done."""
    if args.quiet and not item.done and not args.dry_run:
        return
    out.answer(f"{_verb(item, args.dry_run):<14} {item.kind} {item.name}: {_why(item)}")


def _verb(item: Item, dry_run: bool) -> str:
    if item.note:
        return "left"
    if item.action == "keep":
        return "kept"
    if dry_run:
        return f"would {item.action}"
    return "removed" if item.action == "remove" else "stopped"


def _why(item: Item) -> str:
    from vmoat.fleet.gc import remaining

    if item.note:
        return item.note
    if item.until:
        return f"{item.why}; removed in {remaining(item.until)}"
    return f"{item.why} ({table.size(item.size)})" if item.size else item.why


def _summary(
    items: list[Item], left: tuple[Row, ...], args: argparse.Namespace, out: Output
) -> None:
    from vmoat.fleet.gc import freed

    for row in left:
        out.say(f"left alone: vm {row.name}: {row.left}")
    if not items:
        out.say("there is nothing to remove")
    elif size := freed(items):
        out.say(f"{table.size(size)} {'would be' if args.dry_run else 'are'} free again")


def _report(items: list[Item], left: tuple[Row, ...], *, dry_run: bool) -> dict[str, object]:
    from dataclasses import asdict

    from vmoat.fleet.gc import freed

    return {
        "schema": "vmoat.gc/1",
        "dry_run": dry_run,
        "items": [
            {"size_bytes" if key == "size" else key: value for key, value in asdict(item).items()}
            for item in items
        ],
        "left": [{"name": row.name, "why": row.left} for row in left],
        "freed_bytes": freed(items),
    }
