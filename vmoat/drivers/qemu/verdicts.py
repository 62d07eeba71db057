"""What a real guest has proven of this machine's programs: remembered, because trying takes a boot.

A verdict holds for the program's file, the host's kernel and its CPU.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tomllib
from pathlib import Path
from typing import Any

from vmoat import paths
from vmoat.errors import VmoatError


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "CPU part")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


def key(program: str) -> str:
    """What a verdict holds for."""
    try:
        info = os.stat(program)
        binary = f"{info.st_size}.{info.st_mtime_ns}"
    except OSError:
        binary = ""
    text = "\n".join((program, binary, platform.release(), platform.machine(), _cpu_model()))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _file() -> Path:
    return paths.state_home() / "proven.toml"


def _table() -> dict[str, Any]:
    try:
        return tomllib.loads(_file().read_text())
    except (OSError, ValueError):
        return {}


def remembered(what: str, program: str) -> str:
    """``works``, ``fails``, or "" when it was never tried here."""
    return str(_table().get(what, {}).get(key(program), {}).get("verdict", ""))


def remember(what: str, program: str, works: bool, why: str = "") -> None:
    """Keep the verdict; one that cannot be kept is found anew next time."""
    import tomli_w

    verdict = {"verdict": "works" if works else "fails", "why": why[:300], "program": program}
    try:
        paths.make_private(paths.state_home())
        new = _file().with_suffix(".new")
        new.write_text(tomli_w.dumps({**_table(), what: {key(program): verdict}}))
        new.replace(_file())
    except (OSError, VmoatError):
        pass
