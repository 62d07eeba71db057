"""The command line: exit codes, errors that name the cure, answers that parse, no traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ALONE, World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmoat import parser, proc
from vmoat.cli import exit_code, main
from vmoat.errors import Code, VmoatError

GOLDEN = Path(__file__).parent.parent / "golden"


def test_help_texts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parts = []
    for words in ([], *([name] for name in parser.BY_NAME)):
        assert main(["help", *words]) == 0
        parts.append(f"$ vmoat {' '.join(['help', *words])}\n{capsys.readouterr().out}")
    text = "\n".join(parts)
    golden = GOLDEN / "help.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize(
    "words", [["--help"], ["-h"], ["-v", "--help"], ["help"], ["up", "--help"], ["ssh", "-h"]]
)
def test_ways_to_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert "usage: vmoat" in capsys.readouterr().out


def test_without_a_command_the_usage_is_no_answer(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["-v"]):
        assert main(words) == 0
        said = capsys.readouterr()
        assert (said.out, said.err) == ("", parser.overview())
    proc.set_echo(None)


def test_config_shows_what_was_asked_for(world: World) -> None:
    said = world.vmoat("config", "--json", "vm.cpu", "up.command").stdout
    rows = json.loads(said)["settings"]
    assert [row["key"] for row in rows] == ["up.command", "vm.cpu"]
    assert world.vmoat("config", "up.command").stdout.split() == [
        "up.command", "'echo", "up'", "vmoat.toml:9"]  # fmt: skip
    assert "stages.gen.run" in world.vmoat("config", "stages.gen.run").stdout
    assert "did you mean `vm.cpu`?" in world.vmoat("config", "vm.cpus", code=2).stderr


def test_a_command_without_words_is_what_argparse_makes_of_it() -> None:
    for command in parser.COMMANDS:
        bare = parser.bare(command)
        if bare is not None:
            made = vars(parser.parser_of(command).parse_args([]))
            made.pop("help", None)
            assert vars(bare) == made, command.name


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["upp"], "did you mean `vmoat up`?"),
        (["--bogus"], "unrecognized arguments"),
        (["-C"], "expected one argument"),
        (["up", "--timeout", "nan"], "invalid seconds value"),
        (["up", "--timeout", "-1"], "--timeout"),
        (["logs", "--tail", "x"], "invalid lines value"),
        (["image"], "required"),
        (["help", "nothing"], "there is no help on"),
        (["name", "extra"], "unrecognized arguments"),
    ],
)
def test_usage_errors(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == Code.USAGE
    assert says in capsys.readouterr().err


def test_exit_codes_of_commands_with_codes_of_their_own() -> None:
    for code in (1, 2, 3, 4, 5, 6, 7):
        error = VmoatError("x", code=code)
        assert exit_code("up", error) == code
        assert {exit_code(name, error) for name in ("test", "exec", "ssh")} == {125}
    assert exit_code("test", VmoatError("x", code=Code.INTERRUPTED)) == 130


@pytest.mark.parametrize(
    "words",
    [[c.name] for c in parser.COMMANDS if c.module in ("lifecycle", "inspect", "ports", "project")]
    + [["exec", "true"], ["test"], ["ssh"], ["ssh-config"]],
)
def test_outside_git(
    homes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str],
) -> None:  # fmt: skip
    (homes / "empty").mkdir()
    monkeypatch.chdir(homes / "empty")
    assert main(words) == (125 if words[0] in ("test", "exec", "ssh") else 2)
    said = capsys.readouterr()
    assert "not inside a git worktree" in said.err
    assert "-C PATH" in said.err
    assert said.out == ""


def test_a_current_folder_that_is_gone(
    homes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (homes / "gone").mkdir()
    monkeypatch.chdir(homes / "gone")
    (homes / "gone").rmdir()
    for words in (["name"], ["status"], ["up"]):
        assert main(words) == 2
        assert "the current folder is gone" in capsys.readouterr().err


BROKEN = {
    "toml": "[up\n",
    "key": "[up]\ncomand = 'x'\n",
    "untrusted": "walls = false\n",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_or_untrusted_config_does_not_lock_the_user_out(world: World, kind: str) -> None:
    world.vmoat("up")
    (world.tree / "vmoat.toml").write_text(BROKEN[kind])
    for words in (["up"], ["plan"], ["provision"], ["tunnel"], ["config"]):
        done = world.vmoat(*words, code=3)
        assert "vmoat.toml" in done.stderr
    assert world.vmoat("test", code=125)
    assert world.vmoat("name").stdout == "wt-tree\n"
    status = world.vmoat("status")
    assert "running" in status.stdout
    assert "vmoat.toml" in status.stderr
    json.loads(world.vmoat("status", "--json").stdout)
    world.set("console", "boot\n")
    assert world.vmoat("logs", "--console").stdout == "boot\n"
    world.vmoat("wait")
    world.vmoat("untunnel")
    world.vmoat("trust", code=None)
    world.vmoat("down")
    assert "stop" in world.ran()
    world.vmoat("destroy", "-f")
    assert not (world.root / "data/vmoat/fake/wt-tree").exists()
    assert not list((world.root / "state/vmoat/vms").glob("wt-*"))
    (world.root / "config/vmoat").mkdir(parents=True)
    (world.root / "config/vmoat/config.toml").write_text("broken [")
    assert world.vmoat("status")


def test_init_leaves_a_broken_config_alone(world: World) -> None:
    (world.tree / "vmoat.toml").write_text("[up\n")
    assert world.vmoat("init", code=None).returncode in (2, 3)
    assert (world.tree / "vmoat.toml").read_text() == "[up\n"


@pytest.mark.parametrize("seed", ["../x", "/etc/passwd", "link/x"])
def test_a_seed_that_leaves_the_worktree_starts_nothing(world: World, seed: str) -> None:
    for tree in (world.repo, world.tree):
        (tree / "vmoat.toml").write_text(f'[provision]\nseed = ["{seed}"]\n[up]\ncommand="x"\n')
    (world.repo / "link").symlink_to("/etc")
    assert world.vmoat("up", code=3)
    assert world.ran() == []


def test_destroy_asks_and_tells(world: World) -> None:
    assert "there is no VM" in world.vmoat("destroy", "-f").stderr
    world.vmoat("up")
    refused = world.vmoat("destroy", code=2)
    assert "wt-tree" in refused.stderr
    assert str(world.tree) in refused.stderr
    assert "add -f" in refused.stderr
    assert "there is no VM called `nope`" in world.vmoat("destroy", "nope", "-f", code=2).stderr
    world.vmoat("destroy", "wt-tree", "-f")
    assert "absent" in world.vmoat("status").stdout


def test_status_is_the_truth_and_json_parses(world: World) -> None:
    assert "absent" in world.vmoat("status").stdout
    world.vmoat("up")
    report = json.loads(world.vmoat("status", "--json").stdout)
    assert report["state"] == "running"
    assert report["healthy"] is True
    world.set("no-docker", "")
    assert "dockerd does not answer" in world.vmoat("status").stderr
    world.vmoat("down")
    assert json.loads(world.vmoat("status", "--json").stdout)["state"] == "stopped"
    json.loads(world.vmoat("config", "--json").stdout)


def test_status_of_a_fresh_worktree_is_not_that_of_a_namesake(world: World) -> None:
    """The removed worktree's VM still goes by the name that the new one will get."""
    world.vmoat("up")
    shutil.rmtree(world.tree)
    subprocess.run(["git", "worktree", "prune"], cwd=world.repo, check=True)
    subprocess.run(["git", "worktree", "add", "-q", "-f", world.tree, "work"], cwd=world.repo,
                   check=True, capture_output=True)  # fmt: skip
    assert json.loads(world.vmoat("status", "--json").stdout)["state"] == "absent"
    assert "there is no VM yet" in world.vmoat("plan").stdout


