"""The colima driver: VMs that Colima and Lima run, one COLIMA_HOME each."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

from vmoat import paths
from vmoat.drivers import Features, Say, SshEndpoint, VmSpec, VmStatus
from vmoat.drivers.colima import homes, look

# What makes, starts or ends a VM is imported when that is done: most commands only look.


class ColimaDriver:
    """Implements ``vmoat.drivers.Driver`` with Colima."""

    name = "colima"
    features = Features(resize=True, fixed=("kind", "mount_type"), git_index=False)

    # --- what must be there

    def check(self, *, walls: bool = True) -> None:
        from vmoat.drivers.colima import checks, machine

        checks.check_machine(machine.host())

    # --- no image of vmoat's own

    def image_digest(self, spec: VmSpec) -> str:
        return ""

    def image_ready(self, spec: VmSpec) -> bool:
        return True

    def build_image(self, spec: VmSpec, say: Say) -> None:
        return

    # --- making

    def create(self, spec: VmSpec, say: Say) -> None:
        from vmoat.drivers.colima import starting

        starting.create(spec, say)

    def start(self, spec: VmSpec, say: Say) -> None:
        from vmoat.drivers.colima import starting

        starting.start(spec, say)

    # --- ending

    def stop(self, name: str, *, timeout: float = 60) -> None:
        from vmoat.drivers.colima import ending

        ending.stop(name, timeout=timeout)

    def delete(self, name: str) -> None:
        from vmoat.drivers.colima import ending

        ending.delete(name)

    # --- looking

    def status(self, name: str) -> VmStatus:
        return look.status(name)

    def console_log(self, name: str) -> Path:
        return homes.place_of(name).instance / "serial.log"

    def weight(self, name: str) -> int:
        return look.total_weight(name)

    def weights(self, name: str) -> dict[str, int]:
        return look.weights(name)

    def ssh_endpoint(self, name: str) -> SshEndpoint:
        return look.endpoint(name)

    def refresh(self, spec: VmSpec) -> str:
        """The overlay over the git folder keeps names that were missing: it is mounted anew when
        git has made or removed any on the host."""
        if not spec.walls or spec.git_writable or homes.place_of(spec.name).adopted:
            return ""
        seen = paths.vm_dir(spec.name) / "git-seen"
        now = json.dumps(_stamps(spec))
        try:
            if seen.read_text() == now:
                return ""
        except OSError:
            pass
        seen.write_text(now)
        path = shlex.quote(str(spec.common_dir))
        # by the older system call: overlayfs refuses the newer one; with its source, for else
        # mount(8) takes the options of Lima's row in fstab, `ro` among them
        return f"LIBMOUNT_FORCE_MOUNT2=always mount -o remount,rw vmoat-git {path}"


_FOLDERS = ("", "refs", "refs/heads", "refs/remotes", "refs/tags", "objects", "objects/pack")


def _stamps(spec: VmSpec) -> list[int]:
    """What changes when git makes or removes a file in the folders that it works in."""
    found = []
    for top in {spec.common_dir, spec.git_dir}:
        for name in _FOLDERS:
            try:
                found.append(os.stat(top / name).st_mtime_ns)
            except OSError:
                found.append(0)
    return sorted(found)
