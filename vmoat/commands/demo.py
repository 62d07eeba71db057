"""demo: the whole way of a worktree, shown in a throwaway repository."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

from vmoat import demo as ground
from vmoat import doctor as rules
from vmoat import hostfacts, hostfix, proc
from vmoat.commands.machine import user_settings
from vmoat.errors import Code, VmoatError
from vmoat.output import Output

LAST_WORDS = 30.0
"""Seconds for an interrupted step to end by itself."""

BUNDLE_LIMIT = 180.0
"""Seconds for gathering the logs of a demo that failed."""


@dataclass
class Player:
    """Runs the steps as a person would: each is a process of its own, on the same terminal."""

    place: ground.Playground
    out: Output
    times: list[tuple[str, float]] = field(default_factory=list)

    def vmoat(self, *words: str, note: str = "", stdout: int = 1) -> str:
        """One ``vmoat …`` in the worktree; returns its answer where ``stdout`` is a pipe.

        Raises an error with the step's own exit code.
        """
        line = shlex.join(["vmoat", *words])
        self.out.say(f"$ {line}")
        started = time.monotonic()
        code, answer = _wait(self._start(words, stdout))
        if note:
            self.times.append((f"{line:<22} {note}", time.monotonic() - started))
        if code == Code.INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            raise VmoatError(
                f"the demo stopped: `{line}` ended with exit code {code}", code=_exit_code(code)
            )
        return answer

    def quietly(self, *words: str, limit: float) -> bool:
        """One ``vmoat …`` whose words nobody needs; whether it ended well in time."""
        step = self._start(words, subprocess.DEVNULL, subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return step.wait(limit) == 0
        step.kill()
        step.wait()
        return False

    def _start(
        self, words: Sequence[str], stdout: int, stderr: int = 2
    ) -> subprocess.Popen[bytes]:
        stdin = 0 if self.out.interactive else subprocess.DEVNULL
        return proc.spawn(
            proc.own_argv(*words), cwd=self.place.worktree, stdin=stdin, stdout=stdout,
            stderr=stderr, detach=False,
        )  # fmt: skip


def _exit_code(code: int) -> int:
    return code if code > 0 else 128 - code


def _wait(step: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Exit code and piped answer; an interrupted step gets the time to say its last words."""
    try:
        answer, _ = step.communicate()
        return step.returncode, (answer or b"").decode(errors="replace")
    except KeyboardInterrupt:
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            if not sys.stderr.isatty():  # a terminal's Ctrl-C has reached the step itself
                step.send_signal(signal.SIGINT)
            step.wait(LAST_WORDS)
        if step.poll() is None:
            step.kill()
            step.wait()
        raise


def demo(args: argparse.Namespace, out: Output) -> int:
    """Show everything once, then remove it; ``--keep`` leaves it."""
    require_tools()
    place = ground.place(args.dir)
    player = Player(place, out)
    out.say(f"a throwaway repository with a worktree, in {place.folder}")
    with _ended_like_interrupted():
        try:
            ground.create(place)
            play(player)
        except KeyboardInterrupt:
            _end(player, args.keep)
            raise VmoatError("the demo was interrupted", code=Code.INTERRUPTED) from None
        except VmoatError as error:
            hint = _where_logs_are(player, args.keep)
            _end(player, args.keep)
            raise VmoatError(
                error.message, code=error.code, details=error.details, hint=hint
            ) from error
        summary(player)
        _end(player, args.keep)
    return int(Code.OK)


def require_tools() -> None:
    """Raise MISSING, with what and the cure, where this machine lacks something."""
    facts = hostfacts.gather(user_settings())
    findings = rules.examine(facts)
    if rules.well(findings):
        return
    rows = [f for f in findings if f.verdict.state == rules.MISSING]
    details: list[str] = []
    for finding in rows:
        details.append(finding.verdict.says)
        details += [f"  → {line}" for line in hostfix.cure_lines(finding.verdict, facts.manager)]
    raise VmoatError(
        "the demo cannot run on this machine yet", details=details,
        hint="`vmoat doctor --fix` installs what is missing", code=Code.MISSING,
    )  # fmt: skip


def play(player: Player) -> None:
    """The steps."""
    out = player.out
    player.vmoat("up", note="first: VM, packages, seed, stack, health")
    player.vmoat("up", note="again: nothing to do")
    out.say(f"$ {ground.edit(player.place)}")
    player.vmoat("plan", note="what depends on the edit, and why")
    player.vmoat("up", note="after the edit: only what depends on it")
    player.vmoat("test", ground.NEW, note="inside the VM")
    url = player.vmoat("tunnel", str(ground.WEB_PORT), note="to this machine's loopback",
                       stdout=subprocess.PIPE).strip()  # fmt: skip
    out.say(f"$ curl {url}")
    page = ground.fetch(url)
    for line in page.splitlines():
        out.say(f"  {line}")
    if ground.NEW not in page:
        raise VmoatError("the demo stopped: the page that came back is not the edited one")


def summary(player: Player) -> None:
    """What happened, with times."""
    player.out.say("what happened:")
    width = max(len(name) for name, _ in player.times)
    for name, seconds in player.times:
        player.out.answer(f"{name:<{width}}  {seconds:7.1f} s")


def _where_logs_are(player: Player, keep: bool) -> str:
    """Save the logs before the VM goes; says where they are."""
    if keep:
        return f"its logs: `vmoat -C {shlex.quote(str(player.place.worktree))} logs --bundle DIR`"
    if not player.place.worktree.is_dir():
        return ""
    folder = Path(tempfile.mkdtemp(prefix="vmoat-demo-logs-"))
    player.quietly("logs", "--bundle", str(folder), limit=BUNDLE_LIMIT)
    if any(folder.iterdir()):
        return f"its logs are in {folder}; `vmoat doctor` checks this machine"
    folder.rmdir()
    return "`vmoat doctor` checks this machine"


def _end(player: Player, keep: bool) -> None:
    """Remove VM and folder, or say how."""
    place, out = player.place, player.out
    worktree, folder = shlex.quote(str(place.worktree)), shlex.quote(str(place.folder))
    how = f"vmoat -C {worktree} destroy -f && rm -rf {folder}"
    if keep:
        out.say(f"it stays: cd {worktree}")
        out.say(f"to remove it: {how}")
        return
    try:
        if place.worktree.is_dir():
            player.vmoat("destroy", "-f")
        ground.remove(place)
    except (VmoatError, OSError, KeyboardInterrupt) as error:
        # Without the folder, nobody would know what VM it was.
        out.warn(f"the demo could not be removed ({error or 'interrupted'}): {how}")
        return
    out.say("the VM and the repository are removed; `vmoat up` does the same in your worktree")


@contextlib.contextmanager
def _ended_like_interrupted() -> Iterator[None]:
    """SIGTERM and SIGHUP clean up as Ctrl-C does."""

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    wanted = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
