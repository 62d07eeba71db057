"""The ProxyCommand of `vmoat ssh-config`: carries one ssh connection to a VM, known by its name.

``python -m vmoat.sshproxy NAME``.  The VM's port may be another after each start; its name, its key
and its host key stay, and so does a block in ``~/.ssh/config`` that asks here.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Sequence

from vmoat import drivers, instance, paths
from vmoat.errors import Code, VmoatError, as_error
from vmoat.fleet.use import used

CHUNK = 1 << 18


def main(argv: Sequence[str] | None = None) -> int:
    """Carry standard input and output; the reason why not goes to stderr, where ssh shows it."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        name = words[0] if words else ""
        owner = owner_of(name)
        # In use before it is connected: a stop for being idle is waited for, never met half way.
        with used(paths.vm_dir(name)), connect(name, owner) as sock:
            carry(sock)
    except (VmoatError, OSError) as found:
        error = as_error(found)
        sys.stderr.write(f"[vmoat] {error.message}" + (f"; {error.hint}\n" if error.hint else "\n"))
        return error.code
    return int(Code.OK)


def owner_of(name: str) -> instance.Owner:
    """Whose VM this is; raises USAGE for a name that is none's."""
    owner = instance.read_owner(name) if instance.is_name(name) else None
    if owner is None:
        raise VmoatError(f"there is no VM called `{name}`", code=Code.USAGE)
    return owner


def connect(name: str, owner: instance.Owner) -> socket.socket:
    """A connection to the ssh port of a VM; raises VM for one that does not run."""
    driver = drivers.load(owner.driver)
    state = driver.status(name).state
    if state in ("absent", "stopped"):
        raise VmoatError(
            f"the VM {name} is {state}", hint=f"`vmoat -C {owner.worktree} up` starts it",
            code=Code.VM,
        )  # fmt: skip
    end = driver.ssh_endpoint(name)
    return socket.create_connection((end.host, end.port), timeout=15)


def carry(sock: socket.socket, source: int = 0, target: int = 1) -> None:
    """Pass bytes both ways until the VM's side ends; the end of ours is passed on."""
    sock.settimeout(None)
    reading = [sock.fileno(), source]
    while sock.fileno() in reading:
        for ready in select.select(reading, [], [])[0]:
            data = os.read(ready, CHUNK)
            if ready == source:
                if data:
                    sock.sendall(data)
                else:
                    reading.remove(source)
                    sock.shutdown(socket.SHUT_WR)
            elif data:
                _write(target, data)
            else:
                reading.remove(ready)


def _write(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]


if __name__ == "__main__":
    sys.exit(main())
