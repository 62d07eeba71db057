"""The table of `vmoat ls` and `vmoat top`: rows as lines of text.  Pure."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vmoat.fleet.rows import Row

GAP = "  "
WIDE = 10_000
"""Columns where there is no terminal to fit into."""
PLACE_LEAST, BRANCH_LEAST = 18, 10
"""Characters that a worktree and a branch get before other columns are left out."""
DROPPED = ("cpu", "disk", "memory", "health", "idle", "branch")
"""The columns that a narrow terminal goes without, in this order."""

Paint = Callable[[str, str], str]
"""Takes a text and what it is (``good``, ``bad``, ``busy``, ``dim``, ``head``)."""


@dataclass(frozen=True)
class Column:
    """One column: its heading, and its text for a row."""

    name: str
    cell: Callable[[Row, float], str]
    right: bool = False


def size(count: int) -> str:
    """Bytes for a person, in four to eight characters."""
    if count < 1 << 20:
        return f"{count / 2**10:.0f} KiB"
    return f"{count / 2**20:.0f} MiB" if count < 1 << 30 else f"{count / 2**30:.1f} GiB"


def lasting(seconds: float) -> str:
    """A time span for a person: ``12 s``, ``7 min``, ``3 h``, ``5 d``."""
    for length, unit, most in ((1, "s", 60), (60, "min", 60), (3600, "h", 48)):
        if seconds < length * most:
            return f"{int(seconds / length)} {unit}"
    return f"{int(seconds / 86400)} d"


def idle(row: Row, now: float) -> str:
    """Since when it is idle: ``now`` while it is used; a dash where it never was."""
    seconds = row.idle_seconds(now)
    if seconds is None:
        return "–"
    return "now" if seconds < 1 else lasting(seconds)


def memory(row: Row) -> str:
    """What it holds of what it may come to hold."""
    if not row.up and not row.memory_bytes:  # a broken one may hold some
        return "–"
    held = f"{row.memory_bytes / 2**30:.1f}"
    return (
        f"{held}/{row.memory_size_bytes / 2**30:g} GiB" if row.memory_size_bytes else f"{held} GiB"
    )


def cpu(row: Row) -> str:
    """Percent of one CPU where there was a look before, else the time used."""
    if not row.up and not row.memory_bytes:  # a broken one may hold some
        return "–"
    if row.cpu_percent is not None:
        return f"{row.cpu_percent:.0f}%"
    return lasting(row.cpu_seconds)


def place(row: Row, home: str) -> str:
    """The worktree's folder, with ``~``; in brackets where it is gone."""
    path = row.worktree or row.name
    if home and (path == home or path.startswith(home + "/")):
        path = "~" + path[len(home) :]
    return path if row.worktree_exists else f"({path})"


def doing(row: Row, now: float) -> str:
    """The stage that runs now, why, and for how long; "" for none."""
    for stage in row.stages:
        if stage.state == "running":
            return f"{stage.name}: {stage.reason} ({lasting(max(0.0, now - stage.at))})"
    return ""


COLUMNS = (
    Column("worktree", lambda row, now: place(row, os.path.expanduser("~"))),
    Column("branch", lambda row, now: row.branch or "–"),
    Column("state", lambda row, now: row.state),
    Column("health", lambda row, now: row.health if row.health != "unknown" else "–"),
    Column("cpu", lambda row, now: cpu(row), right=True),
    Column("memory", lambda row, now: memory(row), right=True),
    Column("disk", lambda row, now: size(row.disk_bytes), right=True),
    Column("idle", idle, right=True),
)


def lines(
    rows: Sequence[Row],
    width: int,
    now: float,
    paint: Paint = lambda text, kind: text,
    *,
    details: bool = True,
) -> list[str]:
    """The table with its heading, no line wider than ``width``.

    URLs stand behind their VM where there is room, else below it (with ``details``), as what is
    wrong with it and what is done in it do.
    """
    cells = {c.name: [printable(c.cell(row, now)) for row in rows] for c in COLUMNS}
    widths = {name: max(map(len, [name, *column])) for name, column in cells.items()}
    shown = fit(widths, width)
    room = width - sum(shown.values()) - len(GAP) * len(shown)
    urls = [" ".join(url.url for url in row.urls) for row in rows]
    inline = any(urls) and max(map(len, urls)) <= room
    head = GAP.join(_aligned(c, c.name.upper(), shown) for c in COLUMNS if c.name in shown)
    out = [paint((head + GAP + "URLS" if inline else head).rstrip(), "head")]
    for number, row in enumerate(rows):
        line = GAP.join(
            _painted(c, row, _aligned(c, cells[c.name][number], shown), paint)
            for c in COLUMNS if c.name in shown
        )  # fmt: skip
        out.append((line + GAP + urls[number] if inline else line).rstrip())
        if details:
            below = _below(row, now, inline)
            out += [paint(cut("  " + text, width), kind) for text, kind in below]
    return out


