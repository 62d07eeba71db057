"""Where the files of a Colima VM are: a home of its own, or the user's for one that was there.

Each VM of vmoat's making has a COLIMA_HOME of its own, because within one home

- Colima has no locks: a start that sees no other VM running removes the network daemon's folder,
  and a stop or delete ends that daemon (environment/vm/lima/network.go), under whoever starts;
- all VMs hang on one network, where each reaches the others' ports;
- ``override.yaml``, which keeps ports off the host, would hold for the user's own VMs too.

In such a home the profile is always called ``vm``.  Lima refuses an instance whose socket
``<home>/_lima/colima-<profile>/ssh.sock.<16 characters>`` is longer than unix(7) allows (108 bytes
on Linux, 104 on macOS, with symbolic links resolved: pkg/limatype/dirnames), and the data disk's
label ``lima-colima-<profile>`` is cut after 16 (disk.sh), so that a copied disk fits every VM.

A VM that the shell tool made in the user's own home is adopted: its profile has the VM's name, and
its mounts hold the worktree.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vmoat import instance, paths
from vmoat.errors import Code, VmoatError
from vmoat.locks import in_turn

PROFILE = "vm"
LIMIT = 60
"""Bytes for a home: 43 more for the longest socket stay below 104."""


@dataclass(frozen=True)
class Place:
    """One VM's home and profile."""

    home: Path
    profile: str
    adopted: bool = False

    @property
    def ident(self) -> str:
        """Lima's name of the instance (config/profile.go)."""
        return "colima" if self.profile == "default" else f"colima-{self.profile}"

    @property
    def lima(self) -> Path:
        return self.home / "_lima"

    @property
    def instance(self) -> Path:
        return self.lima / self.ident

    @property
    def data_folder(self) -> Path:
        return self.lima / "_disks" / self.ident

    @property
    def data_disk(self) -> Path:
        return self.data_folder / "datadisk"

    @property
    def store(self) -> Path:
        """Colima's record that the data disk is formatted."""
        return self.home / "_store" / f"{self.ident}.json"

    @property
    def override(self) -> Path:
        return self.lima / "_config" / "override.yaml"

    @property
    def network(self) -> Path:
        """The network daemon's files."""
        return self.lima / "_networks" / "user-v2"

    @property
    def state(self) -> Path:
        """Names the state folder whose VM this is: who knows it not may not take it for left."""
        return self.home / ".vmoat-state"

    @property
    def docker(self) -> Path:
        """The folder that Colima's docker context goes to, instead of the user's."""
        return self.home / "docker"

    @property
    def temporary(self) -> Path:
        """TMPDIR of Colima: it writes ``colima-vm.yaml`` there (environment/vm/lima/lima.go)."""
        return self.home / "tmp"


def own_home(vm_id: str) -> Path:
    """The COLIMA_HOME of a VM of vmoat's; raises CONFIG where every place for it is too long."""
    short = vm_id[:12]
    folders = (paths.data_home() / "colima", Path(os.path.expanduser("~")) / ".vmoat")
    for folder in folders:
        if len(os.fsencode(os.path.realpath(folder))) + 1 + len(short) <= LIMIT:
            return folder / short
    raise VmoatError(
        f"the path {folders[0]} is too long for the sockets of a Colima VM",
        hint="name a shorter folder in XDG_DATA_HOME",
        code=Code.CONFIG,
    )


def user_home() -> Path:
    """The home that `colima` itself takes for this user (config/files.go)."""
    asked = os.environ.get("COLIMA_HOME", "")
    if asked and os.path.exists(asked):
        return Path(asked)
    plain = Path(os.path.expanduser("~")) / ".colima"
    if plain.exists():
        return plain
    xdg = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(xdg) / "colima" if xdg else Path(os.path.expanduser("~")) / ".config" / "colima"


def place_of(name: str) -> Place:
    """Where the VM of that name is, or will be made; looks at files only."""
    from vmoat.drivers.colima import record

    known = record.read(name)
    if known is not None and known.home:
        return Place(Path(known.home), known.profile, known.adopted)
    vm_id, worktree = owner(name)
    own = Place(own_home(vm_id or name), PROFILE)
    if own.home.exists():
        return own
    return adoptable(name, worktree) or own


@contextlib.contextmanager
def lock(file: Path, say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Hold a lock of vmoat's own; says so where it has to be waited for."""
    paths.make_private(file.parent)
    with in_turn(file, lambda: say("waiting for another VM that Colima starts or ends")):
        yield


@contextlib.contextmanager
def locked(place: Place, say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Alone among vmoat's commands in the user's own home; a VM's own home needs no lock."""
    if not place.adopted:
        yield
        return
    with lock(paths.data_home() / "colima" / ".user-home.lock", say):
        yield


def owner(name: str) -> tuple[str, Path | None]:
    """The VM's id and worktree; "" and None for a name that nobody has."""
    found = instance.read_owner(name)
    return (paths.vm_id(name), found.worktree) if found else ("", None)


def adoptable(name: str, worktree: Path | None) -> Place | None:
    """The VM of that name in the user's own home, where it is this worktree's.

    By its mounts: the shell tool shares a folder above the worktree at the same path.
    """
    place = Place(user_home(), name, adopted=True)
    if worktree is None or not (place.instance / "lima.yaml").is_file():
        return None
    held = any(worktree.is_relative_to(folder) for folder in mounted(place))
    return place if held else None


def mounted(place: Place) -> list[Path]:
    """The folders that the VM's ``lima.yaml`` shares."""
    try:
        text = (place.instance / "lima.yaml").read_text(errors="surrogateescape")
    except OSError:
        return []
    block = re.search(r"^mounts:\n((?:[ \-].*\n)*)", text + "\n", re.MULTILINE)
    rows = re.findall(r"^[ \-]*location:[ ]*(.+)$", block[1], re.MULTILINE) if block else []
    return [Path(os.path.expanduser(row.strip().strip("\"'"))) for row in rows]


def user_vms(prefix: str) -> list[str]:
    """Profiles in the user's own home whose names begin so: VMs of the shell tool."""
    found = (user_home() / "_lima").glob(f"colima-{prefix}*/lima.yaml")
    return sorted(file.parent.name.removeprefix("colima-") for file in found)
