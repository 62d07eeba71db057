"""Long commands of the guest: transient systemd units that outlive whoever watches them.

A job's folder in the guest, ``/var/lib/vmoat/stages/NAME``:

- ``run``      the script that the unit executes.  The unit itself names only this path, so nothing
               of the user's meets systemd's own ``%`` and ``$``.
- ``attempt``  which attempt was started last.
- ``pid``      the script's process, which ends when the job does, and when its command was
               started (seconds since the epoch).
- ``rc``       ``ATTEMPT RC``, written and synced when the command has ended.

Its output is ``/var/log/vmoat/NAME.log``, the previous attempt's ``NAME.log.1``.  A log that has
grown to ``LOG_LIMIT`` becomes ``NAME.log.old`` (its newest part) and begins anew: what logs for
ever fills no disk.

A service that ends with an error is started again, ``RESTARTS`` times in a row; a run of
``WELL`` seconds makes that start over.  One that ends with 0, or whose program is not there, has
ended.  The script does it and not systemd, so that the unit, its log and its state are one.

Running means:
this attempt, no ``rc`` of it, and processes in the unit's cgroup.  The unit remains after its
exit, so that what a command left in the background lives on until the next attempt or
``stop_script``.

Start, follow and exit code are one ssh session: standard output is the log, standard error is ours.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from vmoat import clock, localfolders, proc
from vmoat.errors import Code, VmoatError

if TYPE_CHECKING:
    from vmoat.guest import Guest

OnLine = Callable[[str], None]
"""Takes one line of output, without its line end."""

RECONNECT = 60
"""Seconds to find a guest again whose connection broke under a running stage."""

SYSTEMD_NAMES = (
    "INVOCATION_ID JOURNAL_STREAM SYSTEMD_EXEC_PID MEMORY_PRESSURE_WATCH "
    "MEMORY_PRESSURE_WRITE OLDPWD"
)

LOG_LIMIT = 64 << 20
LOG_KEPT = 16 << 20
"""Bytes of a log before it is cut, and of what is kept of it then."""
LOG_POLL = 5
"""Seconds between two looks at it."""
RESTARTS = 3
WELL = 60

RUN = """\
#!/bin/bash
d={folder} log={log}
exec </dev/null >>$log 2>&1
umask 022
unset {systemd}
while IFS=: read -r name _ _ gid _ HOME _; do [ "$name" = {user} ] && break; done </etc/passwd
export HOME USER={user} LOGNAME={user} SHELL=/bin/bash {exports}
{bound}
run() {{
  echo $$ $EPOCHSECONDS >$d/pid
  {become}bash -lc {inner} bash {cwd} {command} 8>&-
}}
{body}
{unbound}
[ ! -d {store} ] || sync -f {store}
echo {attempt} $rc >$d/rc.new && sync $d/rc.new && mv $d/rc.new $d/rc && sync $d
exit 0
"""

ONCE = """\
run
rc=$?"""

AGAIN = """\
n=0
while :; do
  run
  rc=$?
  read -r _ since <$d/pid
  [ $((EPOCHSECONDS - since)) -lt {well} ] || n=0
  case $rc in 0 | 126 | 127) break ;; esac
  [ $n -lt {restarts} ] || break
  echo "[vmoat] it ended with exit code $rc and is started again ($((n += 1)) of {restarts})"
  read -rt $n -u 8
done"""

BOUND = """\
# A look costs no program: the offset of our own standard output is the size of the log.
exec 8<> <(:)
group=/sys/fs/cgroup$(</proc/self/cgroup); group=${{group/0::/}}/cgroup.procs
others() {{ local p n=0; while read -r p; do n=$((n + 1)); done <"$group"; [ $n -gt "$1" ]; }}
watch_log() {{
  while others 1; do
    read -rt {poll} -u 8
    read -r _ size </proc/self/fdinfo/1
    # The offset stays where it was until something is written to the log that was cut.
    [ "$size" -gt {limit} ] && [ -s $log ] && {{ tail -c {kept} $log >$log.old; : >$log; }}
  done
}}
watch_log & watcher=$!
disown  # or bash would tell of its end"""

UNBOUND = """\
# What the command left in the background goes on, and so does the look at its log.
others 2 || kill $watcher"""

INNER = 'cd -- "$1" || exit; eval "shift 2;$2"'

