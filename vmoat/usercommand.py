"""The user's own commands in the guest: `vmoat ssh`, `exec`, `test`.

They run at the worktree's path in a login shell, on our own standard streams, in one ssh session
whose only programs are sshd's shell, the login shell and the command.

A random id in ``VMOAT_EXEC`` marks the processes of a command: signals find its process group by
it.  Where this process is killed outright (kill -9), a watchdog of ours sends that group HUP and
three seconds later KILL; a command that is to outlive it needs ``setsid``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import IO, TYPE_CHECKING

from vmoat import clock, proc
from vmoat.errors import Code, VmoatError

if TYPE_CHECKING:
    from vmoat.guest import Guest

EXEC = (
    "{clock}{before}export {env}; "
    'cd -- {cwd} || {{ echo "vmoat: the worktree is not there in the VM" >&2; exit 125; }}; '
    # Signals are for the command; this shell, which sshd started, stays to say how it ended.
    "trap : INT TERM HUP; "
    # The login shell becomes the command where the line is one: a shell in between would die of a
    # signal that the command handles, and its exit code be lost.
    "( exec bash -lc {line} ); _vmoat_rc=$?; "
    # 255 is also what ssh itself ends with: a file tells the two apart.
    '[ "$_vmoat_rc" != 255 ] || : >"/tmp/.vmoat-$VMOAT_EXEC"; {behind}exit "$_vmoat_rc"'
)
"""One program less than a login shell around a login shell: 50 ms under emulation."""

SIGNAL = """\
n=0
while :; do
  found=$(grep -lzxF "VMOAT_EXEC={id}" /proc/[0-9]*/environ 2>/dev/null)
  groups=' '
  for f in $found; do
    read -r s <"${{f%/environ}}/stat" || continue
    s=${{s##*) }}; s=${{s#* }}; s=${{s#* }}; s=${{s%% *}}
    case $groups in *" $s "*) ;; *) groups="$groups$s " ;; esac
  done
  [ "$groups" = ' ' ] || break
  n=$((n + 1)); [ $n -lt {tries} ] || exit 1
  sleep 0.2
