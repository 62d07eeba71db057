"""OpenSSH: one master a VM (and one for its root), with a config file of its own.

Facts from ssh_config(5) that shape this module:

- A value with blanks stands in double quotes, in which ``\\`` and ``"`` take a backslash.
- ``%`` starts a token in ControlPath, IdentityFile and UserKnownHostsFile: it is doubled.
  ``${NAME}`` is expanded there too and cannot be escaped: such a path is refused.
- A master started with ``-f`` keeps the standard error of whoever started it: it gets a log file.

The guest's key stands in known_hosts under the name ``vmoat`` (``HostKeyAlias``), so that the file
stays true when the port changes.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from vmoat import netports, proc
from vmoat.drivers import SshEndpoint
from vmoat.errors import Code, VmoatError
from vmoat.forwards import RECORD, Forwards
from vmoat.locks import in_turn

ALIAS = "vmoat"
ROOT_ALIAS = "vmoat-root"
POLL = 0.2
"""Seconds between two tries to log in."""
HANDSHAKE_TIMEOUT = 30
"""Seconds for key exchange and login: under emulation both masters took 1.2 s, on a busy host 5."""
ORPHAN_SECONDS = 5
"""For the ports of a master that was killed to be free."""
PERMANENT = ("Host key verification failed", "HOST IDENTIFICATION HAS CHANGED", "Bad configuration")
"""What no further try can cure."""
CIPHERS = "aes128-ctr,aes128-gcm@openssh.com,chacha20-poly1305@openssh.com"
MACS = "umac-64-etm@openssh.com,umac-64@openssh.com,hmac-sha2-256-etm@openssh.com,hmac-sha2-256"
KEX = "curve25519-sha256,curve25519-sha256@libssh.org,ecdh-sha2-nistp256"
"""The post-quantum exchange was the slowest tried; the wire is the host's loopback."""


def quote(value: str | os.PathLike[str], *, tokens: bool = False) -> str:
    """``value`` as ssh_config(5) reads it back; ``tokens`` where ``%`` would be expanded."""
    text = os.fspath(value)
    if "\n" in text or "\0" in text or (tokens and "${" in text):
        raise VmoatError(
            f"OpenSSH cannot be given the path {text!r}",
            hint="use a folder without line breaks and without `${` (XDG_STATE_HOME)",
            code=Code.CONFIG,
        )
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text.replace("%", "%%") if tokens else text}"'


def _common(endpoint: SshEndpoint, user: str, forward_agent: bool) -> list[str]:
    return [
        f"HostName {endpoint.host}",
        f"User {quote(user)}",
        f"HostKeyAlias {ALIAS}",
        f"UserKnownHostsFile {quote(endpoint.known_hosts, tokens=True)}",
        "GlobalKnownHostsFile /dev/null",
        "StrictHostKeyChecking yes",
        "UpdateHostKeys no",
        f"IdentityFile {quote(endpoint.key, tokens=True)}",
        "IdentitiesOnly yes",
        *([] if forward_agent else ["IdentityAgent none"]),
        "PreferredAuthentications publickey",
        "BatchMode yes",
        f"ForwardAgent {'yes' if forward_agent else 'no'}",
        "ForwardX11 no",
        "LogLevel ERROR",
        "ConnectTimeout 15",
        "ServerAliveInterval 5",
        "ServerAliveCountMax 6",
        f"Ciphers {CIPHERS}",
        f"MACs {MACS}",
        f"KexAlgorithms {KEX}",
        "Compression no",
    ]


def _by_master(endpoint: SshEndpoint, control_path: Path) -> list[str]:
    return [
        f"Port {endpoint.port}",
        f"ControlPath {quote(control_path, tokens=True)}",
        "ControlMaster no",
        "ControlPersist yes",
    ]


def _host(alias: str, lines: Sequence[str]) -> str:
    return "\n".join([f"Host {alias}", *(f"    {line}" for line in lines)]) + "\n"


