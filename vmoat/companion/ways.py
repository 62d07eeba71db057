"""The guest's ways back to this machine: Unix sockets of the host, forwarded by the ssh master.

They go with the master, so they are asked for again whenever there is another one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vmoat.ssh import Connection


class Closable(Protocol):
    """A server that was started."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Way:
    """``guest`` is a socket's path or ``127.0.0.1:PORT`` there; ``serve`` listens at the host's."""

    name: str
    guest: str
    serve: Callable[[Path], Closable]


class Ways:
    """All ways back of one VM; ``folder`` holds the host's ends."""

    def __init__(self, ways: list[Way], folder: Path) -> None:
        self.master: tuple[int, int] = (0, 0)
        """The master that they are open at, known by its socket."""
        self._ends = [(way, folder / f"from-{way.name}") for way in ways]
        self._servers = [way.serve(end) for way, end in self._ends]

    def open(self, connection: Connection) -> bool:
        """Have the master forward them, unless it does already; False where it refuses one.

        Over the user's master, so that a socket in the guest belongs to the guest's user.
        """
        info = connection.socket().stat()
        master = (info.st_ino, info.st_ctime_ns)
        if master == self.master:
            return True
        for way, end in self._ends:
            rc, _ = connection.control("forward", "-R", f"{way.guest}:{end}")
            if rc != 0:
                return False
        self.master = master
        return True

    def close(self) -> None:
        for server in self._servers:
            server.close()
