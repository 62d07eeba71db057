"""Cures for what the doctor missed, as the commands of this machine's package manager.

Debian's and Ubuntu's package names are certain, the others' are the best that is known.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vmoat import proc
from vmoat.doctor import Finding, Verdict
from vmoat.errors import Code, VmoatError

MANAGERS = ("apt-get", "dnf", "zypper", "pacman")

_SAME = ("e2fsprogs", "bubblewrap", "passt", "git", "tar", "zstd")
NAMES: dict[str, dict[str, str]] = {
    "dnf": {
        **{name: name for name in _SAME},
        "qemu-system-x86": "qemu-system-x86-core",
        "qemu-system-arm": "qemu-system-aarch64-core",
        "qemu-utils": "qemu-img",
        "openssh-client": "openssh-clients",
        "mmdebstrap": "mmdebstrap",
        "debian-archive-keyring": "debian-keyring",
        "uidmap": "shadow-utils",
    },
    "zypper": {
        **{name: name for name in _SAME},
        "qemu-system-x86": "qemu-x86",
        "qemu-system-arm": "qemu-arm",
        "qemu-utils": "qemu-tools",
        "openssh-client": "openssh-clients",
        "uidmap": "shadow",
    },
    "pacman": {
        **{name: name for name in _SAME},
        "qemu-system-x86": "qemu-system-x86",
        "qemu-system-arm": "qemu-system-aarch64",
        "qemu-utils": "qemu-img",
        "openssh-client": "openssh",
        "debian-archive-keyring": "debian-archive-keyring",
        "uidmap": "shadow",
    },
}
"""Manager -> Debian's package name -> the name there; one that is not listed does not exist."""

ELSEWHERE = (
    "not packaged here: run `vmoat image build` and `vmoat image export FILE` on a Debian machine, "
    "then `vmoat image import FILE` here"
)


def manager() -> str:
    """The package manager of this machine; "" where none is known."""
    return next((name for name in MANAGERS if shutil.which(name)), "")


def translate(manager: str, packages: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names for this manager, and Debian's names of those that it does not have.  Pure."""
    if manager == "apt-get":
        return list(packages), []
    names = NAMES.get(manager, {})
    have = [names[name] for name in packages if name in names]
    return list(dict.fromkeys(have)), [name for name in packages if name not in names]


def update_argv(manager: str) -> list[str]:
    """Fetches the package lists; [] where installing does so by itself.  Pure."""
    if manager == "apt-get":
        return ["apt-get", "update"]
    return []


def install_argv(manager: str, packages: Sequence[str]) -> list[str]:
    """Installs packages without asking.  Pure."""
    if manager == "apt-get":
        # Recommended packages would bring QEMU's whole graphical side along.
        return ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y",
                "--no-install-recommends", *packages]  # fmt: skip
    if manager == "pacman":
        return ["pacman", "-Sy", "--needed", "--noconfirm", *packages]
    if manager == "zypper":
        return ["zypper", "--non-interactive", "install", "--no-recommends", *packages]
    return ["dnf", "install", "-y", "--setopt=install_weak_deps=False", *packages]


def lists_missing(folder: Path = Path("/var/lib/apt/lists")) -> bool:
    """Whether apt has no package lists, as in a fresh container."""
    return not any(folder.glob("*_Packages*")) and not any(folder.glob("*_InRelease"))


def as_root(argv: Sequence[str], *, uid: int, interactive: bool) -> list[str]:
    """The command for an ordinary user, by sudo; without a terminal it must not ask.  Pure."""
    if uid == 0:
        return list(argv)
    return ["sudo", *([] if interactive else ["-n"]), *argv]


def cure_lines(verdict: Verdict, manager: str) -> list[str]:
    """What to do about a finding, as lines for a person."""
    lines = [verdict.cure] if verdict.cure else []
    if verdict.packages:
        names, none = translate(manager, verdict.packages)
        if names and manager:
            words = install_argv(manager, names)
            lines.append(proc.paste(["sudo", *(w for w in words if "=" not in w and w != "env")]))
        elif not manager:
            lines.append(f"install {', '.join(verdict.packages)} (Debian's name)")
        if none and manager:
            lines.append(ELSEWHERE)
    if verdict.command:
        lines.append(verdict.command)
    return lines


def steps(
    findings: Sequence[Finding], *, manager: str, uid: int, interactive: bool, update: bool
) -> list[list[str]]:
    """The commands that ``doctor --fix`` runs, in order.  Pure."""
    wanted = [name for finding in findings for name in finding.verdict.packages]
    names, _ = translate(manager, list(dict.fromkeys(wanted)))
    found: list[list[str]] = []
    if names and manager:
        if update and update_argv(manager):
            found.append(update_argv(manager))
        found.append(install_argv(manager, names))
    for finding in findings:
        if finding.verdict.safe:
            found.append(finding.verdict.command.removeprefix("sudo ").split())
    return [as_root(argv, uid=uid, interactive=interactive) for argv in found]


def require_root(uid: int, argv: Sequence[str]) -> None:
    """Raise MISSING, with the command to paste, for a user who can't become root."""
    if uid != 0 and shutil.which("sudo") is None:
        raise VmoatError(
            "installing needs root, and there is no sudo here",
            hint=f"as root: {proc.paste([word for word in argv if word not in ('sudo', '-n')])}",
            code=Code.MISSING,
        )


def run(argv: Sequence[str], *, interactive: bool) -> int:
    """Run one of the commands with the user's terminal; what it prints goes to stderr."""
    stdin = 0 if interactive else subprocess.DEVNULL
    return proc.spawn(argv, stdin=stdin, stdout=2, stderr=2, detach=False, cwd=os.sep).wait()