def test_commands_inside_keep_their_exit_codes(world: World) -> None:
    assert "`vmoat up` starts it" in world.vmoat("exec", "true", code=125).stderr
    assert world.vmoat("test", "--no-up", code=125)
    assert world.ran() == []
    assert world.vmoat("test", "a b").stdout == "tests a b\n"
    for code in (0, 1, 3, 42, 255):
        world.vmoat("exec", f"exit {code}", code=code)
    assert world.vmoat("exec", "--", "echo", "$HOME").stdout == "$HOME\n"


def test_other_worktrees_by_path_and_branch(world: World) -> None:
    assert world.vmoat("-C", str(world.tree), "name", cwd=world.root).stdout == "wt-tree\n"
    assert world.vmoat("-w", "work", "name", cwd=world.repo).stdout == "wt-tree\n"
    assert "work" in world.vmoat("-w", "wrok", "name", cwd=world.repo, code=2).stderr


def test_tunnels(world: World) -> None:
    world.vmoat("up")
    world.set("containers", json.dumps([{"name": "web", "ports": [[18217, 80]]}]))
    url = world.vmoat("tunnel").stdout
    assert url == "http://localhost:18217\n"
    assert world.vmoat("tunnel").stdout == url
    assert json.loads(world.vmoat("tunnel", "--json").stdout)["tunnels"][0]["guest"] == 18217
    assert "18217" in world.vmoat("up").stderr
    for port in ("0", "70000", "x", "80:", "-1", "\uff18\uff10", "1_0"):
        world.vmoat("tunnel", "--", port, code=2)
    world.vmoat("untunnel")
    assert "no tunnel" in world.vmoat("untunnel").stderr


def test_a_tunnel_that_was_asked_for_survives_down_and_up(world: World) -> None:
    """A debugger's port stays where it is; one that is taken meanwhile is named."""
    world.vmoat("up")
    assert world.vmoat("tunnel", "9229:15229").stdout == "http://localhost:15229\n"
    world.vmoat("down")
    report = json.loads(world.vmoat("status", "--json").stdout)
    assert report["waiting"] == [{"guest": 9229, "host": 15229}]
    world.set("taken", "15229")
    said = world.vmoat("up").stderr
    assert "port 15229 of this machine is taken" in said
    assert "9229" in world.vmoat("status").stdout
    (world.place / "taken").unlink()
    assert "taken" not in world.vmoat("up").stderr
    assert "http://localhost:15229 → port 9229" in world.vmoat("status").stdout
    world.vmoat("untunnel", "80")
    assert "15229" in world.vmoat("status").stdout
    world.vmoat("down")
    world.vmoat("untunnel", "9229")
    world.vmoat("up")
    assert "15229" not in world.vmoat("status").stdout


