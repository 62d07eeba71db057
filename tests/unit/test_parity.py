"""Every habit of the shell tool's users, one row each: the same here, or better, and how.

``ROWS`` is the table; each row is carried out, and ``vmoat help switching`` is made from it:
``python tests/unit/test_parity.py`` writes the page anew.  The worktree has the shell tool's own
``vmoat.conf`` and nothing else of vmoat's.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ALONE, World, git

from vmoat import __version__, paths

PAGE = Path(__file__).parents[2] / "vmoat/docs/switching.md"

CONF = r"""
# the shell tool's own file, as users have it
VM_CPU=2; VM_MEMORY=2; VM_DISK=20
VM_MOUNT="{mount}"
export PROVISION_APT="git jq curl ca-certificates"   # a comment after a value
PROVISION_SCRIPT='command -v tool >/dev/null 2>&1 || curl -sfS example.org/tool | sudo sh'
PROVISION_SEED=".env.keys config/local.yaml"
CMD_UP="INSTANCE_NAME=local VERSION=local ./deploy.sh local"
CMD_TEST="./run-tests"
MY_OWN_KEY="not vmoat's"
EXPOSE_PORTS=(
  38301 # web
  38303
)
"""


@dataclass(frozen=True)
class Row:
    """``before``: what the shell tool does; ``now``: the same, or better; ``check`` shows it."""

    habit: str
    before: str
    now: str
    check: Callable[[World], None]


def configured(world: World, shown: str) -> object:
    """The value of a setting."""
    rows = json.loads(world.vmoat("config", "--json").stdout)
    settings = rows["settings"] if isinstance(rows, dict) else rows
    (found,) = [row["value"] for row in settings if row["key"] == shown]
    return found


def up(world: World) -> World:
    if not world.place.exists() or not (world.place / "boot").exists():
        world.vmoat("up")
    return world


# --- commands


def nothing(world: World) -> None:
    done = world.vmoat(code=0)
    assert "usage: vmoat" in done.stdout + done.stderr
    for word in ("help", "-h", "--help"):
        assert "usage: vmoat" in world.vmoat(word).stdout


def version(world: World) -> None:
    for word in ("version", "--version"):
        assert world.vmoat(word, cwd=Path("/")).stdout == f"vmoat {__version__}\n"


def name(world: World) -> None:
    assert world.vmoat("name").stdout == "wt-tree\n"


def names(world: World) -> None:
    tree = world.root / "My_Odd--Tree."
    git(world.repo, "worktree", "add", "-q", "-b", "odd", str(tree))
    assert world.vmoat("name", cwd=tree).stdout == "wt-my-odd-tree\n"


def init(world: World) -> None:
    assert "vmoat.conf" in world.vmoat("init", code=3).stderr
    (world.tree / "vmoat.conf").unlink()
    world.vmoat("init")
    assert "\n# " in (world.tree / "vmoat.toml").read_text()


def provision(world: World) -> None:
    world.vmoat("provision")
    begun = [line.split()[1] for line in world.events() if line.startswith("begin")]
    assert "script" in begun
    assert "stack" not in begun


def bring_up(world: World) -> None:
    done = world.vmoat("up")
    assert done.stdout == ""
    assert "vmoat tunnel" in done.stderr
    assert all(line.startswith("[vmoat]") for line in done.stderr.splitlines())
    begun = [line.split()[1] for line in world.events() if line.startswith("begin")]
    order = [stage for stage in begun if stage in ("vm", "apt", "script", "stack")]
    assert order == ["vm", "apt", "script", "stack"]
    assert "is healthy" in done.stderr


def up_without_command(world: World) -> None:
    (world.tree / "vmoat.conf").write_text("VM_CPU=2\n")
    said = world.vmoat("up", code=3).stderr
    for way in ("CMD_UP", "compose", "Makefile"):
        assert way in said


def arguments(world: World) -> None:
    up(world)
    program = world.tree / "run-tests"
    program.write_text('#!/bin/sh\nprintf "<%s>" "$@"\nexit 3\n')
    program.chmod(0o755)
    done = subprocess.run(
        world.argv("test", "a", "b c"), cwd=world.tree, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (3, "<a><b c>")


def needs(world: World) -> None:
    assert "is not up" in world.vmoat("test", "--no-up", code=125).stderr
    (world.tree / "vmoat.conf").write_text("CMD_UP=true\n")
    assert "CMD_TEST" in world.vmoat("test", code=125).stderr


def tunnel(world: World) -> None:
    assert world.vmoat("tunnel", code=5).stdout == ""
    up(world)
    done = world.vmoat("tunnel")
    assert done.stdout == "http://localhost:38301\nhttp://localhost:38303\n"
    assert world.vmoat("tunnel").stdout == done.stdout
    assert world.vmoat("tunnel", "38309").stdout == "http://localhost:38309\n"


def untunnel(world: World) -> None:
    world.vmoat("untunnel")
    up(world)
    world.vmoat("tunnel")
    world.vmoat("untunnel")
    assert "no tunnel" in world.vmoat("untunnel").stderr


def status(world: World) -> None:
    assert world.vmoat("status").returncode == 0
    up(world)
    assert "wt-tree" in world.vmoat("status").stdout


def ssh(world: World) -> None:
    up(world)
    world.vmoat("ssh", "exit 7", code=7)
    assert world.vmoat("ssh", "--", "echo", "b  c").stdout == "b  c\n"


def down(world: World) -> None:
    world.vmoat("down")
    up(world)
    world.vmoat("down")
    assert json.loads(world.vmoat("status", "--json").stdout)["state"] == "stopped"


def destroy(world: World) -> None:
    world.vmoat("destroy", "-f")
    up(world)
    assert str(world.tree) in world.vmoat("destroy", code=2).stderr
    world.vmoat("destroy", "-f")
    assert not world.context(claim=False).instance.claimed


def unknown(world: World) -> None:
    assert "frobnicate" in world.vmoat("frobnicate", code=2).stderr


def errors(world: World) -> None:
    assert world.vmoat("frobnicate", code=2).stderr.startswith("[vmoat] ERROR:")


# --- configuration


def sizes(world: World) -> None:
    assert [configured(world, f"vm.{key}") for key in ("cpu", "memory", "disk")] == [2, 2, 20]


def resized(world: World) -> None:
    up(world)
    file = world.tree / "vmoat.conf"
    file.write_text(file.read_text().replace("VM_CPU=2", "VM_CPU=1"))
    assert "CPUs" in world.vmoat("plan").stdout


def mount(world: World) -> None:
    (world.tree / "vmoat.conf").write_text('VM_MOUNT="/somewhere/else"; CMD_UP=true\n')
    assert "/somewhere/else" in world.vmoat("up", code=3).stderr


def lists(world: World) -> None:
    assert configured(world, "provision.apt") == ["git", "jq", "curl", "ca-certificates"]
    assert configured(world, "provision.seed") == [".env.keys", "config/local.yaml"]


def script(world: World) -> None:
    assert "|| curl -sfS example.org/tool | sudo sh" in str(
        configured(world, "provision.script")
    )


def command_up(world: World) -> None:
    wanted = "INSTANCE_NAME=local VERSION=local ./deploy.sh local"
    assert configured(world, "up.command") == wanted


def ports(world: World) -> None:
    as_array = configured(world, "tunnel.ports")
    (world.tree / "vmoat.conf").write_text('EXPOSE_PORTS="38301 38303"\n')
    assert configured(world, "tunnel.ports") == as_array


def local_file(world: World) -> None:
    (world.tree / "vmoat.local.conf").write_text('CMD_TEST="./mine"\n')
    assert configured(world, "test.command") == "./mine"


def own_keys(world: World) -> None:
    assert "MY_OWN_KEY" not in world.vmoat("config").stderr


def computed(world: World) -> None:
    (world.tree / "vmoat.conf").write_text('CMD_UP="$(echo true)"\n')
    assert "vmoat trust" in world.vmoat("up", code=3).stderr
    world.vmoat("trust", "--yes")
    assert configured(world, "up.command") == "true"


def prefix(world: World) -> None:
    (world.tree / "vmoat.conf").write_text("VM_PREFIX=my-\nCMD_UP=true\n")
    assert world.vmoat("name").stdout == "my-tree\n"


def health(world: World) -> None:
    (world.tree / "vmoat.conf").write_text("CMD_UP=true; HEALTH_URL=http://localhost:1/\n")
    assert configured(world, "health.timeout") == 1800
    assert configured(world, "health.url") == "http://localhost:1/"


def seed_missing(world: World) -> None:
    done = world.vmoat("up")
    assert "config/local.yaml" in done.stderr


ROWS = (
    Row("`vmoat`, `help`, `-h`, `--help`", "usage, 0", "same; asked for, it is on stdout", nothing),
    Row("`vmoat version`, `--version`", "`vmoat 0.1.0`, outside a repository too", "same", version),
    Row("`vmoat name`", "the name on stdout, nothing else", "same", name),
    Row("VM names", "`wt-` and the folder's name, sanitised", "same; a name that another worktree "
        "has gets a short hash", names),
    Row("`vmoat init`", "writes vmoat.conf; an error if it exists",
        "writes a commented vmoat.toml, the form that has every setting; `init --from vmoat.conf` "
        "migrates", init),
    Row("`vmoat provision`", "VM, apt, script, seed", "same", provision),
    Row("`vmoat up`", "provision, CMD_UP, health; how to reach it, on stderr",
        "same; what still holds is skipped, with the reason", bring_up),
    Row("`up` without a CMD_UP", "an error that names the ways out", "same (exit 3)",
        up_without_command),
    Row("`vmoat test ARGS`", "appended unquoted: `'b c'` became two",
        "each argument is quoted", arguments),
    Row("`test` without CMD_TEST, or without a VM", "an error",
        "same (exit 125); a VM that is not up is brought up, unless `--no-up`", needs),
    Row("`vmoat tunnel [PORT…]`", "one `http://localhost:PORT` a line on stdout; an open one is "
        "reused", "same; the VM's own port number where it is free on this machine", tunnel),
    Row("`vmoat untunnel`", "closes all; no error if none", "same; or some ports", untunnel),
    Row("`vmoat status`", "no error without a VM", "same; all of it on stdout, `--json`", status),
    Row("`vmoat ssh CMD`", "exit code always 1 on failure; `ssh -- cmd` fails",
        "the command's own exit code; `--` is dropped", ssh),
    Row("`vmoat down`", "stops; no error without a VM", "same", down),
    Row("`vmoat destroy [-f]`", "names VM and worktree, asks unless -f; no error without a VM",
        "same; no question without a terminal (exit 2), and the data disk goes too", destroy),
    Row("an unknown word", "an error that names it, 1", "same, exit 2, with the nearest command",
        unknown),
    Row("errors", "`[vmoat] ERROR:` on stderr", "same, and what to do", errors),
    Row("`VM_CPU=6; VM_MEMORY=16; VM_DISK=80`", "several on a line", "same", sizes),
    Row("a changed size", "at creation only", "from the next `up` on", resized),
    Row("`VM_MOUNT`", "the worktree must lie under it", "same; shares nothing more", mount),
    Row("`PROVISION_APT`, `PROVISION_SEED`", "words in a string", "same", lists),
    Row("`PROVISION_SCRIPT='…'`", "shell code in single quotes", "same", script),
    Row("`CMD_UP`", "any shell line", "same", command_up),
    Row("`EXPOSE_PORTS`", "array, over lines, or string", "same", ports),
    Row("`vmoat.local.conf`", "comes after vmoat.conf", "same", local_file),
    Row("keys of your own, `export`, comments", "let through", "same", own_keys),
    Row("a vmoat.conf that computes (`$(…)`, `if`)", "run by bash",
        "run by bash after `vmoat trust`, for it comes with the branch", computed),
    Row("`VM_PREFIX`", "instead of `wt-`", "same", prefix),
    Row("`HEALTH_URL`, `HEALTH_TIMEOUT`", "2xx inside the VM, 1800 s", "same", health),
    Row("a seed that is missing in both places", "a warning, no error", "same", seed_missing),
)  # fmt: skip


@pytest.fixture
def habits(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """The world with the shell tool's configuration."""
    for place in (world.tree, world.repo):  # the project's own file, on both branches
        (place / "vmoat.toml").unlink()
        (place / "vmoat.conf").write_text(CONF.replace("{mount}", os.fspath(world.root)))
    for program in (world.tree / "deploy.sh", world.root / "bin/tool"):
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{world.root / 'bin'}:{os.environ['PATH']}")
    (world.repo / ".env.keys").write_text("KEY=1\n")
    user = paths.config_home() / "config.toml"
    user.parent.mkdir(parents=True, exist_ok=True)
    user.write_text(ALONE)
    return world


@pytest.mark.parametrize("row", ROWS, ids=[row.check.__name__ for row in ROWS])
def test_habit(habits: World, row: Row) -> None:
    row.check(habits)


def page() -> str:
    """The docs' page."""
    head = PAGE.read_text().partition("<!-- table -->")[0] if PAGE.exists() else ""
    rows = "\n".join(f"| {row.habit} | {row.before} | {row.now} |" for row in ROWS)
    table = f"| | the shell tool | here |\n|---|---|---|\n{rows}\n"
    return f"{head}<!-- table -->\n{table}"


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text() == page(), "run: python tests/unit/test_parity.py"


if __name__ == "__main__":
    PAGE.write_text(page())
