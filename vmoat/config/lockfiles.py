"""Which folders of a project a package manager fills: told by its lock files.

The folders' names are the package managers' own defaults (npm, Yarn, pnpm and Bun: node_modules;
Cargo: target; uv, PDM, and Poetry and Pipenv where they are told to stay in the project: .venv;
Composer: vendor; Bundler with `path` set: vendor/bundle).
"""

from __future__ import annotations

from collections.abc import Callable

from vmoat.errors import VmoatError

FOLDERS = {
    "package-lock.json": "node_modules",
    "npm-shrinkwrap.json": "node_modules",
    "yarn.lock": "node_modules",
    "pnpm-lock.yaml": "node_modules",
    "bun.lock": "node_modules",
    "bun.lockb": "node_modules",
    "Cargo.lock": "target",
    "uv.lock": ".venv",
    "poetry.lock": ".venv",
    "pdm.lock": ".venv",
    "Pipfile.lock": ".venv",
    "composer.lock": "vendor",
    "Gemfile.lock": "vendor/bundle",
}
"""Lock file → the folder beside it."""

MOST = 50
"""Folders that are proposed: a repository of examples has no end."""

RunGit = Callable[..., str]
"""``run_git(*words) -> stdout``, in the worktree; raises VmoatError when git fails."""


def filled(run_git: RunGit) -> dict[str, str]:
    """The folders, each with the lock file that tells of it; only those that git ignores.

    Lock files count that git tracks, or would.
    """
    names = [f":(glob)**/{name}" for name in FOLDERS]
    listed = run_git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *names)
    found: dict[str, str] = {}
    for lock in sorted(filter(None, listed.split("\0")), key=lambda path: (path.count("/"), path)):
        above, slash, name = lock.rpartition("/")
        found.setdefault(f"{above}{slash}{FOLDERS[name]}", lock)
    ignored = {name: lock for name, lock in found.items() if _ignored(run_git, name)}
    outer = [name for name in ignored if not any(name.startswith(f"{o}/") for o in ignored)]
    return {name: ignored[name] for name in outer[:MOST]}


def _ignored(run_git: RunGit, folder: str) -> bool:
    """Whether git ignores a folder of that name (there or not), and tracks nothing in it."""
    if not folder.isprintable() or run_git("--literal-pathspecs", "ls-files", "--", folder):
        return False
    try:
        # The slash: a rule such as `target/` is for folders. Fails where nothing is ignored.
        run_git("check-ignore", "-q", "--", f"{folder}/")
    except VmoatError:
        return False
    return True
