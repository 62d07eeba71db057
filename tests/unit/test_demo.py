"""The demo: its repository, its steps in order, and that it always cleans up after itself."""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vmoat import demo as ground
from vmoat import doctor as rules
from vmoat import hostfacts, proc
from vmoat.commands import demo as command
from vmoat.config import settings as config
from vmoat.config.detect import detect
from vmoat.errors import Code, VmoatError
from vmoat.output import Output
from vmoat.worktree import find

PAGE = f"<h1>Greetings</h1><p>{ground.NEW}</p>\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("STATE", "DATA", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.setattr(command.tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def playground(home: Path) -> ground.Playground:
    made = ground.place(None)
    ground.create(made)
    return made


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *words], check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout


def test_the_repository(playground: ground.Playground) -> None:
    assert git(playground.worktree, "branch", "--show-current") == "feature\n"
    assert git(playground.worktree, "status", "--porcelain") == ""
    assert git(playground.main, "check-ignore", ".env", "build/x") == ".env\nbuild/x\n"
    assert (playground.main / ".env").is_file()
    assert not (playground.worktree / ".env").exists()


def test_its_config_is_valid_and_needs_no_trust(playground: ground.Playground) -> None:
    tree = find(playground.worktree)
    read = config.load(
        tree.path, tree.main(), env={}, flags={}, host=config.HostSize(2, 4),
        common_dir=tree.common_dir,
    )  # fmt: skip
    assert read.provision_apt
    assert read.provision_seed == (ground.SEED,)
    assert [stage.name for stage in read.stages] == ["page"]
    assert read.health_url
    assert read.test_command
    assert not read.warnings
    assert detect(playground.worktree).command == "docker compose up -d --build"


def test_it_needs_no_registry(playground: ground.Playground) -> None:
    rows = (playground.worktree / "Dockerfile").read_text().splitlines()
    bases = [row.split()[1] for row in rows if row.startswith("FROM")]
    assert bases == ["scratch", "scratch"]
    assert "image:" not in (playground.worktree / "compose.yaml").read_text()


def test_its_scripts_do_what_the_demo_promises(playground: ground.Playground) -> None:
    """The stage's script runs on the host as it does in the guest."""
    tree = playground.worktree
    shutil.copy(playground.main / ".env", tree)
    (tree / "build").mkdir()
    ground.edit(playground)
    subprocess.run(["sh", "make-page.sh"], cwd=tree, check=True, timeout=60)
    page = (tree / "build" / "index.html").read_text()
    assert ground.NEW in page
    assert "<h1>Greetings from the main checkout</h1>" in page
    subprocess.run(["sh", "-n", "check.sh"], cwd=tree, check=True, timeout=60)


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(VmoatError) as caught:
        ground.place(str(tmp_path))
    assert caught.value.code == Code.USAGE
    assert (tmp_path / "mine").exists()


# --- the run, with a stand-in for vmoat itself ----------------------------------------------------

Script = Callable[[list[str]], str]


@pytest.fixture
def calls(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every ``vmoat …`` that the demo starts; each runs the shell line in ``answers``."""
    made: list[list[str]] = []
    real = proc.spawn

    def spawn(argv: list[str], **options: object) -> subprocess.Popen[bytes]:
        words = list(argv[argv.index("vmoat") + 1 :])
        made.append(words)
        return real(["sh", "-c", ANSWERS.get(words[0], "true")], **options)  # type: ignore[arg-type]

    monkeypatch.setattr(proc, "spawn", spawn)
    monkeypatch.setattr(command, "require_tools", lambda: None)
    monkeypatch.setattr(ground, "fetch", lambda url: PAGE)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    ANSWERS.clear()
    ANSWERS["tunnel"] = "echo http://localhost:8080"
    return made


ANSWERS: dict[str, str] = {}


def run(keep: bool = False, folder: str | None = None) -> tuple[int, str, str]:
    out = Output(io.StringIO(), io.StringIO())
    args = argparse.Namespace(keep=keep, dir=folder)
    try:
        code = command.demo(args, out)
    except VmoatError as error:
        code = error.code
        out.error(error)
    streams = (out.stdout, out.stderr)
    stdout, stderr = (s.getvalue() for s in streams if isinstance(s, io.StringIO))
    return code, stdout, stderr


def leftovers(home: Path) -> list[str]:
    return [path.name for path in home.glob("vmoat-demo-*")]


def test_the_steps_and_that_nothing_stays(home: Path, calls: list[list[str]]) -> None:
    code, stdout, stderr = run()
    assert code == Code.OK
    assert [words[0] for words in calls] == [
        "up", "up", "plan", "up", "test", "tunnel", "destroy",
    ]  # fmt: skip
    assert calls[-1] == ["destroy", "-f"]
    assert leftovers(home) == []
    assert "$ vmoat up\n" in stderr
    assert "$ vmoat test 'second version, edited on the host'" in stderr
    assert ground.NEW in stderr
    assert stdout.count(" s\n") == 6


def test_keep_leaves_it_and_says_how_to_remove_it(home: Path, calls: list[list[str]]) -> None:
    code, _, stderr = run(keep=True, folder=str(home / "a b"))
    assert code == Code.OK
    assert ["destroy", "-f"] not in calls
    assert (home / "a b" / "feature" / "vmoat.toml").is_file()
    assert f"vmoat -C '{home}/a b/feature' destroy -f && rm -rf '{home}/a b'" in stderr


def test_a_failing_step_ends_it_with_its_own_code_and_keeps_the_logs(
    home: Path, calls: list[list[str]]
) -> None:
    ANSWERS.update(test="exit 125", logs=f"cd {home}/vmoat-demo-logs-*; touch console.txt")
    code, _, stderr = run()
    assert code == 125
    assert [words[0] for words in calls][-2:] == ["logs", "destroy"]
    (logs,) = leftovers(home)
    assert logs.startswith("vmoat-demo-logs-")
    assert f"its logs are in {home / logs}" in stderr


def test_an_interrupted_step_cleans_up_as_well(home: Path, calls: list[list[str]]) -> None:
    ANSWERS["up"] = "exit 130"
    code, _, _ = run()
    assert code == Code.INTERRUPTED
    assert [words[0] for words in calls] == ["up", "destroy"]
    assert leftovers(home) == []


def test_a_vm_that_cannot_be_removed_keeps_its_folder(home: Path, calls: list[list[str]]) -> None:
    ANSWERS["destroy"] = "exit 5"
    _, _, stderr = run()
    assert len(leftovers(home)) == 1
    assert "destroy -f && rm -rf" in stderr


def test_a_page_without_the_edit_is_a_failure(
    home: Path, calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ground, "fetch", lambda url: "first version")
    assert run()[0] == Code.STAGE


def test_a_machine_that_lacks_tools(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostfacts, "gather", lambda settings: rules.Facts(keyring="trixie"))
    code, _, stderr = run()
    assert code == Code.MISSING
    assert "qemu-system-x86_64 is not installed" in stderr
    assert "vmoat doctor --fix" in stderr
    assert leftovers(home) == []


def test_a_terminated_demo_cleans_up(home: Path, calls: list[list[str]]) -> None:
    ANSWERS["up"] = "kill -TERM $PPID; exec sleep 20"
    code, _, _ = run()
    assert code == Code.INTERRUPTED
    assert [words[0] for words in calls] == ["up", "destroy"]
    assert leftovers(home) == []
