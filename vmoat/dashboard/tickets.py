"""The tickets that let a browser in, and the file that hands one over.

A browser is started with a URL in its arguments, which every user of the machine can read.  So it
is given a file instead, in a folder of this user alone; that goes on to the dashboard's URL.  What
it holds is no token but a ticket, good for one browser and a minute: browsers keep a history.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vmoat import paths
from vmoat.browser.find import has_display
from vmoat.state import write_atomically

TICKET_SECONDS = 60.0
"""For the browser to start and ask for the page."""

PAGE = "open.html"

GO_ON = """<!doctype html><meta charset="utf-8"><title>vmoat</title>
<meta http-equiv="refresh" content="0;url={url}">
<p><a href="{url}">vmoat's dashboard</a></p>
"""


def ticket(folder: str = "") -> str:
    """A word that opens the page once; ``folder`` goes with it when it is used."""
    word = "once-" + secrets.token_urlsafe(18)
    write_atomically(_file(word), folder.encode())
    return word


def redeem(word: str) -> bool:
    """Whether the word is a ticket; it is none any more."""
    if not re.fullmatch(r"once-[A-Za-z0-9_-]{20,40}", word):  # it becomes a path
        return False
    try:
        made = _file(word).stat().st_mtime
        _remove(_file(word))  # of two who come at once, one fails here
    except OSError:
        return False
    return 0 <= time.time() - made <= TICKET_SECONDS


def sweep() -> None:
    """Remove the tickets that nobody used, and their files."""
    for file in paths.dashboard_dir().glob("once-*"):
        with contextlib.suppress(OSError):
            _remove(file)


def _remove(file: Path) -> None:
    folder = file.read_text()
    file.unlink()
    if folder:
        Path(folder, PAGE).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            Path(folder).rmdir()


def _file(word: str) -> Path:
    return paths.dashboard_dir() / word


def address(url_with: Callable[[str], str], argv: Sequence[str], env: Mapping[str, str]) -> str:
    """What to start the browser with: a file that goes on to ``url_with(ticket)``.

    Where the browser may see no file of ours, or none can be made, it is that URL itself: the
    server knows whose connection it is (``server.verify_request``), but for macOS.
    """
    if not sees_files(argv, env, sys.platform):
        return url_with(ticket())
    try:
        folder = tempfile.mkdtemp(prefix="vmoat-dashboard-", dir=place(bool(shutil.which("snap"))))
    except OSError:
        return url_with(ticket())
    file = Path(folder, PAGE)
    write_atomically(file, GO_ON.format(url=url_with(ticket(folder))).encode())
    return file.as_uri()


def sees_files(argv: Sequence[str], env: Mapping[str, str], platform: str) -> bool:
    """Whether the browser that ``argv`` starts is one of this system.

    wslview starts Windows' one.  A ``$BROWSER`` where there is no display hands URLs on to the
    machine before which the user sits, as that of VS Code's terminals does over ssh.
    """
    if argv[:1] == ["wslview"] or env.get("VSCODE_IPC_HOOK_CLI"):
        return False
    return has_display(env, platform)


def place(snaps: bool) -> Path:
    """The folder for the browser's file; one that people see only where there are snaps.

    A browser that is a snap has a ``/tmp`` of its own, and of the home only what is not hidden
    (snapd's interface ``home``).
    """
    if snaps:
        return Path.home()
    paths.make_private(paths.dashboard_dir())
    return paths.dashboard_dir()
