"""Ending a VM: ask the guest, wait, tell QEMU to quit, terminate, kill; and removing it."""

from __future__ import annotations

import contextlib

from vmoat import paths, proc, ssh
from vmoat.drivers.qemu import disks, look, process, qmp, record
from vmoat.errors import VmoatError

POWEROFF_SECONDS = 15.0
"""For the guest to take the order to power off."""
QUIT_SECONDS = 10.0
"""For QEMU to write what it holds and end, once told to quit."""


def stop(name: str, *, timeout: float = 60) -> None:
    """See ``Driver.stop``."""
    found = record.read(name)
    if found is None:
        return
    qemu = found.process("qemu")
    if qemu is not None and qemu.alive():
        if found.phase == "running" and _power_off(name):
            process.wait_gone([qemu], timeout)
        _quit(found, qemu)
    end_everything(name, found.vm_id)


def _power_off(name: str) -> bool:
    """Ask over ssh: the guest has no ACPI daemon.  Whether it could be asked."""
    if look.status(name).state != "running":
        return False
    end = record.ssh_endpoint(name)
    options = ["-o", "BatchMode=yes", "-o", "HostKeyAlias=vmoat", "-o", "ConnectTimeout=8"]
    known = ssh.quote(end.known_hosts, tokens=True)
    options += ["-o", f"UserKnownHostsFile={known}", "-o", "IdentitiesOnly=yes"]
    line = "sudo -n systemctl poweroff" if end.user != "root" else "systemctl poweroff"
    words = ["ssh", "-F", "none", "-i", str(end.key), "-p", str(end.port), *options]
    words += ["-l", end.user, end.host, line]
    with contextlib.suppress(VmoatError):  # else it is ended from outside
        # 255: ssh itself failed; a connection that the power-off cuts ends so too
        proc.run(words, check=False, timeout=POWEROFF_SECONDS)
    return True


def _quit(found: record.Record, qemu: process.Process) -> None:
    if not qemu.alive():
        return
    try:
        with qmp.connect(look.qmp_path(found)) as monitor:
            monitor.command("quit")
    except VmoatError:
        return
    process.wait_gone([qemu], QUIT_SECONDS)


def end_everything(name: str, vm_id: str) -> None:
    """No process of this VM is left; also those of a start that was killed half way."""
    found = record.read(name)
    living = found.living() if found else []
    process.end(sorted(living, key=lambda one: one.name != "qemu"))
    process.end(process.strays(record.mark(vm_id)))
    if found:
        process.reap(found.processes)
        found.phase, found.processes = "stopped", []
        record.write(name, found)


def delete(name: str) -> None:
    """See ``Driver.delete``."""
    found = record.read(name)
    # By the owner's file too: the driver's own record may be damaged.
    for vm_id in {found.vm_id if found else "", paths.vm_id(name)} - {""}:
        end_everything(name, vm_id)
        disks.discard(paths.runtime_dir(vm_id))
    disks.discard(paths.disks_dir(name))
    state = paths.vm_dir(name)
    for entry in ("git", "ssh", "empty", "check"):
        disks.discard(state / entry)
    for entry in ("driver.toml", "meta.tar", "qemu.log", "qemu.log.1", "console.log"):
        (state / entry).unlink(missing_ok=True)
