"""git's post-checkout hook, which brings up a new worktree (``vmoat hook install``).

githooks(5): it runs in the worktree after ``git worktree add``, with the null object id as the
previous HEAD, and its exit code becomes that of git.  All worktrees of a repository share it.
"""

from __future__ import annotations

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
! command -v vmoat >/dev/null 2>&1 || vmoat hook run "$@" </dev/null
exit $code
"""


def folder(tree: Worktree) -> Path:
    """Where git looks for the hooks of this worktree; ``core.hooksPath`` counts.

    Raises CONFIG where it lies in the worktree itself: the VM writes there, and the host's git
    would run it.
    """
    # Not `tree.git`, which turns hooks off.
    said = proc.run(
        ["git", "-c", "core.fsmonitor=false", "-c", "safe.directory=*", "-C", tree.path,
         "rev-parse", "--path-format=absolute", "--git-path", "hooks"],
        code=Code.CONFIG,
    ).out  # fmt: skip
    found = Path(os.path.realpath(said.removesuffix("\n")))
    if found.is_relative_to(tree.path) and not found.is_relative_to(tree.common_dir):
        raise VmoatError(
            f"git's hooks are in the worktree, which the VM may write: {found} (core.hooksPath)",
            hint=f'a line `vmoat hook run "$@"` in your own {NAME} there does the same',
            code=Code.CONFIG,
        )
    return found


def install(hooks: Path) -> Path:
    """Write the hook; one that is there is kept and runs first.  Returns its file.

    Raises CONFIG where a kept one would be lost.
    """
    file, kept = hooks / NAME, hooks / KEPT
    if os.path.lexists(file) and not is_ours(file):
        if os.path.lexists(kept):
            raise VmoatError(
                f"{file} is not vmoat's, and {KEPT} beside it keeps another already",
                hint="join the two by hand, then `vmoat hook install`",
                code=Code.CONFIG,
            )
        os.rename(file, kept)
    hooks.mkdir(parents=True, exist_ok=True)
    draft = hooks / f".{NAME}.{os.getpid()}"
    draft.write_text(SCRIPT)
    draft.chmod(0o755)
    os.replace(draft, file)
    return file


def remove(hooks: Path) -> bool:
    """Take the hook away and put back the one that it kept; False where there is none of ours."""
    file, kept = hooks / NAME, hooks / KEPT
    if not is_ours(file):
        return False
    if os.path.lexists(kept):
        os.replace(kept, file)
    else:
        file.unlink()
    return True


def is_ours(file: Path) -> bool:
    try:
        return MARK in file.read_text(errors="replace")
    except OSError:
        return False


def is_new(words: list[str]) -> bool:
    """Whether git's words to the hook (previous HEAD, new HEAD, flag) mean a new checkout."""
    return len(words) == 3 and set(words[0]) == {"0"}