def _below(row: Row, now: float, inline: bool) -> list[tuple[str, str]]:
    found = [] if inline else [
        (f"{url.url} {url.service}".rstrip() + ("" if url.open else " (closed)"), "dim")
        for url in row.urls
    ]  # fmt: skip
    if work := doing(row, now):
        found.append((f"▸ {work}", "busy"))
    found += [(f"▸ {reason}", "bad") for reason in row.reasons]
    failed = next((stage for stage in row.stages if stage.state == "failed"), None)
    if failed and not row.working:
        found.append((f"▸ {failed.name} failed: {failed.reason}", "bad"))
    if row.orphan:
        found.append((f"▸ {row.orphan}: `vmoat gc` takes it", "dim"))
    if row.left:
        found.append((f"▸ {row.left}", "dim"))
    return [(printable(text), kind) for text, kind in found]


def fit(widths: dict[str, int], width: int) -> dict[str, int]:
    """The columns that are shown, with their widths: first the long texts are shortened, then
    columns are left out, then the texts are shortened further.
    """
    shown = dict(widths)
    least = {"branch": BRANCH_LEAST, "worktree": PLACE_LEAST}

    def over() -> int:
        return sum(shown.values()) + len(GAP) * (len(shown) - 1) - width

    for name in DROPPED:
        spare = sum(max(0, shown.get(key, 0) - floor) for key, floor in least.items())
        if over() <= spare:
            break
        del shown[name]
    for key, floor in (*least.items(), ("worktree", 4)):
        if key in shown:
            shown[key] -= min(max(0, over()), max(0, shown[key] - floor))
    return shown


def _aligned(column: Column, text: str, shown: dict[str, int]) -> str:
    room = shown[column.name]
    if column.name == "worktree" and len(text) > room:
        text = "…" + text[len(text) - room + 1 :]  # its end tells worktrees apart
    text = cut(text, room)
    return text.rjust(room) if column.right else text.ljust(room)


def _painted(column: Column, row: Row, text: str, paint: Paint) -> str:
    if column.name not in ("state", "health"):
        return text
    return paint(text, kind_of(row, column.name))


def kind_of(row: Row, column: str) -> str:
    """How a state or a health is painted."""
    if column == "health":
        return {"healthy": "good", "unhealthy": "bad"}.get(row.health, "dim")
    kinds = {"running": "good", "starting": "busy", "broken": "bad", "paused": "bad"}
    return "busy" if row.working else kinds.get(row.state, "dim")


def cut(text: str, room: int) -> str:
    """The text in that many characters."""
    return text if len(text) <= room else text[: max(0, room - 1)] + "…"


def printable(text: str) -> str:
    """A path or branch as a terminal may have it: nothing in it moves the cursor."""
    return "".join(c if c.isprintable() else "·" for c in text)


_COLOURS = {"good": "32", "bad": "31", "busy": "33", "dim": "2", "head": "1"}


def coloured(text: str, kind: str) -> str:
    """A ``Paint`` for terminals (ECMA-48, SGR)."""
    return f"\x1b[{_COLOURS[kind]}m{text}\x1b[0m" if text.strip() else text


def plain(text: str, kind: str) -> str:
    """A ``Paint`` for everything else."""
    return text


def totals(rows: Sequence[Row], host_bytes: int) -> str:
    """What all of them take, in one line."""
    up = [row for row in rows if row.up]
    held, may = sum(r.memory_bytes for r in up), sum(r.memory_size_bytes for r in up)
    disk = sum(row.disk_bytes for row in rows)
    return (
        f"{len(up)} of {len(rows)} up, memory {size(held)} held, {size(may)} at most of this "
        f"machine's {size(host_bytes)}, disks {size(disk)}"
    )
