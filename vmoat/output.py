"""Where words go: stdout is the answer, stderr is the story."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO

    from vmoat.errors import VmoatError

STORY = "VMOAT_STORY"
"""In the environment of a command whose starter must tell its words from those of the programs that
it runs: the number of a descriptor.  The story goes there, a JSON object a line (``{"say": TEXT}``,
an error as ``vmoat.error/1``), and no program that the command runs is handed either of them."""


def _channel() -> TextIO | None:
    number = os.environ.pop(STORY, "")
    try:
        if int(number) < 3:  # the standard streams are everybody's
            return None
        os.set_inheritable(int(number), False)
        return open(int(number), "w", encoding="utf-8", closefd=False)
    except (ValueError, OSError):
        return None


_story = _channel()

_RED, _YELLOW, _DIM, _RESET = "\x1b[31m", "\x1b[33m", "\x1b[2m", "\x1b[0m"


class Output:
    """The two streams of one command, made by the command line."""

    def __init__(self, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr
        self.branch = ""
        """Whose documents these are, where a command is for several worktrees: each has it then,
        and a line of its own."""
        # A worktree's path may hold bytes that are no text; showing it must not fail.
        for stream in (self.stdout, self.stderr):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure:
                reconfigure(errors="backslashreplace")

    @property
    def colours(self) -> bool:
        """Whether stderr is a terminal that wants colours (https://no-color.org)."""
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return self.stderr.isatty() and not plain

    @property
    def interactive(self) -> bool:
        """Whether somebody is there to answer a question."""
        return sys.stdin is not None and sys.stdin.isatty() and self.stderr.isatty()

    def answer(self, text: str) -> None:
        """A line of the answer, on stdout."""
        print(text, file=self.stdout, flush=True)

    def json(self, document: dict[str, Any], *, indent: int | None = 2) -> None:
        """A document, which names its form: ``"schema": "vmoat.NAME/1"`` (``vmoat.schemas``)."""
        import json

        if self.branch:
            document, indent = {**document, "branch": self.branch}, None
        self.answer(json.dumps(document, indent=indent, ensure_ascii=False, default=str))

    def json_line(self, document: dict[str, Any]) -> None:
        """The same on one line, for what comes one document a line."""
        self.json(document, indent=None)

    def say(self, text: str) -> None:
        """A line of the story, on stderr."""
        for line in text.splitlines() or [""]:
            if _story:
                _record({"say": line})
            else:
                print(f"[vmoat] {line}", file=self.stderr, flush=True)

    def warn(self, text: str) -> None:
        self.say(self._paint(_YELLOW, "warning: ") + text)

    def call(self, text: str) -> None:
        """A program call, under ``-v``."""
        self.say(self._paint(_DIM, f"+ {text}"))

    def error(self, error: VmoatError) -> None:
        """What is wrong, its last lines, what to do."""
        if _story:
            from vmoat.errors import as_document

            _record(as_document(error))
            return
        self.say(self._paint(_RED, "ERROR: ") + error.message)
        for line in error.details:
            print(f"    {shortened(printable(line))}", file=self.stderr, flush=True)
        if error.hint:
            self.say(f"→ {error.hint}")

    def ask(self, question: str) -> bool:
        """A yes from the terminal; anything else is a no."""
        print(f"[vmoat] {question} [y/N] ", end="", file=self.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_RESET}" if self.colours else text


def _record(row: dict[str, Any]) -> None:
    import json

    assert _story is not None
    _story.write(json.dumps(row) + "\n")  # in one piece: a timer may tell something, too
    _story.flush()


LONGEST = 300
"""Characters of one detail of an error: minified code and JSON come in lines without an end."""


def shortened(line: str) -> str:
    """A line that leaves room for the others on a screen."""
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def printable(line: str) -> str:
    """A line of somebody else's output without what would move the cursor or set the title."""
    last = line.rstrip("\r\n").rpartition("\r")[2]
    return "".join(c if c.isprintable() or c == "\t" else "·" for c in _without_escapes(last))


def _without_escapes(text: str) -> str:
    import re

    return re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|.)", "", text)
