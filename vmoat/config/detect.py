"""What starts this project: looked for in its files, never asked of its programs."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from vmoat.config.files import exists, read_bytes
from vmoat.errors import VmoatError

# In the order in which Compose itself looks (docs.docker.com, "The Compose file").
COMPOSE = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
MAKEFILES = ("GNUmakefile", "makefile", "Makefile")  # `man make`, -f
OTHERS = ("Procfile", "justfile", "Justfile", "Taskfile.yml", "Tiltfile", "skaffold.yaml",
          ".devcontainer/devcontainer.json")  # fmt: skip
"""Found in projects and not started by vmoat itself; named, so that nobody wonders."""

_UP_RULE = re.compile(r"^(?:[^\s#:=][^#:=\n]*[ \t])?up(?:[ \t]+[^#:=\n]*)?::?(?!=)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Detected:
    """The command that starts the stack ("": nothing found), whether it stays in the foreground,
    what stops it, the file that told so, and what else was there."""

    command: str = ""
    service: bool = False
    down: str = ""
    source: str = ""
    passed_over: tuple[str, ...] = ()


def detect(path: Path) -> Detected:
    """Inspect a worktree: a compose file, then a Makefile with `up:`, then a `dev` script."""
    found = [entry for entry in (_compose(path), _make(path), _npm(path)) if entry]
    others = tuple(name for name in OTHERS if (path / name).is_file())
    if not found:
        return Detected(passed_over=others)
    first, *rest = found
    passed = tuple(f"{entry.source} ({entry.command})" for entry in rest)
    return Detected(first.command, first.service, first.down, first.source, passed + others)


def _compose(path: Path) -> Detected | None:
    for name in COMPOSE:
        if (path / name).is_file():
            # Without --build an edit would be served as it was.
            return Detected("docker compose up -d --build", down="docker compose stop", source=name)
    return None


def _make(path: Path) -> Detected | None:
    for name in MAKEFILES:
        if exists(path / name):  # make takes the first that is there
            return Detected("make up", source=name) if _UP_RULE.search(_text(path, name)) else None
    return None


def _npm(path: Path) -> Detected | None:
    try:
        package = json.loads(_text(path, "package.json") or "{}")
    except (ValueError, RecursionError):
        return None
    scripts = package.get("scripts") if isinstance(package, dict) else None
    if not isinstance(scripts, dict) or not isinstance(scripts.get("dev"), str):
        return None
    return Detected("npm run dev", service=True, source="package.json")


def _text(path: Path, name: str) -> str:
    """The file's text; empty when it can't be read: then nothing is detected from it."""
    try:
        return read_bytes(path / name, name, 1 << 20).decode("utf-8", "replace")
    except VmoatError:
        return ""
