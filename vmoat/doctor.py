"""What vmoat needs on a machine: a table of checks, each a pure function of facts.

The facts are gathered by ``vmoat.hostfacts`` and cures are run by ``vmoat.hostfix``; packages have
Debian's names here.  Sources: bubblewrap's README on user namespaces, Ubuntu 24.04's release notes
on ``apparmor_restrict_unprivileged_userns``, subuid(5), passt's own AppArmor profile.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from vmoat.drivers.qemu.virtiofs import C_VERSIONS, DESCRIPTORS, MINIMUM

OK, NOTE, WARNING, MISSING = "ok", "note", "warning", "missing"

BUILD_GIB = 5.0
"""Free space, GiB, that building an image takes in the data folder; half of it in /var/tmp."""

QEMU_VERSION = (7, 2)
GIT_VERSION = (2, 31)
PYTHON_VERSION = (3, 11)

QEMU = {
    "x86_64": ("qemu-system-x86_64", "qemu-system-x86"),
    "aarch64": ("qemu-system-aarch64", "qemu-system-arm"),
}
"""Machine -> QEMU's program and Debian's package."""

BWRAP_PROFILE = (
    "printf 'abi <abi/4.0>,\\ninclude <tunables/global>\\n"
    "profile bwrap /usr/bin/bwrap flags=(unconfined) {\\n  userns,\\n}\\n' "
    "| sudo tee /etc/apparmor.d/bwrap && sudo apparmor_parser -r /etc/apparmor.d/bwrap"
)
"""Lets bubblewrap alone make user namespaces; the system's restriction stays for the rest."""


@dataclass(frozen=True)
class Facts:
    """What is true of a machine and of the user on it."""

    system: str = "Linux"
    machine: str = "x86_64"
    manager: str = "apt-get"
    """The package manager's program; "" for one that is not known here."""
    uid: int = 1000
    user: str = "user"
    python: tuple[int, ...] = PYTHON_VERSION
    programs: Mapping[str, str] = field(default_factory=dict)
    """Programs that are there -> the first line of their ``--version``, where that was asked."""
    keyring: str = ""
    """Debian's archive keys: "" (none), ``old`` (without trixie's own), ``trixie``."""
    image_ready: bool = False
    walls: bool = True
    sandbox: str = ""
    """What bubblewrap said when an empty sandbox was tried; "" when it worked or is not there."""
    apparmor: bool = False
    apparmor_userns: str = ""
    userns_clone: str = ""
    max_userns: str = ""
    passt_profile: str = ""
    """The text of passt's AppArmor profile."""
    subids: tuple[bool, bool] = (True, True)
    """Whether the user has ranges in /etc/subuid and /etc/subgid."""
    free_range: int = 100000
    """The first id of a range that nobody has."""
    kvm: str = ""
    """/dev/kvm: "" (none), ``closed`` (not for this user), ``open``."""
    kvm_group: str = ""
    """The group that may open it; "" where it is no group's."""
    kvm_verdict: str = ""
    """A real boot's verdict: ``works``, ``fails``, "" (never tried)."""
    virtiofs_verdict: str = ""
    """A guest's verdict on virtiofsd: ``works``, ``fails``, "" (never tried)."""
    descriptors: int = 1 << 20
    """How many files one program may have open, at most."""
    cpu_virtualises: bool = True
    memory_gib: tuple[float, float] = (16.0, 16.0)
    """All of it, and what is free for use."""
    vm_gib: float = 8
    free_gib: Mapping[str, float] = field(default_factory=dict)
    """Folder -> free space of its file system: the data folder first, then the build's."""
    unwritable: tuple[str, ...] = ()
    wsl: int = 0
    container: str = ""
    driver: str = "qemu"
    browser: str = ""
    """The Chromium of `vmoat open`, by name; "" where there is none."""
    browser_fault: str = ""
    """Why the one that the settings name cannot be used."""
    worktree: str = ""
    """Where the doctor was asked."""
    foreign: tuple[str, ...] = ()
    """VMs of the shell tool in the user's own Colima home."""


@dataclass(frozen=True)
class Verdict:
    """What a check found; ``packages`` and ``command`` cure it.

    ``command`` is a line for a shell; ``safe`` ones ``doctor --fix`` runs itself.
    """

    state: str
    says: str
    cure: str = ""
    packages: tuple[str, ...] = ()
    command: str = ""
    safe: bool = False


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    purpose: str
    verdict: Verdict


@dataclass(frozen=True)
class Check:
    """A row of the table; the function returns None where the check says nothing here."""

    name: str
    purpose: str
    ask: Callable[[Facts], Verdict | None]


