"""The shell tool's commands, what they print, and the names of its VMs (see ``parity.py``)."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess

import pytest
from conftest import git
from parity import COMMANDS, CONF, NAMES, OUTPUT, Bench, row

import vmoat
from vmoat import parser

# -- commands --


@row(COMMANDS, "`vmoat`", "the usage on stderr, exit code 0")
def _nothing(vmoat_: Bench) -> None:
    said = vmoat_()
    assert said.out == ""
    assert said.err == parser.overview()


@row(
    COMMANDS, "`vmoat help`, `-h`, `--help`", "the usage on stderr, exit code 0",
    "The usage on stdout, so that `vmoat help | less` works; `vmoat help COMMAND` for each command",
)  # fmt: skip
def _help(vmoat_: Bench) -> None:
    for words in (["help"], ["-h"], ["--help"]):
        assert vmoat_(*words) == (parser.overview(), "")
    assert "--force" in vmoat_("help", "up").out


@row(COMMANDS, "`vmoat version`, `--version`", "`vmoat X.Y.Z` on stdout, outside a repository too")
def _version(vmoat_: Bench) -> None:
    for words in (["version"], ["--version"]):
        assert vmoat_(*words, cwd=vmoat_.root) == (f"vmoat {vmoat.__version__}\n", "")


@row(COMMANDS, "`vmoat name`", "the VM's name on stdout and nothing else")
def _name(vmoat_: Bench) -> None:
    assert vmoat_("name") == ("wt-tree\n", "")


@row(
    COMMANDS, "`vmoat init`", "writes vmoat.conf: the detected CMD_UP, other keys commented out",
    "Writes vmoat.toml in the same way. Your vmoat.conf goes on to work; "
    "`vmoat init --from vmoat.conf` makes TOML of it and says what changed meaning",
)  # fmt: skip
def _init(vmoat_: Bench) -> None:
    (vmoat_.tree / "vmoat.conf").unlink()
    (vmoat_.tree / "compose.yaml").write_text("services: {}\n")
    said = vmoat_("init")
    assert said.out == f"{vmoat_.tree / 'vmoat.toml'}\n"
    text = (vmoat_.tree / "vmoat.toml").read_text()
    assert 'command = "docker compose up -d --build"' in text.splitlines()
    assert re.search(r"^# cpu = ", text, re.MULTILINE)
    (vmoat_.tree / "vmoat.toml").unlink()
    vmoat_.conf(CONF)
    vmoat_("init", "--from", "vmoat.conf")
    assert "./deploy.sh" in (vmoat_.tree / "vmoat.toml").read_text()


@row(COMMANDS, "`vmoat init` where a config exists", "an error; the file stays as it is")
def _init_again(vmoat_: Bench) -> None:
    assert "vmoat.conf" in vmoat_("init", code=3).err
    assert (vmoat_.tree / "vmoat.conf").read_text() == CONF
    assert not (vmoat_.tree / "vmoat.toml").exists()


@row(
    COMMANDS, "`vmoat provision`", "the VM, then PROVISION_APT, PROVISION_SCRIPT, PROVISION_SEED",
    "The same, each only where it is not done yet; seed files come before the script, "
    "which may read them",
)  # fmt: skip
def _provision(vmoat_: Bench) -> None:
    vmoat_("provision")
    assert vmoat_.world.ran()[:5] == ["image", "create", "boot", "apt", "script"]
    assert (vmoat_.tree / ".env.keys").read_text() == "KEY=1\n"
    assert "stack" not in vmoat_.world.ran()
    done = vmoat_.world.ran()
    vmoat_("provision")
    assert vmoat_.world.ran() == done


@row(
    COMMANDS, "`vmoat up`", "provisions, runs CMD_UP, waits for HEALTH_URL, says how to reach it",
    running=True,
)  # fmt: skip
def _up(vmoat_: Bench) -> None:
    assert (vmoat_.tree / "out/deployed").read_text() == f"local local local {vmoat_.tree}\n"
    assert "✓ health" in vmoat_.first.err
    assert "is healthy" in vmoat_.first.err
    for reach in ("`vmoat tunnel`", "`vmoat test`", "`vmoat ssh`"):
        assert reach in vmoat_.first.err
    assert vmoat_.first.out == ""


@row(
    COMMANDS, "`vmoat up` again", "everything once more: the script, CMD_UP; 8 to 10 s",
    "Nothing, where nothing changed, within a second; `vmoat plan` says what would run and why, "
    "`vmoat up --force` runs it all the same",
    running=True,
)  # fmt: skip
def _up_again(vmoat_: Bench) -> None:
    done = vmoat_.world.ran()
    assert "nothing to do" in vmoat_("up").err
    assert vmoat_.world.ran() == done
    assert " run " not in vmoat_("plan").out


@row(COMMANDS, "`vmoat up` without CMD_UP", "what is detected, else an error with three ways out")
def _up_undetected(vmoat_: Bench) -> None:
    vmoat_.conf("VM_CPU=1\n")
    said = vmoat_("up", code=3).err
    for way in ("CMD_UP", "compose file", "Makefile with `up:`"):
        assert way in said
    (vmoat_.tree / "Makefile").write_text("up:\n\ttrue\n")
    assert "make up" in vmoat_("plan").err


@row(
    COMMANDS, "`vmoat test ARGS`", "ARGS are appended to CMD_TEST, split at spaces",
    "Each argument stays one: `vmoat test a 'b c'` passes two",
    running=True,
)  # fmt: skip
def _test(vmoat_: Bench) -> None:
    assert vmoat_("test", "a", "b c").out == "<a>\n<b c>\n"


@row(
    COMMANDS, "`vmoat test` without a stack that is up", "an error: the VM has to run",
    "Brings it up first; `vmoat test --no-up` is the error (exit code 125)",
)  # fmt: skip
def _test_down(vmoat_: Bench) -> None:
    assert "is not up" in vmoat_("test", "--no-up", code=125).err
    assert vmoat_.world.vmoat("test", "x").stdout == "<x>\n"


@row(COMMANDS, "`vmoat test` without CMD_TEST", "an error that names CMD_TEST")
def _test_unset(vmoat_: Bench) -> None:
    vmoat_.conf("CMD_UP=true\n")
    assert "CMD_TEST" in vmoat_("test", code=125).err


@row(
    COMMANDS, "`vmoat test`, its exit code", "1 for whatever failed",
    "The tests' own; 125 where vmoat failed before they ran",
    running=True,
)  # fmt: skip
def _test_code(vmoat_: Bench) -> None:
    (vmoat_.tree / "vmoat.local.conf").write_text('CMD_TEST="CODE=9 ./show.sh"\n')
    vmoat_("test", code=9)
    (vmoat_.tree / "vmoat.local.conf").unlink()


@row(COMMANDS, "`vmoat tunnel`", "forwards EXPOSE_PORTS, else what the running containers publish",
     running=True)  # fmt: skip
def _tunnel(vmoat_: Bench) -> None:
    rows = vmoat_("tunnel", "--json").out
    assert [tunnel["guest"] for tunnel in json.loads(rows)["tunnels"]] == [30001, 18003]
    vmoat_("untunnel")
    vmoat_.world.set("containers", json.dumps([{"name": "db", "ports": [[35432, 5432]]}]))
    (vmoat_.tree / "vmoat.local.conf").write_text("EXPOSE_PORTS=()\n")
    rows = vmoat_("tunnel", "--json").out
    assert [tunnel["guest"] for tunnel in json.loads(rows)["tunnels"]] == [35432]
    vmoat_("untunnel")
    (vmoat_.tree / "vmoat.local.conf").unlink()
    (vmoat_.world.place / "containers").unlink()


@row(COMMANDS, "`vmoat tunnel PORT…`", "forwards these ports", running=True)
def _tunnel_ports(vmoat_: Bench) -> None:
    rows = vmoat_("tunnel", "--json", "17001", "17002").out
    assert [tunnel["guest"] for tunnel in json.loads(rows)["tunnels"]] == [17001, 17002]
    vmoat_("untunnel")


@row(
    COMMANDS, "`vmoat tunnel`, the host's port", "a free one of 9000 to 9099 for each",
    "The same number as in the VM where it is free, else a free one of 9000 to 9099; the same one "
    "the next time; `GUEST:HOST` to choose",
    running=True,
)  # fmt: skip
def _tunnel_host(vmoat_: Bench) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        spare = vmoat_("tunnel", str(taken)).out.strip()
        assert int(spare.rpartition(":")[2]) in range(9000, 9100)
        vmoat_("untunnel")
        assert vmoat_("tunnel", str(taken)).out.strip() == spare
    assert vmoat_("tunnel", "30001").out == "http://localhost:30001\n"
    vmoat_("untunnel")


@row(COMMANDS, "`vmoat tunnel` twice", "an open one is used again, and printed again", running=True)
def _tunnel_twice(vmoat_: Bench) -> None:
    assert vmoat_("tunnel").out == vmoat_("tunnel").out
    assert len(vmoat_("status").out.split("http://")) == 3
    vmoat_("untunnel")


@row(COMMANDS, "`vmoat tunnel` without a VM that runs", "an error")
def _tunnel_down(vmoat_: Bench) -> None:
    assert "`vmoat up` starts it" in vmoat_("tunnel", code=5).err


@row(
    COMMANDS, "`vmoat untunnel`", "closes all tunnels; no error where there is none",
    "The same; `vmoat untunnel PORT` closes one",
    running=True,
)  # fmt: skip
def _untunnel(vmoat_: Bench) -> None:
    vmoat_("tunnel")
    vmoat_("untunnel", "30001")
    assert "30001" not in vmoat_("status").out
    assert "18003" in vmoat_("status").out
    vmoat_("untunnel")
    assert "no tunnel is open" in vmoat_("untunnel").err


@row(
    COMMANDS, "`vmoat status`",
    "Colima's table row on stdout; containers, health and tunnels on stderr",
    "All of it on stdout, one fact a line: `state      running`. In a script: "
    "`vmoat status --json`, where `state` is `running`, `stopped`, `absent`, `starting`, `paused` "
    "or `broken`",
    running=True,
)  # fmt: skip
def _status(vmoat_: Bench) -> None:
    vmoat_.world.set("containers", json.dumps([{"name": "web"}]))
    vmoat_("tunnel", "30001")
    said = vmoat_("status")
    for line in ("name       wt-tree", "state      running", "health     healthy",
                 "container  web: running", "tunnel     http://localhost:30001"):  # fmt: skip
        assert line in said.out
    assert said.err == ""
    assert json.loads(vmoat_("status", "--json").out)["state"] == "running"
    vmoat_("untunnel")
    (vmoat_.world.place / "containers").unlink()


@row(COMMANDS, "`vmoat status` without a VM", "says so; no error")
def _status_absent(vmoat_: Bench) -> None:
    assert "state      absent" in vmoat_("status").out


@row(COMMANDS, "`vmoat ssh CMD`", "runs it in the worktree's path inside the VM", running=True)
def _ssh(vmoat_: Bench) -> None:
    assert vmoat_("ssh", "echo $PWD").out == f"{vmoat_.tree}\n"
    assert vmoat_("ssh", "echo", "a  b").out == "a  b\n"


@row(
    COMMANDS, "`vmoat ssh 'exit 7'`", "exit code 1", "Exit code 7: always the command's own",
    running=True,
)  # fmt: skip
def _ssh_code(vmoat_: Bench) -> None:
    vmoat_("ssh", "exit 7", code=7)
    vmoat_("ssh", "true")


@row(
    COMMANDS, "`vmoat ssh -- CMD`", "fails, though its own hint says to type it", "Works",
    running=True,
)  # fmt: skip
def _ssh_dashes(vmoat_: Bench) -> None:
    assert vmoat_("ssh", "--", "echo", "x").out == "x\n"


@row(COMMANDS, "`vmoat ssh` without a VM that runs", "an error that names `vmoat up`")
def _ssh_down(vmoat_: Bench) -> None:
    assert "`vmoat up` starts it" in vmoat_("ssh", "true", code=125).err


@row(
    COMMANDS, "`vmoat down`", "closes the tunnels, stops the VM",
    "Stops the stack first (CMD_DOWN), then the VM; its tunnels come back with the next `up` until "
    "`vmoat untunnel`",
)  # fmt: skip
def _down(vmoat_: Bench) -> None:
    vmoat_.conf("CMD_UP=true\nCMD_DOWN='mkdir -p out; touch out/stopped'\n")
    vmoat_("up")
    vmoat_("tunnel", "17003")
    vmoat_("down")
    assert (vmoat_.tree / "out/stopped").exists()
    assert "state      stopped" in vmoat_("status").out
    assert "localhost:17003" in vmoat_("status").out
    assert "http://localhost:17003" in vmoat_("up").err


@row(COMMANDS, "`vmoat down` without a VM", "no error")
def _down_absent(vmoat_: Bench) -> None:
    assert "not running" in vmoat_("down").err


@row(
    COMMANDS, "`vmoat destroy`", "names the VM and the worktree, and asks",
    "The same, with its volumes; without a terminal to ask on it removes nothing (exit code 2). "
    "Nothing of the VM stays on the disk",
)  # fmt: skip
def _destroy(vmoat_: Bench) -> None:
    vmoat_("name")
    said = vmoat_("destroy", code=2).err
    assert "wt-tree" in said
    assert str(vmoat_.tree) in said
    assert "add -f" in said
    place = vmoat_.root / "state/vmoat/vms/wt-tree"
    assert "nothing was removed" in on_terminal(vmoat_, "vmoat destroy", "n\n")
    assert place.exists()
    assert "wt-tree: removed" in on_terminal(vmoat_, "vmoat destroy", "y\n")
    assert not place.exists()


@row(COMMANDS, "`vmoat destroy -f`", "removes it without a question")
def _destroy_force(vmoat_: Bench) -> None:
    vmoat_("name")
    assert "removed" in vmoat_("destroy", "-f").err
    assert not (vmoat_.root / "state/vmoat/vms/wt-tree").exists()
    assert not (vmoat_.root / "data/vmoat/fake/wt-tree").exists()


@row(COMMANDS, "`vmoat destroy` without a VM", "no error")
def _destroy_absent(vmoat_: Bench) -> None:
    assert "there is no VM" in vmoat_("destroy").err
    assert "there is no VM" in vmoat_("destroy", "-f").err


@row(
    COMMANDS, "any other word", "an error that names it, exit code 1",
    "The same, with the nearest command, exit code 2: usage, as for a wrong option. 1 says that "
    "something of the project's failed",
)  # fmt: skip
def _unknown(vmoat_: Bench) -> None:
    said = vmoat_("statsu", code=2).err
    assert "`statsu`" in said
    assert "`vmoat status`" in said


@row(
    COMMANDS, "every command", "acts on the git worktree of the current folder",
    "The same, and `-C PATH` or `-w BRANCH` name another",
)  # fmt: skip
def _everywhere(vmoat_: Bench) -> None:
    (vmoat_.tree / "deep/er").mkdir(parents=True)
    assert vmoat_("name", cwd=vmoat_.tree / "deep/er").out == "wt-tree\n"
    assert vmoat_("name", cwd=vmoat_.repo).out == "wt-repo\n"
    assert vmoat_("-w", "work", "name", cwd=vmoat_.repo).out == "wt-tree\n"
    assert vmoat_("-C", str(vmoat_.tree), "name", cwd=vmoat_.root).out == "wt-tree\n"


# -- what is printed --


def on_terminal(vmoat_: Bench, line: str, answer: str = "") -> str:
    """What a command line shows to a person who types this answer."""
    if shutil.which("script") is None:
        pytest.skip("script(1) is not here (apt install bsdutils)")
    shim = vmoat_.root / "bin/vmoat"
    shim.parent.mkdir(exist_ok=True)
    shim.write_text('#!/bin/sh\nexec {} {} "$@"\n'.format(*vmoat_.world.argv()))
    shim.chmod(0o755)
    env = {**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}", "TERM": "xterm"}
    env.pop("NO_COLOR", None)
    done = subprocess.run(
        ["script", "-qec", line, "/dev/null"], cwd=vmoat_.tree, env=env, capture_output=True,
        text=True, input=answer, timeout=60,
    )  # fmt: skip
    return done.stdout


@row(OUTPUT, "lines on stderr", "begin with `[vmoat]`", running=True)
def _lines(vmoat_: Bench) -> None:
    for line in vmoat_("up").err.splitlines():
        assert line.startswith("[vmoat] ")


@row(OUTPUT, "errors", "`[vmoat] ERROR: …`", "The same, and a line `[vmoat] → …` with the cure")
def _errors(vmoat_: Bench) -> None:
    first, cure = vmoat_("tunnel", code=5).err.splitlines()
    assert first.startswith("[vmoat] ERROR: ")
    assert cure.startswith("[vmoat] → ")


@row(OUTPUT, "colours", "on a terminal only")
def _colours(vmoat_: Bench) -> None:
    assert "\x1b" not in vmoat_("tunnel", code=5).err
    assert "[vmoat] \x1b[31mERROR: " in on_terminal(vmoat_, "vmoat tunnel")


@row(OUTPUT, "`$(vmoat tunnel 8080)`", "one `http://localhost:PORT` a line, and nothing else",
     running=True)  # fmt: skip
def _urls(vmoat_: Bench) -> None:
    said = vmoat_("tunnel")
    assert said.out == "http://localhost:30001\nhttp://localhost:18003\n"
    assert all(line.startswith("[vmoat] ") for line in said.err.splitlines())
    vmoat_("untunnel")


# -- names --


@row(
    NAMES, "the VM's name",
    "`wt-` and the folder's name: lower case, what is not a-z, 0-9 or - becomes -, runs of - "
    "become one, those at the ends go",
    "The same; where another worktree has that name already, with six letters more, which stay",
)  # fmt: skip
def _naming(vmoat_: Bench) -> None:
    for folder, name in (("My_App.v2", "wt-my-app-v2"), ("--x--y--", "wt-x-y"), ("ä b", "wt-b"),
                         ("feature/ONE", "wt-one")):  # fmt: skip
        place = vmoat_.root / "names" / folder
        git(vmoat_.repo, "worktree", "add", "-q", "--detach", str(place))
        assert vmoat_("name", cwd=place).out == name + "\n"
    second = vmoat_.root / "others/one"
    git(vmoat_.repo, "worktree", "add", "-q", "--detach", str(second))
    found = vmoat_("name", cwd=second).out
    assert re.fullmatch(r"wt-one-[0-9a-f]{6}\n", found)
    assert vmoat_("name", cwd=second).out == found


@row(NAMES, "VM_PREFIX", "stands in the place of `wt-`")
def _prefix(vmoat_: Bench) -> None:
    vmoat_.conf('VM_PREFIX="dev-"\nCMD_UP=true\n')
    assert vmoat_("name").out == "dev-tree\n"
