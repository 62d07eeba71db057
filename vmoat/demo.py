"""The throwaway repository of ``vmoat demo``: its files, its worktree, its edit.

A compose stack of two services that needs no image registry: their images are built from scratch
around the static busybox of the guest.  The files are ``templates/demo``.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from vmoat import proc
from vmoat.errors import Code, VmoatError

RENAMED = {"gitignore": ".gitignore", "dockerignore": ".dockerignore", "env": ".env"}
"""Names in the package (where a leading dot may get lost) -> names in the repository."""

SEED = ".env"
EDITED, OLD, NEW = "page.html", "first version", "second version, edited on the host"
WEB_PORT = 8080


@dataclass(frozen=True)
class Playground:
    """The demo's folder: a main checkout, and a linked worktree of the branch ``feature``."""

    folder: Path

    @property
    def main(self) -> Path:
        return self.folder / "shop"

    @property
    def worktree(self) -> Path:
        return self.folder / "feature"


def place(folder: str | None) -> Playground:
    """A new folder, or the empty one that was asked for; raises USAGE for another."""
    if folder is None:
        return Playground(Path(tempfile.mkdtemp(prefix="vmoat-demo-")).resolve())
    path = Path(folder).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        empty = not any(path.iterdir())
    except OSError as error:
        raise VmoatError(
            f"the demo cannot be put into {path}: {error.strerror}",
            hint="name another folder with --dir",
            code=Code.USAGE,
        ) from error
    if not empty:
        raise VmoatError(
            f"{path} is not empty", hint="--dir wants a new or an empty folder", code=Code.USAGE
        )
    return Playground(path.resolve())


def write_files(target: Path) -> None:
    """The repository's files."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in files("vmoat.templates").joinpath("demo").iterdir():
        if entry.is_file():
            name = RENAMED.get(entry.name, entry.name)
            (target / name).write_bytes(entry.read_bytes())


def create(ground: Playground) -> None:
    """The repository, one commit, and the worktree; the user's git config is not touched."""
    write_files(ground.main)
    _git(ground.main, "init", "-q", "-b", "main")
    _git(ground.main, "config", "user.name", "vmoat demo")
    _git(ground.main, "config", "user.email", "demo@vmoat.invalid")
    _git(ground.main, "add", "-A")
    # The user may sign commits or have hooks for all repositories.
    quiet = ("-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null")
    _git(ground.main, *quiet, "commit", "-q", "-m", "A page and an api")
    _git(ground.main, *quiet, "worktree", "add", "-q", "-b", "feature", str(ground.worktree))


def _git(folder: Path, *words: str) -> None:
    # A variable like GIT_DIR, set in a hook, would lead git elsewhere.
    unset = [f"--unset={name}" for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")]
    proc.run(["env", *unset, "git", "-C", folder, *words])


def edit(ground: Playground) -> str:
    """Change a source file of the worktree, as a person would; returns what was done."""
    page = ground.worktree / EDITED
    page.write_text(page.read_text().replace(OLD, NEW))
    return f"sed -i 's/{OLD}/{NEW}/' {EDITED}"


def fetch(url: str) -> str:
    """The page at a URL of this machine; raises STAGE where there is none."""
    import urllib.request

    # A proxy has no business between this machine and itself.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=60) as answer:
            return str(answer.read().decode(errors="replace"))
    except OSError as error:
        raise VmoatError(
            f"{url} does not answer on this machine: {error}", hint="`vmoat status` says more"
        ) from error


def remove(ground: Playground) -> None:
    """Delete the folder."""
    shutil.rmtree(ground.folder)
