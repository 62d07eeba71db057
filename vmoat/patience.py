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
_AGAIN = "cut off, it is half done, and `vmoat {}` again goes on from there"

LONG = {
    "up": _FOLLOWED,
    "wait": _FOLLOWED,
    "provision": _FOLLOWED,
    "test": "the tests end with this command; `vmoat up test --detach` runs them in the "
    "background, `vmoat wait` follows, `vmoat logs --stage test` shows their output",
    "down": _AGAIN.format("down"),
    "destroy": _AGAIN.format("destroy"),
    "gc": _AGAIN.format("gc"),
    "doctor": "cut off, `vmoat doctor` again begins anew; nothing goes on",
    "image": "cut off, `vmoat image` again begins anew; nothing goes on",
    "demo": "cut off, it removes its repository and its VM before it ends",
}
"""What each command that may take long says.

Not `exec`, `ssh`, `cp` and `logs`: their stderr is the program's own, and they end with it.
"""


def begin(command: str, out: Output, *, quiet: bool = False) -> Callable[[], None]:
    """Have it said, once, after ``SOON`` seconds; returns what calls that off.

    A terminal is told nothing: who sits there sees what goes on.  Nor is who asked for quiet.
    """
    if quiet or command not in LONG or out.stderr.isatty():
        return lambda: None
    import threading

    timer = threading.Timer(SOON, _say, (LONG[command], out))
    timer.daemon = True
    timer.start()
    return timer.cancel


def _say(text: str, out: Output) -> None:
    try:
        out.say(f"still at it; {text}")
    except (OSError, ValueError):
        return  # whoever read it has gone
