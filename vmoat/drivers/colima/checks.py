"""What this machine must have for the colima driver, each with its cure."""

from __future__ import annotations

import os
import re

from vmoat import proc
from vmoat.drivers.colima.argv import Host
from vmoat.errors import Code, VmoatError

COLIMA_VERSION = (0, 9, 0)
"""The first with Docker's data on a disk of its own, ``--root-disk`` and ``--cpus``; ``--binfmt``
came with 0.8.2 (Colima's tags)."""
LIMA_VERSION = (1, 0, 0)
"""The first whose port forwards know ``proto: any`` (pkg/limatype/lima_yaml.go)."""
ASK_SECONDS = 30.0

INSTALL = "macOS: `brew install colima docker`; Linux: github.com/abiosoft/colima, lima-vm.io"


def check_machine(host: Host) -> None:
    """Raise MISSING with the cure for the first thing that is not here."""
    if os.getuid() == 0:
        raise VmoatError(
            "Lima runs no VMs for root",
            hint='run vmoat as an ordinary user, or set driver = "qemu"',
            code=Code.MISSING,
        )
    wanted = ["colima", "limactl", "lima", "docker", "ssh", "ssh-keyscan"]
    if not host.mac:
        wanted += [f"qemu-system-{host.machine}", "qemu-img"]
    missing = [name for name in wanted if proc.which(name) is None]
    if missing:
        raise VmoatError(
            f"not installed: {', '.join(missing)}",
            hint=cure(missing),
            code=Code.MISSING,
        )
    for name, found, needed in (
        ("colima", colima_version(), COLIMA_VERSION),
        ("lima", lima_version(), LIMA_VERSION),
    ):
        if found and found < needed:
            raise VmoatError(
                f"{name} {_dotted(found)} is too old: {_dotted(needed)} is needed",
                hint=f"upgrade it (macOS: `brew upgrade {name}`)",
                code=Code.MISSING,
            )


def cure(missing: list[str]) -> str:
    """Where to get what is missing."""
    if any(name in ("colima", "limactl", "lima") for name in missing):
        return INSTALL
    packages = {"docker": "docker-cli", "ssh": "openssh-client", "ssh-keyscan": "openssh-client",
                "qemu-img": "qemu-utils", "qemu-system-x86_64": "qemu-system-x86 ovmf",
                "qemu-system-aarch64": "qemu-system-arm qemu-efi-aarch64"}  # fmt: skip
    names = " ".join(dict.fromkeys(packages[name] for name in missing))
    return f"Debian: sudo apt-get install {names}; macOS: brew install {' '.join(missing)}"


def colima_version() -> tuple[int, ...]:
    """Of ``colima version 0.10.3``; () for a build without a number, which counts as new."""
    done = proc.run(["colima", "version"], check=False, timeout=ASK_SECONDS)
    if done.rc != 0:
        raise _silent("colima version", done)
    return version_of(done.out.partition("\n")[0])


def lima_version() -> tuple[int, ...]:
    """Of ``limactl version 2.2.0``."""
    done = proc.run(["limactl", "--version"], check=False, timeout=ASK_SECONDS)
    if done.rc != 0:
        raise _silent("limactl --version", done)
    return version_of(done.out)


def _silent(line: str, done: proc.Result) -> VmoatError:
    return VmoatError(
        f"`{line}` fails",
        hint=f"install it anew. {INSTALL}",
        code=Code.MISSING,
        details=done.last_lines(4),
    )


def version_of(text: str) -> tuple[int, ...]:
    """The dotted number in a version's line."""
    found = re.search(r"\b(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in found.groups()) if found else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
