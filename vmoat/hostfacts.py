"""The facts of this machine that the doctor judges; touches nothing."""

from __future__ import annotations

import grp
import os
import platform
import pwd
import re
import shutil
import sys
from pathlib import Path

from vmoat import drivers, hostfix, paths, proc
from vmoat.browser import find
from vmoat.config.settings import Settings
from vmoat.doctor import QEMU, Facts
from vmoat.drivers.colima.machine import kernel, wsl
from vmoat.drivers.qemu import virtiofs
from vmoat.errors import VmoatError

KEYRINGS = (Path("/usr/share/keyrings"), Path("/etc/apt/trusted.gpg.d"))
PASST_PROFILE = Path("/etc/apparmor.d/usr.bin.passt")

_PLAIN = ("qemu-img", "mke2fs", "bwrap", "passt", "ssh", "ssh-keygen", "mmdebstrap", "tar", "zstd",
          "openssl", "newuidmap", "newgidmap")  # fmt: skip
_VERSIONED = ("git", "bwrap", "mmdebstrap")


def gather(settings: Settings) -> Facts:
    """Look at everything; takes a second, most of it asking programs for their version."""
    machine = "aarch64" if platform.machine() == "arm64" else platform.machine()
    found = programs(machine)
    driver = settings.driver or drivers.default()
    name, fault = browser(settings.browser_command)
    if driver == "colima":
        from vmoat.drivers.colima import homes

        found |= colima_programs()
        prove_kvm()
    return Facts(
        system=platform.system(),
        machine=machine,
        manager=hostfix.manager(),
        uid=os.getuid(),
        user=user_name(),
        python=tuple(sys.version_info[:3]),
        programs=found,
        keyring=keyring(KEYRINGS),
        image_ready=image_ready(settings.image_mirror),
        walls=settings.walls,
        sandbox=try_sandbox() if "bwrap" in found and settings.walls else "",
        apparmor=read("/sys/module/apparmor/parameters/enabled") == "Y",
        apparmor_userns=read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
        userns_clone=read("/proc/sys/kernel/unprivileged_userns_clone"),
        max_userns=read("/proc/sys/user/max_user_namespaces"),
        passt_profile=read(PASST_PROFILE),
        subids=(has_range("/etc/subuid"), has_range("/etc/subgid")),
        free_range=free_range(read("/etc/subuid") + "\n" + read("/etc/subgid")),
        **kvm(machine),
        cpu_virtualises=bool(re.search(r"\b(vmx|svm)\b", read("/proc/cpuinfo")))
        or machine == "aarch64",
        memory_gib=memory(read("/proc/meminfo")),
        vm_gib=settings.vm_memory,
        free_gib={str(place): free_gib(place) for place in (paths.data_home(), Path("/var/tmp"))},
        unwritable=tuple(
            str(place)
            for place in (paths.state_home(), paths.data_home(), paths.config_home())
            if not writable(place)
        ),
        virtiofs_verdict=virtiofs.remembered(),
        descriptors=virtiofs.descriptors(),
        wsl=wsl(kernel()),
        container=container(),
        driver=driver,
        browser=name,
        browser_fault=fault,
        worktree=os.getcwd(),
        foreign=tuple(homes.user_vms(settings.vm_prefix)) if driver == "colima" else (),
    )


def colima_programs() -> dict[str, str]:
    """Those that the colima driver needs, with the line that tells their version."""
    found = {name: "" for name in ("docker", "ssh-keyscan") if proc.which(name)}
    for name, words in (("colima", ["colima", "version"]), ("limactl", ["limactl", "--version"])):
        if proc.which(name):
            found[name] = first_line(words)
    return found


def browser(setting: str) -> tuple[str, str]:
    """The browser that is found, by name, and why the one that ``setting`` names is not."""
    try:
        return find.name(setting), ""
    except VmoatError as error:
        return "", error.message if setting.strip() else ""