START = """\
{clock}
d={folder} log={log} u={unit} want={attempt}
exec 9>/run/vmoat/$u.lock && flock -w 30 9
cg=/sys/fs/cgroup/system.slice/$u/cgroup.events
state=gone
read -r was 2>/dev/null <$d/attempt || was=
if [ "$was" = "$want" ]; then
  running=0
  while read -r key value; do [ "$key" = populated ] && running=$value; done 2>/dev/null <$cg
  [ "$running" = 1 ] && state=running
  read -r of rc 2>/dev/null <$d/rc && [ "$of" = "$want" ] && state=done
fi
"""
# The lock: a killed worker's session may still be about to launch what the next one asks for.
# `while … done <missing` prints through the shell itself, hence 2>/dev/null before each `<`.

LAUNCH = """\
launch() {{
  [ ! -e "${{cg%/*}}" ] || systemctl -q stop $u
  mkdir -p $d /var/log/vmoat || exit 1
  rm -f $d/rc $d/pid $log.old
  [ ! -e $log ] || mv -f $log $log.1
  (umask 022; : >$log)
  umask 077
  printf %s {run} >$d/run
  echo "$want" >$d/attempt
  systemd-run -q --collect --unit=$u --service-type=exec -p RemainAfterExit={remain} \\
    -p TimeoutStopSec=10 -p LimitNOFILE=1048576 -- /bin/bash $d/run || {{
    systemctl stop $u; systemctl reset-failed $u
    systemd-run -q --collect --unit=$u --service-type=exec -p RemainAfterExit={remain} \\
      -p TimeoutStopSec=10 -p LimitNOFILE=1048576 -- /bin/bash $d/run
  }} 2>/dev/null || {{ echo 'vmoat:error systemd-run failed' >&2; exit 1; }}
}}
"""

FOLLOW = """\
exec 9>&-
echo "vmoat:state $state" >&2
if [ $state = done ]; then
  tail -c +{start} $log
else
  n=0
  until [ -s $d/pid ]; do n=$((n + 1)); [ $n -lt 200 ] || break; sleep 0.05; done
  read -r pid _ <$d/pid
  tail -c +{start} -s 0.1 --pid=$pid -f $log &
  tail=$!
  trap 'kill $tail; exit' HUP TERM PIPE
  wait $tail
fi
of= rc=
read -r of rc 2>/dev/null <$d/rc
[ "$of" = "$want" ] && echo "vmoat:rc $rc" >&2 || echo vmoat:gone >&2
"""


class StageGone(VmoatError):  # noqa: N818 (no fault of its own: a state)
    """A stage was stopped, or its guest went down, before it ended."""


@dataclass(frozen=True)
class Job:
    """What to run in the guest; ``attempt`` is one word that names this try."""

    name: str
    command: str
    attempt: str
    user: str
    cwd: str
    env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.:-]+", self.attempt, re.ASCII):
            raise ValueError(f"not an attempt's id: {self.attempt!r}")


def unit(name: str) -> str:
    """The unit of a stage; letters that systemd does not take become ``_``."""
    return f"vmoat-{_plain(name)}.service"


def log_path(name: str) -> str:
    """The guest's file with the output of a stage's last attempt."""
    return f"/var/log/vmoat/{_plain(name)}.log"


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", lambda m: f"_{ord(m[0]):x}", name)


def folder(name: str) -> str:
    """The guest's folder of a stage (see above)."""
    return f"/var/lib/vmoat/stages/{_plain(name)}"


def run_script(job: Job, *, service: bool = False) -> str:
    """The script of the unit: the command in a login shell of its user, then its exit code.

    ``service``: started again when it ends with an error.
    """
    become = ""
    if job.user != "root":
        user = shlex.quote(job.user)
        become = f'setpriv --reuid {user} --regid "$gid" --init-groups -- '
    return RUN.format(
        folder=folder(job.name),
        log=log_path(job.name),
        store=localfolders.STORE,
        attempt=job.attempt,
        systemd=SYSTEMD_NAMES,
        user=job.user,
        become=become,
        exports=" ".join(f"{key}={shlex.quote(value)}" for key, value in job.env.items()),
        inner=shlex.quote(INNER),
        cwd=shlex.quote(job.cwd),
        command=shlex.quote(job.command),
        bound=BOUND.format(poll=LOG_POLL, limit=LOG_LIMIT, kept=LOG_KEPT),
        unbound=UNBOUND,
        body=AGAIN.format(restarts=RESTARTS, well=WELL) if service else ONCE,
    )


