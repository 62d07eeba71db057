"""This machine, as far as Colima's command line depends on it; and whether KVM works here."""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path

from vmoat import proc
from vmoat.drivers.colima.argv import Host
from vmoat.drivers.qemu import accel
from vmoat.errors import VmoatError

ROSETTA = Path("/Library/Apple/usr/libexec/oah/libRosettaRuntime")
"""There when Rosetta 2 is installed."""

PROBE = bytes.fromhex("baf400b010eef4ebfd").ljust(510, b"\0") + b"\x55\xaa"
"""A boot sector: ``mov dx, 0xf4; mov al, 0x10; out dx, al``, then ``hlt`` for ever.

QEMU's ``isa-debug-exit`` at that port ends QEMU with (0x10 << 1) | 1."""
PROVEN = 33
PROBE_SECONDS = 15.0


def host() -> Host:
    """The facts; tries KVM once for each QEMU, kernel and CPU (half a second), and remembers."""
    system = platform.system()
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine(), platform.machine())
    if system == "Darwin":
        major = platform.mac_ver()[0].split(".")[0]
        return Host(system, machine, int(major or 0), rosetta=ROSETTA.exists())
    return Host(
        system,
        machine,
        kvm=kvm_works(f"qemu-system-{machine}"),
        kvm_there=os.path.exists(accel.DEVICE),
        wsl=wsl(kernel()),
        sandbox=sandbox_works(),
    )


def sandbox_works() -> bool:
    """Whether bubblewrap makes a sandbox for this user (10 ms)."""
    from vmoat.drivers.qemu import checks

    if proc.which("bwrap") is None:
        return False
    try:
        checks.check_sandbox()
    except VmoatError:
        return False
    return True


def kvm_works(name: str) -> bool:
    """Whether a guest runs with KVM: a sector that asks QEMU to end is booted.

    Only x86 has the device for it; elsewhere a /dev/kvm that opens counts.
    """
    program = proc.which(name)
    if program is None or not accel.usable_by(os.getuid(), os.getgid()):
        return False
    if not name.endswith("x86_64"):
        return accel.remembered(program) != "fails"
    if verdict := accel.remembered(program):
        return verdict == "works"
    works, why = _boot_probe(program)
    accel.remember(program, works, why)
    return works


def _boot_probe(program: str) -> tuple[bool, str]:
    with tempfile.NamedTemporaryFile(suffix=".img") as image:
        image.write(PROBE)
        image.flush()
        words = [program, "-accel", "kvm", "-cpu", "host", "-m", "64", "-display", "none"]
        words += ["-nodefaults", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
        words += ["-drive", f"file={image.name},format=raw,if=ide,snapshot=on"]
        try:
            done = proc.run(words, check=False, timeout=PROBE_SECONDS)
        except VmoatError as error:
            return False, error.message
    return done.rc == PROVEN, " ".join(done.last_lines(2))


def kernel() -> str:
    """The kernel's name for itself; "" where it does not tell."""
    try:
        return Path("/proc/sys/kernel/osrelease").read_text()
    except OSError:
        return ""


def wsl(release: str) -> int:
    """The version of the Windows Subsystem for Linux, by the kernel's name; 0: none."""
    if "WSL2" in release or "microsoft-standard" in release:
        return 2
    return 1 if "Microsoft" in release else 0
