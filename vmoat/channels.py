"""Questions that need no program in the guest: HTTP over a channel of the ssh master.

Under emulation each program that starts in the guest costs a tenth of a second and more; a channel
that the master opens to dockerd's socket, or to a port of the guest, costs nothing but the answer.
The master listens for it on a socket in the VM's own runtime folder (0700).
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vmoat.dockercontext import GUEST_SOCKET
from vmoat.errors import VmoatError

if TYPE_CHECKING:
    from vmoat.ssh import Connection

LIMIT = 5.0
"""Seconds for one answer; dockerd may be starting."""

YOUNG = re.compile(r"^(Restarting|Up (Less than|\d+) (a )?second)")
"""dockerd's word for a container whose count of restarts is worth a question of its own."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def get(
    path: Path, target: str, host: str, *, body: bool = True, limit: float = LIMIT
) -> tuple[int, bytes]:
    """(status, body) of a GET over a Unix socket; raises OSError, or ValueError for no HTTP.

    ``limit``: seconds for each part of the answer.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(limit)
        sock.connect(str(path))
        # 1.0: the answer ends with the connection, in one piece
        sock.sendall(
            f"GET {target} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: vmoat\r\nAccept: */*\r\n\r\n"
            .encode("ascii", "replace")
        )  # fmt: skip
        data = b""
        while chunk := sock.recv(65536):
            data += chunk
            if not body and b"\r\n" in data:
                break
    head, _, rest = data.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/"):
        raise ValueError("no HTTP answer")
    return int(words[1]), rest


class Docker:
    """dockerd, asked for its containers; a thread of its own, so that others can ask meanwhile."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.answered = False
        self.listing: list[dict[str, Any]] = []
        self.details: dict[str, dict[str, Any]] = {}
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _ask(self) -> None:
        try:
            path = self._connection.channel("docker", GUEST_SOCKET)
            status, text = get(path, "/containers/json?all=1", "docker")
            self.listing = json.loads(text) if status == 200 else []
            self.answered = status == 200
            for entry in self.listing:
                if YOUNG.match(entry.get("Status") or ""):
                    _, text = get(path, f"/containers/{entry['Id']}/json", "docker")
                    self.details[entry["Id"]] = json.loads(text)
        except (OSError, ValueError, VmoatError):
            return


class Usage:
    """What images, containers, volumes and build cache weigh, by dockerd's own count.

    dockerd walks every volume and container for it, which may take seconds: it is asked in a
    thread, and whoever asks waits as long as is sensible.
    """

    def __init__(self, connection: Connection, limit: float) -> None:
        self._connection = connection
        self._limit = limit
        self.parts: dict[str, int] | None = None
        """Bytes by part; None where dockerd did not answer (yet)."""
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def _ask(self) -> None:
        with contextlib.suppress(OSError, ValueError, VmoatError):
            path = self._connection.channel("docker", GUEST_SOCKET)
            status, text = get(path, "/system/df", "docker", limit=self._limit)
            if status == 200:
                self.parts = usage(json.loads(text))


def usage(answer: Mapping[str, Any]) -> dict[str, int]:
    """dockerd's answer to ``GET /system/df`` (Docker Engine API v1.45) as bytes by part.

    Layers of the build cache that an image shares count as the image's.
    """

    def total(part: str, size: Callable[[Mapping[str, Any]], Any]) -> int:
        return sum(max(0, int(size(entry) or 0)) for entry in answer.get(part) or ())

    return {
        "images": int(answer.get("LayersSize") or 0),
        "containers": total("Containers", lambda entry: entry.get("SizeRw")),
        "volumes": total("Volumes", lambda entry: (entry.get("UsageData") or {}).get("Size")),
        "build cache": total(
            "BuildCache", lambda entry: 0 if entry.get("Shared") else entry.get("Size")
        ),
    }


def health_port(url: str) -> int:
    """The guest's port of a plain loopback URL; 0 for one that only a program can ask."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname not in LOOPBACK or parts.username is not None:
        return 0
    return parts.port or 80


class Health:
    """HEALTH_URL, asked in a thread; ``code`` 0 where nothing answered."""

    def __init__(self, connection: Connection, url: str) -> None:
        self._connection = connection
        self._url = urlsplit(url)
        self.code = 0
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _ask(self) -> None:
        port = self._url.port or 80
        host = self._url.hostname or "localhost"
        target = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
        address = f"[{host}]" if ":" in host else host
        try:
            path = self._connection.channel(f"port-{port}", f"{address}:{port}")
            self.code, _ = get(path, target, f"{address}:{port}", body=False)
        except (OSError, ValueError, VmoatError):
            return
