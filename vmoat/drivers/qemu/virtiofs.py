"""Shares by virtiofs, where a usable virtiofsd exists and a guest has found it to behave.

Facts, tried with virtiofsd 1.13 in vmoat's sandbox (``virtiofsd --help``, its README):

- The Rust virtiofsd maps owners from 1.13 on (``--translate-uid``), so it needs no capability: all
  of the guest's ids become the worktree's owner.  The C one of QEMU before 8 needs root.
- ``--cache never --allow-mmap`` shows a host's edit at once and lets programs map files shared;
  ``auto`` is up to a second late, ``metadata`` shows a replaced file never.
- As a user namespace's uid 0 without capabilities it does not start (it wants to give some up): for
  root's own worktrees the sandbox shows it another uid, and the guest's files are translated back.
- It holds a descriptor for each file that the guest knows of: with too low a limit creating files
  fails, so it is used where there are enough.
- When it dies, the guest's processes hang where they touch the share, and cannot be killed.
- Compared with 9p under emulation: a third of the time to create and to stat small files, half
  the throughput of large ones.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path

from vmoat import paths, proc
from vmoat.drivers import VmSpec
from vmoat.drivers.qemu import verdicts
from vmoat.drivers.qemu.shares import Export
from vmoat.errors import Code, VmoatError

PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd")
"""Debian's, Arch's, and where older systems have it: it is no program for a user's PATH."""

MINIMUM = (1, 13)
C_VERSIONS = 5
"""The C virtiofsd is versioned like QEMU: 5 and more."""

DESCRIPTORS = 200_000
"""Files that a guest may know of at once; a large node_modules has 100,000."""

SHOWN_UID = 1000
"""Who a virtiofsd of root's is in its own user namespace."""

CHECK = Export("check", "/vm/check", "/run/vmoat/check", True)
"""An empty folder of vmoat's that an unproven virtiofsd is tried on."""

WELL, FAILS = "vmoat-boot: virtiofs is well", "vmoat-boot: virtiofs fails: "


def program() -> str:
    """The virtiofsd of this machine; "" for none."""
    found = proc.which("virtiofsd")
    return found or next((place for place in PLACES if os.access(place, os.X_OK)), "")


def version(name: str) -> tuple[int, ...]:
    """Its version; () for one that does not tell."""
    answer = proc.run([name, "--version"], check=False, timeout=20)
    found = re.search(r"\d+(?:\.\d+)+", answer.out + answer.err)
    return tuple(map(int, found[0].split("."))) if found else ()


def unusable() -> str:
    """Why virtiofs cannot be had here; "" where it can be tried."""
    name = program()
    if not name:
        return "virtiofsd is not installed"
    have = version(name)
    if not MINIMUM <= have < (C_VERSIONS,):
        text = ".".join(map(str, have)) or "?"
        return f"{name} is version {text}: the Rust one from 1.13 is needed"
    return ""


def descriptors() -> int:
    """How many files a virtiofsd may hold open; root raises its limit to what is needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, DESCRIPTORS))
            hard = DESCRIPTORS
    return DESCRIPTORS if hard == resource.RLIM_INFINITY else hard


def remembered() -> str:
    """``works``, ``fails``, or "" when no guest has tried this virtiofsd yet."""
    return verdicts.remembered("virtiofs", program())


def kinds(spec: VmSpec) -> Iterator[str]:
    """How the worktree may be shared, the best first; raises MISSING for one that is asked for
    and cannot be had."""
    if spec.mount_type == "virtiofs":
        why = unusable()
        if not why and remembered() == "fails":
            why = "a guest found this virtiofsd to misbehave"
        if why or not spec.walls:
            raise VmoatError(
                f"shares by virtiofs are asked for: {why or 'they need the walls'}",
                hint="install virtiofsd (Debian 13 has it), or leave out vm.mount_type; what a "
                f"guest found is kept in {paths.state_home() / 'proven.toml'}",
                code=Code.MISSING,
            )
        yield "virtiofs"
        return
    wanted = spec.mount_type != "9p" and spec.walls
    if wanted and remembered() != "fails" and not unusable() and descriptors() >= DESCRIPTORS:
        yield "virtiofs"
    yield "9p"


def served(exports: Sequence[Export]) -> list[Export]:
    """The exports that go by virtiofs; the git view's are read-only and go by 9p."""
    return [e for e in exports if e.tag == "worktree" or e.tag.startswith(("share", CHECK.tag))]


def argv(name: str, export: Export, *, fd: int, uid: int, gid: int) -> list[str]:
    """virtiofsd on a listening socket, for one export of files of ``uid`` and ``gid``.  Pure."""
    every = 2**32 - 1
    back = []
    if uid == 0:
        uid = gid = SHOWN_UID
        back = [f"--translate-{kind}=host:{SHOWN_UID}:0:1" for kind in ("uid", "gid")]
    return [
        name,
        *("--shared-dir", export.inside, "--fd", str(fd)),
        # bubblewrap and setpriv have made its sandbox
        *("--sandbox", "none"),
        f"--translate-uid=squash-guest:0:{uid}:{every}",
        f"--translate-gid=squash-guest:0:{gid}:{every}",
        *back,
        *("--inode-file-handles=never", "--cache=never", "--allow-mmap", "--log-level=error"),
    ]


def verdict(name: str, console: str) -> str:
    """What the guest found, and what the host sees of it: "" for well, else what is wrong.

    Reads the folder that the guest's check has written in; raises nothing.
    """
    for line in console.splitlines():
        if FAILS in line:
            return line.rpartition(FAILS)[2].strip()
    if WELL not in console:
        return "the guest's check did not end"
    return _seen(paths.vm_dir(name) / "check")


def _seen(folder: Path) -> str:
    """The host's side of templates/guest/rootfs/usr/lib/vmoat/check-share."""
    mine = folder.stat()
    try:
        if os.readlink(folder / "link") != "file":
            return "the host sees a symbolic link as something else"
        for path in (folder / "file", folder / "link", folder / "folder"):
            info = path.lstat()
            if (info.st_uid, info.st_gid) != (mine.st_uid, mine.st_gid):
                return f"what the guest wrote belongs to {info.st_uid} on the host"
            if info.st_mode & 0o6000:
                return "a set-user-id bit reached the host"
        if (folder / "file").stat().st_mode & 0o777 != 0o640:
            return "the host sees other mode bits"
        if (folder / "file").read_text() != "mapped and appended":
            return "the host does not see what was written through a map"
    except OSError as error:
        return f"the host does not see what the guest wrote ({error.strerror})"
    return ""
