"""git's index for the guest, with what the watch on the worktree knows (git-fsmonitor).

`git status` looks at every file, and each look is a question to the host: 13 s for 20,000 files
under emulation.  With the index's FSMN and UNTR extensions (gitformat-index(5)) git looks only at
what its monitor names; the monitor in the guest asks the companion.  The guest's git must not
write the index that it shares with the host, so the extensions are made here, on a copy, by git
itself; ``drivers.qemu.gitview`` shows that copy instead of the index that it was made from.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from vmoat import proc
from vmoat.worktree import SAFE, Worktree

LIMIT = 120.0
"""Seconds for one `git status` on the host."""
NAME = "git-index"


def stamp(path: Path) -> list[int]:
    """What changes whenever git writes the file; empty where there is none."""
    try:
        info = os.stat(path, follow_symlinks=False)
    except OSError:
        return []
    return [info.st_mtime_ns, info.st_size, info.st_ino]


def index_of(tree: Worktree) -> Path:
    """The worktree's index."""
    return tree.git_dir / "index"


def prepared(folder: Path, index: Path) -> Path | None:
    """The copy with the extensions, where it was made from this very index."""
    try:
        made_of = json.loads((folder / f"{NAME}.json").read_text())
    except (OSError, ValueError):
        return None
    copy = folder / NAME
    return copy if made_of and made_of == stamp(index) and copy.exists() else None


def prepare(tree: Worktree, token: str, folder: Path) -> bool:
    """Make the copy in ``folder``; ``token`` is the monitor's, from before this call.

    False where the index changed meanwhile, or git (before 2.37) does not know how.
    """
    index = index_of(tree)
    before = stamp(index)
    if not before:
        return False
    draft = folder / f".{NAME}"
    try:
        shutil.copyfile(index, draft)
        done = proc.run(
            ["git", *SAFE, *_settings(token), "--git-dir", tree.git_dir, "--work-tree", tree.path,
             "status", "--porcelain"],
            cwd=tree.path,
            env={"GIT_INDEX_FILE": os.fspath(draft), "GIT_OPTIONAL_LOCKS": "1"},
            check=False,
            timeout=LIMIT,
        )  # fmt: skip
        if done.rc != 0 or stamp(index) != before:
            return False
        (folder / f"{NAME}.json").unlink(missing_ok=True)
        draft.replace(folder / NAME)
        (folder / f"{NAME}.json").write_text(json.dumps(before))
    except OSError:
        return False
    finally:
        draft.unlink(missing_ok=True)
    return True


def _settings(token: str) -> list[str]:
    """The guest's own settings, which the extensions depend on, and a monitor that knows nothing:
    it names a token and "/", so git looks at everything once."""
    answer = f"printf '{token}\\0/\\0'; :"
    values = {
        "core.fsmonitor": answer,
        "core.fsmonitorHookVersion": "2",
        "core.untrackedCache": "true",
        "core.checkStat": "minimal",
        "core.trustctime": "false",
        "core.splitIndex": "false",
        # as in the guest, where there is none
        "core.excludesFile": "/nonexistent",
    }
    return [word for key, value in values.items() for word in ("-c", f"{key}={value}")]
