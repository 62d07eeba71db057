"""Starting the processes of one VM: QEMU in its sandbox, the guard, passt."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import select
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmoat import proc
from vmoat.drivers.qemu import console, network, sandbox
from vmoat.drivers.qemu.process import Process
from vmoat.errors import Code, VmoatError

_INFO_SECONDS = 20.0


@dataclass(frozen=True)
class Who:
    """Who the VM's processes run as."""

    sandbox: sandbox.Identity
    network: tuple[int, int] | None


def who(owner_uid: int, owner_gid: int) -> Who:
    """The worktree's owner where vmoat runs as root; else the user."""
    if os.getuid() != 0:
        return Who(sandbox.Identity(), None)
    if owner_uid == 0:
        return Who(sandbox.Identity(), (65534, 65534))
    return Who(sandbox.Identity((owner_uid, owner_gid)), (owner_uid, owner_gid))


@contextlib.contextmanager
def memory_file(name: str, data: bytes) -> Iterator[int]:
    """An open descriptor that yields ``data``."""
    fd = os.memfd_create(name)
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


def listen(path: Path) -> socket.socket:
    """A listening socket at ``path``; QEMU gets it open, so it needs no folder to write in."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(64)
    os.chmod(path, stat.S_IRUSR | stat.S_IWUSR)
    return server


def sandboxed(
    command: Sequence[str],
    binds: Sequence[sandbox.Bind],
    identity: sandbox.Identity,
    *,
    keep: Sequence[int],
    log: Path,
) -> int:
    """Start a program in bubblewrap and return its pid as the host sees it.

    ``keep``: descriptors that it inherits.  Raises VM with the sandbox's own words.
    """
    program = sandbox.seccomp_program(platform.machine())
    reader, writer = os.pipe()
    with memory_file("seccomp", program) as filter_fd, open(log, "ab") as errors:
        argv = sandbox.bwrap_argv(
            command,
            binds,
            bwrap=proc.which("bwrap") or "bwrap",
            setpriv=proc.which("setpriv") or "setpriv",
            identity=identity,
            seccomp_fd=filter_fd,
            info_fd=writer,
            system=sandbox.system_binds([command[0]]),
        )
        try:
            child = proc.spawn(
                argv,
                cwd="/",
                stdout=errors,
                stderr=errors,
                pass_fds=(*keep, filter_fd, writer),
            )
        finally:
            os.close(writer)
        with os.fdopen(reader, "rb") as info:
            text = _read_all(info.fileno(), _INFO_SECONDS)
    try:
        return int(json.loads(text)["child-pid"])
    except (ValueError, KeyError) as error:
        with contextlib.suppress(Exception):
            child.wait(timeout=5)
        raise VmoatError(
            "the sandbox around QEMU could not be made",
            hint="`vmoat doctor` looks for the cause",
            code=Code.VM,
            details=console.last_lines(log, 6),
        ) from error


def _read_all(fd: int, seconds: float) -> bytes:
    """Read bubblewrap's JSON: it closes the descriptor after it, or when it fails."""
    deadline, data = time.monotonic() + seconds, b""
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([fd], [], [], left)
        chunk = os.read(fd, 4096) if ready else b""
        data += chunk
        if not chunk or data.rstrip().endswith(b"}"):
            break
    return data


@dataclass
class Wires:
    """The guard's and passt's ends are theirs already; these are QEMU's."""

    net: socket.socket
    console: socket.socket


def start_network(
    add: Callable[[Process], None],
    *,
    ssh_port: int,
    run_as: tuple[int, int] | None,
    open_network: bool,
    console_log: Path,
    log: Path,
) -> Wires:
    """Start passt and the guard, and return QEMU's ends of their sockets."""
    inside, guard_inside = socket.socketpair()
    guard_outside, outside = socket.socketpair()
    console, guard_console = socket.socketpair()
    for one in (inside, guard_inside, guard_outside, outside):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW
    console_fd = os.open(console_log, flags, 0o600)
    passt = proc.which("passt") or "passt"
    with guard_inside, guard_outside, outside, guard_console, open(log, "ab") as errors:
        argv = network.passt_argv(
            passt,
            fd=outside.fileno(),
            ssh_port=ssh_port,
            run_as=run_as,
            options=network.passt_options(passt),
            open_network=open_network,
        )
        pid = proc.spawn(argv, cwd="/", stderr=errors, pass_fds=(outside.fileno(),)).pid
        add(Process.of("passt", pid))
        fds = [guard_inside.fileno(), guard_outside.fileno(), guard_console.fileno(), console_fd]
        argv = network.guard_argv(network.python(), fds, run_as=run_as, open_network=open_network)
        pid = proc.spawn(argv, cwd="/", stderr=errors, pass_fds=fds).pid
        add(Process.of("guard", pid))
    os.close(console_fd)
    return Wires(inside, console)