def version_of(text: str) -> tuple[int, ...]:
    """The first dotted number of a ``--version`` line; () without one."""
    found = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def program(name: str, package: str, *, minimum: tuple[int, ...] = (), build: bool = False,
            walls: bool = False) -> Callable[[Facts], Verdict | None]:  # fmt: skip
    """A check for a program; one that only builds images is not missed where the image is."""

    def ask(facts: Facts) -> Verdict | None:
        if walls and not facts.walls:
            return None
        lacks = WARNING if build and facts.image_ready else MISSING
        if name not in facts.programs:
            return Verdict(lacks, f"{name} is not installed", packages=(package,))
        version = version_of(facts.programs[name])
        if minimum and version and version < minimum:
            old = f"{name} {_dotted(version)} is too old: {_dotted(minimum)} is needed"
            return Verdict(lacks, old, cure="upgrade it, or the system")
        return Verdict(OK, f"{name} {_dotted(version)}".strip())

    return ask


def platform(facts: Facts) -> Verdict:
    if facts.system != "Linux":
        return Verdict(
            MISSING, f"{facts.system}: the qemu driver runs on Linux",
            cure="use a Linux machine, or a Linux VM with nested virtualisation",
        )  # fmt: skip
    if facts.machine not in QEMU:
        return Verdict(MISSING, f"there is no guest image for {facts.machine}",
                       cure="use an x86_64 or aarch64 machine")  # fmt: skip
    if facts.wsl == 1:
        return Verdict(MISSING, "WSL 1 has no Linux kernel of its own",
                       cure="`wsl --set-version DISTRIBUTION 2` in Windows")  # fmt: skip
    where = "WSL 2" if facts.wsl else f"a {facts.container} container" if facts.container else ""
    says = f"Linux on {facts.machine}" + (f", in {where}" if where else "")
    if facts.wsl:
        return Verdict(NOTE, says, cure="KVM needs nestedVirtualization=true in .wslconfig; "
                       "worktrees below /mnt/c are slow")  # fmt: skip
    return Verdict(OK, says)


def python(facts: Facts) -> Verdict:
    if facts.python < PYTHON_VERSION:
        needed = f"vmoat runs on Python {_dotted(PYTHON_VERSION)} and later"
        return Verdict(MISSING, f"Python {_dotted(facts.python)} is too old", cure=needed)
    return Verdict(OK, f"Python {_dotted(facts.python)}")


def qemu(facts: Facts) -> Verdict | None:
    if facts.machine not in QEMU:
        return None
    name, package = QEMU[facts.machine]
    return program(name, package, minimum=QEMU_VERSION)(facts)


def keyring(facts: Facts) -> Verdict:
    package = ("debian-archive-keyring",)
    if not facts.keyring:
        state = WARNING if facts.image_ready else MISSING
        return Verdict(state, "Debian's archive keys are not installed", packages=package)
    if facts.keyring == "old":
        return Verdict(
            WARNING, "Debian's archive keys are older than Debian 13's",
            cure="upgrade debian-archive-keyring where the image's build complains of signatures",
        )  # fmt: skip
    return Verdict(OK, "Debian's archive keys, trixie's among them")


def openssl(facts: Facts) -> Verdict:
    if "openssl" in facts.programs:
        return Verdict(OK, "openssl makes the image cache's certificates")
    says = "openssl is not installed: no image cache, each VM pulls its images anew"
    return Verdict(WARNING, says, packages=("openssl",))


def namespaces(facts: Facts) -> Verdict | None:
    """A sandbox that works proves it; what the kernel's switches say is why it does not."""
    if not facts.walls or "bwrap" not in facts.programs:
        return None
    if not facts.sandbox:
        return Verdict(OK, "bubblewrap makes a sandbox here")
    says = f"bubblewrap cannot make a sandbox: {facts.sandbox}"
    if facts.apparmor_userns == "1":
        return Verdict(MISSING, says, cure="AppArmor restricts user namespaces here (Ubuntu's "
                       "default): give bubblewrap a profile that allows them",
                       command=BWRAP_PROFILE)  # fmt: skip
    for knob, value, name, good in (
        ("0", facts.userns_clone, "kernel.unprivileged_userns_clone", "1"),
        ("0", facts.max_userns, "user.max_user_namespaces", "10000"),
    ):
        if value == knob:
            return Verdict(
                MISSING, says, cure=f"user namespaces are switched off ({name} = 0)",
                command=f"echo '{name} = {good}' | sudo tee /etc/sysctl.d/60-vmoat.conf "
                "&& sudo sysctl --system",
            )  # fmt: skip
    cure = "allow user namespaces and mounts"
    if facts.container:
        cure += (
            f" in this {facts.container} container: --security-opt seccomp=unconfined "
            "--security-opt apparmor=unconfined --security-opt systempaths=unconfined"
        )
    return Verdict(MISSING, says, cure=cure)


