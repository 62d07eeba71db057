"""The skill for agents, which the package has from the Claude Code plugin.

Other clients (Codex, Gemini CLI, opencode) read ``.agents/skills/NAME/SKILL.md``.
"""

from __future__ import annotations

import os
import tempfile
from importlib.resources import as_file, files
from pathlib import Path

from vmoat.errors import Code, VmoatError

NAME = "vmoat"
HEAD = b"---\nname: vmoat\n"
FOLDER = Path(".agents") / "skills"
"""Where other clients look, in a repository."""


def texts() -> dict[str, bytes]:
    """The skill's files by their path in its folder."""
    with as_file(files("vmoat.plugin").joinpath("skills", NAME)) as source:
        found = [path for path in sorted(source.rglob("*.md")) if path.is_file()]
        return {str(path.relative_to(source)): path.read_bytes() for path in found}


def folder_of(worktree: Path) -> Path:
    """Where the skills of a worktree are.

    Raises CONFIG where a link leads out of it: a VM may have made that link.
    """
    skills = worktree / FOLDER
    if not Path(os.path.realpath(skills)).is_relative_to(worktree):
        raise VmoatError(
            f"{skills} leads out of the worktree", hint="name the folder with --dir",
            code=Code.CONFIG,
        )  # fmt: skip
    return skills


def install(skills: Path) -> Path:
    """Write the skill's folder below ``skills``, in place of an older one; returns it.

    Raises CONFIG where something else has that name: a link, a file, another skill.
    """
    target = skills / NAME
    if os.path.lexists(target) and not is_ours(target):
        raise VmoatError(
            f"{target} is something else", hint="name another folder with --dir", code=Code.CONFIG
        )
    skills.mkdir(parents=True, exist_ok=True)
    # A new folder, for the files of an old one may be links.
    with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=skills) as draft:
        made = Path(draft) / NAME
        for name, content in texts().items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_bytes(content)
        if target.exists():
            os.rename(target, Path(draft) / "old")
        os.rename(made, target)
    return target


def is_ours(target: Path) -> bool:
    try:
        head = (target / "SKILL.md").read_bytes()[: len(HEAD)]
    except OSError:
        return False
    return head == HEAD and not target.is_symlink()
