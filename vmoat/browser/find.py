"""Which Chromium this machine has, and whether it can show a window."""

from __future__ import annotations

import contextlib
import os
import re
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
VERSION_LIMIT = 5.0
"""Seconds for a browser to tell its version; a cold one reads its program from disk."""


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


def name(setting: str) -> str:
    """The browser as a person knows it, with its version where asking is cheap.

    What a setting names may show a window whatever it is asked, and a snap's first start takes
    long: neither is started.  Raises as ``command``.
    """
    program = command(setting)[0]
    told = ""
    if "Contents" in Path(program).parts:
        told = _app_version(Path(program))
    elif not setting.strip() and not snap(program):
        with contextlib.suppress(VmoatError):
            told = proc.run([program, "--version"], check=False, timeout=VERSION_LIMIT).out
    named = re.match(r"[\w .-]{1,80}?\d+(\.\d+)+", told)  # "… built on Debian": not that
    return named[0] if named else program


def _app_version(program: Path) -> str:
    """Name and version of a macOS app, from its Info.plist."""
    import plistlib

    try:
        info = plistlib.loads((program.parents[1] / "Info.plist").read_bytes())
        return f"{info['CFBundleName']} {info['CFBundleShortVersionString']}"
    except (OSError, ValueError, KeyError, TypeError, plistlib.InvalidFileException):
        return ""


def snap(program: str) -> str:
    """The snap that a program comes from; "" for none.  /snap/bin/NAME leads to /usr/bin/snap."""
    real = os.path.realpath(program)
    in_snap = real == "/usr/bin/snap" or real.startswith("/snap/")
    return os.path.basename(program).split(".")[0] if in_snap else ""


def has_display(env: Mapping[str, str], platform: str) -> bool:
    """Whether a window can be shown to somebody."""
    return platform == "darwin" or bool(env.get("DISPLAY") or env.get("WAYLAND_DISPLAY"))
