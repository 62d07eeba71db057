"""Making a VM's disks, and starting it: a fresh start, one after a crash, one that was paused."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from vmoat import paths
from vmoat.drivers import Say, VmSpec
from vmoat.drivers.qemu import (
    accel,
    assemble,
    console,
    disks,
    ending,
    image,
    launch,
    look,
    qmp,
    record,
    verdicts,
    virtiofs,
    waiting,
)
from vmoat.errors import Code, VmoatError


def image_folder(spec: VmSpec) -> Path:
    """Where ``root.qcow2``, ``kernel``, ``initrd`` and ``cmdline`` of this VM's image are.

    A VM stays with the image that its system disk was made on; raises VM when that is gone.
    """
    folder = paths.disks_dir(spec.name)
    used = disks.read_record(folder).get("image")
    if not used or not (folder / disks.SYSTEM).exists():
        return image.folder(image.digest(spec.mirror))
    if not image.ready(used):
        raise VmoatError(
            f"the image {used} that this VM stands on is gone",
            hint="`vmoat image import` brings it back; else `vmoat destroy`, then `vmoat up`",
            code=Code.VM,
        )
    return image.folder(used)


def create(spec: VmSpec, say: Say) -> None:
    """See ``Driver.create``."""
    folder = paths.disks_dir(spec.name)
    if disks.whole(folder):
        return
    if not folder.exists():
        paths.make_private(folder)
    assemble.lend(folder, spec)
    golden = image_folder(spec)
    disks.create(folder, golden / "root.qcow2", golden.name, spec.disk_gib, say)


def start(spec: VmSpec, say: Say) -> None:
    """See ``Driver.start``."""
    status = look.status(spec.name)
    if status.state == "paused":
        _resume(spec.name, say)
        status = look.status(spec.name)
    found = record.read(spec.name)
    proven = not found or found.mount != "virtiofs" or virtiofs.remembered()
    if found and proven and status.state == "running" and status.spec_digest == spec.digest():
        waiting.wait_for_ssh(spec.name, found)
        return
    if status.state == "running":
        say("the VM is restarted: it is to have other mounts or another size")
        ending.stop(spec.name)
    ending.end_everything(spec.name, spec.vm_id)
    _repair_disks(spec, say)
    for kind in _accelerators(spec):
        for mount in virtiofs.kinds(spec):
            try:
                wrong = _boot(spec, kind, mount, say)
            except VmoatError:
                ending.end_everything(spec.name, spec.vm_id)
                raise
            if not wrong:
                return
            ending.end_everything(spec.name, spec.vm_id)
            if wrong == "accelerator":
                break
    raise VmoatError(
        "the VM cannot be started as it is asked for",
        hint=f"`vmoat doctor` checks this machine; QEMU's words are in "
        f"{paths.vm_dir(spec.name) / 'qemu.log'}",
        code=Code.VM,
    )


def _repair_disks(spec: VmSpec, say: Say) -> None:
    folder = paths.disks_dir(spec.name)
    system, data = folder / disks.SYSTEM, folder / disks.DATA
    if data.exists() and (why := disks.damage(data, deep=True)):
        raise VmoatError(
            f"the disk with Docker's data is damaged: {why}",
            hint="`vmoat destroy`, then `vmoat up`, makes the VM anew",
            code=Code.VM,
        )
    if system.exists() and (why := disks.damage(system, deep=True)):
        say(f"the system disk is damaged ({why}); it is made again")
        system.unlink()
    create(spec, say)


def _accelerators(spec: VmSpec) -> list[str]:
    program = assemble.program()
    verdict = accel.remembered(program)
    uid, gid = launch.who(spec.owner.uid, spec.owner.gid).sandbox.drop_to or (
        os.getuid(),
        os.getgid(),
    )
    if accel.usable_by(uid, gid) and verdict != "fails":
        return ["kvm", "tcg"]
    return ["tcg"]


def _boot(spec: VmSpec, kind: str, mount: str, say: Say) -> str:
    """Start in one way; what turned out not to work: ``accelerator``, ``mount``, "" for neither."""
    program = assemble.program()
    if kind == "tcg":
        say(accel.COST)
    untried = mount == "virtiofs" and not virtiofs.remembered()
    found = assemble.start_processes(spec, image_folder(spec), kind, mount)
    if kind == "kvm" and accel.remembered(program) != "works":
        why = waiting.no_life(spec.name, found)
        if why:
            # else QEMU failed for another reason
            if "kvm" in why.lower() or waiting.SILENT in why:
                accel.remember(program, False, why)
            say(f"KVM does not work here: {why}")
            return "accelerator"
        accel.remember(program, True)
    try:
        waiting.wait_for_ssh(spec.name, found)
        why = virtiofs.verdict(spec.name, console.text(spec.name)) if untried else ""
    except VmoatError as error:
        # Else it may have been anything: the next start tries again.
        blamed = record.SHARING in error.message or "cannot mount" in " ".join(error.details)
        if not untried or not blamed or spec.mount_type == "virtiofs":
            raise
        why = error.message
    if untried:
        verdicts.remember("virtiofs", virtiofs.program(), not why, why)
        disks.discard(paths.vm_dir(spec.name) / "check")
    if why:
        say(f"virtiofs does not work here: {why}")
        return "mount"
    disks.filled(paths.disks_dir(spec.name))
    return ""


def _resume(name: str, say: Say) -> None:
    """Let a paused VM go on; raises BUSY while the host's disk has no room."""
    found = record.read(name)
    if found is None:
        return
    free = look.free_bytes(paths.disks_dir(name))
    if free < look.ROOM:
        raise VmoatError(
            f"the VM is paused: the host's disk is full ({free >> 20} MiB are free)",
            hint=f"free {(look.ROOM - free) >> 20} MiB or more below {paths.data_home()}, "
            "then `vmoat up`",
            code=Code.BUSY,
        )
    say("the VM was paused and goes on")
    if qemu := found.process("qemu"):
        qemu.signal(signal.SIGCONT)
    with qmp.connect(look.qmp_path(found)) as monitor:
        monitor.command("cont")
    time.sleep(0.3)
