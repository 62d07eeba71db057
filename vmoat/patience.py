"""What a command that takes long says where nobody is at a terminal, before its caller gives up.

Agents and CI cut commands off, often after ten seconds, and are left with what was said until then.
"""

from __future__ import annotations

TYPE_CHECKING = False  # every command comes by here
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmoat.output import Output

SOON = 5.0
"""Seconds until it is said."""

_FOLLOWED = "this only watches: cut off, the work goes on, and `vmoat wait` follows it"
_NOT_YET = "nothing is begun yet; cut off, `vmoat {}` again begins it"
_AGAIN = "cut off, it is half done, and `vmoat {}` again goes on from there"
_ANEW = "cut off, `vmoat {}` again begins anew"

LONG = {
    "up": _NOT_YET.format("up --detach"),
    "wait": _FOLLOWED,
    "provision": _NOT_YET.format("provision"),
    "test": "the tests end with this command; `vmoat up test --detach` runs them in the "
    "background, `vmoat wait` follows, `vmoat logs --stage test` shows their output",
    "down": _AGAIN.format("down"),
    "destroy": _AGAIN.format("destroy"),
    "gc": _AGAIN.format("gc"),
    "doctor": "cut off, `vmoat doctor` again begins anew; nothing goes on",
    "image": "cut off, `vmoat image` again begins anew; nothing goes on",
    "demo": "cut off, it removes its repository and its VM before it ends",
    # These ask a guest, which may be busy, or bash (`config`), or load a page.
    **{name: _ANEW.format(name) for name in
       ("status", "plan", "config", "tunnel", "untunnel", "env", "open", "shot", "browser-args")},
}  # fmt: skip
"""What each command that may take long says.

Not `exec`, `ssh`, `cp` and `logs`: their stderr is the program's own, and they end with it.
"""

_follows = False


def follows() -> None:
    """The work goes on in a process of its own from here, and this one only watches."""
    global _follows
    _follows = True


def begin(command: str, out: Output, *, quiet: bool = False) -> Callable[[], None]:
    """Have it said, once, after ``SOON`` seconds; returns what calls that off.

    A terminal is told nothing: who sits there sees what goes on.  Nor is who asked for quiet.
    """
    if quiet or command not in LONG:
        return lambda: None
    watches = command in ("up", "provision")
    return after(lambda: _FOLLOWED if watches and _follows else LONG[command], out)


def after(text: Callable[[], str], out: Output) -> Callable[[], None]:
    """Have ``text`` said after ``SOON`` seconds where nobody is at a terminal; as ``begin``."""
    if out.stderr.isatty():
        return lambda: None
    import threading

    timer = threading.Timer(SOON, _say, (text, out))
    timer.daemon = True
    timer.start()
    return timer.cancel


def _say(text: Callable[[], str], out: Output) -> None:
    try:
        out.say(f"still at it; {text()}")
    except (OSError, ValueError):
        return  # whoever read it has gone
