"""The headings that a written config has, in the order of the table of settings."""

from __future__ import annotations

SECTIONS: dict[str, str] = {
    "up": "Starting the stack",
    "test": "Testing it",
    "down": "Stopping it",
    "vm": "The VM",
    "provision": "Preparing the VM",
    "health": "When the stack is healthy",
    "tunnel": "Ports on the host",
    "browser": "The browser of the host",
    "driver": "What runs the VM",
    "walls": "The walls",
    "mounts": "Folders",
    "git": "The repository",
    "network": "The network",
    "qemu": "QEMU",
    "colima": "Colima",
    "layers": "What a new VM begins with",
    "watch": "Edits on the host",
    "ssh": "ssh",
    "hook": "git's hook",
    "credentials": "Logins of the host",
    "image": "The guest image",
    "cache": "The cache of container images",
    "fleet": "All VMs of this machine",
    "gc": "What is left behind",
}
"""First part of a key -> its heading."""
