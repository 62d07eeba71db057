"""One `vmoat …` as a child process: started, read, ended; and what it said when it failed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from vmoat import proc
from vmoat.output import MARK, prefix

OnLine = Callable[[str], None]

KEPT = 4 * 2**20
"""Bytes of each stream of a child that are kept; what came before is only counted."""

LONGEST_LINE = 64 * 2**10
"""Bytes; of a longer line only the end is handed to whoever listens to lines."""

GRACE = 4.0
"""Seconds that a child has to end its command in the guest, before it is killed."""

DRAIN = 1.0
"""Seconds to read what a child that has ended left in its pipes: a program of it may hold them."""

WATCHDOG = "read -r done || { kill -TERM $1; sleep 4; kill -KILL $1; } 2>/dev/null"
"""Outlives a kill -9 of the server and ends the child; ``$1`` is its pid."""

ERROR = "ERROR: "
HINT = "→ "
DETAIL = "    "


class Tail:
    """The end of a stream.

    ``dropped`` counts the bytes that came before it.
    """

    def __init__(self, limit: int = KEPT) -> None:
        self._limit = limit
        self._data = bytearray()
        self.dropped = 0

    def add(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > 2 * self._limit:
            self._cut()

    def _cut(self) -> None:
        too_many = len(self._data) - self._limit
        if too_many > 0:
            del self._data[:too_many]
            self.dropped += too_many

    def text(self) -> str:
        self._cut()
        return self._data.decode(errors="replace")


@dataclass
class Ended:
    """How a child ended."""

    words: tuple[str, ...]
    code: int
    """Its exit code; 128 + the number of the signal that killed it."""
    out: Tail
    err: Tail
    mark: str
    """What vmoat's own lines on ``err`` bear: a program in the VM may print anything there."""
    timed_out: bool = False

    def story(self) -> list[str]:
        """What vmoat itself told, a line each."""
        found = (line.partition(prefix(self.mark)) for line in self.err.text().splitlines())
        return [text for _, known, text in found if known]

    def printed(self) -> str:
        """What the programs that it ran printed on stderr."""
        lines = self.err.text().splitlines(keepends=True)
        return "".join(line.partition(prefix(self.mark))[0] for line in lines)


class CommandError(Exception):
    """A command that did not do what it was asked for, in the words of its own error."""

    def __init__(
        self,
        message: str,
        hint: str,
        exit_code: int,
        details: Sequence[str],
        stage: str = "",
        following: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
        self.details = tuple(details)
        self.stage = stage
        self.following = tuple(following)
        """Command lines to go on with."""

    def text(self) -> str:
        """All of it, as a person would read it."""
        rows = [f"{self.message} (exit code {self.exit_code})"]
        rows += [f"{DETAIL}{line}" for line in self.details]
        return "\n".join([*rows, f"→ {self.hint}"] if self.hint else rows)


async def run(
    words: Sequence[str],
    *,
    on_out: OnLine | None = None,
    on_story: OnLine | None = None,
    limit: float | None = None,
) -> Ended:
    """Run `vmoat WORDS` to its end; ``on_story`` is given vmoat's own words, ``on_out`` the rest.

    It is ended after ``limit`` seconds, when the caller is cancelled, and when this process dies.
    """
    mark = secrets.token_hex(8)
    readers = [_Pipe(on_out), _Pipe(_sorted(mark, on_out, on_story))]
    with contextlib.ExitStack() as stack:
        out_end, err_end = (stack.enter_context(reader.writer()) for reader in readers)
        process = _start(words, out_end, err_end, mark)
    with _lifeline(process.pid):
        try:
            async with anyio.create_task_group() as group:
                for reader in readers:
                    group.start_soon(reader.read)
                with anyio.move_on_after(limit) as time_limit:
                    await _exit(process)
                await _end(process)
                with anyio.move_on_after(DRAIN):
                    for reader in readers:
                        await reader.over.wait()
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process)
            for reader in readers:
                reader.close()
    out, err = (reader.tail for reader in readers)
    return Ended(tuple(words), _code(process), out, err, mark, time_limit.cancelled_caught)


def _sorted(mark: str, on_out: OnLine | None, on_story: OnLine | None) -> OnLine | None:
    """Takes a line of stderr, and hands it to whom it concerns."""
    if on_story is None:
        return None

    def take(line: str) -> None:
        before, known, text = line.partition(prefix(mark))
        if before and on_out:
            on_out(before)
        if known:
            on_story(text)

    return take


