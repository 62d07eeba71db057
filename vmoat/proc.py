"""The one door to other programs, on plumbum.

Every program started here gets ``/dev/null`` as standard input unless something is given, and the
failure text is a command that can be pasted.  plumbum is imported at the first call only: it takes
longer to load than most commands take to run.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, cast

from vmoat.errors import Code, VmoatError

Argv = Sequence[str | os.PathLike[str]]

_echo: Callable[[str], None] | None = None


@dataclass(frozen=True)
class Result:
    """What a program answered."""

    argv: tuple[str, ...]
    rc: int
    out: str
    err: str

    def last_lines(self, count: int = 12) -> tuple[str, ...]:
        """The program's last words, standard error first where there are any."""
        text = self.err.strip() or self.out.strip()
        return tuple(text.splitlines()[-count:])


def set_echo(echo: Callable[[str], None] | None) -> None:
    """Show each call, in a form that can be pasted (``-v``)."""
    global _echo
    _echo = echo


def paste(argv: Argv, cwd: str | os.PathLike[str] | None = None) -> str:
    """The command as a line for a shell."""
    line = shlex.join(os.fspath(word) for word in argv)
    return f"cd {shlex.quote(os.fspath(cwd))} && {line}" if cwd else line


def own_argv(*words: str) -> list[str]:
    """This vmoat's own command line.  -P: a vmoat/ in some folder must not be taken for us."""
    return [sys.executable, "-P", "-m", "vmoat", *words]


def which(name: str) -> str | None:
    """Where a program is; the sbin folders count, which an ordinary user's PATH leaves out."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    return shutil.which(name, path=path)


def _resolve(argv: Argv) -> list[str]:
    words = [os.fspath(word) for word in argv]
    found = which(words[0])
    if found is None:
        raise VmoatError(
            f"the program `{words[0]}` is not installed",
            hint="`vmoat doctor` says what is missing, `vmoat doctor --fix` installs it",
            code=Code.MISSING,
        )
    return [found, *words[1:]]


def run(
    argv: Argv,
    *,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    input: bytes | str | None = None,
    timeout: float | None = None,
    check: bool = True,
    code: int = Code.STAGE,
    hint: str = "",
    pass_fds: Sequence[int] = (),
    quiet: bool = False,
) -> Result:
    """Run a program to its end and return what it printed.

    ``env`` is added to this process's own; ``timeout`` is in seconds; a ``quiet`` call is not
    shown, whatever the user asked for.  Raises VmoatError with
    MISSING where the program is not installed, TIMEOUT when it takes too long, and ``code`` with
    its last lines when it fails and ``check`` is set.
    """
    from plumbum import local

    words = _resolve(argv)
    if _echo and not quiet:
        _echo(paste(argv, cwd))
    data = input.encode() if isinstance(input, str) else input
    started = local[words[0]][words[1:]].popen(
        stdin=subprocess.DEVNULL if data is None else subprocess.PIPE,
        cwd=os.fspath(cwd) if cwd else None,
        env={**os.environ, **(env or {})},
        start_new_session=True,
        pass_fds=tuple(pass_fds),
    )
    process = cast("subprocess.Popen[bytes]", started)  # plumbum's, with additions
    try:
        output, errors = process.communicate(data, timeout)
    except subprocess.TimeoutExpired as error:
        raise VmoatError(
            f"`{paste(argv)}` did not end within {timeout:g} s", hint=hint, code=Code.TIMEOUT
        ) from error
    finally:
        if process.poll() is None:
            _end_group(process)
    rc, out, err = process.returncode, _text(output), _text(errors)
    result = Result(tuple(words), rc, out, err)
    if check and rc != 0:
        raise VmoatError(
            f"`{paste(argv)}` failed with exit code {rc}",
            hint=hint,
            code=code,
            details=result.last_lines(),
        )
    return result


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and its children: one of these may hold the pipe that we read."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def spawn(
    argv: Argv,
    *,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    detach: bool = True,
) -> subprocess.Popen[bytes]:
    """Start a program and return at once; detached, it outlives this process and its terminal.

    It holds none of the caller's descriptors but those named here.
    """
    words = _resolve(argv)
    if _echo:
        _echo(paste(argv, cwd) + (" &" if detach else ""))
    return subprocess.Popen(
        words,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=tuple(pass_fds),
        start_new_session=detach,
    )