def test_status_tells_what_each_part_weighs(world: World) -> None:
    world.vmoat("up")
    shown = world.vmoat("status").stdout
    assert "system 1 MiB, data 3 MiB" in shown
    assert "image      512 MiB on the host, for all VMs" in shown
    assert "memory     2.0 GiB of the host's" in shown
    weights = json.loads(world.vmoat("status", "--json").stdout)["weights"]
    assert weights == {"host": {"system": 2**20, "data": 3 * 2**20, "image": 2**29,
                                "memory": 2**31}, "docker": None}  # fmt: skip


def test_a_service_tells_its_state_and_its_ports(world: World) -> None:
    config = '[up]\ncommand = "serve"\nservice = true\n'
    (world.tree / "vmoat.toml").write_text(config + ALONE)
    world.vmoat("up")
    assert "service    running, listens on 5000" in world.vmoat("status").stdout
    world.set("stack-unit", "exited 4")
    report = json.loads(world.vmoat("status", "--json").stdout)
    assert (report["service"]["state"], report["healthy"]) == ("exited 4", False)


def test_the_ssh_block_asks_for_the_vm_by_its_name(world: World) -> None:
    from vmoat.commands.inside import proxy_argv

    words = proxy_argv("wt-tree")
    assert words[-2:] == ["vmoat.sshproxy", "wt-tree"]
    for name, says in (("no-such-vm", "there is no VM called"), ("../x", "there is no VM called")):
        done = subprocess.run([*words[:-1], name], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert says in done.stderr
    world.vmoat("name")
    done = subprocess.run(words, cwd="/", capture_output=True, text=True, timeout=60)
    assert done.returncode == 5
    assert f"the VM wt-tree is absent; `vmoat -C {world.tree} up` starts it" in done.stderr


def test_an_unwritable_state_folder_is_exit_4(world: World) -> None:
    (world.root / "file").write_text("")
    env = {**os.environ, "XDG_STATE_HOME": str(world.root / "file")}
    for words in (["up"], ["name"], ["provision"]):
        done = subprocess.run(world.argv(*words), cwd=world.tree, env=env, capture_output=True,
                              text=True, timeout=60)  # fmt: skip
        assert done.returncode == 4, done.stderr
        assert str(world.root / "file") in done.stderr


def test_a_full_disk_or_a_defect_is_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(args: object, out: object) -> int:
        raise OSError(28, "No space left on device", "/some/file")

    monkeypatch.setattr("vmoat.commands.help.version", full)
    assert main(["version"]) == 4
    assert "/some/file: No space left on device" in capsys.readouterr().err
    monkeypatch.setattr("vmoat.commands.help.version", lambda args, out: 1 / 0)
    assert main(["version"]) == 1
    assert "this is a defect" in capsys.readouterr().err


WORDS = st.one_of(
    st.sampled_from(
        [
            *sorted(set(parser.BY_NAME) - {"doctor", "demo", "image", "mcp", "dashboard"}),
            *("-C", "-w", "-v", "--json", "--timeout", "--force", "--stage", "--tail", "--", "-f"),
            *("--detach", "--help", "--bundle", "--no-up", "apt", "0", "80:80", "", ".", "-"),
        ]
    ),
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=8),
)


@settings(
    max_examples=150, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(st.lists(WORDS, max_size=6))
def test_no_argv_ends_in_a_traceback(
    homes: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """In a folder outside git: nothing is started, whatever is typed."""
    here = os.getcwd()
    (homes / "empty").mkdir(exist_ok=True)
    os.chdir(homes / "empty")
    try:
        code = main(words)
    finally:
        os.chdir(here)
        proc.set_echo(None)  # `-v` holds for a process
    said = capsys.readouterr()
    assert "this is a defect" not in said.err, said.err
    assert "Traceback" not in said.err
    assert code in (0, 2, 3, 125), (code, said.err)


@pytest.mark.parametrize("words", [["name"], ["version"], ["help"]])
def test_what_stands_in_a_prompt_loads_next_to_nothing(world: World, words: list[str]) -> None:
    world.vmoat("name")
    program = (
        "import sys\nfrom vmoat.cli import main\n"
        f"main({words!r})\nprint(*sys.modules, file=sys.stderr)"
    )
    # -S: an editable install's own finder loads pathlib and more
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=world.tree, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(parser.__file__).parent.parent)}, check=True,
    )  # fmt: skip
    heavy = {"doit", "plumbum", "jinja2", "tomli_w", "platformdirs", "rich", "argparse", "json",
             "subprocess", "pathlib", "dataclasses", "typing", "tomllib", "hashlib"}  # fmt: skip
    assert heavy & set(done.stderr.split()) == set()
