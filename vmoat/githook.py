"""git's post-checkout hook, which brings up a new worktree (``vmoat hook install``).

githooks(5): it runs in the worktree after ``git worktree add``, with the null object id as the
previous HEAD, and its exit code becomes that of git.  All worktrees of a repository share it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from vmoat import proc
from vmoat.errors import Code, VmoatError
from vmoat.worktree import Worktree

NAME = "post-checkout"
KEPT = f"{NAME}.before-vmoat"
MARK = "# written by `vmoat hook install`"

SCRIPT = f"""\
#!/bin/sh
{MARK}; `vmoat hook remove` takes it away.
# A new worktree is brought up in the background where your own config has hook.up = true.
kept=$(dirname "$0")/{KEPT}
code=0
[ ! -x "$kept" ] || "$kept" "$@" || code=$?
case $1 in *[!0]* | "") exit $code ;; esac # another commit was there before: nothing is new
! command -v vmoat >/dev/null 2>&1 || vmoat hook run "$@" </dev/null
exit $code
"""


def folder(tree: Worktree) -> Path:
    """Where git looks for the hooks of this worktree; ``core.hooksPath`` counts.

    Raises CONFIG where it lies in a worktree of the repository: its VM writes there, and the host's
    git would run it.
    """
    # Not `tree.git`, which turns hooks off.
    said = proc.run(
        ["git", "-c", "core.fsmonitor=false", "-c", "safe.directory=*", "-C", tree.path,
         "rev-parse", "--path-format=absolute", "--git-path", "hooks"],
        code=Code.CONFIG,
    ).out  # fmt: skip
    found = Path(os.path.realpath(said.removesuffix("\n")))
    if found.exists() and not found.is_dir():
        raise VmoatError(
            f"git looks for hooks in {found}, which is no folder (core.hooksPath)",
            hint="name a folder there, or take the setting away",
            code=Code.CONFIG,
        )
    folders = [Path(os.path.realpath(c.path)) for c in tree.checkouts() if not c.bare]
    inside = any(found.is_relative_to(folder) for folder in [tree.path, *folders])
    if inside and not found.is_relative_to(tree.common_dir):
        raise VmoatError(
            f"git's hooks are in a worktree, which the VM may write: {found} (core.hooksPath)",
            # Often committed, as husky's are: a colleague without vmoat must not fail with it.
            hint='a line `! command -v vmoat >/dev/null || vmoat hook run "$@"` in your own '
            f"{NAME} there does the same",
            code=Code.CONFIG,
        )
    return found


def install(hooks: Path) -> Path:
    """Write the hook; one that is there is kept and runs first.  Returns its file.

    At no moment is there none: a full disk, a kill or a second `install` loses nobody's.
    Raises CONFIG where a kept one would be lost, MISSING where the folder cannot be written.
    """
    file, kept = hooks / NAME, hooks / KEPT
    draft = hooks / f".{NAME}.{os.getpid()}"
    try:
        hooks.mkdir(parents=True, exist_ok=True)
        draft.write_text(SCRIPT)
        draft.chmod(0o755)
        if os.path.lexists(file) and not is_ours(file):
            _keep(file, kept)
        os.replace(draft, file)
    except OSError as error:
        raise VmoatError(
            f"cannot write {hooks}: {error.strerror}", hint="make it writable, then once more",
            code=Code.MISSING,
        ) from error  # fmt: skip
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
    return file


def _keep(file: Path, kept: Path) -> None:
    try:
        os.link(file, kept, follow_symlinks=False)
    except FileExistsError as error:
        if is_ours(file) or os.path.samestat(os.lstat(file), os.lstat(kept)):
            return  # another `install` is there already, or came just so far
        raise VmoatError(
            f"{file} is not vmoat's, and {KEPT} beside it keeps another already",
            hint="join the two by hand, then `vmoat hook install`",
            code=Code.CONFIG,
        ) from error
    except OSError:  # not every file system has links
        os.rename(file, kept)


def remove(hooks: Path) -> bool:
    """Take the hook away and put back the one that it kept, also where somebody else took it away.

    False where there is none of ours.
    """
    file, kept = hooks / NAME, hooks / KEPT
    if os.path.lexists(file) and not is_ours(file):
        return False
    if not os.path.lexists(kept):
        there = file.exists()
        file.unlink(missing_ok=True)
        return there
    os.replace(kept, file)
    return True


def is_ours(file: Path) -> bool:
    """Whether it is the hook that ``install`` writes; raises CONFIG where somebody added to it."""
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return False
    if MARK in text and text != SCRIPT:
        raise VmoatError(
            f"{file} was changed since vmoat wrote it",
            hint="move what was added to another file, remove this one, and try again",
            code=Code.CONFIG,
        )
    return text == SCRIPT


def is_new(words: list[str]) -> bool:
    """Whether git's words to the hook (previous HEAD, new HEAD, flag) mean a new checkout."""
    return len(words) == 3 and set(words[0]) == {"0"}
