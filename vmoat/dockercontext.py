"""The docker context of a VM: ``docker --context vmoat-NAME ps`` on the host.

The host's docker CLI keeps a context as a file, ``contexts/meta/SHA256-OF-NAME/meta.json`` in its
config folder (docker/cli, cli/context/store); whatever its Metadata holds besides, it lets alone.
So vmoat writes that file itself, marked with the VM's id: it needs no docker CLI, never touches
``config.json`` (and so never selects a context), and never a context that is somebody else's.

The endpoint is a socket in the VM's runtime folder (0700), which the ssh master forwards to the
guest's dockerd.  It comes back with the next master: the companion and every command that asks the
guest anything see to that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmoat import paths

GUEST_SOCKET = "/run/docker.sock"
MARK = "vmoat"
"""The key of Metadata that holds the VM's id."""


def config_folder(env: Mapping[str, str]) -> Path:
    """docker's config folder."""
    return Path(env.get("DOCKER_CONFIG") or Path(os.path.expanduser("~")) / ".docker")


def name_of(vm: str) -> str:
    """The context's name for the VM ``vm``."""
    return f"vmoat-{vm}"


def socket_of(vm_id: str) -> Path:
    """The host's end of the VM's docker socket (``Connection.channel("docker", …)``)."""
    return paths.runtime_dir(vm_id) / "to-docker"


def endpoint(vm_id: str) -> str:
    """``DOCKER_HOST`` of the VM."""
    return f"unix://{socket_of(vm_id)}"


def meta_file(name: str, folder: Path) -> Path:
    """Where docker keeps the context ``name``; ``folder`` is its config folder."""
    return folder / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"


def text(name: str, vm_id: str, host: str, worktree: Path) -> str:
    """The context's file."""
    return json.dumps(
        {
            "Name": name,
            "Metadata": {"Description": f"the VM of {worktree}", MARK: vm_id},
            "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": False}},
        },
        ensure_ascii=False,
    )


def read(file: Path) -> dict[str, Any]:
    """A context's file; {} where there is none, or none that can be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def ensure(vm: str, vm_id: str, worktree: Path) -> str:
    """Write the VM's context where it is not as it should be; costs one small read.

    Without docker's config folder it is made only where there is a docker CLI to read it.  Returns
    a warning, "" for none: a context is a convenience, and no reason to fail.
    """
    folder, name = config_folder(os.environ), name_of(vm)
    if not folder.is_dir() and not shutil.which("docker"):
        return ""
    file = meta_file(name, folder)
    wanted = text(name, vm_id, endpoint(vm_id), worktree)
    try:
        if file.read_text(encoding="utf-8", errors="replace") == wanted:
            return ""
    except OSError:
        pass
    if file.exists() and not owner(file):
        return f"the docker context `{name}` is not vmoat's: it stays as it is (see `vmoat env`)"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f".{os.getpid()}.new")
        fresh.write_bytes(wanted.encode("utf-8", "surrogateescape"))
        fresh.replace(file)
    except OSError as error:
        return f"the docker context `{name}` cannot be written ({error.strerror}): {file}"
    return ""


def owner(file: Path) -> str:
    """The id of the VM that a context is of; "" for one that is not vmoat's."""
    metadata = read(file).get("Metadata")
    found = metadata.get(MARK) if isinstance(metadata, dict) else ""
    return found if isinstance(found, str) else ""


def remove(vm: str, vm_id: str) -> None:
    """Remove the VM's context; quiet where there is none, or another's."""
    file = meta_file(name_of(vm), config_folder(os.environ))
    if vm_id and owner(file) == vm_id:
        with contextlib.suppress(OSError):
            shutil.rmtree(file.parent)
