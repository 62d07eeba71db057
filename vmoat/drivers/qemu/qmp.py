"""QEMU's control socket (QMP): one short conversation at a time.

QEMU serves one client at a time, so connections are closed at once after use; it lets so few
wait (``listen`` with 1) that commands at once are refused with EAGAIN, and have to come again.
Facts: the greeting, ``qmp_capabilities`` and events between answers (QEMU's docs, "QMP protocol").
"""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from vmoat.errors import Code, VmoatError

TURN = 0.01
"""Seconds until the next try where QEMU is busy with somebody else."""


class QmpError(VmoatError):
    """QEMU refused a command, or does not answer."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="`vmoat logs --console` shows the guest", code=Code.VM)


class Qmp:
    """A conversation with one QEMU; use it as a context manager.

    ``timeout`` (seconds) counts for the whole conversation.  Raises QmpError where nobody
    listens, where the answer takes too long, and for commands that QEMU refuses.
    """

    def __init__(self, path: Path | None, timeout: float = 5, sock: socket.socket | None = None):
        self._deadline = time.monotonic() + timeout
        self._rest = b""
        self.events: list[dict[str, Any]] = []
        self._socket = sock or socket.socket(socket.AF_UNIX)
        try:
            if path is not None:
                self._reach(path)
            self._message()
            self.command("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Qmp:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def _reach(self, path: Path) -> None:
        """Connect, in turn with whoever else asks."""
        while True:
            self._wait()
            try:
                return self._socket.connect(str(path))
            except BlockingIOError:  # unix(7): the queue of the listener is full
                time.sleep(TURN)

    def _wait(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise QmpError("QEMU does not answer on its control socket")
        self._socket.settimeout(left)

    def _message(self) -> dict[str, Any]:
        while b"\n" not in self._rest:
            self._wait()
            chunk = self._socket.recv(65536)
            if not chunk:
                raise QmpError("QEMU closed its control socket")
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def command(self, name: str, **arguments: Any) -> Any:
        """Run one command and return its answer; events in between are kept in ``events``."""
        request: dict[str, Any] = {"execute": name}
        if arguments:
            request["arguments"] = arguments
        try:
            self._wait()
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            while True:
                message = self._message()
                if "return" in message:
                    return message["return"]
                if "error" in message:
                    raise QmpError(f"QEMU refused `{name}`: {message['error'].get('desc', '')}")
                if "event" in message:
                    self.events.append(message)
        except (OSError, ValueError) as error:
            raise QmpError(f"QEMU does not answer `{name}`: {error}") from error


def connect(path: Path, timeout: float = 5) -> Qmp:
    """Open a conversation; raises QmpError also where nobody listens."""
    try:
        return Qmp(path, timeout)
    except (OSError, ValueError) as error:
        raise QmpError(f"QEMU does not answer on its control socket: {error}") from error