def passt_profile(facts: Facts) -> Verdict | None:
    if not (facts.walls and facts.apparmor and facts.passt_profile):
        return None
    folders = profile_folders(facts.passt_profile)
    where = ", ".join(folders) or "no folder"
    return Verdict(OK, f"AppArmor lets passt write below {where}; vmoat hands it open sockets")


def profile_folders(text: str) -> list[str]:
    """The folders that an AppArmor profile lets its program write in."""
    rows = re.findall(r"^\s*(?:owner\s+)?(\S+)/\*\*?\s+[a-z]*w[a-z]*,", text, re.MULTILINE)
    return list(dict.fromkeys(row.replace("@{HOME}", "~") for row in rows))


def subids(facts: Facts) -> Verdict | None:
    if facts.uid == 0:
        return None
    absent = not {"newuidmap", "newgidmap"} <= set(facts.programs)
    files = [f"/etc/sub{kind}id" for kind, has in zip("ug", facts.subids, strict=True) if not has]
    if absent or files:
        says = ["newuidmap is not installed"] if absent else []
        says += [f"{facts.user} has no range in {' and '.join(files)}"] if files else []
        ids = f"{facts.free_range}-{facts.free_range + 65535}"
        options = "".join(f"--add-sub{name[8]}ids {ids} " for name in files)
        return Verdict(
            WARNING if facts.image_ready else MISSING,
            "; ".join(says),
            packages=("uidmap",) if absent else (),
            command=f"sudo usermod {options}{facts.user}" if files else "",
            safe=bool(files),
        )
    return Verdict(OK, f"{facts.user} has subordinate ids")


def kvm(facts: Facts) -> Verdict:
    slow = "; software emulation is used, several times slower"
    if not facts.kvm:
        if facts.container:
            cure = f"start the {facts.container} container with --device /dev/kvm"
        elif facts.cpu_virtualises:
            cure = "load the kernel's module: `sudo modprobe kvm_intel` or `kvm_amd`"
        else:
            cure = "switch virtualisation on in the firmware; in a VM: nested virtualisation"
        return Verdict(WARNING, "there is no /dev/kvm" + slow, cure=cure)
    if facts.kvm == "closed":
        says = f"{facts.user} may not open /dev/kvm{slow}"
        if facts.kvm_group in ("", "root"):
            return Verdict(
                WARNING, says, cure="give it to the group kvm",
                command="getent group kvm >/dev/null || sudo groupadd --system kvm; "
                "sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm && "
                f"sudo usermod -aG kvm {facts.user}",
            )  # fmt: skip
        return Verdict(WARNING, says, cure="join its group, then log in again",
                       command=f"sudo usermod -aG {facts.kvm_group} {facts.user}")  # fmt: skip
    if facts.kvm_verdict == "fails":
        return Verdict(WARNING, "/dev/kvm opens, but a guest did not boot with it here" + slow,
                       cure="another kernel or QEMU is tried anew by itself")  # fmt: skip
    if facts.kvm_verdict == "works":
        return Verdict(OK, "a guest has booted with KVM here")
    return Verdict(OK, "/dev/kvm opens; the first boot proves it")


def memory(facts: Facts) -> Verdict:
    total, free = facts.memory_gib
    says = f"{free:.1f} of {total:.1f} GiB free, a VM takes up to {facts.vm_gib:g}"
    if free < facts.vm_gib:
        return Verdict(WARNING, says, cure="a smaller vm.memory, or fewer VMs at once")
    return Verdict(OK, says)


def disk(facts: Facts) -> Verdict:
    for folder, share in zip(facts.free_gib, (1.0, 0.5), strict=False):
        free, need = facts.free_gib[folder], BUILD_GIB * share
        if free < need and not facts.image_ready:
            return Verdict(
                MISSING, f"{free:.1f} GiB free for {folder}; building the image takes {need:g}",
                cure="make room, or name another folder in XDG_DATA_HOME",
            )  # fmt: skip
        if free < 2:
            return Verdict(WARNING, f"only {free:.1f} GiB free for {folder}", cure="make room")
    rows = [f"{free:.0f} GiB free for {folder}" for folder, free in facts.free_gib.items()]
    return Verdict(OK, ", ".join(rows[:1]))


def folders(facts: Facts) -> Verdict:
    if facts.unwritable:
        return Verdict(
            MISSING, "not writable: " + ", ".join(facts.unwritable),
            cure="make these writable, or name others in XDG_STATE_HOME, XDG_DATA_HOME and "
            "XDG_CONFIG_HOME",
        )  # fmt: skip
    return Verdict(OK, "the folders for state, data and config are writable")


