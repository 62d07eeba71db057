"""Walls around Lima's QEMU on Linux: what it may see (bubblewrap) and call (seccomp).

Lima starts the program that ``$QEMU_SYSTEM_X86_64`` names (pkg/driver/qemu/qemu.go: Exe), and asks
it for its features without further words.  So that is a script in the VM's home: questions go
to QEMU itself, the VM runs in here.  QEMU serves the 9p shares, so a mount in its namespace holds
whatever root in the guest does: ``.git`` and vmoat's config are read-only, nested worktrees empty,
``chown`` succeeds without effect (containers that make their bind mounts need that).

Not as tight as the qemu driver's: processes are not unshared, because Lima reads QEMU's own pid
file, and the network is Lima's (a daemon outside, which passes on to this machine's loopback).
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from vmoat import proc
from vmoat.drivers import VmSpec
from vmoat.drivers.colima import argv
from vmoat.drivers.colima.argv import Host
from vmoat.drivers.colima.homes import Place
from vmoat.drivers.qemu import sandbox, shares

PLAN = "walls.json"

WRAPPER = """\
#!/bin/sh
# Made by vmoat at each start: Lima's QEMU behind walls.
case " $* " in
*" -pidfile "*) exec {python} -P -m vmoat.drivers.colima.walled {plan} "$@" ;;
*) exec {qemu} "$@" ;;
esac
"""


def wanted(spec: VmSpec, place: Place, host: Host) -> bool:
    """Whether the VM's QEMU runs behind walls: where it serves the shares and bubblewrap works."""
    served = argv.mount_type(spec, host) == "9p" and not place.adopted
    return served and spec.walls and host.sandbox


def install(spec: VmSpec, place: Place, host: Host) -> None:
    """Write the script and what it goes by; firmware is looked for beside the program."""
    program = proc.which(f"qemu-system-{host.machine}") or f"qemu-system-{host.machine}"
    script = argv.wrapper(place, host)
    script.parent.mkdir(mode=0o700, exist_ok=True)
    plan = place.home / PLAN
    text = WRAPPER.format(
        python=shlex.quote(sys.executable), plan=shlex.quote(str(plan)), qemu=shlex.quote(program)
    )
    plan.write_text(json.dumps({"machine": host.machine, "qemu": program,
                                "words": bwrap_words(spec, place, program)}))  # fmt: skip
    script.write_text(text)
    script.chmod(0o700)
    share = Path(os.path.realpath(program)).parent.parent / "share"
    link = place.home / "share"
    if not link.is_symlink():
        link.symlink_to(share)


def bwrap_words(spec: VmSpec, place: Place, program: str) -> list[str]:
    """bubblewrap's words up to the filter: programs, the home, the shares at their own paths.

    Raises VM where a protected path leads through a symbolic link.
    """
    words = ["--unshare-user", "--cap-drop", "ALL", "--unshare-ipc", "--unshare-net"]
    words += sandbox.system_binds([program])
    # alternatives, such as the firmware's links, and names of users
    words += ["--ro-bind-try", "/etc/alternatives", "/etc/alternatives"]
    words += ["--dev-bind", "/dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
    words += ["--bind", str(place.home), str(place.home)]
    for path, writable in argv.mounts(spec):
        words += ["--bind" if writable else "--ro-bind", str(path), str(path)]
    top = spec.worktree
    closed = [top / ".git", *spec.readonly]
    closed += [link / ".git" if (link / ".git").exists() else link for link in spec.gitlinks]
    masked = [path for path in spec.masked if path.is_dir()]
    for path in [*closed, *masked]:
        if path.is_relative_to(top):
            shares.no_links(top, path)
    for path in _between(top, [*closed, *masked]):
        words += ["--bind", str(path), str(path)]
    if not spec.git_writable:
        for path in closed:
            if path.exists():
                words += ["--ro-bind", str(path), str(path)]
    for path in masked:
        words += ["--perms", "0755", "--tmpfs", str(path), "--remount-ro", str(path)]
    return words


def _between(top: Path, inner: Sequence[Path]) -> list[Path]:
    """The folders that lead to paths in the worktree: a mount point cannot be renamed away."""
    inside = [path for path in inner if path.is_relative_to(top)]
    found = {step for path in inside for step in shares.between(top, path) if step.is_dir()}
    return sorted(found, key=lambda path: len(path.parts))


def main(words: list[str]) -> None:
    """``PLAN QEMU'S ARGUMENTS``: become bubblewrap, which runs QEMU."""
    plan = json.loads(Path(words[0]).read_text())
    reading, writing = os.pipe()
    os.write(writing, sandbox.seccomp_program(plan["machine"]))  # fits a pipe: a few KiB
    os.close(writing)
    os.set_inheritable(reading, True)
    bwrap = proc.which("bwrap") or "bwrap"
    line = [bwrap, *plan["words"], "--seccomp", str(reading), "--", plan["qemu"], *words[1:]]
    os.execv(bwrap, line)


if __name__ == "__main__":
    main(sys.argv[1:])
