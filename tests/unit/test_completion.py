"""TAB in bash, zsh and fish, and the man page: both made from the parser's table."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyte
import pytest
from conftest import World

from vmoat import completion, manpage, parser
from vmoat.cli import main
from vmoat.errors import Code

PAGE = Path(__file__).parents[2] / "vmoat/docs/vmoat.1"


@pytest.fixture
def here(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(world.tree)
    return world


def offered(what: str, prefix: str = "", **before: object) -> dict[str, str]:
    """What a TAB offers for an argument of this kind, after these words."""
    action = argparse.ArgumentParser().add_argument("words", nargs="*")
    space = argparse.Namespace(**{"path": None, "branches": None, **before})
    complete = completion.Completer(completion.VALUES[what])
    return dict(
        complete(prefix=prefix, action=action, parser=argparse.ArgumentParser(), parsed_args=space)
    )


def test_stages_are_those_of_the_worktree(here: World) -> None:
    found = offered("stages")
    assert {"vm", "apt", "stack", "health", "gen"} <= found.keys()
    assert "(CMD_UP)" in found["stack"]
    assert "stack" not in offered("stages", words=["stack"]), "it is on the line already"
    (here.repo / "vmoat.toml").write_text('[stages.only]\nrun = "true"\n')
    assert "only" in offered("stages", path=str(here.repo))
    assert "only" in offered("stages", branches=["main"])
    assert "only" not in found


def test_services_and_ports_are_asked_of_a_guest_that_is_connected(here: World) -> None:
    assert offered("services") == offered("ports") == {}
    here.vmoat("up")
    listed = [{"name": "web", "ports": [[18080, 80]]}, {"name": "db", "state": "exited"}]
    here.set("containers", json.dumps(listed))
    assert offered("services") == {"web": "running", "db": "exited"}
    assert offered("ports") == {"18080": "web"}
    (here.tree / "vmoat.local.toml").write_text('[tunnel]\nports = ["5432:15432"]\n')
    assert set(offered("ports")) == {"5432:15432", "5432"}
    here.vmoat("tunnel", "18080:15080")
    assert offered("forwards") == {"18080": "http://localhost:15080"}


def test_without_a_connection_the_last_up_tells_the_services(here: World) -> None:
    here.set("containers", json.dumps([{"name": "web"}]))
    here.vmoat("up")
    here.vmoat("down")
    asked = here.events()
    assert offered("services") == {"web": "a container of the last `up`"}
    assert here.events() == asked


def test_branches_vms_settings_pages_folders(here: World) -> None:
    assert offered("branches") == {"main": str(here.repo), "work": str(here.tree)}
    assert offered("vms") == {}
    here.vmoat("name")
    assert offered("vms") == {"wt-tree": str(here.tree)}
    assert "CPUs" in offered("keys")["vm.cpu"]
    assert {"up", "walls", "switching"} <= offered("topics").keys()
    (here.tree / "deep").mkdir()
    assert offered("folders", "de") == {"deep/": ""}
    assert offered("folders", f"{here.root}/tr") != {}


def test_a_tab_changes_nothing_and_says_nothing(
    here: World, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for what in completion.VALUES:
        offered(what)
    assert not (here.root / "state").exists()
    (here.tree / "vmoat.toml").write_text("broken [")
    monkeypatch.chdir(here.root)  # no worktree
    for what in completion.VALUES:
        offered(what)
        offered(what, path="/no/such/folder")
        offered(what, branches=["nope"])
    assert capfd.readouterr() == ("", "")


def test_the_whole_parser_takes_what_each_command_takes() -> None:
    whole = completion.whole_parser()
    for command in parser.COMMANDS:
        space = parser.bare(command)
        if space is None or command.rest:
            continue
        made = vars(whole.parse_args(["-v", "-C", "/x", command.name]))
        wanted = {**vars(space), "path": "/x", "verbose": True}
        assert {name: made[name] for name in wanted} == wanted, command.name
    assert whole.parse_args(["test", "--no-up", "a", "-b"]).rest == ["a", "-b"]


def test_what_is_completed_exists() -> None:
    named = {entry.completes for command in parser.COMMANDS for entry in command.args}
    named |= {entry.completes for entry in parser.COMMON}
    assert named - {""} == set(completion.VALUES)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_what_the_shell_takes(
    shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    need(shell)
    (tmp_path / "script").write_text(text)
    check = [shell, "--no-execute" if shell == "fish" else "-n", str(tmp_path / "script")]
    done = subprocess.run(check, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_shell_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == Code.USAGE
    assert "invalid choice" in capsys.readouterr().err


# -- real shells --


def need(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not here (apt install {program})")


class Terminal:
    """An interactive shell on a terminal of its own, and what its screen shows."""

    def __init__(self, argv: list[str], env: dict[str, str], cwd: Path) -> None:
        self.screen = pyte.Screen(200, 60)
        self.stream = pyte.ByteStream(self.screen)
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            os.execvpe(argv[0], argv, env)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)

    def type(self, keys: str, *wanted: str, limit: float = 60) -> str:
        """Press keys; the screen once all that is wanted is on it."""
        os.write(self.fd, keys.encode())
        end = time.monotonic() + limit
        while True:
            text = "\n".join(line.rstrip() for line in self.screen.display).strip()
            if all(word in text for word in wanted):
                return text
            ready, _, _ = select.select([self.fd], [], [], 0.2)
            if ready:
                self.stream.feed(os.read(self.fd, 65536))
            assert time.monotonic() < end, f"no {wanted} in:\n{text}"

    def again(self) -> None:
        """An empty line on an empty screen."""
        os.write(self.fd, b"\x15\x0c")
        self.screen.reset()


START = {
    "bash": ["bash", "--noprofile", "--norc", "-i"],
    "zsh": ["zsh", "-f", "-i"],
}
BEGIN = {
    "bash": "bind 'set show-all-if-ambiguous on'; bind 'set completion-query-items 0'; "
    "bind 'set page-completions off'; bind 'set bell-style none'; ",
    "zsh": "autoload -Uz compinit; compinit -D -u; LISTMAX=0; ",
}
LINES = {
    "vmoat unt": "vmoat untunnel",
    "vmoat up --det": "vmoat up --detach",
    "vmoat up hea": "vmoat up health",
    "vmoat logs --stage ge": "vmoat logs --stage gen",
    "vmoat logs web-": "vmoat logs web-front",
    "vmoat tunnel 180": "vmoat tunnel 18080",
    "vmoat -w wo": "vmoat -w work",
    "vmoat config health.t": "vmoat config health.timeout",
    "vmoat destroy wt-": "vmoat destroy wt-tree",
    "vmoat image imp": "vmoat image import",
    "vmoat exec cat gen": "vmoat exec cat gen.txt",
}
"""What is typed before TAB, and the line after it."""


def prepared(world: World) -> dict[str, str]:
    """A stack that is up, and the environment in which `vmoat` is this one."""
    world.vmoat("up")
    listed = [{"name": "web-front", "ports": [[18080, 80]]}]
    world.set("containers", json.dumps(listed))
    shim = world.root / "bin/vmoat"
    shim.parent.mkdir()
    shim.write_text('#!/bin/sh\nexec {} {} "$@"\n'.format(*world.argv()))
    shim.chmod(0o755)
    (world.root / "home").mkdir()
    path = f"{shim.parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "TERM": "xterm", "PS1": "$ ", "INPUTRC": "/dev/null",
            "HOME": str(world.root / "home")}  # fmt: skip


@pytest.fixture
def terminal(request: pytest.FixtureRequest, world: World) -> Iterator[Terminal]:
    shell: str = request.param
    need(shell)
    found = Terminal(START[shell], prepared(world), world.tree)
    try:
        found.type(BEGIN[shell] + f'eval "$(vmoat completion {shell})"; echo rea""dy\n', "\nready")
        yield found
    finally:
        found.close()


@pytest.mark.parametrize("terminal", ["bash", "zsh"], indirect=True)
def test_tab_on_a_terminal(terminal: Terminal) -> None:
    for typed, becomes in LINES.items():
        terminal.again()
        terminal.type(typed + "\t", becomes)
    terminal.again()
    shown = terminal.type("vmoat up \t", "image", "stack", "gen", "tunnel")
    assert "--detach" not in shown, "options only after a dash"


def test_fish_completes(world: World) -> None:
    need("fish")
    env = prepared(world)
    asked = "\n".join(f"complete -C '{typed}'; echo" for typed in LINES)
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"vmoat completion fish | source\n{asked}"], env=env,
        cwd=world.tree, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    answers = done.stdout.split("\n\n")
    assert done.stderr == ""
    assert len(answers) >= len(LINES)
    for (typed, becomes), answer in zip(LINES.items(), answers, strict=False):
        words = [line.partition("\t")[0].strip() for line in answer.splitlines()]
        assert becomes.split()[-1] in words, (typed, answer)


# -- the man page --


def test_the_man_page_is_fresh() -> None:
    again = "python -m vmoat.manpage > vmoat/docs/vmoat.1 (into another file first)"
    assert PAGE.read_text() == manpage.render(), f"run: {again}"


def test_the_man_page_tells_all() -> None:
    assert manpage.EXIT_STATUS.keys() == {int(code) for code in Code}
    need("man")
    done = subprocess.run(
        ["man", "--warnings", "-l", str(PAGE)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MANROFFOPT": "-c"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    shown = " ".join(done.stdout.replace("‐", "-").split())
    for command in parser.COMMANDS:
        assert f" {command.name} vmoat {command.name} " in shown


def test_mandoc_finds_nothing_in_the_man_page() -> None:
    need("mandoc")
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "style", str(PAGE)], capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    # Without a date: the page is the same whenever it is made.
    said = [line for line in done.stdout.splitlines() if "missing date" not in line]
    assert said == []


if __name__ == "__main__":
    sys.exit(PAGE.write_text(manpage.render()) and 0)
