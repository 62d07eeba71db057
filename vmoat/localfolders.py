"""Folders of the worktree that lie on the VM's own disk (``mounts.local``).

In the guest each is a folder below ``STORE``, on the data disk, bound over its path in the share.
The host has an empty folder there (a mount point), or its own, which is neither read nor changed.
One script lays them all; the guest keeps it, runs it at each boot before dockerd starts, and again
where a mount was lost: a host that removes the folder makes the guest's kernel drop the mount on
a share that looks names up again (virtiofs).  Text for the guest is made by pure functions.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from vmoat.errors import Code, VmoatError
from vmoat.worktree import Worktree

STORE = "/data/local"
SCRIPT = "/etc/vmoat/local.sh"

LAY = """\
#!/bin/sh
# Made by vmoat: these folders of the worktree lie on this VM's own disk.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
top={top} failed=
lay() {{ # path in the worktree
  at=$top/$1 own={store}/$1
  [ "$at" -ef "$own" ] && return
  [ -d "$own" ] || install -d -o {uid} -g {gid} "$own"
  [ -d "$at" ] || mkdir -p "$at"
  mount --bind "$own" "$at" && [ "$at" -ef "$own" ] || {{ echo "vmoat: $1 is not laid"; failed=1; }}
}}
"""

DROP = """\
drop() {{ # path in the worktree; twice there where two commands laid it at once
  while [ {top}/"$1" -ef {store}/"$1" ]; do umount -l {top}/"$1" || exit 1; done
}}
"""


def script(top: str, folders: Iterable[str], owner: tuple[int, int]) -> str:
    """The guest's script (sh, as root) that lays the folders; "" for none.  Ends with 1 where one
    could not be laid.

    ``top``: the worktree; ``folders``: relative to it; ``owner``: whose a new folder is.
    """
    names = list(folders)
    if not names:
        return ""
    head = LAY.format(top=shlex.quote(top), store=STORE, uid=owner[0], gid=owner[1])
    return head + "".join(f"lay {shlex.quote(name)}\n" for name in names) + '[ -z "$failed" ]\n'


def changing(top: str, dropped: Iterable[str]) -> str:
    """What applies a new script, which it is given as standard input, in a VM that runs."""
    head = DROP.format(top=shlex.quote(top), store=STORE)
    lines = "".join(f"drop {shlex.quote(name)}\n" for name in dropped)
    return f"{head if lines else ''}{lines}cat >{SCRIPT} && exec sh {SCRIPT} 2>&1\n"


def _laid(top: str, name: str) -> str:
    """A test (of sh and bash) whether a folder is laid; it starts no program."""
    return f"[ {shlex.quote(f'{top}/{name}')} -ef {shlex.quote(f'{STORE}/{name}')} ]"


def mending(top: str, folders: Sequence[str]) -> str:
    """What a command of the user's begins with: lays again what the guest has lost."""
    tests = " && ".join(_laid(top, name) for name in folders)
    return f"{{ {tests}; }} || sudo -n sh {SCRIPT} >/dev/null 2>&1; " if tests else ""


def keeping(folders: Sequence[str]) -> str:
    """What a command of the user's ends with: what it wrote outlives a ``kill -9`` of QEMU.

    Without it most of 20,000 files were empty after one (tried): ext4 gives a new file its blocks
    up to 30 s later.
    """
    return f"sync -f {STORE} >/dev/null 2>&1; " if folders else ""


def asking(top: str, folders: Iterable[str]) -> str:
    """Lines of bash that name the folders which are laid."""
    rows = [f"{_laid(top, name)} && printf '%s\\n' {shlex.quote(name)}\n" for name in folders]
    return "".join(rows)


# --- the host's side


def require(tree: Worktree, folders: Sequence[str]) -> None:
    """Make sure that each can be laid over the worktree, and that the host has a folder there.

    Costs a git call or two.  Raises CONFIG for one that git tracks a file in, that holds another
    worktree, that leads through a symbolic link or is a file.
    """
    if not folders:
        return
    tracked = tree.git("--literal-pathspecs", "ls-files", "-z", "--", *folders).split("\0")
    nested = tree.nested()
    for name in folders:
        for file in tracked:
            if file == name or file.startswith(name + "/"):
                raise _refused(name, f"where git tracks {file}")
        for other in nested:
            if other.is_relative_to(tree.path / name) or (tree.path / name).is_relative_to(other):
                raise _refused(name, f"which another worktree is in the way of ({other})")
        make(tree.path, name)


def _refused(name: str, why: str) -> VmoatError:
    return VmoatError(
        f"mounts.local names {name}, {why}",
        hint="take it out of mounts.local (MOUNTS_LOCAL), or name a folder that git ignores",
        code=Code.CONFIG,
    )


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def there(top: Path, name: str) -> bool:
    """Whether the host has a real folder at the path's end; a few system calls."""
    path = top / name
    return path.is_dir() and not path.is_symlink()


def make(top: Path, name: str) -> None:
    """Make the folder where there is none, through no symbolic link; as root, its owner's.

    A running VM may write the worktree meanwhile: each folder on the way is opened by itself.
    """
    place = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    owner = os.fstat(place)
    at = top
    try:
        for part in name.split("/"):
            at = at / part
            try:
                os.mkdir(part, dir_fd=place)
            except FileExistsError:
                pass
            else:
                if os.geteuid() == 0:
                    os.chown(part, owner.st_uid, owner.st_gid, dir_fd=place, follow_symlinks=False)
            inner = os.open(part, _FOLDER, dir_fd=place)
            os.close(place)
            place = inner
    except OSError as error:
        if at.is_symlink():
            raise _refused(name, f"and {at} is a symbolic link") from error
        raise _refused(name, f"and {at} is no folder ({error.strerror})") from error
    finally:
        os.close(place)