def ssh_config(endpoint: SshEndpoint, folder: Path, *, forward_agent: bool = False) -> str:
    """The config file of a VM: ``vmoat`` is the guest's user, ``vmoat-root`` its root."""
    user = _common(endpoint, endpoint.user, forward_agent)
    root = _common(endpoint, "root", False)
    return (
        "# Written by vmoat, and again at each start: changes are lost.\n"
        + _host(ALIAS, [*user, *_by_master(endpoint, folder / "ssh")])
        + _host(ROOT_ALIAS, [*root, *_by_master(endpoint, folder / "ssh-root")])
    )


def ssh_config_block(
    alias: str, endpoint: SshEndpoint, proxy: Sequence[str], *, forward_agent: bool = False
) -> str:
    """What `vmoat ssh-config` prints: for ``~/.ssh/config``, VS Code, rsync, scp.

    ``proxy`` carries the connection (``vmoat.sshproxy``): the block stays true when the VM's port
    changes.  It is a connection of its own: what an editor forwards ends with the editor, where
    vmoat's master would keep it open.
    """
    if not re.fullmatch(r"[\w.@:-]+", alias):
        raise VmoatError(f"`{alias}` cannot be a host name for OpenSSH", code=Code.USAGE)
    lines = _common(endpoint, endpoint.user, forward_agent)
    # ssh_config(5): a shell runs it, and % starts a token.
    command = shlex.join(proxy).replace("%", "%%")
    return _host(alias, [*lines, "ControlPath none", f"ProxyCommand {command}"])


