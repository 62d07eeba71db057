"""What this machine must have, each with its cure."""

from __future__ import annotations

import os
from pathlib import Path

from vmoat import proc
from vmoat.drivers.qemu import argv
from vmoat.errors import Code, VmoatError

APPARMOR_KNOB = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
USERNS_KNOB = Path("/proc/sys/kernel/unprivileged_userns_clone")
USERNS_LIMIT = Path("/proc/sys/user/max_user_namespaces")

# program → Debian's package
_ALWAYS = {
    "qemu-img": "qemu-utils",
    "mke2fs": "e2fsprogs",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "git": "git",
}
_WALLS = {"bwrap": "bubblewrap", "passt": "passt"}


def wanted_programs(machine: str, *, walls: bool) -> dict[str, str]:
    """Programs and the Debian packages that hold them."""
    package = "qemu-system-arm" if machine == "aarch64" else "qemu-system-x86"
    found = argv.MACHINES.get(machine)
    programs = {found.program: package} if found else {}
    return {**programs, **_ALWAYS, **(_WALLS if walls else {})}


def _knob(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def userns_cure() -> str:
    """What to do where user namespaces are refused, by what this host says."""
    if _knob(APPARMOR_KNOB) == "1":
        return (
            "this system's AppArmor restricts user namespaces; allow them with "
            "`sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` "
            "(keep it in /etc/sysctl.d), or give bwrap a profile that has `userns,`"
        )
    if _knob(USERNS_KNOB) == "0":
        return "allow them: `sudo sysctl -w kernel.unprivileged_userns_clone=1`"
    if _knob(USERNS_LIMIT) == "0":
        return "allow them: `sudo sysctl -w user.max_user_namespaces=10000`"
    return "inside a container, allow it to make user namespaces and mounts"


def check_machine(*, walls: bool) -> None:
    """Raise MISSING with the cure for the first thing that is not here."""
    machine = os.uname().machine
    if machine not in argv.MACHINES:
        raise VmoatError(
            f"the qemu driver does not know this machine ({machine})",
            hint="use an x86_64 or aarch64 host",
            code=Code.MISSING,
        )
    programs = wanted_programs(machine, walls=walls)
    missing = [name for name in programs if proc.which(name) is None]
    if missing:
        packages = " ".join(dict.fromkeys(programs[name] for name in missing))
        raise VmoatError(
            f"not installed: {', '.join(missing)}",
            hint=f"`vmoat doctor --fix`, or: sudo apt-get install {packages}",
            code=Code.MISSING,
        )
    if walls:
        check_sandbox()


def check_sandbox() -> None:
    """Try an empty sandbox of the kind that QEMU gets (10 ms)."""
    words = ["bwrap", "--unshare-user", "--unshare-net", "--unshare-pid", "--cap-drop", "ALL"]
    words += ["--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true"]
    answer = proc.run(words, check=False, timeout=20)
    if answer.rc != 0:
        raise VmoatError(
            "this machine does not let vmoat build its walls (bubblewrap, user namespaces)",
            hint=userns_cure(),
            code=Code.MISSING,
            details=answer.last_lines(2),
        )