def _head(job: Job, service: bool) -> str:
    start = START.format(
        folder=folder(job.name), log=log_path(job.name), unit=unit(job.name), attempt=job.attempt,
        clock=clock.step(time.time()),
    )  # fmt: skip
    remain = "no" if service else "yes"
    return start + LAUNCH.format(
        run=shlex.quote(run_script(job, service=service)), remain=remain
    )


def start_script(job: Job, *, service: bool = False) -> str:
    """Start a job, or leave it alone while this attempt of it runs."""
    return _head(job, service) + "[ $state = running ] || launch\n"


def follow_script(job: Job, *, offset: int = 0, join_only: bool = False) -> str:
    """Start or join a job and print its output from byte ``offset`` on, then how it ended."""
    launch = "" if join_only else "[ $state != gone ] || { launch; state=started; }\n"
    gone = "[ $state != gone ] || { echo vmoat:gone >&2; exit; }\n"
    return _head(job, False) + launch + gone + FOLLOW.format(start=offset + 1)


def stop_script(name: str) -> str:
    """Stop a job and everything in its cgroup; what had ended keeps its exit code."""
    return f"[ ! -e /sys/fs/cgroup/system.slice/{unit(name)} ] || systemctl -q stop {unit(name)}\n"


class _Lines:
    """Bytes in, whole lines out; knows how many bytes it has passed on."""

    def __init__(self, on_line: OnLine | None) -> None:
        self._on_line = on_line
        self._rest = b""
        self.passed = 0

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.passed += len(line) + 1
            self._say(line)

    def end(self) -> None:
        if self._rest:
            self.passed += len(self._rest)
            self._say(self._rest)
        self._rest = b""

    def drop_rest(self) -> None:
        """A broken line comes again, whole."""
        self._rest = b""

    def _say(self, line: bytes) -> None:
        if self._on_line:
            self._on_line(line.rstrip(b"\r").decode(errors="replace"))


def follow(guest: Guest, job: Job, on_line: OnLine | None, timeout: float | None) -> int:
    """Start or join, pass lines on as they come, return the exit code (see ``Guest.stage``)."""
    deadline = None if timeout is None else time.monotonic() + timeout
    lines = _Lines(on_line)
    joined = False
    while True:
        guest.connect(RECONNECT if joined else 60)
        words = _session(guest, job, lines, deadline, joined)
        if (rc := words.get("rc", "")).isdigit():
            lines.end()
            return int(rc)
        if deadline is not None and time.monotonic() >= deadline:
            guest.stop_stage(job.name)
            raise VmoatError(f"`{job.name}` did not end within {timeout:g} s", code=Code.TIMEOUT)
        if "gone" in words:
            raise StageGone(
                f"`{job.name}` was stopped in the VM before it ended",
                hint="`vmoat up` runs it again",
                code=Code.VM,
            )
        if "error" in words or (guest.connected() and "state" not in words):
            raise VmoatError(
                f"the VM could not start `{job.name}`",
                code=Code.VM,
                details=words.get("said", "").splitlines()[-8:],
            )
        lines.drop_rest()
        joined = joined or "state" in words


def _session(
    guest: Guest, job: Job, lines: _Lines, deadline: float | None, joined: bool
) -> dict[str, str]:
    """One ssh session that follows a job; returns what the guest's side said."""
    script = follow_script(job, offset=lines.passed, join_only=joined)
    with tempfile.TemporaryFile() as said:
        process = proc.spawn(
            guest.argv(script, root=True), stdout=subprocess.PIPE, stderr=said, detach=True
        )
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        timer = threading.Timer(left, process.kill) if left is not None else None
        try:
            if timer:
                timer.start()
            assert process.stdout is not None
            _pump(process.stdout, lines)
            process.wait()
        finally:
            if timer:
                timer.cancel()
            if process.poll() is None:
                process.kill()
                process.wait()
            with contextlib.suppress(OSError):
                process.stdout.close()  # type: ignore[union-attr]
        said.seek(0)
        text = said.read().decode(errors="replace")
    words = dict(re.findall(r"^vmoat:(\w+) ?(.*)$", text, re.MULTILINE))
    return {"said": text, **words}


def _pump(stream: IO[bytes], lines: _Lines) -> None:
    while data := stream.read1(65536):  # type: ignore[attr-defined]
        lines.feed(data)
