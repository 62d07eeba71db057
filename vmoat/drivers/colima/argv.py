"""The command lines, the environment and Lima's override file: pure functions of spec and facts."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from vmoat.drivers import VmSpec
from vmoat.drivers.colima.homes import Place
from vmoat.errors import Code, VmoatError

RESOLVE_MINUTES = "15"
"""Under emulation a guest is slow to ask for its address (pkg/networks/usernet/client.go)."""
MSIZE = "512KiB"
"""Of one 9p message; virtio takes 500 KiB of it."""


@dataclass(frozen=True)
class Host:
    """What the command line depends on, of this machine."""

    system: str = "Linux"
    """As ``uname -s`` says it."""
    machine: str = "x86_64"
    """``x86_64`` or ``aarch64``."""
    macos: int = 0
    """The major version of macOS."""
    rosetta: bool = False
    """Whether Rosetta 2 is installed."""
    kvm: bool = False
    """Whether KVM is proven to work for this user."""
    kvm_there: bool = False
    """Whether there is a /dev/kvm, which is all that Lima looks at (pkg/driver/qemu/qemu.go)."""
    wsl: int = 0
    sandbox: bool = False
    """Whether bubblewrap works for this user."""

    @property
    def mac(self) -> bool:
        return self.system == "Darwin"

    @property
    def apple(self) -> bool:
        """macOS on Apple silicon."""
        return self.mac and self.machine == "aarch64"


def vm_type(spec: VmSpec, host: Host) -> str:
    """What runs the VM: qemu, vz or krunkit.  vz where it can (macOS 13 and later)."""
    if not host.mac:
        return "qemu"
    if spec.kind in ("qemu", "vz", "krunkit"):
        return spec.kind
    return "vz" if host.macos >= 13 else "qemu"


def mount_type(spec: VmSpec, host: Host) -> str:
    """How folders are shared.

    virtiofs goes with vz and krunkit alone; with QEMU, Colima would quietly make sshfs of it
    (cmd/start.go: setFlagDefaults), whose server lets the guest reach every file of the user.
    """
    if vm_type(spec, host) in ("vz", "krunkit"):
        return "sshfs" if spec.mount_type == "sshfs" else "virtiofs"
    return "sshfs" if spec.mount_type == "sshfs" else "9p"


def emulated(host: Host) -> bool:
    """Whether QEMU emulates the CPU: no KVM, or none that works."""
    return host.system == "Linux" and not host.kvm


def _csv(text: str) -> str:
    """One value of a flag that is a list: pflag reads it as a line of CSV."""
    return '"' + text.replace('"', '""') + '"' if "," in text or '"' in text else text


def _mountable(path: Path) -> str:
    text = os.fspath(path)
    # `$` is expanded by Colima (util.CleanPath), `{{` by Lima (executeHostTemplate)
    if ":" in text or "$" in text or "{{" in text or not text.isprintable():
        raise VmoatError(
            f"Colima cannot share the folder {text!r}",
            hint="use a path without `:`, `$`, `{{` and control characters",
            code=Code.CONFIG,
        )
    return text


def mounts(spec: VmSpec) -> list[tuple[Path, bool]]:
    """The folders that the VM sees, and whether it may write them.

    A git folder inside of the worktree is seen through it.  Raises CONFIG for folders that lie
    in each other: Colima refuses them (checkOverlappingMounts).
    """
    found = [(spec.worktree, True)]
    for folder in (spec.common_dir, spec.git_dir):
        if not any(folder.is_relative_to(held) for held, _ in found):
            found.append((folder, spec.git_writable))
    for share in spec.shares:
        if share.path != spec.worktree:
            found.append((share.path, share.writable))
    for number, (one, _) in enumerate(found):
        for other, _ in found[number + 1 :]:
            if one.is_relative_to(other) or other.is_relative_to(one):
                own = {spec.worktree, spec.common_dir, spec.git_dir}
                raise VmoatError(
                    f"Colima cannot share both {one} and {other}: one lies in the other",
                    hint="move the worktree out of its git folder (`git worktree move`)"
                    if {one, other} <= own
                    else "take the folder out of mounts.share",
                    code=Code.CONFIG,
                )
    return found


def start(spec: VmSpec, place: Place, host: Host) -> list[str]:
    """`colima start`: a VM that touches nothing of the user's, and shares what it must.

    An adopted VM keeps its mounts and its kind: what its config says holds for flags that are not
    given (cmd/start.go: prepareConfig).
    """
    words = ["colima", "start", "-p", place.profile]
    words += ["--cpus", str(spec.cpus), "--memory", f"{spec.memory_gib:g}"]
    words += ["--disk", str(spec.disk_gib)]
    # neither the user's docker context nor ~/.ssh/config
    words += ["--activate=false", "--ssh-config=false"]
    if place.adopted:
        return [*words, *spec.start_args]
    words += ["--template=false", "--runtime", "docker", "--hostname", spec.name]
    words += _kind(spec, host)
    for path, writable in mounts(spec):
        words += ["--mount", _csv(_mountable(path) + (":w" if writable else ""))]
    words += ["--mount-type", mount_type(spec, host)]
    return [*words, *spec.start_args]


def _kind(spec: VmSpec, host: Host) -> list[str]:
    """What runs it, and what runs images of the other architecture."""
    if not host.mac:
        return ["--binfmt=false"]
    # unknown flags elsewhere (cmd/start.go: init)
    words = ["--vm-type", vm_type(spec, host)] if host.macos >= 13 else []
    if host.apple and host.macos >= 13 and vm_type(spec, host) == "vz" and host.rosetta:
        return [*words, "--vz-rosetta", "--binfmt=false"]
    # without Rosetta, QEMU in the guest is what runs images for Intel
    return words if host.apple else [*words, "--binfmt=false"]


def stop(place: Place, *, force: bool = False) -> list[str]:
    return ["colima", "stop", "-p", place.profile, *(["--force"] if force else [])]


def delete(place: Place) -> list[str]:
    return ["colima", "delete", "-p", place.profile, "--force", "--data"]


def wrapper(place: Place, host: Host) -> Path:
    """The script that Lima takes for QEMU (see ``walled``)."""
    return place.home / "bin" / f"qemu-system-{host.machine}"


_EMULATION = {
    "x86_64": "-machine q35,vmport=off -accel tcg,thread=multi -cpu max",
    "aarch64": "-machine virt,accel=tcg -cpu max",
}


def environment(place: Place, host: Host | None = None, *, walled: bool = False) -> dict[str, str]:
    """The variables that Colima and Lima are started with, beside the user's own; without a host
    those that name the VM alone.  ``walled``: QEMU is started by the script of ``wrapper``.
    """
    values = {"COLIMA_HOME": str(place.home), "LIMA_HOME": str(place.lima)}
    if not place.adopted:
        # the context `colima-vm` and the file `colima-vm.yaml` would be the same for all VMs
        values |= {"DOCKER_CONFIG": str(place.docker), "TMPDIR": str(place.temporary)}
    if host is None or host.mac:
        return values
    program = shlex.quote(str(wrapper(place, host))) if walled else f"qemu-system-{host.machine}"
    words = _EMULATION.get(host.machine, "") if host.kvm_there and not host.kvm else ""
    if words or walled:
        values[f"QEMU_SYSTEM_{host.machine.upper()}"] = f"{program} {words}".rstrip()
    if emulated(host):
        values["LIMA_USERNET_RESOLVE_IP_ADDRESS_TIMEOUT"] = RESOLVE_MINUTES
    return values


def override(spec: VmSpec, host: Host, script: str) -> str:
    """Lima's ``override.yaml`` (JSON, which YAML holds): what Colima itself cannot say.

    - No port of the guest appears on this machine.  Colima's own ``--port-forwarder none`` leaves
      out ``guestIPMustBeZero: false``, and a listener on the guest's 127.0.0.1 came through
      (environment/vm/lima/yaml.go; pkg/limayaml/defaults.go).  The first rule that fits counts.
    - 9p keeps nothing of the git folder back: with Lima's default for read-only mounts (fscache)
      the guest does not see what git changes on the host.
    - The script runs as root in each boot, before Colima starts dockerd.
    """
    rules = [{"guestIP": "0.0.0.0", "guestIPMustBeZero": False, "proto": "any", "ignore": True}]
    found: dict[str, object] = (
        {} if "--port-forwarder" in spec.start_args else {"portForwards": rules}
    )
    if mount_type(spec, host) == "9p":
        found["mounts"] = [
            # by the location as Colima writes it, with a slash at its end (util.CleanPath)
            {
                "location": f"{path}/",
                "writable": writable,
                "9p": {"cache": "mmap" if writable else "none", "msize": MSIZE},
            }
            for path, writable in mounts(spec)
        ]
    found["provision"] = [{"mode": "system", "script": script}]
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"
