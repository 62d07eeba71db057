"""Starts, finds and ends the companion of a VM.

One a VM: it holds a lock in the VM's folder and answers on a socket in its runtime folder.  Words
it takes, a line each: ``hello`` (answers with its settings' digest), ``open`` (once the guest's
ways back are), ``ready`` (once it also knows what to watch), ``state`` (JSON), ``quit``.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from vmoat import paths, proc
from vmoat.config import amounts
from vmoat.context import Context
from vmoat.stage import digest

SOCKET = "companion"
ASK_LIMIT = 5.0


def services(ctx: Context) -> dict[str, Any]:
    """What the companion is to do, by the settings; it is started anew when that changes."""
    settings = ctx.settings
    return {
        "watch": settings.watch_enabled and {"without": list(settings.mounts_local)},
        "credentials": list(settings.credentials_registries) if settings.credentials_docker else [],
        "cache": [settings.cache_size, list(settings.cache_registries), settings.network_open]
        if settings.cache_enabled
        else [],
        "idle": amounts.seconds(settings.vm_idle),
        "evict": settings.fleet_evict == "idle",
    }


def identity(wish: dict[str, Any], boot: str) -> str:
    """What a companion answers to ``hello``: its work, and the boot of the VM that it serves."""
    return digest(wish, boot)


def ensure(ctx: Context) -> None:
    """Start the companion of a VM that runs, unless it is there and does what is asked for.

    Costs a connection to a socket where there is nothing to do.
    """
    wish = services(ctx)
    there = ask(ctx.instance.vm_id, "hello")
    if there == identity(wish, ctx.status.boot):
        return
    if there:
        end(ctx.instance.vm_id)
    if any(wish.values()):
        _start(ctx)


def _start(ctx: Context) -> None:
    folder = paths.make_private(ctx.instance.folder)
    with open(folder / "companion.log", "ab") as log:
        if log.tell() > 1 << 20:
            log.truncate(0)
        proc.spawn(argv(ctx.worktree.path), cwd="/", stdout=log, stderr=log)


def argv(worktree: Path) -> list[str]:
    """The companion's own command line.  -P: as ``watch.worker_argv``."""
    return [sys.executable, "-P", "-m", "vmoat.companion", os.fspath(worktree)]


def ready(ctx: Context, timeout: float, word: str = "ready") -> bool:
    """Wait until all is connected; False where that takes longer than ``timeout`` seconds."""
    if not any(services(ctx).values()):
        return True
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if ask(ctx.instance.vm_id, word, timeout=max(0.1, deadline - time.monotonic())) == "yes":
            return True
        ensure(ctx)
        time.sleep(0.1)
    return False


def state(vm_id: str) -> dict[str, Any]:
    """What the companion says of itself; empty where there is none."""
    try:
        found = json.loads(ask(vm_id, "state") or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def end(vm_id: str) -> None:
    """End the companion, if there is one; returns when it has gone."""
    if not ask(vm_id, "quit"):
        return
    deadline = time.monotonic() + ASK_LIMIT
    while ask(vm_id, "hello") and time.monotonic() < deadline:
        time.sleep(0.02)


def ask(vm_id: str, word: str, *, timeout: float = ASK_LIMIT) -> str:
    """The companion's answer to a word; "" where nobody answers."""
    path = socket_of(vm_id)
    with socket.socket(socket.AF_UNIX) as link, contextlib.suppress(OSError):
        link.settimeout(timeout)
        link.connect(os.fspath(path))
        link.sendall(word.encode() + b"\n")
        answer = b""
        while chunk := link.recv(65536):
            answer += chunk
        return answer.decode(errors="replace").strip()
    return ""


def socket_of(vm_id: str) -> Path:
    return paths.runtime_dir(vm_id) / SOCKET
