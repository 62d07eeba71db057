"""The last lines of a file of any size."""

from __future__ import annotations

from pathlib import Path

MOST_BYTES = 4 << 20
"""A file is read from its end, no further than this."""


def last_lines(file: Path, count: int) -> tuple[list[str], bool]:
    """The last ``count`` lines, and whether the file holds more than these."""
    with open(file, "rb") as stream:
        size = stream.seek(0, 2)
        start = max(0, size - MOST_BYTES)
        stream.seek(start)
        rows = stream.read().decode(errors="replace").split("\n")
    if rows[-1] == "":  # behind the last line's end
        rows.pop()
    kept = rows[len(rows) - count :] if count < len(rows) else rows
    return kept, start > 0 or len(kept) < len(rows)
