"""What a run looks like off a terminal, and that nobody's output moves the cursor."""

from __future__ import annotations

import io
from typing import Any

import pytest

from vmoat import view
from vmoat.output import Output, printable


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"time": 0.0, "event": kind, "run": "r", **fields}


def test_plain_lines_and_a_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Output(io.StringIO(), io.StringIO())
    shown = view.make(out, as_json=False)
    assert isinstance(shown, view.PlainView)
    shown.show(event("stage_start", stage="apt", reason="never run"))
    shown.show(event("line", text="\x1b[2Jhello\rworld\x07"))
    monkeypatch.setattr(view, "HEARTBEAT", 0.0)
    shown.tick()
    shown.show(event("stage_end", stage="apt", outcome="done", seconds=65.2))
    shown.show(event("stage_end", stage="x", outcome="skipped", seconds=0))
    lines = out.stderr.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0] == "[vmoat] ▸ apt: never run"
    assert lines[1] == "[vmoat]   world·"
    assert "still at it after" in lines[2]
    assert lines[3] == "[vmoat] ✓ apt (1 m 05 s)"
    assert len(lines) == 4


def test_control_characters_are_shown_not_obeyed() -> None:
    assert printable("a\x1b]0;title\x07b\x1b[31mc\x1b[0m") == "abc"
    assert printable("50%\r100%\n") == "100%"
