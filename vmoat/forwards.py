"""The ports that a VM's ssh master forwards, and the record of those that were asked for.

OpenSSH has no list of its forwards, and they end with the master.  So there is a record in the VM's
state folder: what was asked for stays asked for until it is cancelled, and every new master (after
a boot, a lost connection, a host that slept) opens it again at the same ports.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vmoat import netports
from vmoat.errors import Code, VmoatError
from vmoat.locks import in_turn

if TYPE_CHECKING:
    from vmoat.ssh import Connection


RECORD = "forwards.json"
"""Name of the record, in the VM's state folder."""
SERVICES = "services.toml"
"""Beside it: guest port → the service that a tunnel was opened for."""
SOCKS = 0
"""Stands for the guest's port in a forward that leads to all of them: a SOCKS proxy (ssh -D)."""


class Record:
    """Host port → guest port (or ``SOCKS``) of each forward that was asked for; a JSON file,
    replaced whole.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self) -> dict[int, int]:
        """What is wanted; a damaged record counts as none."""
        try:
            table = json.loads(self.file.read_text())
            return {int(host): int(guest) for host, guest in table.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    @contextlib.contextmanager
    def change(self) -> Iterator[dict[int, int]]:
        """The table, to be changed; one process at a time."""
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with in_turn(self.file.with_suffix(".lock")):
            before = self.read()
            table = dict(before)
            yield table
            if table != before:
                self._write(table)

    def _write(self, table: dict[int, int]) -> None:
        fresh = self.file.with_suffix(".new")
        with open(fresh, "w") as stream:
            json.dump(table, stream)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(self.file)


class Forwards:
    """The forwards of one connection; ``record`` outlives it."""

    def __init__(self, connection: Connection, file: Path) -> None:
        self._connection = connection
        self.record = Record(file)
        self.failed: dict[int, int] = {}
        """What the last ``restore`` of this process could not open: host port to guest port."""

    def open(self, guest_port: int, host_port: int) -> None:
        """Listen on the host's loopback (127.0.0.1 and ::1) and carry to the guest's port.

        It stays asked for until ``cancel``.  Raises BUSY where the host's port is taken, VM where
        there is no master.
        """
        if self.alive().get(host_port) != guest_port:
            self._open(guest_port, host_port)
        with self.record.change() as table:
            table[host_port] = guest_port

    def _open(self, guest_port: int, host_port: int) -> None:
        connection = self._connection
        for address in _loopbacks():
            if not netports.free(address, host_port):
                raise _port_busy(host_port)
        done: list[str] = []
        for address in _loopbacks():
            rc, said = connection.control("forward", *_rule(address, host_port, guest_port))
            if rc == 0:
                done.append(address)
                continue
            for other in done:
                connection.control("cancel", *_rule(other, host_port, guest_port))
            if not connection.alive():
                raise VmoatError(
                    "the connection to the VM is gone",
                    hint="run `vmoat up`",
                    code=Code.VM,
                    details=said.splitlines(),
                )
            raise _port_busy(host_port, said)

    def cancel(self, guest_port: int, host_port: int) -> None:
        """End a forward and forget it; quiet when there is none."""
        if self._connection.alive():
            for address in _loopbacks():
                self._connection.control("cancel", *_rule(address, host_port, guest_port))
        with self.record.change() as table:
            table.pop(host_port, None)

    def alive(self) -> dict[int, int]:
        """The forwards that are alive: host port to guest port.

        Each entry of the record counts only while the master itself listens on that port.
        """
        wanted = self.record.read()
        if not wanted or not self._connection.alive():
            return {}
        master = self._connection.pid()
        owned = netports.listening_ports(master) if master else None
        if owned is None:  # not Linux: a port that nobody holds is not forwarded
            return {h: g for h, g in wanted.items() if not netports.free("127.0.0.1", h)}
        return {h: g for h, g in wanted.items() if h in owned}

    def restore(self) -> None:
        """Open what is wanted over a new master; what cannot be opened stays wanted."""
        left = self._missing(self.record.read())
        if left and self._connection.end_orphans():
            left = self._missing(left)
        self.failed = left

    def _missing(self, wanted: Mapping[int, int]) -> dict[int, int]:
        """Open these; returns those that could not be opened."""
        left = {}
        for host_port, guest_port in sorted(wanted.items()):
            try:
                self._open(guest_port, host_port)
            except VmoatError:
                left[host_port] = guest_port
        return left

    def waiting(self) -> dict[int, int]:
        """What is wanted and not open: host port to guest port."""
        alive = self.alive()
        return {h: g for h, g in self.record.read().items() if h not in alive}


def _rule(address: str, host_port: int, guest_port: int) -> tuple[str, str]:
    """The forward as ssh(1) takes it: option and value."""
    shown = f"[{address}]" if ":" in address else address
    if guest_port == SOCKS:
        return "-D", f"{shown}:{host_port}"
    return "-L", f"{shown}:{host_port}:localhost:{guest_port}"


def _loopbacks() -> list[str]:
    """127.0.0.1, and ::1 where this host has it."""
    return ["127.0.0.1", "::1"] if netports.free("::1", 0) else ["127.0.0.1"]


def _port_busy(port: int, said: str = "") -> VmoatError:
    return VmoatError(
        f"port {port} of this machine is taken",
        hint="choose another: `vmoat tunnel GUEST:HOST`",
        code=Code.BUSY,
        details=said.splitlines(),
    )
