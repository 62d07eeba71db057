"""Waiting for a guest: what is awaited, and when waiting has become pointless."""

from __future__ import annotations

import socket
import time

from vmoat import paths
from vmoat.drivers.qemu import accel, console, process, record
from vmoat.errors import Code, VmoatError

BOOT_SECONDS = 300.0
"""For sshd to answer; emulation on a busy host takes a minute."""
BANNER_SECONDS = 20.0
"""For sshd's first words, once the guest said that it is ready."""
SILENT = "did not start within"
_DEAD = ("vmoat-init: cannot mount", "vmoat-init: no root device")
_LIFE = "vmoat-init:"
_READY = "vmoat-boot: ready"
_PANICS = 4
"""Under emulation with several CPUs a kernel may trip over its own code patching while it boots
(int3 oops); it restarts by itself (``panic=1``).  So many in one start are no accident."""


def no_life(name: str, entry: record.Record) -> str:
    """Wait for the guest's first line; why it did not come, or ""."""
    qemu = entry.process("qemu")
    deadline = time.monotonic() + accel.LIFE_SECONDS
    while time.monotonic() < deadline:
        if _LIFE in console.text(name):
            return ""
        if qemu is None or not qemu.alive():
            words = console.last_lines(paths.vm_dir(name) / "qemu.log", 1)
            return words[-1] if words else "QEMU ended at once"
        time.sleep(0.1)
    return f"the guest {SILENT} {accel.LIFE_SECONDS:g} s"


def wait_for_ssh(name: str, entry: record.Record) -> None:
    """Return once sshd answers; raises VM with the last words when it will not."""
    began = time.monotonic()
    while True:
        _still_well(name, entry, began)
        # passt burns a core over a connection given up before the guest answered it: so the
        # guest's own word is awaited first
        # One that was up before has said so, in lines that may have been rotated away since.
        said = entry.phase == "running" or _READY in console.text(name)
        if said and _banner(entry.ssh_port):
            break
        time.sleep(0.1)
    if entry.phase == "running":
        return
    if "vmoat-boot: cannot mount" in (text := console.text(name)):
        lines = [line for line in text.splitlines() if "vmoat-boot: cannot" in line]
        raise VmoatError(
            "the VM runs, but could not mount what it shares with the host",
            hint="`vmoat logs --console` shows the guest's own words",
            code=Code.VM,
            details=lines[-6:],
        )
    entry.phase = "running"
    record.write(name, entry)


def _still_well(name: str, entry: record.Record, began: float) -> None:
    """Raise VM, with the last words, when waiting for the guest has become pointless."""
    log = paths.vm_dir(name) / "qemu.log"
    for one in entry.processes:
        if not one.alive():
            process.reap([one])
            words = console.last_lines(log) or console.last_lines(console.log(name))
            raise VmoatError(
                f"{one.name} ended while the VM was starting",
                hint=f"its words are in {log}",
                code=Code.VM,
                details=words,
            )
    text = console.text(name)
    dead = next((word for word in _DEAD if word in text), "")
    if text.count("end Kernel panic") >= _PANICS:
        dead = "its kernel panics"
    if dead:
        raise VmoatError(
            f"the guest cannot start: {dead}",
            hint="its disk is damaged: `vmoat destroy`, then `vmoat up`, makes it anew",
            code=Code.VM,
            details=console.last_lines(console.log(name)),
        )
    if time.monotonic() - began > BOOT_SECONDS:
        raise VmoatError(
            f"the VM's ssh did not answer within {BOOT_SECONDS:g} s",
            hint="`vmoat logs --console` shows how far it came",
            code=Code.VM,
            details=console.last_lines(console.log(name)),
        )


def _banner(port: int) -> bool:
    """Whether sshd itself answers: passt accepts connections before the guest does."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as probe:
            probe.settimeout(BANNER_SECONDS)
            # passt of 2023 acknowledges the guest's SYN only together with data
            probe.sendall(b"SSH-2.0-vmoat\r\n")
            return probe.recv(16).startswith(b"SSH-")
    except OSError:
        return False
