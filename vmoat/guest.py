"""Everything that happens inside a VM, over one OpenSSH master.

Programs are dear in a guest under emulation (around 0.1 s each on a busy host), so what runs
there is one shell with builtins where that is possible.  Text for the guest is made by pure
functions (in ``vmoat.stages``, ``vmoat.facts`` and ``vmoat.usercommand``).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from vmoat import channels, proc, ssh, usercommand
from vmoat import facts as _facts
from vmoat import stages as _stages
from vmoat.drivers import SshEndpoint
from vmoat.errors import Code, VmoatError
from vmoat.facts import Facts, Probe
from vmoat.proc import Result
from vmoat.stages import OnLine

ARGUMENT_LIMIT = 100_000
"""Bytes: Linux takes 128 KiB for one argument (execve(2)); longer scripts go over stdin."""


@dataclass(frozen=True)
class File:
    """A small file for the guest; ``path`` is absolute."""

    path: str
    content: bytes
    mode: int = 0o644


class Guest:
    """A running VM.  ``folder`` holds sockets and the ssh config (``paths.runtime_dir``);
    ``before`` and ``behind`` are shell that stands around each command of the user's."""

    def __init__(
        self,
        endpoint: SshEndpoint,
        folder: Path,
        worktree: Path,
        env: Mapping[str, str],
        *,
        forward_agent: bool = False,
        record: Path | None = None,
        before: str = "",
        behind: str = "",
    ) -> None:
        """``record``: the file of the forwards that were asked for (``vmoat.forwards``)."""
        self.connection = ssh.Connection(
            endpoint, folder, forward_agent=forward_agent, record=record
        )
        self.endpoint = endpoint
        self.worktree = worktree
        self.env = dict(env)
        self.before = before
        self.behind = behind
        self.forward = self.connection.ports.open
        self.cancel = self.connection.ports.cancel
        self.forwards = self.connection.ports.alive
        self.waiting = self.connection.ports.waiting

    def connect(self, timeout: float = 60) -> None:
        """See ``ssh.Connection.connect``."""
        self.connection.connect(timeout)

    def connected(self) -> bool:
        """Whether the master answers; costs nothing and says nothing of the guest's health."""
        return self.connection.alive()

    def close(self) -> None:
        """End the master, its sessions and its forwards."""
        self.connection.close()

    def ssh_config_block(self, alias: str, proxy: Sequence[str]) -> str:
        """The ``Host`` block for other programs; ``proxy`` is what carries a connection."""
        return ssh.ssh_config_block(
            alias, self.endpoint, proxy, forward_agent=self.connection._forward_agent
        )

    # Commands of vmoat's own

    def argv(
        self, command: str, *, root: bool = False, options: Sequence[str] = ("-T",)
    ) -> list[str]:
        """The ssh call for a command; as root over root's master, else through sudo (slow)."""
        if root and not self.connection.ensure_root():
            return [*self.connection.argv(*options), f"sudo -n bash -c {shlex.quote(command)}"]
        return [*self.connection.argv(*options, root=root), command]

    def run(
        self,
        script: str,
        *,
        root: bool = False,
        timeout: float | None = None,
        check: bool = True,
        input: bytes | str | None = None,
    ) -> Result:
        """Run a script (bash: the guest's login shell, not as login shell) in one round trip.

        Standard input is /dev/null unless ``input`` is given.  Bytes that are no UTF-8 come back
        as surrogates: ``out.encode(errors="surrogateescape")`` restores them.
        Raises VM when the connection is gone, TIMEOUT, and STAGE when it fails and ``check``.
        """
        self.connect()
        data = input.encode() if isinstance(input, str) else input
        command = script
        if len(script.encode()) > ARGUMENT_LIMIT:
            if data is not None:
                raise ValueError("a script of this length leaves no room for input")
            command, data = "exec bash -s", script.encode()
        argv = self.argv(command, root=root)
        process = proc.spawn(
            argv,
            stdin=subprocess.DEVNULL if data is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            detach=False,
        )
        try:
            out, err = process.communicate(data, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise VmoatError(
                f"a command in the VM did not end within {timeout:g} s",
                code=Code.TIMEOUT,
                hint="`vmoat logs --console` shows whether the guest is well",
            ) from error
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
                # Closed, not read to the end: the master holds them until the command ends.
                for stream in (process.stdin, process.stdout, process.stderr):
                    if stream is not None:
                        with contextlib.suppress(OSError):
                            stream.close()
        result = Result(tuple(argv), process.returncode, _text(out), _text(err))
        if result.rc == 255 and not self.connected():
            raise self.lost(result.last_lines())
        if check and result.rc != 0:
            raise VmoatError(
                f"a command in the VM failed with exit code {result.rc}",
                details=result.last_lines(),
            )
        return result

    def lost(self, details: Sequence[str] = (), code: int = Code.VM) -> VmoatError:
        return VmoatError(
            "the connection to the VM broke",
            code=code,
            details=details,
            hint="`vmoat status` says whether the VM runs",
        )

    def facts(self, probe: Probe, *, timeout: float = 20) -> Facts:
        """What is true in the guest, in one round trip; connects again once where need be.

        dockerd and a plain loopback HEALTH_URL are asked over channels of the master meanwhile.
        """
        for last in (False, True):
            self.connect()
            docker = channels.Docker(self.connection) if probe.docker else None
            here = bool(probe.health_url and channels.health_port(probe.health_url))
            health = channels.Health(self.connection, probe.health_url) if here else None
            rest = replace(probe, docker=False, health_url="" if here else probe.health_url)
            try:
                root = self.connection.alive(root=True)
                answer = self.run(_facts.script(rest, time.time()), root=root, timeout=timeout).out
            except VmoatError as error:
                if last or error.code != Code.VM:
                    raise
                continue
            found = _facts.parse(answer)
            if docker is not None:
                docker.join()
                listed = _facts.containers(docker.listing, docker.details)
                found = replace(found, docker=docker.answered, containers=tuple(listed))
            if health is not None:
                health.join()
                found = replace(found, health_code=health.code)
            return found
        raise AssertionError("not reached")

    def put(self, files: Sequence[File]) -> None:
        """Write files as root, folders made as need be, in one round trip."""
        import io
        import tarfile

        pack = io.BytesIO()
        with tarfile.open(fileobj=pack, mode="w") as tar:
            for file in files:
                entry = tarfile.TarInfo(file.path.lstrip("/"))
                entry.size, entry.mode, entry.mtime = len(file.content), file.mode, int(time.time())
                tar.addfile(entry, io.BytesIO(file.content))
        # --unlink-first: a running program's file is replaced, not written into.
        self.run(
            "umask 022; exec tar -xf - -C / --unlink-first --no-same-owner -p",
            root=True,
            input=pack.getvalue(),
        )

    # Stages and services: see vmoat.stages

    def stage(
        self,
        name: str,
        command: str,
        *,
        attempt: str,
        root: bool = False,
        on_line: OnLine | None = None,
        timeout: float | None = None,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Run a stage as a unit of the guest and return its exit code.

        The same attempt: joined while it runs (its output from the beginning), its kept exit code
        at once when it has ended.  Another attempt that still runs is stopped.  The unit outlives
        this process.  Raises TIMEOUT (and stops it), ``stages.StageGone`` where it was stopped or
        the guest went down under it.
        """
        job = self._job(name, command, attempt, root, cwd, env)
        return _stages.follow(self, job, on_line, timeout)

    def service(
        self,
        name: str,
        command: str,
        *,
        attempt: str = "",
        root: bool = False,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Start a long-running unit, anew unless this very ``attempt`` runs; logs as a stage."""
        job = self._job(name, command, attempt or secrets.token_hex(8), root, cwd, env)
        self.run(_stages.start_script(job, service=True), root=True)

    def service_state(self, name: str) -> str:
        """``active``, ``exited N`` or ``gone`` (never started, stopped, another boot)."""
        return self.facts(Probe(units=(name,))).units[name]

    def stop_stage(self, name: str) -> None:
        """Stop a stage or service with all of its processes; quiet when it does not run."""
        self.run(_stages.stop_script(name), root=True)

    def _job(
        self,
        name: str,
        command: str,
        attempt: str,
        root: bool,
        cwd: str | os.PathLike[str] | None,
        env: Mapping[str, str] | None,
    ) -> _stages.Job:
        return _stages.Job(
            name=name,
            command=command,
            attempt=attempt,
            user="root" if root else self.endpoint.user,
            cwd=os.fspath(cwd or self.worktree),
            env={**self.env, **(env or {})},
        )

    def exec(
        self,
        words: Sequence[str],
        *,
        tty: bool = False,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        output: IO[bytes] | None = None,
    ) -> int:
        """Run the user's command on our own standard streams; returns its exact exit code.

        ``output`` takes both of its streams instead.  See ``vmoat.usercommand``.
        """
        folder = os.fspath(cwd or self.worktree)
        env = {**self.env, **(env or {})}
        return usercommand.run(self, words, tty=tty, cwd=folder, env=env, output=output)


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")
