"""TAB in real shells, and the man page; both are made from the parser.

``python tests/unit/test_completion.py`` writes the man page anew.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fakes
import pexpect
import pytest
from conftest import World

from vmoat import __version__, completion, parser

PAGE = Path(__file__).parents[2] / "vmoat/docs/vmoat.1"
PROMPT = "ready> "

BEGIN = {
    "bash": f"PS1='{PROMPT}'; bind 'set enable-bracketed-paste off'; "
    "bind 'set completion-query-items 999'; bind 'set page-completions off'",
    "zsh": f"PS1='{PROMPT}'; unsetopt zle_bracketed_paste; autoload -Uz compinit; compinit -D; "
    "LISTMAX=999",
    "fish": f"function fish_prompt; printf '{PROMPT}'; end; set -g fish_greeting",
}
START = {
    "bash": ["--norc", "--noprofile"],
    "zsh": ["-f"],
    "fish": ["--no-config", "--private"],
}
LOAD = {
    "bash": 'eval "$(vmoat completion bash)"',
    "zsh": 'eval "$(vmoat completion zsh)"',
    "fish": "vmoat completion fish | source",
}


@pytest.fixture
def shim(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A `vmoat` on PATH that is ours."""
    inner = tmp_path / "bin"
    inner.mkdir()
    (inner / "vmoat").write_text(f'#!/bin/sh\nexec {sys.executable} {fakes.__file__} "$@"\n')
    (inner / "vmoat").chmod(0o755)
    monkeypatch.setenv("PATH", f"{inner}:{os.environ['PATH']}")
    return world


def offered(world: World, line: str) -> list[str]:
    """What `vmoat` answers a shell for ``line`` (the protocol of argcomplete's function)."""
    got, out = os.pipe()
    env = {**os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\v", "COMP_LINE": line,
           "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
           "_ARGCOMPLETE_STDOUT_FILENAME": f"/dev/fd/{out}"}  # fmt: skip
    subprocess.run(
        world.argv(), cwd=world.tree, env=env, pass_fds=[out], check=True, timeout=60,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(out)
    with os.fdopen(got) as stream:
        return [word.strip() for word in stream.read().split("\v") if word]


def test_every_command_and_option_is_offered(world: World) -> None:
    assert set(parser.BY_NAME) <= set(offered(world, "vmoat "))
    assert {"--force", "--detach", "--json"} <= set(offered(world, "vmoat up --"))
    assert offered(world, "vmoat completion ") == ["bash", "zsh", "fish"]


def test_stages_services_ports_branches_and_vms(world: World) -> None:
    assert "prepare" not in offered(world, "vmoat up ")
    (world.tree / "vmoat.toml").write_text(
        (world.tree / "vmoat.toml").read_text() + '\n[stages.mine]\nrun = "true"\n'
    )
    assert {"vm", "stack", "mine"} <= set(offered(world, "vmoat up "))
    assert "mine" in offered(world, "vmoat logs --stage ")
    assert offered(world, "vmoat -w ") == ["main", "work"]
    world.vmoat("up")
    rows = [{"name": "web", "ports": [[38217, 80]]}, {"name": "db"}]
    world.set("containers", json.dumps(rows))
    assert offered(world, "vmoat logs ")[:2] == ["db", "web"]
    assert offered(world, "vmoat tunnel ")[0] == "38217"
    world.vmoat("tunnel")
    assert offered(world, "vmoat untunnel ")[0] == "38217"
    assert offered(world, "vmoat destroy ")[0] == "wt-tree"
    assert "walls" in offered(world, "vmoat help ")


def test_nothing_is_offered_outside_a_repository(world: World, tmp_path: Path) -> None:
    """And nothing is printed over the user's line."""
    assert offered(world, f"vmoat -C {tmp_path} -w ") == []


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_tab_in_a_real_shell(shim: World, shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if not program:
        pytest.skip(f"{shell} is not installed")
    env = {**os.environ, "HOME": str(tmp_path), "TERM": "dumb", "ZDOTDIR": str(tmp_path)}
    child = pexpect.spawn(
        program, START[shell], cwd=str(shim.tree), env=env, encoding="utf-8", timeout=30,
        dimensions=(60, 160),
    )  # fmt: skip
    try:
        child.sendline(BEGIN[shell])
        child.sendline(LOAD[shell])
        child.sendline("echo loa''ded")
        child.expect("loaded")
        child.send("vmoat untu\t")
        child.expect("nnel")
        child.sendcontrol("u")
        child.send("vmoat up hea\t")
        child.expect("lth")
    finally:
        child.close(force=True)


# --- the man page


def rendered() -> str:
    """The man page, in man(7)'s words."""
    from argparse_manpage.manpage import Manpage

    page = Manpage(completion.whole_parser())
    page.date = ""
    page.source = f"vmoat {__version__}"
    page.manual = "vmoat"
    name = ".SH NAME\nvmoat"
    text = str(page).replace(f"{name}\n", f"{name} \\- every git worktree its own VM\n")
    return re.sub(r"\n{2,}", "\n", text).rstrip() + "\n"


def test_the_man_page_is_fresh() -> None:
    assert PAGE.read_text() == rendered(), "run: python tests/unit/test_completion.py"


def test_the_man_page_has_every_command() -> None:
    text = PAGE.read_text().replace("\\-", "-")
    assert [name for name in parser.BY_NAME if f"vmoat {name}" not in text] == []
    assert f"vmoat {__version__}" in text


@pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc is not installed")
def test_the_man_page_has_no_mistake() -> None:
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "error", PAGE], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout


if __name__ == "__main__":
    PAGE.write_text(rendered())
