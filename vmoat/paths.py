"""Every name on disk, and the limits that chose it.

- State (what a person may read: records, keys, logs): ``$XDG_STATE_HOME/vmoat``.
- Data (large, re-creatable): ``$XDG_DATA_HOME/vmoat``: golden images and the disks of the VMs.
- Sockets: Linux takes 107 bytes for a socket's path (``man 7 unix``), macOS 103, and OpenSSH
  appends 17 characters to ControlPath while it binds, which leaves 90 and 86.  A log-out removes
  ``$XDG_RUNTIME_DIR`` under a running VM, so sockets stand below the state folder where that is
  short enough, else below ``/tmp``.

Nothing here creates anything but ``runtime_dir`` and ``make_private``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vmoat.errors import Code, VmoatError

RUNTIME_LIMIT = 60
"""Bytes for a VM's runtime folder: ``/ssh`` with OpenSSH's 17 characters, ``/qmp`` and the
like stay below every limit above."""

ID_FILE = "vmoat-id"
"""In the worktree's own git folder: follows ``git worktree move``, gone with the worktree."""


def _xdg(variable: str, default: str, platform_name: str) -> Path:
    value = os.environ.get(variable, "")
    if os.path.isabs(value):  # the XDG specification: relative values are ignored
        return Path(value) / "vmoat"
    if sys.platform == "darwin":
        import platformdirs

        return Path(getattr(platformdirs, platform_name)("vmoat"))
    return Path(os.path.expanduser("~")) / default / "vmoat"


def state_home() -> Path:
    """The state folder: VM records, stage records, event logs, trust."""
    return _xdg("XDG_STATE_HOME", ".local/state", "user_state_dir")


def data_home() -> Path:
    """The data folder: golden images and disks."""
    return _xdg("XDG_DATA_HOME", ".local/share", "user_data_dir")


def config_home() -> Path:
    """The user's config folder, which holds ``config.toml``."""
    return _xdg("XDG_CONFIG_HOME", ".config", "user_config_dir")


def vms_dir() -> Path:
    return state_home() / "vms"


def vm_dir(name: str) -> Path:
    """State of one VM: ``vm.toml``, ``stages.toml``, ``runs/``, ``ssh/``, ``lock``."""
    return vms_dir() / name


def disks_dir(name: str) -> Path:
    """Disks of one VM: ``system.qcow2`` and ``data.qcow2``.

    By the VM's id, not its name: where the state folder was moved or removed, another VM of that
    name must not come to the disks of this one.
    """
    return data_home() / "disks" / (vm_id(name) or name)


def vm_id(name: str) -> str:
    """The id of the VM that goes by this name; "" for none."""
    try:
        found = (vm_dir(name) / "owner").read_text(errors="replace").split("\n", 1)[0]
    except OSError:
        return ""
    return found if found.isalnum() else ""


def images_dir() -> Path:
    return data_home() / "images"


def image_cache_dir() -> Path:
    """The store of container images that all VMs share; re-creatable, the largest of data."""
    return data_home() / "image-cache"


def browser_dir(vm_id: str) -> Path:
    """Profiles of the browsers for which localhost is this VM."""
    return data_home() / "browsers" / vm_id


def cache_authority_dir() -> Path:
    """Key and certificate of the image cache's authority."""
    return state_home() / "image-cache-ca"


def dashboard_dir() -> Path:
    """What the dashboard that runs says of itself, for the next one; its lock."""
    return state_home() / "dashboard"


def runtime_home() -> Path:
    """The folder of all VMs' runtime folders; in ``/tmp`` it serves other state folders too."""
    folder = state_home() / "run"
    if len(os.fsencode(folder)) + 1 + 12 > RUNTIME_LIMIT:
        folder = Path(f"/tmp/vmoat-{os.getuid()}")
    return folder


def runtime_place(vm_id: str) -> Path:
    """Where a VM's runtime folder is, or would be."""
    return runtime_home() / vm_id[:12]


def runtime_dir(vm_id: str) -> Path:
    """The folder of a VM's sockets and pid files, made if need be, 0700.

    Raises MISSING where it cannot be made, or where somebody else owns its place in ``/tmp``.
    """
    folder = runtime_place(vm_id)
    if folder.parent != state_home() / "run":
        make_private(folder.parent)
    make_private(folder)
    return folder


def make_private(folder: Path) -> Path:
    """Make ``folder`` for its owner alone; raises MISSING, naming the folder, where it cannot."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = folder.lstat()
    except OSError as error:
        raise unwritable(folder, error) from error
    if info.st_uid != os.getuid() or not os.access(folder, os.W_OK | os.X_OK):
        raise unwritable(folder, None)
    return folder


def unwritable(folder: Path, error: OSError | None) -> VmoatError:
    """The error of a folder that vmoat must write and cannot."""
    why = f": {error.strerror}" if error and error.strerror else ""
    return VmoatError(
        f"vmoat cannot write its folder {folder}{why}",
        hint="make it writable for this user, or name others in "
        "XDG_STATE_HOME, XDG_DATA_HOME and XDG_CONFIG_HOME",
        code=Code.MISSING,
    )
