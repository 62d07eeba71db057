"""A machine without virtual machines: a driver and a guest that are files and small processes.

They behave as the real ones do: a VM, its disk and its units outlive the process that started
them, an attempt that runs is joined, the result of one that ended is kept.  The whole command
line runs on them, the detached worker included:

    python fakes.py up --detach          as `vmoat up --detach`
    python fakes.py --worker '{...}'     the worker that it starts
    python fakes.py --companion PATH     the companion that it starts
    python fakes.py --stop NAME SECONDS  what stops an idle VM

Everything lies in ``$XDG_DATA_HOME/fake/NAME``, where a test looks and interferes:

- ``ran``         one line for each unit or driver call that did something
- ``slow``        seconds that a unit takes
- ``hold``        no unit ends while it is there
- ``fail-STAGE``  the exit code that the stage's command ends with
- ``fail-volumes``  dockerd does not list its volumes
- ``die``         ``STAGE POINT``: where the worker kills itself, once (start, middle, end, saved);
                  ``stop start``, ``stop end``: whoever stops the VM
- ``no-start``  the VM cannot be started
- ``local``      the folders that lie on the VM's own disk
- ``containers``, ``health``  what the guest says of itself
- ``master``      the process that listens for the tunnels
- ``cpu``         the first line of the guest's /proc/stat
- ``cold``        the health URL answers once it is waited for, and not before
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vmoat import context, drivers, localfolders, paths, proc, watch
from vmoat.companion import idleness
from vmoat.companion import process as companion_process
from vmoat.drivers import Features, SshEndpoint, VmSpec, VmStatus
from vmoat.errors import Code, VmoatError
from vmoat.facts import Container, Facts
from vmoat.fleet import removal, stopping
from vmoat.forwards import RECORD, Record
from vmoat.proc import Result
from vmoat.stage import Stage
from vmoat.state import StageStore

STARTED: list[Any] = []


def place(name: str) -> Path:
    """The folder that stands for the VM's machine."""
    folder = paths.data_home() / "fake" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


QUIET = ("begin", "run", "join")
"""What a stage or the guest notes by the way; the rest was done."""


def note(folder: Path, line: str) -> None:
    """Write down that something was done."""
    with open(folder / "ran", "a") as file:
        file.write(line + "\n")


def make(folder: Path, what: str, state: Path, content: str) -> None:
    """Do something once: a kill -9 between its note and its state must not count it twice."""
    done = [line for line in text(folder / "ran").splitlines() if line.split()[0] not in QUIET]
    if done[-1:] != [what]:
        note(folder, what)
    state.write_text(content)


def text(file: Path, default: str = "") -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return default


def die_at(folder: Path, stage: str, point: str) -> None:
    """kill -9 of this process where the test wants it, once."""
    if text(folder / "die") == f"{stage} {point}":
        (folder / "die").unlink()
        os.kill(os.getpid(), signal.SIGKILL)


class FakeDriver:
    """See the module."""

    name = "fake"
    features = Features(golden_image=True)

    def check(self, *, walls: bool = True) -> None: ...

    def image_digest(self, spec: VmSpec) -> str:
        return "image1"

    def image_ready(self, spec: VmSpec) -> bool:
        return (place("images") / "image1").exists()

    def build_image(self, spec: VmSpec, say: Any) -> None:
        if not self.image_ready(spec):
            die_at(place(spec.name), "image", "middle")
            make(place(spec.name), "image", place("images") / "image1", "")

    def create(self, spec: VmSpec, say: Any) -> None:
        here = place(spec.name)
        if not (here / "disk").exists():
            make(here, "create", here / "disk", secrets.token_hex(4))
        die_at(here, "vm", "middle")

    def start(self, spec: VmSpec, say: Any) -> None:
        here = place(spec.name)
        if text(here / "boot"):
            return
        if (here / "no-start").exists():
            raise VmoatError("QEMU ended at once", code=Code.VM)
        (here / "local").write_text("\n".join(spec.local))
        make(here, "boot", here / "boot", secrets.token_hex(4))

    def refresh(self, spec: VmSpec) -> str:
        return ""

    def stop(self, name: str, *, timeout: float = 60) -> None:
        die_at(place(name), "stop", "start")
        if text(place(name) / "boot"):
            note(place(name), "stop")
            (place(name) / "boot").unlink()
            (place(name) / "local").unlink()
        die_at(place(name), "stop", "end")

    def delete(self, name: str) -> None:
        import shutil

        shutil.rmtree(place(name))

    def status(self, name: str) -> VmStatus:
        folder = paths.data_home() / "fake" / name
        disk, boot = text(folder / "disk"), text(folder / "boot")
        state = "absent" if not disk else "running" if boot else "stopped"
        return VmStatus(state, accel="tcg", boot=boot, disk=disk)

    def console_log(self, name: str) -> Path:
        return paths.data_home() / "fake" / name / "console"

    def weight(self, name: str) -> int:
        return 4096

    def weights(self, name: str) -> dict[str, int]:
        return {"system": 1 << 20, "data": 3 << 20, "image": 1 << 29, "memory": 2 << 30}

    def ssh_endpoint(self, name: str) -> SshEndpoint:
        return SshEndpoint("127.0.0.1", 1, "me", Path("/nokey"), Path("/noknown"))