def listening(path: Path) -> bool:
    """Whether somebody answers on a control socket; a socket file alone proves nothing."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(1)
        try:
            sock.connect(os.fspath(path))
        except BlockingIOError:  # unix(7): its queue is full, so somebody listens
            return True
        except OSError:
            return False
        return True


class Connection:
    """The masters of one VM and the ports that they forward.

    ``folder`` (at most 60 bytes, see ``vmoat.paths``) holds config, sockets and logs; ``record``
    is the file of the forwards that were asked for, which outlives that folder.
    """

    def __init__(
        self,
        endpoint: SshEndpoint,
        folder: Path,
        *,
        forward_agent: bool = False,
        record: Path | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.ports = Forwards(self, record or folder / RECORD)
        self.folder = folder
        self.config = folder / "ssh_config"
        self._forward_agent = forward_agent
        self._root_refused = False

    def alive(self, *, root: bool = False) -> bool:
        """Whether the master answers; never asks the guest."""
        return listening(self.socket(root=root))

    def socket(self, *, root: bool = False) -> Path:
        return self.folder / ("ssh-root" if root and self.endpoint.user != "root" else "ssh")

    def argv(self, *options: str, root: bool = False) -> list[str]:
        """``ssh`` with the VM's config and nobody else's; the caller appends one command."""
        alias = ROOT_ALIAS if root and self.endpoint.user != "root" else ALIAS
        return ["ssh", "-F", os.fspath(self.config), *options, "--", alias]

    def connect(self, timeout: float) -> None:
        """Make sure that the masters run; waits up to ``timeout`` seconds for a booting guest.

        Raises TIMEOUT where no ssh server answers in time, VM where it refuses us.
        """
        if self.alive():
            return
        deadline = time.monotonic() + timeout
        with self._lock():
            if self.alive():
                return
            self._write_config()
            self._wait_for_banner(deadline, timeout)
            while error := self._start(deadline):
                if time.monotonic() > deadline or any(word in error for word in PERMANENT):
                    raise VmoatError(
                        "the VM does not accept the ssh connection",
                        hint="`vmoat logs --console` shows the guest; `vmoat down && vmoat up` "
                        "starts it again",
                        code=Code.VM,
                        details=error.splitlines()[-5:],
                    )
                time.sleep(POLL)
            self.ports.restore()

    def ensure_root(self) -> bool:
        """Whether root's master answers, started anew where it was lost.

        False where the guest lets nobody in as root; asked once, it costs a handshake.
        """
        if self.alive(root=True):
            return True
        if self._root_refused or not self.alive():
            return False
        with self._lock():
            if not self.alive(root=True):
                self._start(time.monotonic())
        self._root_refused = not self.alive(root=True)
        return not self._root_refused

    def close(self) -> None:
        """End the masters with every session and forward; quiet when there is none.

        Their ports are free then.  What was asked to be forwarded stays on record.
        """
        asked = []
        for root in (False, True):
            if self.alive(root=root):
                asked.append(self.pid(root=root))
                self.control("exit", root=root)
            with contextlib.suppress(FileNotFoundError):
                self.socket(root=root).unlink()
        _wait_for_their_ports(asked)

    def _write_config(self) -> None:
        text = ssh_config(self.endpoint, self.folder, forward_agent=self._forward_agent)
        fresh = self.config.with_suffix(".new")
        fresh.write_bytes(os.fsencode(text))
        fresh.chmod(0o600)
        fresh.replace(self.config)

    def end_orphans(self) -> bool:
        """End masters of ours that nobody reaches any more: their sockets are gone, and they keep
        the ports that they forward.  Whether there was one.
        """
        start = [os.fsencode(word) for word in ("-F", self.config, "-M")]
        mine = {self.pid(), self.pid(root=True)}
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[1:4] == start and int(entry.name) not in mine:
                    # Asked to end, it would remove the socket of whoever came after it.
                    os.kill(int(entry.name), signal.SIGKILL)
                    found.append(int(entry.name))
        _wait_for_their_ports(found)
        return bool(found)

    def pid(self, *, root: bool = False) -> int:
        """The master's; 0 for none."""
        match = re.search(r"pid=(\d+)", self.control("check", root=root)[1])
        return int(match[1]) if match else 0

    def _wait_for_banner(self, deadline: float, timeout: float) -> None:
        if not netports.banner(self.endpoint.host, self.endpoint.port, deadline - time.monotonic()):
            raise VmoatError(
                f"the VM did not answer ssh within {timeout:g} s",
                hint="`vmoat logs --console` shows how far it came",
                code=Code.TIMEOUT,
            )

    def _start(self, deadline: float) -> str:
        """Start both masters side by side; returns what ssh said when the user's fails.

        A guest that lets nobody in as root is served through sudo instead.
        """
        wanted = [False] if self.endpoint.user == "root" else [False, True]
        started = [(root, self._spawn(root)) for root in wanted if not self.alive(root=root)]
        for _, process in started:
            try:
                process.wait(max(1.0, min(HANDSHAKE_TIMEOUT, deadline - time.monotonic() + 15)))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.alive():
            return ""
        text = (self.folder / "ssh.log").read_text(errors="replace").strip()
        return text or "ssh ended without a word"

    def _spawn(self, root: bool) -> subprocess.Popen[bytes]:
        """One master, in its own session, holding nothing of ours but its log."""
        path = self.socket(root=root)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()  # stale: nobody answers on it, and ssh would not replace it
        with open(f"{path}.log", "wb") as log:
            argv = self.argv("-M", "-N", "-f", "-o", "ControlMaster=yes", root=root)
            return proc.spawn(argv, cwd="/", stdout=log, stderr=log)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One process connects at a time: a second master would linger without a socket."""
        with in_turn(self.folder / "ssh.lock"):
            yield

    # Forwards

    def channel(self, name: str, target: str) -> Path:
        """A socket of this machine that leads to a guest's socket or ``host:port``.

        Raises VM where the master does not make it.
        """
        path = self.folder / f"to-{name}"
        if listening(path):
            return path
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        rc, said = self.control("forward", "-L", f"{path}:{target}")
        # Two that ask at once: the second is refused, and the first one's serves both.
        if rc != 0 and not listening(path):
            raise VmoatError(
                f"the connection to the VM cannot reach its {name}",
                hint="run `vmoat up`",
                code=Code.VM,
                details=said.splitlines(),
            )
        return path

    def control(self, command: str, *options: str, root: bool = False) -> tuple[int, str]:
        """Ask the master (``ssh -O COMMAND``): its exit code and what it said."""
        argv = self.argv("-O", command, *options, root=root)
        process = proc.spawn(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, detach=False)
        try:
            out, _ = process.communicate(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
        return process.returncode, out.decode(errors="replace").strip()


def _wait_for_their_ports(pids: list[int]) -> None:
    """Until masters that were told to end listen on no port: `-O exit` answers before that."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    while any(map(netports.listening_ports, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
