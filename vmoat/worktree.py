"""The git worktree that a command acts on.

git's own ``rev-parse`` decides; nothing here runs hooks, fsmonitor or filters of the repository,
because a VM may have written the worktree (see ``vmoat help walls``).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vmoat.errors import Code, VmoatError

SAFE = (
    "-c", "core.fsmonitor=false",
    "-c", "core.hooksPath=/dev/null",
    # vmoat may be root and the worktree somebody else's: git would refuse to look at it.
    "-c", "safe.directory=*",
)  # fmt: skip
PLACE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_PREFIX")
"""Set in a git hook's environment; the worktree is the folder's, not the hook's."""


@dataclass(frozen=True)
class Worktree:
    """One checkout and the git folders behind it, all absolute and resolved."""

    path: Path
    git_dir: Path
    """This worktree's own git folder (``.git/worktrees/x`` of a linked one)."""
    common_dir: Path
    """The repository's git folder, shared by all its worktrees."""

    @property
    def linked(self) -> bool:
        """Made by ``git worktree add``; also a submodule's checkout, which is its own main."""
        return self.git_dir != self.common_dir

    def git(self, *words: str) -> str:
        """What git prints for this worktree, its git folder named (not looked for again)."""
        return _git(
            ["--git-dir", str(self.git_dir), "--work-tree", str(self.path), *words], self.path
        )

    def main(self) -> Path | None:
        """The main checkout, where seeds come from; None for a bare repository's worktree."""
        if not self.linked:
            return self.path
        plain = _plain_main(self.common_dir)
        if plain is not None:
            return plain
        entries = self.checkouts()
        return entries[0].path if entries and not entries[0].bare else None

    def repository_name(self) -> str:
        """What people call the repository: its main checkout's folder, or the bare one's."""
        main = self.main()
        if main is not None:
            return main.name
        return self.common_dir.name.removesuffix(".git") or self.common_dir.parent.name

    def branch(self) -> str:
        """The checked-out branch; "" when HEAD is detached."""
        try:
            return self.git("symbolic-ref", "--quiet", "--short", "HEAD").strip()
        except VmoatError:
            return ""

    def checkouts(self) -> list[Checkout]:
        """All worktrees of the repository, the main one first (``man git-worktree``)."""
        return list(_checkouts(self.git(*_LIST)))

    def nested(self) -> tuple[Path, ...]:
        """Other worktrees of the repository that lie below this one."""
        others = (entry.path for entry in self.checkouts())
        return tuple(p for p in others if p != self.path and p.is_relative_to(self.path))

    def gitlinks(self) -> tuple[Path, ...]:
        """The folders of submodules, as the index has them, populated or not."""
        rows = self.git("ls-files", "-s", "-z").split("\0")
        return tuple(self.path / row.partition("\t")[2] for row in rows if row.startswith("160000"))


@dataclass(frozen=True)
class Checkout:
    """One line of ``git worktree list``."""

    path: Path
    branch: str
    bare: bool


_LIST = ("worktree", "list", "--porcelain", "-z")


def _checkouts(listing: str) -> Iterator[Checkout]:
    for block in listing.split("\0\0"):
        fields = dict(line.partition(" ")[::2] for line in block.split("\0") if line)
        if "worktree" in fields:
            branch = fields.get("branch", "").removeprefix("refs/heads/")
            yield Checkout(Path(fields["worktree"]), branch, "bare" in fields)


def _plain_main(common_dir: Path) -> Path | None:
    """The main checkout of the ordinary layout, without asking git; None where git must say."""
    if common_dir.name != ".git":
        return None
    try:
        config = (common_dir / "config").read_text(errors="replace").lower()
    except OSError:
        return None
    # `bare = true`, core.worktree and includes: git's own reading counts
    unusual = ("bare = true", "bare=true", "worktree", "include")
    return None if any(word in config for word in unusual) else common_dir.parent


def _git(words: list[str], cwd: Path) -> str:
    # Not through vmoat.proc: `vmoat name` must answer before plumbum would be loaded.
    env = {k: v for k, v in os.environ.items() if k not in PLACE}
    try:
        done = subprocess.run(
            ["git", *SAFE, *words],
            cwd=cwd, env={**env, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL, capture_output=True, check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        if not cwd.is_dir():
            raise VmoatError(
                f"there is no folder {cwd}", hint="name another with -C PATH", code=Code.USAGE
            ) from error
        raise VmoatError(
            "git is not installed", hint="`vmoat doctor --fix` installs it", code=Code.MISSING
        ) from error
    except (OSError, ValueError) as error:  # a file, no permission, a name that is too long
        why = getattr(error, "strerror", "") or "it is not a folder"
        raise VmoatError(
            f"{cwd} cannot be entered: {why}", hint="name another with -C PATH", code=Code.USAGE
        ) from error
    if done.returncode != 0:
        words_of_git = done.stderr.decode(errors="replace").strip().splitlines()
        raise VmoatError(
            f"git failed in {cwd}", code=Code.CONFIG, details=words_of_git[-5:],
            hint=f"try `git -C {cwd} status`",
        )  # fmt: skip
    return done.stdout.decode(errors="surrogateescape")


def find(path: Path) -> Worktree:
    """The worktree that holds ``path``; raises USAGE where there is none."""
    try:
        answer = _git(
            ["rev-parse", "--path-format=absolute", "--show-toplevel", "--git-dir",
             "--git-common-dir"],
            path,
        )  # fmt: skip
    except VmoatError as error:
        if error.code != Code.CONFIG:
            raise
        raise _nowhere(path, error) from error
    rows = answer.removesuffix("\n").split("\n")
    if len(rows) != 3:
        raise VmoatError(
            f"the path of the worktree at {path} holds a line break", code=Code.USAGE,
            hint="move it to a folder without one",
        )  # fmt: skip
    top, git_dir, common = (Path(os.path.realpath(row)) for row in rows)
    return Worktree(top, git_dir, common)


def _nowhere(path: Path, error: VmoatError) -> VmoatError:
    return VmoatError(
        f"{path} is not inside a git worktree",
        hint="go to a checkout of your repository, or name one with -C PATH or -w BRANCH",
        code=Code.USAGE,
        details=error.details,
    )


def named(start: Path, branch: str = "") -> Worktree:
    """The worktree that holds ``start``; with ``branch`` the one of that repository where it is
    checked out, or whose folder is called so.  ``start`` may be a bare repository then."""
    if not branch:
        return find(start)
    try:
        listing = _git([*_LIST], start)
    except VmoatError as error:
        raise (_nowhere(start, error) if error.code == Code.CONFIG else error) from error
    return _find_branch([entry for entry in _checkouts(listing) if not entry.bare], branch)


def _find_branch(entries: list[Checkout], name: str) -> Worktree:
    matches = [e for e in entries if e.branch == name]
    matches = matches or [e for e in entries if e.path.name == name]
    if len(matches) == 1:
        return find(matches[0].path)
    known = tuple(f"{e.branch or '(detached)'}  {e.path}" for e in entries)
    problem = "several worktrees are" if matches else "no worktree is"
    raise VmoatError(
        f"{problem} on branch `{name}`", code=Code.USAGE, details=known,
        hint="name one of these, or its folder with -C PATH",
    )  # fmt: skip
