"""The qemu driver: one VM a worktree, started, watched and ended by the host alone."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from pathlib import Path

from vmoat import paths, proc
from vmoat.drivers import Features, Say, SshEndpoint, VmSpec, VmStatus
from vmoat.drivers.qemu import (
    accel,
    assemble,
    disks,
    gitview,
    launch,
    look,
    process,
    qmp,
    record,
    waiting,
)
from vmoat.drivers.qemu.checks import check_machine
from vmoat.errors import Code, VmoatError

POWEROFF_SECONDS = 15.0
"""For the guest to take the order to power off."""
QUIT_SECONDS = 10.0
"""For QEMU to write what it holds and end, once told to quit."""


class QemuDriver:
    """Implements ``vmoat.drivers.Driver`` with QEMU, bubblewrap and passt."""

    name = "qemu"
    features = Features(golden_image=True, resize=True)

    # --- what must be there

    def check(self, *, walls: bool = True) -> None:
        check_machine(walls=walls)

    # --- the golden image

    def image_digest(self, spec: VmSpec) -> str:
        from vmoat.drivers.qemu import image

        return image.digest(spec.mirror)

    def image_ready(self, spec: VmSpec) -> bool:
        from vmoat.drivers.qemu import image

        return image.ready(image.digest(spec.mirror))

    def build_image(self, spec: VmSpec, say: Say) -> None:
        from vmoat.drivers.qemu import image

        image.build(spec.mirror, say)

    def image_folder(self, spec: VmSpec) -> Path:
        """Where ``root.qcow2``, ``kernel``, ``initrd`` and ``cmdline`` of this VM's image are.

        A VM stays with the image that its system disk was made on; raises VM when that is gone.
        """
        from vmoat.drivers.qemu import image

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

    # --- making

    def create(self, spec: VmSpec, say: Say) -> None:
        folder = paths.disks_dir(spec.name)
        if disks.whole(folder):
            return
        if not folder.exists():
            paths.make_private(folder)
        assemble.lend(folder, spec)
        image_folder = self.image_folder(spec)
        backing = image_folder / "root.qcow2"
        disks.create(folder, backing, image_folder.name, spec.disk_gib, say)

    def start(self, spec: VmSpec, say: Say) -> None:
        status = self.status(spec.name)
        if status.state == "paused":
            self._resume(spec.name, say)
            status = self.status(spec.name)
        found = record.read(spec.name)
        if found and status.state == "running" and status.spec_digest == spec.digest():
            waiting.wait_for_ssh(spec.name, found)
            return
        if status.state == "running":
            say("the VM is restarted: it is to have other mounts or another size")
            self.stop(spec.name)
        self._end_everything(spec.name, spec.vm_id)
        self._repair_disks(spec, say)
        for kind in self._accelerators(spec):
            try:
                if self._boot(spec, kind, say):
                    return
            except VmoatError:
                self._end_everything(spec.name, spec.vm_id)
                raise

    def _repair_disks(self, spec: VmSpec, say: Say) -> None:
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
        self.create(spec, say)

    def _accelerators(self, spec: VmSpec) -> list[str]:
        program = assemble.program()
        verdict = accel.remembered(program)
        uid, gid = launch.who(spec.owner.uid, spec.owner.gid).sandbox.drop_to or (
            os.getuid(),
            os.getgid(),
        )
        if accel.usable_by(uid, gid) and verdict != "fails":
            return ["kvm", "tcg"]
        return ["tcg"]

    def _boot(self, spec: VmSpec, kind: str, say: Say) -> bool:
        """Start with one accelerator; False when KVM turned out not to work."""
        program = assemble.program()
        proven = kind != "kvm" or accel.remembered(program) == "works"
        if kind == "tcg":
            say(accel.COST)
        found = assemble.start_processes(spec, self.image_folder(spec), kind)
        if not proven:
            why = waiting.no_life(spec.name, found)
            if why:
                if (
                    "kvm" in why.lower() or waiting.SILENT in why
                ):  # else QEMU failed for another reason
                    accel.remember(program, False, why)
                say(f"KVM does not work here ({why}): {accel.COST}")
                self._end_everything(spec.name, spec.vm_id)
                return False
            accel.remember(program, True)
        waiting.wait_for_ssh(spec.name, found)
        return True

    def _resume(self, name: str, say: Say) -> None:
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
        with qmp.connect(look.qmp_path(found)) as monitor:
            monitor.command("cont")
        time.sleep(0.3)

    # --- ending

    def stop(self, name: str, *, timeout: float = 60) -> None:
        found = record.read(name)
        if found is None:
            return
        qemu = found.process("qemu")
        if qemu is not None and qemu.alive():
            if found.phase == "running" and self._power_off(name):
                process.wait_gone([qemu], timeout)
            self._quit(found, qemu)
        self._end_everything(name, found.vm_id)

    def _power_off(self, name: str) -> bool:
        """Ask over ssh: the guest has no ACPI daemon.  Whether it could be asked."""
        if self.status(name).state != "running":
            return False
        end = self.ssh_endpoint(name)
        options = ["-o", "BatchMode=yes", "-o", "HostKeyAlias=vmoat", "-o", "ConnectTimeout=8"]
        options += ["-o", f"UserKnownHostsFile={end.known_hosts}", "-o", "IdentitiesOnly=yes"]
        line = "sudo -n systemctl poweroff" if end.user != "root" else "systemctl poweroff"
        words = ["ssh", "-F", "none", "-i", str(end.key), "-p", str(end.port), *options]
        words += ["-l", end.user, end.host, line]
        with contextlib.suppress(VmoatError):  # else it is ended from outside
            # 255: ssh itself failed; a connection that the power-off cuts ends so too
            proc.run(words, check=False, timeout=POWEROFF_SECONDS)
        return True

    def _quit(self, found: record.Record, qemu: process.Process) -> None:
        if not qemu.alive():
            return
        try:
            with qmp.connect(look.qmp_path(found)) as monitor:
                monitor.command("quit")
        except VmoatError:
            return
        process.wait_gone([qemu], QUIT_SECONDS)

    def _end_everything(self, name: str, vm_id: str) -> None:
        """No process of this VM is left; also those of a start that was killed half way."""
        found = record.read(name)
        living = found.living() if found else []
        process.end(sorted(living, key=lambda one: one.name != "qemu"))
        process.end(launch.strays(assemble.mark(vm_id)))
        if found:
            process.reap(found.processes)
            found.phase, found.processes = "stopped", []
            record.write(name, found)

    def delete(self, name: str) -> None:
        found = record.read(name)
        if found is not None:
            self._end_everything(name, found.vm_id)
            disks.discard(paths.runtime_dir(found.vm_id))
        disks.discard(paths.disks_dir(name))
        state = paths.vm_dir(name)
        for entry in ("git", "ssh", "empty"):
            disks.discard(state / entry)
        for entry in ("driver.toml", "meta.tar", "qemu.log", "qemu.log.1", "console.log"):
            (state / entry).unlink(missing_ok=True)

    # --- looking

    def status(self, name: str) -> VmStatus:
        return look.status(name)

    def console_log(self, name: str) -> Path:
        return assemble.console_log(name)

    def weight(self, name: str) -> int:
        return disks.weight(paths.disks_dir(name))

    def ssh_endpoint(self, name: str) -> SshEndpoint:
        found = record.read(name)
        if found is None or not found.ssh_port:
            raise VmoatError(
                f"the VM {name} was never started", hint="`vmoat up` starts it", code=Code.VM
            )
        keys = paths.vm_dir(name) / "ssh"
        return SshEndpoint(
            "127.0.0.1", found.ssh_port, found.user, keys / "id_ed25519", keys / "known_hosts"
        )

    def refresh(self, spec: VmSpec) -> str:
        if not spec.walls or spec.git_writable:
            return ""
        folder = paths.vm_dir(spec.name) / "git"
        owner = (spec.owner.uid, spec.owner.gid)
        if not gitview.refresh(spec.common_dir, spec.git_dir, folder, owner):
            return ""
        # the overlay remembers names that were missing, and would not look again
        # (by the older system call: overlayfs refuses the newer one)
        path = shlex.quote(str(spec.common_dir))
        return f"LIBMOUNT_FORCE_MOUNT2=always mount -o remount {path}"
