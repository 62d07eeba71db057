"""How much an answer may hold: an agent pays for every word, and a branch wrote many of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

ROWS = 50
"""Rows of a list."""

PAGE_ROWS = 20
"""Rows of a list in a page's report; all of them are in the report's file."""

INNER_ROWS = 10
"""Rows of a list within a list's row."""

WORDS = 500
"""Characters of a text in a row."""

SENTENCE = 2000
"""Characters of a message or hint."""

LAST_LINES = 40
"""Lines under an error, and of vmoat's own beside a command's output."""

CHARACTERS = 16_000
"""Of each stream of a command, and of a log."""


def bounded(document: dict[str, Any], rows: int = ROWS) -> dict[str, Any]:
    """A document as an answer may hold it; ``left_out`` says what of it is not here."""
    left_out: Counter[str] = Counter()
    found = {key: _bounded(value, key, rows, left_out) for key, value in document.items()}
    return {**found, "left_out": [f"{place}: {count} more" for place, count in left_out.items()]}


def _bounded(value: Any, place: str, rows: int, left_out: Counter[str]) -> Any:
    if isinstance(value, str):
        return shortened(value)
    if isinstance(value, list):
        if len(value) > rows:
            left_out[place] += len(value) - rows
        return [_bounded(row, place, INNER_ROWS, left_out) for row in value[:rows]]
    if isinstance(value, dict):
        table = [(key, _bounded(row, f"{place}.{key}", INNER_ROWS, left_out))
                 for key, row in list(value.items())[:ROWS]]  # fmt: skip
        if len(value) > ROWS:
            left_out[place] += len(value) - ROWS
        return dict(table)
    return value


def shortened(text: str, most: int = WORDS) -> str:
    """A text, cut where it is too long."""
    return text if len(text) <= most else f"{text[:most]}…"


def last(lines: Sequence[str], most: int = LAST_LINES) -> list[str]:
    """The last of some lines; the first of them says how many came before."""
    before = len(lines) - most
    told = [f"({before} lines before)"] if before > 0 else []
    return [*told, *(shortened(line) for line in lines[-most:])]


def end(whole: str, lines: int) -> tuple[str, int]:
    """The last lines of a text, and how many bytes came before them."""
    kept = "".join(whole.splitlines(keepends=True)[-lines:] if lines else [])[-CHARACTERS:]
    return kept, len(whole.encode()) - len(kept.encode())
