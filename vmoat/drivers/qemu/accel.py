"""KVM, where it is proven to work; software emulation otherwise.

``/dev/kvm`` may open and still be of no use: QEMU may abort on a register, or the guest hang in its
first second (both seen).  So a real boot decides, and its verdict is remembered for this QEMU, host
kernel and CPU.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tomllib
from pathlib import Path

from vmoat import paths, proc
from vmoat.errors import VmoatError

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


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "CPU part")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


def key(program: str) -> str:
    """What a verdict holds for: the QEMU binary, the host's kernel, its CPU."""
    try:
        info = os.stat(program)
        binary = f"{info.st_size}.{info.st_mtime_ns}"
    except OSError:
        binary = ""
    text = "\n".join((program, binary, platform.release(), platform.machine(), _cpu_model()))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _file() -> Path:
    return paths.state_home() / "accel.toml"


def remembered(program: str) -> str:
    """``works``, ``fails``, or "" when it was never tried here."""
    try:
        verdicts = tomllib.loads(_file().read_text())
    except (OSError, ValueError):
        return ""
    return str(verdicts.get("kvm", {}).get(key(program), {}).get("verdict", ""))


def remember(program: str, works: bool, why: str = "") -> None:
    """Keep the verdict; one that cannot be kept is found anew next time."""
    import tomli_w

    verdict = {"verdict": "works" if works else "fails", "why": why[:300], "qemu": program}
    try:
        paths.make_private(paths.state_home())
        new = _file().with_suffix(".new")
        new.write_text(tomli_w.dumps({"kvm": {key(program): verdict}}))
        new.replace(_file())
    except (OSError, VmoatError):
        pass


def version(program: str) -> str:
    """The first line of ``--version``."""
    return proc.run([program, "--version"], check=False, timeout=20).out.partition("\n")[0]
