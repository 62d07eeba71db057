"""What is said of a VM before a person relies on it: open walls, and what makes WSL 2 slow.

Once at the first `up`, and by `doctor`.
"""

from __future__ import annotations

NETWORK = (
    "the VM reads the repository's git folder as it is, with what its config holds",
    "the VM reaches services on this machine's loopback (192.168.5.2) and the local network",
)
"""With Lima's network and mounts, always."""
SHARES = (
    "the VM can write the worktree's .git, and vmoat's config files in it: look at the diff before "
    "git or an editor runs there on this machine",
    "other worktrees inside this one are open to it",
)
"""Where no sandbox stands around what serves the shares: macOS, sshfs, no bubblewrap."""
ADOPTED = "it was made by another tool and keeps its mounts: all that they share is open to it"
OPEN = (*SHARES, *NETWORK)


def told(*, adopted: bool, walled: bool) -> list[str]:
    """The lines for a new VM."""
    head = "Colima holds fewer walls than the qemu driver (`vmoat help walls`):"
    rows = (*((ADOPTED,) if adopted else ()), *(() if walled else SHARES), *NETWORK)
    return [head, *(f"- {row}" for row in rows)]


def wsl_warnings(worktree: str, *, kvm: bool) -> list[tuple[str, str]]:
    """What is slow on WSL 2, each with its cure."""
    found = []
    parts = worktree.split("/")
    # as WSL mounts Windows drives: /mnt/c, /mnt/d…
    if len(parts) > 2 and parts[1] == "mnt" and len(parts[2]) == 1 and parts[2].isalpha():
        text = f"{worktree} lies on a Windows disk, where each file is slow to reach"
        found.append((text, "keep worktrees below your home folder of the Linux side"))
    if not kvm:
        text = "WSL 2 has no nested virtualisation: VMs are emulated, several times slower"
        cure = (
            "nestedVirtualization=true below [wsl2] in %UserProfile%\\.wslconfig, then "
            "`wsl --shutdown` (Windows 11)"
        )
        found.append((text, cure))
    return found
