"""Settings that are an amount with a unit: a time (``30m``), a part of the host (``75%``)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

MOST_PERCENT = 1000
"""Of the host's memory: VMs seldom hold all that they may, and there is swap."""
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

_DURATION = re.compile(r"[1-9][0-9]{0,5}[smhd]")
_PORTION = re.compile(r"([1-9][0-9]{0,5})( ?GiB|%)?")


def _duration_fault(text: str) -> str:
    return "" if not text or _DURATION.fullmatch(text) else "a time such as 45m, 2h or 1d"


def _portion_fault(text: str) -> str:
    found = _PORTION.fullmatch(text)
    if not found:
        return "a number of GiB, or a percentage such as 75%"
    too_much = found[2] == "%" and int(found[1]) > MOST_PERCENT
    return f"{MOST_PERCENT}% at most" if too_much else ""


FAULTS: Mapping[str, Callable[[str], str]] = {
    "duration": _duration_fault,
    "portion": _portion_fault,
}
"""By the setting's kind: what a text should be that is none; "" for one that is right."""


def seconds(duration: str) -> int:
    """A checked duration in seconds; 0 for none."""
    return int(duration[:-1]) * SECONDS[duration[-1]] if duration else 0


def part(portion: str, whole: float) -> float:
    """A checked portion of ``whole``, which is in GiB as the answer is."""
    found = _PORTION.fullmatch(portion)
    assert found is not None, portion
    return whole * int(found[1]) / 100 if found[2] == "%" else float(found[1])