async def finish(words: Sequence[str]) -> Ended:
    """Run `vmoat WORDS` to its end; it goes on when the caller is cancelled or this process dies.

    Into files: writing to a pipe that nobody reads would end it.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        mark = secrets.token_hex(8)
        process = _start(words, out.fileno(), err.fileno(), mark)
        await _exit(process)
        tails = Tail(), Tail()
        for tail, file in zip(tails, (out, err), strict=True):
            file.seek(0)
            tail.add(file.read())
    return Ended(tuple(words), _code(process), *tails, mark)


def _start(words: Sequence[str], out: int, err: int, mark: str) -> subprocess.Popen[bytes]:
    return proc.spawn(proc.own_argv(*words), env={MARK: mark}, stdout=out, stderr=err)


async def _exit(process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        await anyio.sleep(0.02)


def _code(process: subprocess.Popen[bytes]) -> int:
    code = process.returncode
    return code if code >= 0 else 128 - code


async def _end(process: subprocess.Popen[bytes]) -> None:
    """TERM, which the child hands on to its command in the guest; KILL where that is not enough."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        process.send_signal(number)
        with anyio.move_on_after(patience):
            await _exit(process)


@contextlib.contextmanager
def _lifeline(pid: int) -> Iterator[None]:
    theirs, ours = os.pipe()
    dog = proc.spawn(["sh", "-c", WATCHDOG, "sh", str(pid)], stdin=theirs, cwd="/")
    os.close(theirs)
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            os.write(ours, b"done\n")
        os.close(ours)
        dog.wait()


class _Pipe:
    """One stream of a child."""

    def __init__(self, on_line: OnLine | None) -> None:
        self.tail = Tail()
        self.over = anyio.Event()
        self._on_line = on_line
        self._held = b""
        self._ours = -1

    @contextlib.contextmanager
    def writer(self) -> Iterator[int]:
        """The child's end, until it has been started."""
        self._ours, theirs = os.pipe()
        os.set_blocking(self._ours, False)
        try:
            yield theirs
        finally:
            os.close(theirs)

    async def read(self) -> None:
        while True:
            await anyio.wait_readable(self._ours)
            data = os.read(self._ours, 65536)
            if not data:
                break
            self.tail.add(data)
            self._lines(data)
        self.over.set()

    def _lines(self, data: bytes) -> None:
        if self._on_line is None:
            return
        *lines, rest = (self._held + data).split(b"\n")
        self._held = rest[-LONGEST_LINE:]
        for line in lines:
            self._on_line(line.decode(errors="replace"))

    def close(self) -> None:
        os.close(self._ours)


def document(ended: Ended, codes: Sequence[int] = (0,)) -> Any:
    """What a command answered in JSON.

    Raises CommandError where vmoat failed, or ended with none of ``codes``, or without an answer.
    """
    if ended.code not in codes or has_error(ended):
        raise failure(ended)
    try:
        return json.loads(ended.out.text())
    except ValueError:
        raise failure(ended) from None


def failure(ended: Ended) -> CommandError:
    """The error that a command ended with, as data or read back from what was printed of it."""
    if known := _document(ended):
        return known
    lines = ended.story()
    begin = next((n for n in reversed(range(len(lines))) if lines[n].startswith(ERROR)), None)
    if begin is None:
        command = " ".join(("vmoat", *ended.words))
        return CommandError(f"`{command}` ended unexpectedly", "`vmoat doctor` checks this machine",
                      ended.code, ended.err.text().splitlines()[-12:])  # fmt: skip
    rest = lines[begin + 1 :]
    details = [line.removeprefix(DETAIL) for line in rest if line.startswith(DETAIL)]
    hint = next((line.removeprefix(HINT) for line in rest if line.startswith(HINT)), "")
    return CommandError(lines[begin].removeprefix(ERROR), hint, ended.code, details)


def _document(ended: Ended) -> CommandError | None:
    """The error in the last line of an answer in JSON (``vmoat.error/1``).

    Only vmoat itself writes on stdout where it was asked for JSON.
    """
    options = itertools.takewhile(lambda word: word != "--", ended.words)
    if "--json" not in options:
        return None
    lines = ended.out.text().rstrip("\n").splitlines()
    try:
        found = json.loads(lines[-1])
        if found["schema"] != "vmoat.error/1":
            return None
        return CommandError(found["message"], found["hint"], ended.code, found["details"],
                            found["stage"], found["next"])  # fmt: skip
    except (IndexError, ValueError, KeyError, TypeError):
        return None


def has_error(ended: Ended) -> bool:
    """Whether vmoat itself has failed, and not the user's command."""
    return any(line.startswith(ERROR) for line in ended.story())
