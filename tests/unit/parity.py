"""The habits of the shell tool's users, one row each: what it did, what vmoat does, the proof.

The rows are in `paritycommands.py` and `parityconf.py`; `test_parity.py` runs the check of each
and renders `vmoat/docs/switching.md`.  A row without ``better`` is the same here as there.
"""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ALONE, World

from vmoat import parser
from vmoat.cli import main
from vmoat.config.table import BY_SHELL

CONF = """\
VM_CPU=1; VM_MEMORY=1; VM_DISK=80   # sizes
VM_MOUNT="$HOME"
export PROVISION_APT="git jq curl ca-certificates"
PROVISION_SCRIPT='command -v tool >/dev/null 2>&1 || echo installed tool'
PROVISION_SEED=".env.keys config/local.yaml"
MY_OWN=local
CMD_UP="INSTANCE_NAME=$MY_OWN VERSION=local ./deploy.sh local"
CMD_TEST="./show.sh"
HEALTH_URL="http://localhost:30001/health"
EXPOSE_PORTS=(30001
  18003)   # the database
"""
"""The shapes that vmoat.conf files have in the wild."""

FILES = {
    "deploy.sh": '#!/bin/sh\nmkdir -p out\necho "$INSTANCE_NAME $VERSION $1 $PWD" >out/deployed\n',
    "show.sh": '#!/bin/sh\nfor word; do echo "<$word>"; done\nexit ${CODE:-0}\n',
    ".gitignore": ".env\n.env.keys\nconfig/\nout\nvmoat.local.conf\n__pycache__/\n",
}


class Said(NamedTuple):
    """What a command wrote."""

    out: str
    err: str


class Bench:
    """A worktree with a vmoat.conf on a machine without VMs, and `vmoat` in it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.root, self.repo, self.tree = world.root, world.repo, world.tree
        self.first = Said("", "")
        """What the first `up` said, where there was one."""
        config = self.root / "config/vmoat/config.toml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(ALONE)
        self.reset()

    def reset(self) -> None:
        """As it was before any command: no VM, no name, no file that a row has made."""
        for path in self.root.iterdir():
            if path.name not in ("repo", "tree", "config"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self.repo.glob(".git/**/vmoat-id"):
            path.unlink()
        for folder in (self.repo, self.tree):
            for path in folder.iterdir():
                if path.name not in (".git", "gen.txt", "app.py"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            for name, text in FILES.items():
                (folder / name).write_text(text)
                (folder / name).chmod(0o755)
        (self.repo / ".env.keys").write_text("KEY=1\n")
        (self.repo / "config").mkdir()
        (self.repo / "config/local.yaml").write_text("a: 1\n")
        self.conf(CONF)

    def conf(self, text: str) -> None:
        """The project's vmoat.conf, in both checkouts."""
        for folder in (self.repo, self.tree):
            (folder / "vmoat.conf").write_text(text)

    def listen(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd

    def __call__(self, *words: str, code: int = 0, cwd: Path | None = None) -> Said:
        """`vmoat WORDS`; in this process, but for what starts a worker and leaves it running."""
        if words and words[0] in ("up", "provision"):
            done = self.world.vmoat(*words, code=code, cwd=cwd)
            return Said(done.stdout, done.stderr)
        here = os.getcwd()
        os.chdir(cwd or self.tree)
        self.capfd.readouterr()
        try:
            ended = main(list(words))
        finally:
            os.chdir(here)
        said = Said(*self.capfd.readouterr())
        assert ended == code, (words, ended, said)
        return said

    def setting(self, key: str) -> object:
        """The value of a setting, by its key in a vmoat.conf."""
        (row,) = json.loads(self("config", BY_SHELL[key].key, "--json").out)["settings"]
        return row["value"]


Check = Callable[[Bench], None]


@dataclass(frozen=True)
class Row:
    """One habit."""

    section: str
    what: str
    was: str
    better: str
    check: Check
    running: bool
    """Whether the check wants the stack up; it leaves it so."""


ROWS: list[Row] = []


def row(
    section: str, what: str, was: str, better: str = "", *, running: bool = False
) -> Callable[[Check], Check]:
    """Add the row that the decorated function proves."""

    def add(check: Check) -> Check:
        ROWS.append(Row(section, what, was, better, check, running))
        return check

    return add


COMMANDS, OUTPUT, NAMES = "Commands", "What is printed", "Names"
SHAPES, KEYS, STAGES = "vmoat.conf", "Keys and defaults", "What `up` does"

# -- the page --

HEAD = """\
# From the shell tool to vmoat

Install vmoat and go on: the commands and your `vmoat.conf` are the same. This page lists each habit
of the shell tool's users and what becomes of it; every row is a test. VMs that the shell tool made
in Colima's own home are taken over by the driver `colima`, which is the one on macOS.
"""

TAIL = """\

## What is new
{}: `vmoat help` lists them. Exit codes tell what failed (`man vmoat`); `--json` exists on every
command that reports.
"""

OLD = (
    "help", "version", "name", "init", "provision", "up", "test", "tunnel", "untunnel", "status",
    "ssh", "down", "destroy",
)  # fmt: skip
"""The shell tool's commands."""


def page() -> str:
    """vmoat/docs/switching.md."""
    parts = [HEAD]
    for section in dict.fromkeys(row.section for row in ROWS):
        parts.append(f"\n## {section}\n| | the shell tool | vmoat |\n|---|---|---|\n")
        for each in (row for row in ROWS if row.section == section):
            cells = (each.what, each.was, each.better or "the same")
            row_text = " | ".join(cell.replace("|", "\\|") for cell in cells)
            parts.append(f"| {row_text} |\n")
    new = ", ".join(f"`{name}`" for name in parser.BY_NAME if name not in OLD)
    return "".join(parts) + TAIL.format("\n".join(textwrap.wrap(new, 98)))