class FakeGuest:
    """See the module."""

    def __init__(self, ctx: context.Context) -> None:
        self.folder = place(ctx.instance.name)
        self.worktree = ctx.worktree.path
        self.record = Record(ctx.instance.folder / RECORD)
        self.connection = SimpleNamespace(
            ports=SimpleNamespace(failed={}, record=self.record),
            channel=lambda *words: self.folder / "no-socket",
            socket=lambda: self.folder / "boot",
            pid=lambda: int(text(self.folder / "master", "0")),
        )
        self.wanted = ctx.settings.mounts_local

    def connect(self, timeout: float = 60) -> None: ...

    def connected(self) -> bool:
        return bool(text(self.folder / "boot"))

    def close(self) -> None: ...

    def ssh_config_block(self, alias: str, proxy: Any) -> str:
        return f"Host {alias}\n"

    def facts(self, probe: Any, *, timeout: float = 20) -> Facts:
        note(self.folder.parent, "facts")
        listed = json.loads(text(self.folder / "containers", "[]"))
        health = text(self.folder / "health", "200")
        if (self.folder / "cold").exists() and "begin health" not in text(self.folder / "ran"):
            health = "503"
        return Facts(
            boot=text(self.folder / "boot"),
            boot_id="kernel",
            docker=not (self.folder / "no-docker").exists(),
            containers=tuple(container(**entry) for entry in listed),
            units={"stack": self._stack_unit()},
            health_code=int(health) if probe.health_url else None,
            listening=frozenset({22, 5000}),
            local=frozenset(text(self.folder / "local").splitlines()) & {*probe.local},
        )

    def _stack_unit(self) -> str:
        rc = text(self.folder / "unit-stack" / "rc")
        return text(self.folder / "stack-unit") or (f"exited {rc}" if rc else "gone")

    def run(self, script: str, **options: Any) -> Result:
        note(self.folder, f"run {script.split()[0]}")
        if localfolders.SCRIPT in script:  # laid and dropped by the guest's own shell
            note(self.folder, "lay")
            (self.folder / "local").write_text("\n".join(self.wanted))
        said = text(self.folder / "cpu") if script == idleness.CPU_SCRIPT else ""
        if script.startswith("stat -c %Y"):  # of a stage's rc
            with contextlib.suppress(OSError):
                said = str(int((self.folder / "unit-stack" / "rc").stat().st_mtime))
        failed = script == "docker volume ls -q" and bool(text(self.folder / "fail-volumes"))
        return Result(("ssh",), int(failed), said, "")

    def stage(
        self, name: str, command: str, *, attempt: str, root: bool = False, on_line: Any = None,
        timeout: float | None = None, cwd: Any = None, env: Any = None,
    ) -> int:  # fmt: skip
        unit = self.folder / f"unit-{name}"
        # As in the guest: whoever launches is waited for, though its worker was killed meanwhile.
        with open(self.folder / f"unit-{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if text(unit / "attempt") != attempt:
                self._launch(unit, name, command, attempt, lock.fileno())
            else:
                note(self.folder, f"join {name}")
        die_at(self.folder, name, "middle")
        while not text(unit / "rc"):
            if (unit / "stopped").exists():
                raise VmoatError(f"`{name}` was stopped", code=Code.VM)
            time.sleep(0.02)
        for line in text(unit / "log").splitlines():
            on_line(line)
        return int(text(unit / "rc"))

    def _launch(self, unit: Path, name: str, command: str, attempt: str, lock: int) -> None:
        rc = text(self.folder / f"fail-{name}", "0")
        slow = text(self.folder / "slow", "0")
        if name == "apt":
            command = "echo installing"
        line = (
            f"rm -rf {unit}; mkdir {unit}; echo $$ >{unit}/pid; echo {attempt} >{unit}/attempt; "
            f"echo {name} >>{self.folder}/ran; exec {lock}>&-; "
            f"sleep {slow}; while [ -e {self.folder}/hold ]; do sleep 0.02; done; "
            f"cd {shlex.quote(str(self.worktree))} && ({command}) >{unit}/log 2>&1;"
            f" rc=$?; [ {rc} = 0 ] || rc={rc}; echo {name} >>{self.folder}/ended; "
            f"echo $rc >{unit}/rc.new; mv {unit}/rc.new {unit}/rc"
        )
        process = subprocess.Popen(
            ["bash", "-c", line], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True, pass_fds=(lock,),
        )  # fmt: skip
        STARTED.append(process)  # nobody waits for it here
        while text(unit / "attempt") != attempt:
            time.sleep(0.005)

    def stop_stage(self, name: str) -> None:
        unit = self.folder / f"unit-{name}"
        note(self.folder, f"stopped {name}")
        (unit / "stopped").touch()
        with contextlib.suppress(OSError, ValueError):
            os.killpg(int(text(unit / "pid")), signal.SIGKILL)

    def service(self, name: str, command: str, **options: Any) -> None:
        note(self.folder, f"service {name}")
        (self.folder / "stack-unit").write_text("active")

    def exec(self, words: Any, *, tty: bool = False, **options: Any) -> int:
        line = words[0] if len(words) == 1 else shlex.join(words)
        to = options.get("output")
        call = ["sh", "-c", line]
        process = subprocess.Popen(call, cwd=self.worktree, stdout=to, stderr=to)
        # As in the guest: a signal is the command's.
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        rc = process.wait()
        signal.signal(signal.SIGTERM, before)
        return rc if rc >= 0 else 128 - rc

    # forwards: host port -> guest port

    def forwards(self) -> dict[int, int]:
        """As with every boot's new master: all that is asked for, but what somebody else holds."""
        taken = text(self.folder / "taken").split()
        wanted = self.record.read() if self.connected() else {}
        return {host: guest for host, guest in wanted.items() if str(host) not in taken}

    def waiting(self) -> dict[int, int]:
        alive = self.forwards()
        return {h: g for h, g in self.record.read().items() if h not in alive}

    def forward(self, guest: int, host: int) -> None:
        if str(host) in text(self.folder / "taken").split():
            raise VmoatError(f"port {host} of this machine is taken", code=Code.BUSY)
        with self.record.change() as table:
            table[host] = guest

    def cancel(self, guest: int, host: int) -> None:
        with self.record.change() as table:
            table.pop(host, None)


def container(name: str = "web", **more: Any) -> Container:
    """A container that runs, but for what is said otherwise."""
    plain = Container(
        id=f"id-{name}", name=name, project="p", service=name, image="i", state="running",
        exit_code=None, health="", oneoff=False, created=1, ports=(),
    )  # fmt: skip
    if "ports" in more:
        more["ports"] = tuple((a, b) for a, b in more["ports"])
    return replace(plain, **more)


def _dying_run(self: Stage, ctx: context.Context) -> Any:
    here = place(ctx.instance.name)
    note(here, f"begin {self.name}")
    die_at(here, self.name, "start")
    values = _RUN(self, ctx)
    die_at(here, self.name, "end")
    return values


_RUN = Stage.run


def _dying_save(self: Any, stage: str, values: Any) -> None:
    _SAVE(self, stage, values)
    die_at(place(self.file.parent.name), stage, "saved")


_SAVE = StageStore.save


def install(patch: Any = setattr) -> None:
    """Put the fakes in; ``patch`` may be a pytest monkeypatch's ``setattr``."""
    patch(drivers, "load", lambda name: FakeDriver())
    patch(context, "open_guest", FakeGuest)
    patch(removal, "ASK_SECONDS", 0.2)  # no guest here ever answers ssh
    patch(Stage, "run", _dying_run)
    patch(StageStore, "save", _dying_save)
    patch(proc, "own_argv", lambda *words: [sys.executable, __file__, *words])
    patch(
        watch,
        "worker_argv",
        lambda request: [sys.executable, __file__, "--worker", request.dumps()],
    )
    patch(
        companion_process,
        "argv",
        lambda worktree: [sys.executable, __file__, "--companion", str(worktree)],
    )
    patch(
        stopping,
        "argv",
        lambda name, *words: [sys.executable, __file__, "--stop", name, *map(str, words)],
    )


def main() -> int:
    """`vmoat …`, or the worker, on this machine without VMs."""
    install()
    if sys.argv[1:2] == ["--worker"]:
        from vmoat import worker

        return worker.main(sys.argv[2:])
    if sys.argv[1:2] == ["--companion"]:
        from vmoat.companion import __main__ as companion

        return companion.main(sys.argv[2:])
    if sys.argv[1:2] == ["--stop"]:
        return stopping.main(sys.argv[2:])
    from vmoat.cli import main as command_line

    return command_line()


if __name__ == "__main__":
    os._exit((lambda code: (sys.stdout.flush(), sys.stderr.flush(), code)[2])(main()))
