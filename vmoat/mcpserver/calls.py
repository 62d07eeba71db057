"""One `vmoat …` as a child process: started, read, ended; and what it said when it failed.

vmoat's own words come on a channel of their own (``vmoat.output.STORY``): on stderr, a program that
it runs may print what looks like them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from vmoat import proc
from vmoat.errors import Code
from vmoat.output import STORY

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


ESCAPED = "write it as an escape, such as printf '\\000'"
IN_A_FILE = "write the command into a file of the worktree, and run that"


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
    told: Tail
    """vmoat's own words."""
    timed_out: bool = False

    def _rows(self) -> list[dict[str, Any]]:
        # The first may be what is left of a line; the last, too, where the command was killed.
        rows = (_row(line) for line in self.told.text().splitlines())
        return [row for row in rows if row]

    def story(self) -> list[str]:
        """What vmoat told, a line each."""
        return [row["say"] for row in self._rows() if "say" in row]

    def error(self) -> dict[str, Any] | None:
        """What vmoat failed with (``vmoat.error/1``); None where it did not."""
        return next((row for row in reversed(self._rows()) if "schema" in row), None)


def loads(text: str) -> Any:
    """What JSON says; bytes of a path that are no text come as ``?``, for no client takes them."""
    return json.loads(json.dumps(json.loads(text), ensure_ascii=False).encode(errors="replace"))


def _row(line: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        return dict(loads(line))
    return {}


class CommandError(Exception):
    """A command that did not do what it was asked for, in the words of its own error."""

    def __init__(
        self,
        message: str,
        hint: str,
        exit_code: int,
        details: Sequence[str] = (),
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


async def run(
    words: Sequence[str],
    *,
    on_out: OnLine | None = None,
    on_err: OnLine | None = None,
    on_story: OnLine | None = None,
    limit: float | None = None,
) -> Ended:
    """Run `vmoat WORDS` to its end; ``on_story`` is given vmoat's own words as they come.

    It is ended after ``limit`` seconds, when the caller is cancelled, and when this process dies.
    """
    with contextlib.ExitStack() as ours:
        readers = [ours.enter_context(_Pipe(on)) for on in (on_out, on_err, _said(on_story))]
        with contextlib.ExitStack() as theirs:
            process = _start(words, *(theirs.enter_context(reader.writer()) for reader in readers))
        with _lifeline(process.pid):
            over_time = await _attend(process, readers, limit)
    out, err, told = (reader.tail for reader in readers)
    return Ended(tuple(words), _code(process), out, err, told, over_time)


async def _attend(
    process: subprocess.Popen[bytes], readers: Sequence[_Pipe], limit: float | None
) -> bool:
    """Read a child to its end; returns whether its time was over."""
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
    return time_limit.cancelled_caught


def _said(on_story: OnLine | None) -> OnLine | None:
    """Takes a line of the story's channel."""
    if on_story is None:
        return None

    def take(line: str) -> None:
        if text := _row(line).get("say"):
            on_story(text)

    return take


async def finish(words: Sequence[str]) -> Ended:
    """Run `vmoat WORDS` to its end; it goes on when the caller is cancelled or this process dies.

    Into files: writing to a pipe that nobody reads would end it.
    """
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        process = _start(words, *(file.fileno() for file in files))
        await _exit(process)
        tails = Tail(), Tail(), Tail()
        for tail, file in zip(tails, files, strict=True):
            file.seek(0)
            tail.add(file.read())
    return Ended(tuple(words), _code(process), *tails)


def _start(words: Sequence[str], out: int, err: int, told: int) -> subprocess.Popen[bytes]:
    argv, env = proc.own_argv(*words), {STORY: str(told)}
    try:
        return proc.spawn(argv, env=env, stdout=out, stderr=err, pass_fds=(told,))
    except ValueError as error:  # a NUL, or half a character
        raise CommandError(f"no argument can hold that: {error}", ESCAPED, Code.USAGE) from error
    except OSError as error:
        if error.errno != errno.E2BIG:
            raise
        raise CommandError("the arguments are too long", IN_A_FILE, Code.USAGE) from error


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

    def __enter__(self) -> _Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours >= 0:
            os.close(self._ours)

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


def document(ended: Ended, codes: Sequence[int] = (0,)) -> Any:
    """What a command answered in JSON.

    Raises CommandError where vmoat failed, or ended with none of ``codes``, or without an answer.
    """
    if ended.code not in codes or ended.error():
        raise failure(ended)
    try:
        return loads(ended.out.text())
    except ValueError:
        raise failure(ended) from None


def failure(ended: Ended) -> CommandError:
    """The error that a command ended with."""
    known = ended.error()
    if known is None:
        command = " ".join(("vmoat", *ended.words))
        return CommandError(f"`{command}` ended unexpectedly", "`vmoat doctor` checks this machine",
                            ended.code, ended.err.text().splitlines()[-12:])  # fmt: skip
    return CommandError(known["message"], known["hint"], ended.code, known["details"],
                        known["stage"], known["next"])  # fmt: skip