def virtiofsd(facts: Facts) -> Verdict:
    if "virtiofsd" not in facts.programs:
        return Verdict(NOTE, "virtiofsd is not installed: shares go by 9p")
    version = version_of(facts.programs["virtiofsd"])
    name = f"virtiofsd {_dotted(version)}".strip()
    if MINIMUM <= version < (C_VERSIONS,):
        if facts.virtiofs_verdict == "fails":
            return Verdict(NOTE, f"{name}: a guest found it to misbehave; shares go by 9p")
        if facts.descriptors < DESCRIPTORS:
            return Verdict(
                NOTE, f"{name}, but at most {facts.descriptors} files may be open: shares go by 9p",
                cure=f"a hard limit of {DESCRIPTORS} open files or more (ulimit -Hn)",
            )  # fmt: skip
        return Verdict(OK, name + ("" if facts.virtiofs_verdict else "; the first boot proves it"))
    return Verdict(NOTE, f"{name} is of no use here: shares go by 9p")


BROWSER_PACKAGES = {
    "apt-get": "`sudo apt-get install chromium` (Ubuntu: `sudo snap install chromium`)",
    "dnf": "`sudo dnf install chromium`",
    "zypper": "`sudo zypper install chromium`",
    "pacman": "`sudo pacman -S chromium`",
}


def browser(facts: Facts) -> Verdict:
    """Never a fault: VMs do without one."""
    if facts.browser:
        return Verdict(OK, facts.browser)
    if facts.browser_fault:
        return Verdict(NOTE, facts.browser_fault,
                       cure="`vmoat config browser.command` says where that is set")  # fmt: skip
    get = BROWSER_PACKAGES.get(facts.manager, "install one")
    if facts.system == "Darwin":
        get = "`brew install --cask google-chrome`"
    elif facts.wsl:
        get += " in WSL (one of Windows does not do)"
    return Verdict(
        NOTE, "no Chromium or Chrome is installed: `vmoat open` and `vmoat shot` need one",
        cure=f"{get}, or name yours in `browser.command` of your config.toml",
    )  # fmt: skip


CHECKS = (
    Check("platform", "where the VMs run", platform),
    Check("python", "runs vmoat", python),
    Check("qemu", "runs the VMs", qemu),
    Check("qemu-img", "makes their disks", program("qemu-img", "qemu-utils")),
    Check("e2fsprogs", "makes their file systems", program("mke2fs", "e2fsprogs")),
    Check("bubblewrap", "the walls around a VM", program("bwrap", "bubblewrap", walls=True)),
    Check("namespaces", "what bubblewrap builds walls from", namespaces),
    Check("passt", "the VMs' network", program("passt", "passt", walls=True)),
    Check("passt-profile", "what the system lets passt do", passt_profile),
    Check("ssh", "everything inside a VM", program("ssh", "openssh-client")),
    Check("ssh-keygen", "a key for each VM", program("ssh-keygen", "openssh-client")),
    Check("openssl", "the cache of container images", openssl),
    Check("git", "knows the worktrees", program("git", "git", minimum=GIT_VERSION)),
    Check("mmdebstrap", "builds the guest image", program("mmdebstrap", "mmdebstrap", build=True)),
    Check("keyring", "proves that the image's packages are Debian's", keyring),
    Check("subids", "building the image as an ordinary user", subids),
    Check("tar", "packs the image", program("tar", "tar")),
    Check("zstd", "packs exported images", program("zstd", "zstd", build=True)),
    Check("kvm", "VMs at full speed", kvm),
    Check("memory", "room for a VM", memory),
    Check("disk", "room for images and disks", disk),
    Check("folders", "where vmoat keeps its files", folders),
    Check("virtiofsd", "optional: other shares than 9p", virtiofsd),
    Check("browser", "optional: a browser for which localhost is the VM", browser),
)


def examine(facts: Facts) -> list[Finding]:
    """Every check that has something to say on this machine, in the table's order."""
    checks: Sequence[Check] = CHECKS
    if facts.driver == "colima":
        from vmoat import doctorcolima

        checks = doctorcolima.CHECKS
    asked = [(check, check.ask(facts)) for check in checks]
    if facts.system != "Linux" and facts.driver != "colima":
        asked = asked[:2]
    return [Finding(check.name, check.purpose, verdict) for check, verdict in asked if verdict]


def well(findings: Sequence[Finding]) -> bool:
    """Whether nothing that is needed is missing."""
    return all(finding.verdict.state != MISSING for finding in findings)


def packages(findings: Sequence[Finding]) -> list[str]:
    """Debian's names of the packages that are missed, each once."""
    return list(dict.fromkeys(name for f in findings for name in f.verdict.packages))