def prove_kvm() -> None:
    """Try KVM as the colima driver does, so that its verdict is known."""
    from vmoat.drivers.colima import machine

    machine.host()


def read(path: str | Path) -> str:
    """A file's text without the space around it; "" where it cannot be read."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def programs(machine: str) -> dict[str, str]:
    """The programs that are there; for some, the first line of ``--version``."""
    found = {name: "" for name in _PLAIN if proc.which(name)}
    qemu = QEMU.get(machine, ("", ""))[0]
    for name in (qemu, *_VERSIONED):
        if name and proc.which(name):
            found[name] = version_line(name)
    if place := virtiofs.program():
        found["virtiofsd"] = version_line(place)
    return found


def version_line(name: str) -> str:
    return first_line([name, "--version"])


def first_line(words: list[str]) -> str:
    """What a program says first; "" where it cannot be asked."""
    try:
        answer = proc.run(words, check=False, timeout=20)
    except VmoatError:
        return ""
    return (answer.out or answer.err).partition("\n")[0]


def keyring(folders: tuple[Path, ...]) -> str:
    """Which of Debian's archive keys are there: "", ``old``, ``trixie``."""
    names = [entry.name for folder in folders for entry in folder.glob("debian-archive-*")]
    if any("trixie" in name for name in names):
        return "trixie"
    return "old" if names else ""


def image_ready(mirror: str) -> bool:
    from vmoat.drivers.qemu import image

    try:
        return image.ready(image.digest(mirror))
    except VmoatError:
        return False


def try_sandbox() -> str:
    """What bubblewrap says to an empty sandbox of the kind that QEMU gets; "" when it works."""
    from vmoat.drivers.qemu import checks

    try:
        checks.check_sandbox()
    except VmoatError as error:
        return " ".join(error.details) or error.message
    return ""


def has_range(file: str) -> bool:
    """Whether the user, by name or number, has an entry in a subuid(5) file."""
    names = (user_name(), str(os.getuid()))
    return any(row.startswith(tuple(f"{name}:" for name in names)) for row in read(file).split())


def free_range(text: str) -> int:
    """The first id after every range of subuid(5) rows, at least 100000."""
    ends = [int(start) + int(count) for start, count in re.findall(r":(\d+):(\d+)", text)]
    return max([100000, *ends])


def kvm(machine: str) -> dict[str, str]:
    from vmoat.drivers.qemu import accel

    try:
        info = os.stat(accel.DEVICE)
    except OSError:
        return {"kvm": "", "kvm_group": "", "kvm_verdict": ""}
    try:
        group = grp.getgrgid(info.st_gid).gr_name if info.st_mode & 0o060 == 0o060 else ""
    except KeyError:
        group = ""
    program = proc.which(QEMU.get(machine, ("", ""))[0] or "-")
    return {
        "kvm": "open" if os.access(accel.DEVICE, os.R_OK | os.W_OK) else "closed",
        "kvm_group": group,
        "kvm_verdict": accel.remembered(program) if program else "",
    }


def memory(meminfo: str) -> tuple[float, float]:
    """All memory and what is available, GiB, from /proc/meminfo."""
    rows = dict(re.findall(r"^(\w+):\s+(\d+) kB", meminfo, re.MULTILINE))
    if not rows:  # macOS has no such file, and lends what is free to its cache
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        return whole, whole
    return int(rows.get("MemTotal", 0)) / 2**20, int(rows.get("MemAvailable", 0)) / 2**20


def existing(place: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(folder for folder in (place, *place.parents) if folder.exists())


def free_gib(place: Path) -> float:
    return shutil.disk_usage(existing(place)).free / 2**30


def writable(place: Path) -> bool:
    return os.access(existing(place), os.W_OK | os.X_OK)


def container() -> str:
    """The container that this runs in, by the marks that its maker leaves; "" for none."""
    if Path("/.dockerenv").exists():
        return "docker"
    if Path("/run/.containerenv").exists():
        return "podman"
    return read("/run/systemd/container")
