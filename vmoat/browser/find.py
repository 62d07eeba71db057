"""Which Chromium this machine has, and whether it can show a window."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from vmoat import proc
from vmoat.errors import Code, VmoatError

NAMES = (
    "google-chrome", "google-chrome-stable", "chromium", "chromium-browser", "microsoft-edge",
    "microsoft-edge-stable", "brave-browser",
)  # fmt: skip
APPS = ("Google Chrome", "Chromium", "Microsoft Edge", "Brave Browser")
"""On macOS, where their programs are on nobody's PATH."""


def command(setting: str) -> list[str]:
    """The browser's program, with the arguments that ``browser.command`` gives it.

    Raises MISSING where there is none, CONFIG for a setting that is no command.
    """
    if setting.strip():
        return _configured(setting)
    for name in NAMES:
        if found := proc.which(name):
            return [found]
    for program in _apps(sys.platform, os.path.expanduser("~")):
        if os.access(program, os.X_OK):
            return [str(program)]
    raise VmoatError(
        "no Chromium or Chrome is installed on this machine",
        hint="install one (`apt-get install chromium`), or name it in `browser.command` of your "
        "config.toml",
        code=Code.MISSING,
    )


def _configured(setting: str) -> list[str]:
    try:
        words = shlex.split(setting)
    except ValueError as error:
        raise VmoatError(
            f"browser.command is no command: {error}",
            hint="blanks in a path are quoted as in a shell",
            code=Code.CONFIG,
        ) from error
    program = os.path.expanduser(words[0])
    found = proc.which(program)
    if found is None:
        raise VmoatError(
            f"the program `{program}` of browser.command is not there",
            hint="`vmoat config browser.command` says where that is set",
            code=Code.MISSING,
        )
    return [found, *words[1:]]


def _apps(platform: str, home: str) -> list[Path]:
    if platform != "darwin":
        return []
    folders = (Path("/Applications"), Path(home) / "Applications")
    return [f / f"{app}.app" / "Contents" / "MacOS" / app for app in APPS for f in folders]


def has_display(env: Mapping[str, str], platform: str) -> bool:
    """Whether a window can be shown to somebody."""
    return platform == "darwin" or bool(env.get("DISPLAY") or env.get("WAYLAND_DISPLAY"))
