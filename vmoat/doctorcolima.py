"""What the colima driver needs on a machine: the doctor's table for it (see ``vmoat.doctor``)."""

from __future__ import annotations

from collections.abc import Callable

from vmoat import doctor
from vmoat.doctor import MISSING, NOTE, OK, WARNING, Check, Facts, Verdict
from vmoat.drivers.colima.checks import COLIMA_VERSION, INSTALL, LIMA_VERSION
from vmoat.drivers.colima.walls import NETWORK, OPEN, wsl_warnings


def platform(facts: Facts) -> Verdict:
    if facts.uid == 0:
        return Verdict(MISSING, "Lima runs no VMs for root", cure="run vmoat as an ordinary user")
    if facts.system not in ("Darwin", "Linux"):
        return Verdict(MISSING, f"Colima does not run on {facts.system}")
    if facts.wsl == 1:
        return Verdict(MISSING, "WSL 1 has no Linux kernel of its own",
                       cure="`wsl --set-version DISTRIBUTION 2` in Windows")  # fmt: skip
    where = ", in WSL 2" if facts.wsl else ""
    name = "macOS" if facts.system == "Darwin" else facts.system
    return Verdict(OK, f"{name} on {facts.machine}{where}")


def wsl(facts: Facts) -> Verdict | None:
    """WSL 2: nested virtualisation, and worktrees on the Windows side."""
    if facts.wsl != 2:
        return None
    kvm = facts.kvm == "open" and facts.kvm_verdict != "fails"
    said = wsl_warnings(facts.worktree, kvm=kvm)
    if said:
        return Verdict(WARNING, said[0][0], cure=said[0][1])
    return Verdict(OK, "nested virtualisation is there")


def _brewed(name: str, minimum: tuple[int, ...]) -> Callable[[Facts], Verdict | None]:
    def ask(facts: Facts) -> Verdict:
        if name not in facts.programs:
            return Verdict(MISSING, f"{name} is not installed", cure=INSTALL)
        version = doctor.version_of(facts.programs[name])
        if version and version < minimum:
            needed = ".".join(map(str, minimum))
            told = ".".join(map(str, version))
            return Verdict(MISSING, f"{name} {told} is too old: {needed} is needed",
                           cure=f"upgrade it (macOS: `brew upgrade {name}`)")  # fmt: skip
        return Verdict(OK, f"{name} {'.'.join(map(str, version)) or 'of a version of its own'}")

    return ask


def docker(facts: Facts) -> Verdict:
    if "docker" not in facts.programs:
        return Verdict(MISSING, "docker's command line is not installed: Colima refuses to start",
                       cure="macOS: `brew install docker`", packages=("docker-cli",))  # fmt: skip
    return Verdict(OK, "docker")


def qemu(facts: Facts) -> Verdict | None:
    return None if facts.system == "Darwin" else doctor.qemu(facts)


def qemu_img(facts: Facts) -> Verdict | None:
    if facts.system == "Darwin":
        return None
    return doctor.program("qemu-img", "qemu-utils")(facts)


def kvm(facts: Facts) -> Verdict | None:
    return None if facts.system == "Darwin" else doctor.kvm(facts)


def walls(facts: Facts) -> Verdict:
    shares = facts.system == "Linux" and "bwrap" in facts.programs and not facts.sandbox
    rows = NETWORK if shares else OPEN
    return Verdict(NOTE, "Colima holds fewer walls than the qemu driver: " + "; ".join(rows),
                   cure="`vmoat help walls`")  # fmt: skip


def foreign(facts: Facts) -> Verdict | None:
    if not facts.foreign:
        return None
    names = ", ".join(facts.foreign)
    return Verdict(NOTE, f"VMs in your own Colima home: {names}",
                   cure="`vmoat up` in its worktree takes one over as it is; "
                   "`vmoat destroy` there removes it")  # fmt: skip


CHECKS = (
    Check("platform", "where the VMs run", platform),
    Check("wsl", "VMs at full speed", wsl),
    Check("python", "runs vmoat", doctor.python),
    Check("colima", "runs the VMs", _brewed("colima", COLIMA_VERSION)),
    Check("lima", "what Colima stands on", _brewed("limactl", LIMA_VERSION)),
    Check("docker", "asked for by Colima", docker),
    Check("qemu", "runs the VMs", qemu),
    Check("qemu-img", "makes their disks", qemu_img),
    Check("ssh", "everything inside a VM", doctor.program("ssh", "openssh-client")),
    Check("ssh-keyscan", "the VM's host key", doctor.program("ssh-keyscan", "openssh-client")),
    Check("openssl", "the cache of container images", doctor.openssl),
    Check("git", "knows the worktrees", doctor.program("git", "git", minimum=doctor.GIT_VERSION)),
    Check("kvm", "VMs at full speed", kvm),
    Check("memory", "room for a VM", doctor.memory),
    Check("folders", "where vmoat keeps its files", doctor.folders),
    Check("browser", "optional: a browser for which localhost is the VM", doctor.browser),
    Check("vms", "of another tool", foreign),
    Check("walls", "what Colima cannot hold", walls),
)
