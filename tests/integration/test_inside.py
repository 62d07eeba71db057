"""Commands inside the VM: their exit codes, words, signals; git; other programs' ssh."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from lab import Vm, git, told, wait_until

pytestmark = pytest.mark.vm


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["ssh", "exit 7"], 7),
        (["exec", "exit 255"], 255),
        (["exec", "sh", "-c", "exit 9"], 9),
        (["exec", "no-such-program"], 127),
        (["exec", "kill -KILL $$"], 137),
        (["exec", "true"], 0),
        (["exec"], 125),
    ],
)
def test_exit_codes_are_exact(vm: Vm, words: list[str], code: int) -> None:
    assert vm.cli(*words).returncode == code


def test_words_arrive_as_they_were_typed(vm: Vm) -> None:
    words = ["a", "b c", "it's", "$HOME", '"', "*", ""]
    done = vm.cli("exec", "printf", "<%s>", *words)
    assert done.stdout == "".join(f"<{word}>" for word in words)
    assert vm.cli("ssh", "echo $((6 * 7)) && pwd").stdout == f"42\n{vm.worktree}\n"


def test_test_takes_more_words(vm: Vm) -> None:
    assert vm.cli("test", "a", "b c").stdout == "<a><b c>"
    done = vm.cli("test", "--no-up", "x", env={"VMOAT_TEST_COMMAND": "sh -c 'exit 3'"})
    assert done.returncode == 3


def test_the_streams_are_the_callers(vm: Vm) -> None:
    done = vm.cli("exec", "cat; echo to-err >&2", input="one\ntwo\n")
    assert (done.stdout, done.stderr) == ("one\ntwo\n", "to-err\n")
    data = vm.start("exec", "head -c 3000000 /dev/zero | tr '\\0' x")
    assert len(data.communicate(timeout=120)[0]) == 3_000_000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_command(vm: Vm, number: signal.Signals) -> None:
    """... and its own exit code comes back."""
    name = number.name.removeprefix("SIG")
    mark = f"out/signal-{name}"
    line = f"trap 'echo {name} >{mark}; exit 44' {name}; echo up; while :; do sleep 0.2; done"
    process = vm.start("exec", "bash", "-c", line)
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 44, (out, err)
    assert (vm.worktree / mark).read_text() == f"{name}\n"


def test_a_killed_caller_leaves_nothing_running(vm: Vm) -> None:
    process = vm.start("exec", "echo up; exec sleep 4321")
    assert process.stdout.readline() == "up\n"
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: vm.sh("pgrep -f '[s]leep 4321'")[0] == 1, 60, 1)


def test_without_a_vm_the_code_is_125(odd: Vm) -> None:
    if odd.status()["state"] != "absent":
        pytest.skip("its VM was started before")
    for words in (["exec", "true"], ["ssh", "true"], ["test", "--no-up"]):
        done = odd.cli(*words)
        assert done.returncode == 125, told(done)
        assert "vmoat up" in done.stderr


# --- git


def snapshot(main: Path) -> dict[str, bytes]:
    """Every file of the repository's git folder."""
    top = main / ".git"
    return {
        str(file.relative_to(top)): file.read_bytes()
        for file in sorted(top.rglob("*"))
        if file.is_file() and not file.is_symlink()
    }


def test_git_works_inside_and_changes_nothing_outside(vm: Vm) -> None:
    git(vm.worktree, "status")  # refreshes the index
    head = git(vm.worktree, "rev-parse", "HEAD").stdout.strip()
    before, link = snapshot(vm.main), (vm.worktree / ".git").read_bytes()
    assert vm.ok("git rev-parse HEAD") == head
    assert vm.ok("git log -1 --format=%s") == "a page"
    assert vm.ok("git status --short --branch").splitlines()[0] == "## golden"
    # What husky and pre-commit need to install.
    vm.ok("git config core.hooksPath .husky && git config --get core.hooksPath")
    vm.ok("git config --unset core.hooksPath")
    vm.ok("echo x >inside.txt && git add inside.txt && git commit -qm 'made inside'")
    assert vm.ok("git log -1 --format='%s by %an'") == "made inside by Host User"
    assert (vm.worktree / ".git").read_bytes() == link
    after = snapshot(vm.main)
    assert {name for name in {*before, *after} if before.get(name) != after.get(name)} == set()
    assert git(vm.worktree, "rev-parse", "HEAD").stdout.strip() == head
    (vm.worktree / "inside.txt").unlink()


def test_git_inside_sees_what_the_host_did(vm: Vm) -> None:
    git(vm.main, "commit", "-q", "--allow-empty", "-m", "made on the host")
    assert vm.ok("git log -1 --format=%s main") == "made on the host"


# --- other programs


@pytest.fixture
def config(vm: Vm, tmp_path: Path) -> tuple[str, Path]:
    """The host's name and a config file with the block that ``vmoat ssh-config`` printed."""
    done = vm.cli("ssh-config")
    assert done.returncode == 0, told(done)
    file = tmp_path / "config"
    file.write_text(done.stdout)
    return done.stdout.split()[1], file


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, words)), capture_output=True, text=True, timeout=60, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_the_ssh_config_block_works_for_other_programs(
    vm: Vm, config: tuple[str, Path], tmp_path: Path
) -> None:
    host, file = config
    done = run("ssh", "-F", file, host, "id -un; exit 5")
    assert done.returncode == 5, done.stderr
    source, back = tmp_path / "a file", tmp_path / "back"
    source.write_text("content")
    assert run("scp", "-F", file, source, f"{host}:/tmp/copied").returncode == 0
    assert run("scp", "-F", file, f"{host}:/tmp/copied", back).returncode == 0
    assert back.read_text() == "content"


@pytest.mark.skipif(not shutil.which("rsync"), reason="rsync is not installed on this machine")
def test_rsync_over_the_block(vm: Vm, config: tuple[str, Path], tmp_path: Path) -> None:
    host, file = config
    if vm.sh("command -v rsync")[0] != 0:
        vm.root_sh("apt-get install -y rsync")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "x").write_text("x")
    done = run("rsync", "-a", "-e", f"ssh -F {file}", f"{tmp_path}/tree/", f"{host}:/tmp/tree/")
    assert done.returncode == 0, done.stderr
    assert vm.ok("cat /tmp/tree/x") == "x"


def test_nobodys_files_were_changed(vm: Vm) -> None:
    """The user's ssh, git and docker configuration."""
    home = Path(os.path.expanduser("~"))
    for name in (".ssh/config", ".ssh/known_hosts", ".gitconfig", ".docker/config.json"):
        file = home / name
        if file.exists():
            assert time.time() - file.stat().st_mtime > 60 or b"vmoat" not in file.read_bytes()


def test_commands_at_once_share_one_connection(vm: Vm) -> None:
    processes = [vm.start("exec", f"sleep 1; echo {n}") for n in range(6)]
    answers = [process.communicate(timeout=120)[0] for process in processes]
    assert answers == [f"{n}\n" for n in range(6)]
    assert len(vm.masters()) in (1, 2)
