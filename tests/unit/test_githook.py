"""`vmoat hook`: a new worktree is brought up where the user says so; other hooks are kept."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import fakes
import pytest
from conftest import ALONE, World, git, repository

from vmoat import githook
from vmoat.commands.agents import facts
from vmoat.errors import VmoatError
from vmoat.state import current_run
from vmoat.worktree import find

NULL = "0" * 40


@pytest.fixture
def there(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """`vmoat` is on PATH, and runs on the fakes."""
    folder = world.root / "bin"
    folder.mkdir()
    program = folder / "vmoat"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {fakes.__file__} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return world


def wants_it(world: World, value: str = "true") -> None:
    config = world.root / "config/vmoat/config.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(f"{ALONE}[hook]\nup = {value}\n")


def add(world: World, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`git worktree add`, as a person has it."""
    return subprocess.run(
        ["git", *words, "worktree", "add", "-q", "-b", name, world.root / name],
        cwd=world.repo, capture_output=True, text=True, timeout=60, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_a_new_worktree_comes_up_by_itself(there: World) -> None:
    said = there.vmoat("hook", "install")
    assert said.stdout == f"{there.repo}/.git/hooks/post-checkout\n"
    assert "hook.up" in said.stderr
    before = add(there, "off")
    assert (before.returncode, before.stderr) == (0, "")
    wants_it(there)
    assert "hook.up" not in there.vmoat("hook", "install").stderr
    done = add(there, "on")
    assert done.returncode == 0
    assert "wt-on: working in the background; `vmoat wait` follows it" in done.stderr
    there.vmoat("wait", cwd=there.root / "on")
    assert there.vmoat("status", cwd=there.root / "on").stdout.count("running") == 1
    assert not (there.repo / ".git/worktrees/off/vmoat-id").exists()
    assert (there.repo / ".git/worktrees/on/vmoat-id").exists()


def test_a_checkout_of_another_branch_starts_nothing(there: World) -> None:
    there.vmoat("hook", "install")
    wants_it(there)
    git(there.tree, "checkout", "-q", "-b", "other")
    assert not fakes.text(there.place / "ran")


def test_the_branchs_own_config_cannot_ask_for_it(there: World) -> None:
    for folder in (there.repo, there.tree):
        (folder / "vmoat.toml").write_text("[hook]\nup = true\n")
    git(there.repo, "commit", "-qam", "sly")
    there.vmoat("hook", "install")
    assert (add(there, "sly").stderr, there.ran()) == ("", [])


def test_what_is_wrong_is_told_and_git_goes_on(there: World) -> None:
    """Not trusted yet: nothing starts, and the worktree is there."""
    (there.repo / "vmoat.toml").write_text("[network]\nopen = true\n")
    git(there.repo, "commit", "-qam", "open")
    there.vmoat("hook", "install")
    wants_it(there)
    done = add(there, "open")
    assert done.returncode == 0
    assert "vmoat trust" in done.stderr
    assert (there.root / "open/app.py").exists()
    assert not fakes.text(fakes.place("wt-open") / "ran")


def test_without_vmoat_on_path_git_works(world: World) -> None:
    githook.install(githook.folder(find(world.tree)))
    path = os.environ["PATH"]
    assert subprocess.run(["sh", "-c", "command -v vmoat"], env={"PATH": path}).returncode != 0
    done = add(world, "plain")
    assert (done.returncode, done.stderr) == (0, "")


def test_another_hook_is_kept_and_comes_back(there: World) -> None:
    hooks = there.repo / ".git/hooks"
    own = hooks / "post-checkout"
    own.write_text('#!/bin/sh\necho "mine $3" >&2; exit 4\n')
    own.chmod(0o755)
    said = there.vmoat("hook", "install")
    assert githook.KEPT in said.stderr
    done = add(there, "kept")
    assert (done.returncode, done.stderr) == (4, "mine 1\n"), "its exit code is git's"
    there.vmoat("hook", "install")
    assert "mine" in (hooks / githook.KEPT).read_text(), "twice is once"
    assert "removed" in there.vmoat("hook", "remove").stderr
    assert "mine" in own.read_text()
    assert not (hooks / githook.KEPT).exists()
    assert "no hook of vmoat's" in there.vmoat("hook", "remove").stderr
    assert "mine" in own.read_text(), "somebody else's is left alone"


def test_a_kept_hook_is_never_lost(there: World) -> None:
    hooks = there.repo / ".git/hooks"
    (hooks / "post-checkout").write_text("#!/bin/sh\n# new\n")
    (hooks / githook.KEPT).write_text("#!/bin/sh\n# old\n")
    done = there.vmoat("hook", "install", code=3)
    assert "join the two by hand" in done.stderr
    assert "new" in (hooks / "post-checkout").read_text()


@pytest.mark.parametrize("point", ["write_text", "link"])
def test_an_install_that_breaks_off_leaves_the_hook_at_work(
    there: World, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """A disk that is full, a kill between keeping the other's hook and writing vmoat's."""
    hooks = there.repo / ".git/hooks"
    own = hooks / "post-checkout"
    own.write_text("#!/bin/sh\necho mine >&2\n")
    own.chmod(0o755)

    def full(*words: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full) if point == "write_text" else None
        patch.setattr(os, "replace", full) if point == "link" else None
        with pytest.raises(VmoatError, match=re.escape(str(hooks))):
            githook.install(hooks)
    assert add(there, "between").stderr == "mine\n"
    there.vmoat("hook", "install")
    assert add(there, "after").stderr == "mine\n"
    there.vmoat("hook", "remove")
    left = [file.name for file in hooks.iterdir() if "post-checkout" in file.name]
    assert left == ["post-checkout"]
    assert "mine" in own.read_text()


def test_a_link_is_kept_as_a_link(there: World) -> None:
    own = there.repo / ".git/hooks/post-checkout"
    script = there.repo / ".git/mine"
    script.write_text("#!/bin/sh\necho mine >&2\n")
    script.chmod(0o755)
    own.symlink_to("../mine")
    there.vmoat("hook", "install")
    assert "mine" in script.read_text()
    assert add(there, "linked").stderr == "mine\n"
    there.vmoat("hook", "remove")
    assert os.readlink(own) == "../mine"


def test_a_kept_hook_comes_back_where_vmoats_was_removed_by_hand(there: World) -> None:
    own = there.repo / ".git/hooks/post-checkout"
    own.write_text("#!/bin/sh\n# mine\n")
    there.vmoat("hook", "install")
    own.unlink()
    assert "removed" in there.vmoat("hook", "remove").stderr
    assert "mine" in own.read_text()


def test_lines_that_somebody_added_to_the_hook_are_not_lost(there: World) -> None:
    """As `git lfs update --manual` has people do."""
    there.vmoat("hook", "install")
    own = there.repo / ".git/hooks/post-checkout"
    text = own.read_text().replace("code=0\n", 'code=0\ngit lfs post-checkout "$@"\n')
    own.write_text(text)
    for action in ("install", "remove"):
        assert "was changed since" in there.vmoat("hook", action, code=3).stderr
    assert own.read_text() == text


def test_the_worktree_is_meant_and_not_the_environments_repository(
    there: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a hook, or an alias, git names a repository there."""
    other = repository(there.root / "other", {"a": "1"})
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_COMMON_DIR", str(other / ".git"))
    said = there.vmoat("hook", "install")
    assert said.stdout == f"{there.repo}/.git/hooks/post-checkout\n"
    assert not (other / ".git/hooks/post-checkout").exists()


def test_a_checkout_does_not_start_vmoat_at_all(there: World) -> None:
    """It is in the way of each step of a rebase or a bisect."""
    there.vmoat("hook", "install")
    (there.root / "bin/vmoat").write_text("#!/bin/sh\necho started >&2\nexit 9\n")
    for words in (["checkout", "-qb", "b"], ["switch", "-q", "work"], ["checkout", "-q", "."]):
        done = subprocess.run(
            ["git", *words], cwd=there.tree, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert (add(there, "new").returncode, add(there, "other").stderr) == (0, "started\n")


def test_hooks_path_is_honoured(there: World) -> None:
    elsewhere = there.root / "hooks"
    git(there.repo, "config", "core.hooksPath", str(elsewhere))
    assert there.vmoat("hook", "install").stdout == f"{elsewhere}/post-checkout\n"
    assert not (there.repo / ".git/hooks/post-checkout").exists()
    wants_it(there)
    assert "wt-new: working" in add(there, "new").stderr
    there.vmoat("wait", cwd=there.root / "new")


def test_hooks_that_are_turned_off_are_told(there: World) -> None:
    git(there.repo, "config", "core.hooksPath", "/dev/null")
    assert "/dev/null, which is no folder" in there.vmoat("hook", "install", code=3).stderr


@pytest.mark.parametrize("path", [".husky", "{tree}/.githooks", "{repo}/.githooks"])
def test_hooks_that_the_vm_could_write_are_refused(there: World, path: str) -> None:
    """This worktree's VM, or another's: all of the repository use the same hooks."""
    git(there.repo, "config", "core.hooksPath", path.format(tree=there.tree, repo=there.repo))
    done = there.vmoat("hook", "install", code=3)
    assert "which the VM may write" in done.stderr
    line = done.stderr.partition("a line `")[2].partition("`")[0]
    assert line.endswith('vmoat hook run "$@"')
    without = {**os.environ, "PATH": str(there.root / "none")}
    assert subprocess.run(["/bin/sh", "-ec", line], env=without).returncode == 0, "a colleague's"


@pytest.mark.parametrize(
    ("words", "new"),
    [([NULL, "a" * 40, "1"], True), (["a" * 40, "b" * 40, "1"], False), ([], False),
     (["0" * 64, "a" * 64, "1"], True), (["", "", ""], False)],
)  # fmt: skip
def test_which_checkouts_are_new(words: list[str], new: bool) -> None:
    assert githook.is_new(words) is new


# -- what the plugin's hook says --


def told(world: World, cwd: Path | None = None) -> str:
    answer = world.vmoat("hook", "facts", cwd=cwd).stdout
    if not answer:
        return ""
    hook = json.loads(answer)["hookSpecificOutput"]
    assert hook["hookEventName"] == "SessionStart"
    return str(hook["additionalContext"])


def test_the_facts_are_two_lines_and_start_nothing(world: World) -> None:
    first = told(world)
    assert len(first.splitlines()) == 2
    assert "wt-tree: not made yet" in first
    assert not (world.repo / ".git/worktrees/tree/vmoat-id").exists()
    assert not world.events()
    world.vmoat("up")
    before = world.events()
    assert "wt-tree: running" in told(world)
    assert world.events() == before, "the guest was not asked"
    world.vmoat("down")
    assert "wt-tree: powered off" in told(world)
    assert current_run(world.context().instance.folder) is not None


def test_work_in_the_background_is_told() -> None:
    assert "`vmoat wait` follows it" in facts("wt-a", "starting", working=True)


def test_nothing_is_said_where_nobody_uses_vmoat(world: World) -> None:
    git(world.repo, "rm", "-q", "vmoat.toml")
    assert told(world, world.repo) == ""