done
for g in $groups; do kill -s {name} -- "-$g"; done 2>/dev/null
"""


def command_line(words: Sequence[str]) -> str:
    """One word is a shell line, several are an argument list; a leading ``--`` is dropped."""
    rest = list(words[1:] if words[:1] == ["--"] else words)
    return rest[0] if len(rest) == 1 else shlex.join(rest)


def exec_command(
    line: str,
    cwd: str,
    env: Mapping[str, str],
    marker: str,
    now: float,
    *,
    before: str = "",
    behind: str = "",
) -> str:
    """What sshd's shell gets to run ``line`` in a login shell; "" is an interactive one.

    ``now`` is the host's time; ``before`` and ``behind`` are shell, each ended by ``; ``.
    """
    words = " ".join(f"{key}={shlex.quote(value)}" for key, value in env.items())
    words = f"{words} VMOAT_EXEC={marker}".lstrip()
    folder = shlex.quote(cwd)
    if not line:
        return f"{clock.step(now)}{before}cd -- {folder}; {words} exec bash -l"
    return EXEC.format(
        clock=clock.step(now), before=before, behind=behind, env=words, cwd=folder,
        line=shlex.quote(line),
    )  # fmt: skip


def run(
    guest: Guest,
    words: Sequence[str],
    *,
    tty: bool,
    cwd: str,
    env: Mapping[str, str],
    output: IO[bytes] | None = None,
) -> int:
    """Run a command (no words: an interactive login shell); returns its exact exit code.

    ``output`` takes standard output and error; without it they are our own.

    SIGINT, SIGTERM and SIGHUP reach the remote process group; a command that a signal ended
    returns 128 + its number.  Raises BEFORE (125) where it cannot be run, or where the connection
    breaks under it.
    """
    try:
        guest.connect()
    except VmoatError as error:
        error.code = int(Code.BEFORE)
        raise
    marker = secrets.token_hex(8)
    line = command_line(words)
    master = _identity(guest)
    remote = exec_command(
        line, cwd, env, marker, time.time(), before=guest.before, behind=guest.behind
    )
    argv = guest.argv(remote, options=("-tt",) if tty else ("-T",))
    with _streams_kept(), _watchdog(guest, marker), _signals(guest, marker):
        rc = proc.spawn(
            argv,
            stdin=0 if _open(0) else subprocess.DEVNULL,
            stdout=output or (1 if _open(1) else subprocess.DEVNULL),
            stderr=output or (2 if _open(2) else subprocess.DEVNULL),
            # A terminal's Ctrl-C must not end ssh itself: the exit code would be lost.
            detach=not tty,
        ).wait()
    if rc < 0:
        return 128 - rc
    return _settle_255(guest, marker, master) if rc == 255 and line else rc


def _identity(guest: Guest) -> int:
    """Changes when the master does."""
    try:
        return guest.connection.socket().stat().st_ino
    except OSError:
        return 0


def _settle_255(guest: Guest, marker: str, master: int) -> int:
    """The command's own 255, or the connection's?

    The shell around the command left a file when it was the command.  Without one, and with the
    connection as it was, that shell itself was killed: nothing but KILL ends it.
    """
    if not guest.connected() or _identity(guest) != master:
        raise guest.lost(code=Code.BEFORE)
    name = f"/tmp/.vmoat-{marker}"
    try:
        result = guest.run(f"[ -e {name} ] || exit 9; exec rm -f {name}", timeout=15, check=False)
    except VmoatError as error:
        raise guest.lost(error.details, Code.BEFORE) from error
    if result.rc not in (0, 9):
        raise guest.lost(result.last_lines(), Code.BEFORE)
    return 255 if result.rc == 0 else 128 + signal.SIGKILL


def _kill_argv(guest: Guest, marker: str, name: str, tries: int) -> list[str]:
    # As root: the environment of a program that sudo started is root's to read.
    return guest.argv(SIGNAL.format(id=marker, name=name, tries=tries), root=True)


@contextlib.contextmanager
def _signals(guest: Guest, marker: str) -> Iterator[None]:
    """Hand signals on to the remote process group while the command runs."""
    senders: list[subprocess.Popen[bytes]] = []

    def hand_on(number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name.removeprefix("SIG")
        senders.append(proc.spawn(_kill_argv(guest, marker, name, 25)))

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {}
    with contextlib.suppress(ValueError):  # not the main thread: nothing to hand on
        before = {
            number: signal.signal(number, hand_on)
            for number in wanted
            if signal.getsignal(number) is not signal.SIG_IGN  # nohup stays nohup
        }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for sender in senders:
            with contextlib.suppress(subprocess.TimeoutExpired):
                sender.wait(2)
            if sender.poll() is None:
                sender.kill()
                sender.wait()


@contextlib.contextmanager
def _watchdog(guest: Guest, marker: str) -> Iterator[None]:
    """A small shell that outlives a kill -9 of ours and then ends the remote command."""
    kill = [proc.paste(_kill_argv(guest, marker, name, 2)) for name in ("HUP", "KILL")]
    text = f"trap '' INT TERM HUP; read -r done || {{ {kill[0]}; sleep 3; {kill[1]}; }}"
    ours, theirs = None, None
    theirs, ours = os.pipe()
    dog = proc.spawn(["sh", "-c", text], stdin=theirs, cwd="/")
    os.close(theirs)
    try:
        yield
    finally:
        os.write(ours, b"done\n")
        os.close(ours)
        dog.wait()


def _open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _streams_kept() -> Iterator[None]:
    """Give the standard streams back as they were: terminal modes and O_NONBLOCK.

    ssh hands its descriptors to the master, and one that is killed restores neither.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    flags = {fd: fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (0, 1, 2) if _open(fd)}
    modes = termios.tcgetattr(0) if _open(0) and os.isatty(0) else None
    try:
        yield
    finally:
        for fd, value in flags.items():
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, fcntl.F_SETFL, value)
        if modes is not None:
            ignored = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            try:
                with contextlib.suppress(termios.error):
                    termios.tcsetattr(0, termios.TCSADRAIN, modes)
            finally:
                signal.signal(signal.SIGTTOU, ignored)
