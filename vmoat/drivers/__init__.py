"""What a driver is: the border between vmoat and the programs that run virtual machines.

Callers ask a driver for its features, never for its name; drivers know nothing of stages.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from vmoat.errors import Code, VmoatError

Say = Callable[[str], None]
"""Takes one line of progress."""


@dataclass(frozen=True)
class Owner:
    """The host user that the worktree belongs to: the guest's user, and who QEMU runs as."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True)
class Share:
    """A folder of the host that the VM sees at the same path."""

    path: Path
    writable: bool


@dataclass(frozen=True)
class VmSpec:
    """Everything that a driver needs to make and start one VM."""

    name: str
    vm_id: str
    cpus: int
    memory_gib: float
    disk_gib: int
    worktree: Path
    git_dir: Path
    common_dir: Path
    owner: Owner
    readonly: tuple[Path, ...] = ()
    """Inside the worktree, besides ``.git``: vmoat's config files."""
    gitlinks: tuple[Path, ...] = ()
    """Folders of submodules; the driver keeps their ``.git`` read-only, or the whole folder where
    it is not populated yet."""
    masked: tuple[Path, ...] = ()
    """Other worktrees nested in this one."""
    shares: tuple[Share, ...] = ()
    mount_type: str = ""
    walls: bool = True
    network_open: bool = False
    git_writable: bool = False
    extra_args: tuple[str, ...] = ()
    mirror: str = ""
    image_cache: bool = False
    """Whether dockerd pulls through the host's image cache."""
    local: tuple[str, ...] = ()
    """Folders of the worktree that lie on the VM's data disk; also changed while it runs."""
    kind: str = ""
    """``vm.type``: what runs it, where a driver has more than one."""
    start_args: tuple[str, ...] = ()
    """More words for the program that the driver starts VMs with."""
    layers: bool = True
    """Whether a new VM's data may begin as a copy of another one's of the same repository."""

    def digest(self) -> str:
        """What a running VM must have been started with to count as this one."""
        facts = asdict(self)
        for name in ("mirror", "local", "layers"):
            facts.pop(name)
        text = json.dumps(facts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class VmStatus:
    """What is true of a VM now, from its processes and its own word; never from a record alone.

    ``state``: ``absent`` (no disks), ``stopped``, ``starting``, ``running``, ``paused``,
    ``broken``; the last two with their reasons.
    """

    state: str
    reasons: tuple[str, ...] = ()
    accel: str = ""
    mount: str = ""
    """How the worktree is shared."""
    boot: str = ""
    disk: str = ""
    spec_digest: str = ""
    ssh_port: int = 0
    pids: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SshEndpoint:
    """How OpenSSH reaches the guest."""

    host: str
    port: int
    user: str
    key: Path
    known_hosts: Path


@dataclass(frozen=True)
class Features:
    """What a driver can do beyond the Protocol."""

    golden_image: bool = False
    resize: bool = False
    snapshots: bool = False
    fixed: tuple[str, ...] = ()
    """Facts of a VM (``mount_type``, ``kind``) that only a new one can have otherwise."""
    git_index: bool = True
    """Whether the guest can be shown a prepared copy of git's index (``companion.gitindex``)."""


class Driver(Protocol):
    """Makes, starts, stops and removes VMs."""

    name: str
    features: Features

    def check(self, *, walls: bool = True) -> None:
        """Raise MISSING, with the cure, where this machine lacks something."""

    def image_digest(self, spec: VmSpec) -> str:
        """The digest of the recipe that this VM's golden image is made from; "" without one."""

    def image_ready(self, spec: VmSpec) -> bool:
        """Whether that image exists, whole."""

    def build_image(self, spec: VmSpec, say: Say) -> None:
        """Build the image; returns quietly when it exists (somebody else may be first)."""

    def create(self, spec: VmSpec, say: Say) -> None:
        """Make the disks; returns quietly when they exist."""

    def start(self, spec: VmSpec, say: Say) -> None:
        """Start the VM and return once its ssh port answers; repairs what a crash left behind.

        Raises VM when it cannot, with the console's last lines.
        """

    def refresh(self, spec: VmSpec) -> str:
        """Show a running VM what the host has changed since (git's files); costs a few stats.

        Called before a command goes to the guest.  Returns a line of shell to run there first, as
        root, or "" where there is nothing to do.
        """

    def stop(self, name: str, *, timeout: float = 60) -> None:
        """Ask the guest to power off, wait, terminate, kill; quiet when it does not run."""

    def delete(self, name: str) -> None:
        """Remove the VM and every byte of it; quiet when there is none."""

    def status(self, name: str) -> VmStatus:
        """What is true now; without ssh, within 50 ms."""

    def console_log(self, name: str) -> Path:
        """The file of the guest's console."""

    def weight(self, name: str) -> int:
        """Bytes that the VM's disks take on the host."""

    def weights(self, name: str) -> dict[str, int]:
        """Bytes on the host by part: ``system`` and ``data`` (disks), ``image`` (shared by all VMs
        that stand on it), ``memory`` (what the VM's processes hold now).
        """

    def ssh_endpoint(self, name: str) -> SshEndpoint:
        """How to reach a VM that was started; raises VM when it was not."""


def default() -> str:
    """The name of this platform's own driver."""
    return "colima" if sys.platform == "darwin" else "qemu"


def load(name: str) -> Driver:
    """The driver of that name ("" is this platform's own)."""
    name = name or default()
    if name == "qemu":
        from vmoat.drivers.qemu.driver import QemuDriver

        return QemuDriver()
    if name == "colima":
        from vmoat.drivers.colima.driver import ColimaDriver

        return ColimaDriver()
    raise VmoatError(
        f"there is no driver `{name}`",
        hint='set driver = "qemu" or "colima" in vmoat.toml',
        code=Code.CONFIG,
    )
