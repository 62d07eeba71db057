"""KVM, where it is proven to work; software emulation otherwise.

``/dev/kvm`` may open and still be of no use: QEMU may abort on a register, or the guest hang in its
first second (both seen).  So a real boot decides, and its verdict is remembered for this QEMU, host
kernel and CPU.
"""

from __future__ import annotations

import os

from vmoat import proc
from vmoat.drivers.qemu import verdicts

DEVICE = "/dev/kvm"
LIFE_SECONDS = 15.0
"""For the guest's first line under KVM; a working one needs less than one second."""
COST = "software emulation: everything in the VM runs several times slower"


def usable_by(uid: int, gid: int) -> bool:
    """Whether that user may open /dev/kvm, by its permission bits and groups."""
    try:
        info = os.stat(DEVICE)
    except OSError:
        return False
    if os.getuid() == uid:
        return os.access(DEVICE, os.R_OK | os.W_OK)
    # QEMU runs as another user, without further groups
    if info.st_uid == uid:
        return info.st_mode & 0o600 == 0o600
    if info.st_gid == gid:
        return info.st_mode & 0o060 == 0o060
    return info.st_mode & 0o006 == 0o006


def remembered(program: str) -> str:
    """``works``, ``fails``, or "" when it was never tried with this QEMU."""
    return verdicts.remembered("kvm", program)


def remember(program: str, works: bool, why: str = "") -> None:
    """Keep a boot's verdict."""
    verdicts.remember("kvm", program, works, why)


def version(program: str) -> str:
    """The first line of ``--version``."""
    return proc.run([program, "--version"], check=False, timeout=20).out.partition("\n")[0]
