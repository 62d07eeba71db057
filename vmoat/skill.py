"""The skill for agents, which the package has from the Claude Code plugin.

Other clients (Codex, Gemini CLI, opencode) read ``.agents/skills/NAME/SKILL.md``.
"""

from __future__ import annotations

import os
from importlib.resources import as_file, files
from pathlib import Path

from vmoat.errors import Code, VmoatError
from vmoat.state import write_atomically

NAME = "vmoat"
FOLDER = Path(".agents") / "skills"
"""Where other clients look, in a repository."""


def texts() -> dict[str, bytes]:
    """The skill's files by their path in its folder."""
    with as_file(files("vmoat.plugin").joinpath("skills", NAME)) as source:
        found = [path for path in sorted(source.rglob("*.md")) if path.is_file()]
        return {str(path.relative_to(source)): path.read_bytes() for path in found}


def install(skills: Path) -> Path:
    """Write the skill's folder below ``skills``, over an older one; returns it.

    Raises CONFIG where something else has that name: a link, a file, another skill.
    """
    target = skills / NAME
    head = b"---\nname: vmoat\n"
    if os.path.lexists(target):
        there = target / "SKILL.md"
        foreign = target.is_symlink() or not target.is_dir()
        if foreign or (there.exists() and not there.read_bytes().startswith(head)):
            raise VmoatError(
                f"{target} is something else", hint="name another folder with --dir",
                code=Code.CONFIG,
            )  # fmt: skip
    for name, content in texts().items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target / name, content, mode=0o644)
    return target
