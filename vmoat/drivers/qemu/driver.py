"""The qemu driver: one VM a worktree, started, watched and ended by the host alone."""

from __future__ import annotations

import shlex
from pathlib import Path

from vmoat import paths
from vmoat.drivers import Features, Say, SshEndpoint, VmSpec, VmStatus
from vmoat.drivers.qemu import console, disks, gitview, look, record

# What makes, starts or ends a VM is imported when that is done: most commands only look.


class QemuDriver:
    """Implements ``vmoat.drivers.Driver`` with QEMU, bubblewrap and passt."""

    name = "qemu"
    features = Features(golden_image=True, resize=True)

    # --- what must be there

    def check(self, *, walls: bool = True) -> None:
        from vmoat.drivers.qemu.checks import check_machine

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

    # --- making

    def create(self, spec: VmSpec, say: Say) -> None:
        from vmoat.drivers.qemu import starting

        starting.create(spec, say)

    def start(self, spec: VmSpec, say: Say) -> None:
        from vmoat.drivers.qemu import starting

        starting.start(spec, say)

    # --- ending

    def stop(self, name: str, *, timeout: float = 60) -> None:
        from vmoat.drivers.qemu import ending

        ending.stop(name, timeout=timeout)

    def delete(self, name: str) -> None:
        from vmoat.drivers.qemu import ending

        ending.delete(name)

    # --- looking

    def status(self, name: str) -> VmStatus:
        return look.status(name)

    def console_log(self, name: str) -> Path:
        return console.log(name)

    def weight(self, name: str) -> int:
        return disks.weight(paths.disks_dir(name))

    def weights(self, name: str) -> dict[str, int]:
        return look.weights(name)

    def ssh_endpoint(self, name: str) -> SshEndpoint:
        return record.ssh_endpoint(name)

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
