"""The Claude Code plugin: what `claude plugin validate` misses, its scripts, and the skill.

The real client: tests/integration/test_client.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import fakes
import pytest
from conftest import World
from timing import until

import vmoat
from vmoat import parser, schemas, skill
from vmoat.commands.agents import facts
from vmoat.config.table import BY_KEY

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "plugin"
SKILL = PLUGIN / "skills/vmoat"
PAGES = sorted(SKILL.rglob("*.md"))
PORTABLE = {"name", "description", "license", "compatibility", "metadata", "allowed-tools"}
"""The keys of SKILL.md that every client knows (agentskills.io, Specification)."""


def read(path: Path) -> dict[str, object]:
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found


def head(text: str) -> dict[str, str]:
    """The front matter: top-level keys, one line each."""
    block = text.split("---\n")[1]
    pairs = (line.partition(": ") for line in block.splitlines() if not line.startswith(" "))
    return {key.rstrip(":"): value for key, _, value in pairs}


# -- the files --


def test_the_marketplace_names_a_folder_that_is_there() -> None:
    (entry,) = read(ROOT / ".claude-plugin/marketplace.json")["plugins"]  # type: ignore[misc]
    assert entry["source"].startswith("./")
    manifest = read(ROOT / entry["source"] / ".claude-plugin/plugin.json")
    assert manifest["name"] == entry["name"] == "vmoat"
    assert "version" not in entry


def test_the_plugins_version_is_vmoats() -> None:
    manifest = read(PLUGIN / ".claude-plugin/plugin.json")
    assert manifest["version"] == vmoat.__version__
    assert "hooks" not in manifest, "older clients take it for a second hooks file"


def test_programs_are_executable_and_whole() -> None:
    programs = [PLUGIN / "bin/vmoat", PLUGIN / "scripts/hook.sh"]
    for program in programs:
        assert os.access(program, os.X_OK), program
        subprocess.run(["sh", "-n", program], check=True, timeout=60)
    staged = subprocess.run(
        ["git", "ls-files", "-s", *programs], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert all(line.startswith("100755") for line in staged), staged


def test_hooks_call_a_script_that_is_there_and_knows_the_word() -> None:
    events = read(PLUGIN / "hooks/hooks.json")["hooks"]
    assert isinstance(events, dict)
    # WorktreeCreate would replace git's own creation; WorktreeRemove never fires for git's.
    assert set(events) == {"SessionStart", "SessionEnd", "PostToolUse"}
    script = (PLUGIN / "scripts/hook.sh").read_text()
    calls = [call for rows in events.values() for row in rows for call in row["hooks"]]
    for call in calls:
        path, word = call["args"]
        assert path == "${CLAUDE_PLUGIN_ROOT}/scripts/hook.sh"
        assert f"\n{word})" in script
        assert call["timeout"] <= 5


def test_nothing_reaches_outside_the_plugin() -> None:
    """Only this folder is copied to the user's cache."""
    for path in PLUGIN.rglob("*"):
        assert not path.is_symlink(), path
        if path.is_file() and path.suffix != ".pyc":
            assert "../.." not in path.read_text(), path


# -- the skill --


def test_the_skill_has_portable_keys_and_sizes() -> None:
    text = (SKILL / "SKILL.md").read_text()
    keys = head(text)
    assert set(keys) <= PORTABLE
    assert keys["name"] == SKILL.name == skill.NAME
    assert re.fullmatch(r"[a-z0-9-]{1,64}", keys["name"])
    assert keys["description"].startswith("Use when")
    assert len(keys["description"]) <= 1024
    assert len(keys["compatibility"]) <= 500
    assert len(text.splitlines()) < 500


def test_references_are_there_and_one_level_deep() -> None:
    linked = set(re.findall(r"\]\(([^)]+)\)", (SKILL / "SKILL.md").read_text()))
    assert linked == {str(p.relative_to(SKILL)) for p in PAGES if p.name != "SKILL.md"}
    assert all(len(Path(link).parts) == 2 for link in linked)


LATER = {"shot", "open", "browser-args"}
"""Commands for pages."""


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_the_skill_says_exists(page: Path) -> None:
    text = page.read_text()
    called = re.findall(r"(?:^|`|&& )vmoat ([a-z][a-z-]*)([^`\n#]*)", text, re.MULTILINE)
    for name, rest in called:
        if name in LATER - set(parser.BY_NAME):
            continue
        assert name in parser.BY_NAME, name
        command = parser.BY_NAME[name]
        known = {flag for entry in command.args for flag in entry.names}
        words = re.split(r" -- | '", rest)[0].split()
        for flag in [w for w in words if re.fullmatch(r"--?[a-z-]+", w)]:
            assert flag in known, (name, flag)
    for topic in re.findall(r"`vmoat help ([a-z-]+)`", text):
        assert topic in (*parser.BY_NAME, "agents", "walls", "switching")
    for form in re.findall(r"`vmoat\.([a-z]+)/1`", text):
        assert form in schemas.names()


def test_who_asks_again_and_again_is_not_told_all_of_it_each_time() -> None:
    """Nor does anybody ask for ever: a stack that was not healthy in time ends with 6, too."""
    told = [page.read_text() for page in (*PAGES, ROOT / "vmoat/docs/agents.md")]
    told.append(facts("wt-a", "running", working=False))
    asked = re.findall(r"vmoat wait --timeout[^`\n]*", "\n".join(told))
    assert len(asked) >= 6
    assert [line for line in asked if "--tail" not in line] == []
    for text in (told[0], told[-2]):
        assert "not healthy within" in text


def test_the_examples_of_configuration_are_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vmoat.config import settings

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    text = (SKILL / "references/configuration.md").read_text()
    examples = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 2
    for number, example in enumerate(examples):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "vmoat.toml").write_text(example)
        read_back = settings.load(
            folder, folder, env={}, flags={}, host=settings.HostSize(8, 32), common_dir=folder
        )
        assert read_back.up_command == tomllib.loads(example)["up"]["command"]
    for key in re.findall(r"`(?:\[(\w+)\] (\w+))`", text):
        assert ".".join(key) in BY_KEY, key


# -- skill install --


def test_the_skill_is_installed_for_other_clients(world: World) -> None:
    done = world.vmoat("skill", "install", cwd=world.tree)
    target = world.tree / ".agents/skills/vmoat"
    assert done.stdout == f"{target}\n"
    for page in PAGES:
        assert (target / page.relative_to(SKILL)).read_bytes() == page.read_bytes()
    (target / "SKILL.md").write_text("---\nname: vmoat\n---\nold\n")
    world.vmoat("skill", "install")
    assert (target / "SKILL.md").read_bytes() == (SKILL / "SKILL.md").read_bytes()
    named = world.root / "skills"
    said = world.vmoat("skill", "install", "--dir", str(named), cwd=world.root)
    assert said.stdout == f"{named}/vmoat\n"


def test_a_link_of_the_vms_leads_nowhere(world: World) -> None:
    """What the worktree holds, the VM may have made."""
    home = world.root / "home"
    home.mkdir()
    (world.tree / ".agents").symlink_to(home)
    assert "out of the worktree" in world.vmoat("skill", "install", code=3).stderr
    (world.tree / ".agents").unlink()
    world.vmoat("skill", "install")
    for name in ("SKILL.md", "references/browser.md"):
        page = world.tree / ".agents/skills/vmoat" / name
        page.unlink()
        page.symlink_to(home / "bashrc")
    (home / "bashrc").write_text("---\nname: vmoat\n---\n")
    world.vmoat("skill", "install")
    assert (home / "bashrc").read_text() == "---\nname: vmoat\n---\n"
    assert [file.name for file in home.iterdir()] == ["bashrc"]
    assert [file.name for file in (world.tree / ".agents/skills").iterdir()] == ["vmoat"]


def test_something_else_of_that_name_is_left_alone(world: World) -> None:
    mine = world.root / "skills/vmoat/SKILL.md"
    mine.parent.mkdir(parents=True)
    mine.write_text("---\nname: other\n---\n")
    folder = str(world.root / "skills")
    assert "something else" in world.vmoat("skill", "install", "--dir", folder, code=3).stderr
    assert mine.read_text() == "---\nname: other\n---\n"
    shutil.rmtree(mine.parent)
    mine.parent.symlink_to(world.root)
    world.vmoat("skill", "install", "--dir", folder, code=3)


# -- its scripts --


def shell(folder: Path, *names: str) -> dict[str, str]:
    """An environment whose PATH has these programs of this machine and no others."""
    folder.mkdir(exist_ok=True)
    for name in names:
        found = shutil.which(name)
        if found:
            (folder / name).symlink_to(found)
    return {**os.environ, "PATH": str(folder)}


def program(folder: Path, text: str) -> Path:
    file = folder / "vmoat"
    file.write_text(text)
    file.chmod(0o755)
    return file


def call(
    script: str, *words: str, env: dict[str, str], cwd: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", PLUGIN / script, *words], cwd=cwd, env=env, capture_output=True, text=True,
        timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_the_facts_come_from_vmoat(world: World) -> None:
    env = shell(world.root / "bin", "sh", "git")
    program(world.root / "bin", f'#!/bin/sh\nexec {sys.executable} {fakes.__file__} "$@"\n')
    done = call("scripts/hook.sh", "facts", env=env, cwd=world.tree)
    assert done.returncode == 0
    assert "wt-tree" in json.loads(done.stdout)["hookSpecificOutput"]["additionalContext"]


@pytest.mark.parametrize("word", ["facts", "reap", "unheard-of"])
def test_hooks_are_silent_where_there_is_nothing_to_say(tmp_path: Path, word: str) -> None:
    """Outside a project, without vmoat, with one that fails: never an error of the user's."""
    env = shell(tmp_path / "bin", "nohup", "setsid")
    for text in ("", "#!/bin/sh\necho no >&2; exit 3\n"):
        if text:
            program(tmp_path / "bin", text)
        done = call("scripts/hook.sh", word, env=env, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_project_of_vmoat_without_vmoat_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "vmoat.toml").write_text("")
    done = call("scripts/hook.sh", "facts", env=shell(tmp_path / "bin"), cwd=tmp_path)
    text = json.loads(done.stdout)["hookSpecificOutput"]["additionalContext"]
    assert "`pipx install vmoat`" in text
    assert len(text.splitlines()) == 2


def test_reaping_is_not_waited_for(tmp_path: Path) -> None:
    """A session's end has 1.5 seconds; the pipes are free at once, the work goes on."""
    env = shell(tmp_path / "bin", "nohup", "setsid", "sleep")
    done, gate = tmp_path / "done", tmp_path / "gate"
    gate.touch()
    wait = f"while [ -e {gate} ]; do sleep 0.05; done"
    text = f'#!/bin/sh\n{wait}; echo "$PWD $*" >{done}.new; /bin/mv {done}.new {done}\n'
    program(tmp_path / "bin", text)
    said = call("scripts/hook.sh", "reap", env=env, cwd=tmp_path)
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
    assert not done.exists()
    gate.unlink()
    until(done.exists)
    assert done.read_text() == "/ gc --quiet\n"


def test_the_shim_says_how_to_install(tmp_path: Path) -> None:
    env = shell(tmp_path / "bin", "dirname", "cat")
    env["PATH"] += f":{PLUGIN / 'bin'}:"
    done = call("bin/vmoat", "up", env=env, cwd=PLUGIN / "bin")
    assert (done.returncode, done.stdout) == (127, "")
    assert "pipx install vmoat" in done.stderr


def test_two_copies_of_the_shim_do_not_call_each_other(tmp_path: Path) -> None:
    """Another version of the plugin, or the session in which this one runs, has one on PATH too."""
    env = shell(tmp_path / "bin", "cat", "dirname")
    other = tmp_path / "other"
    (tmp_path / "real" / "vmoat").mkdir(parents=True)  # a clone of vmoat, say, is no program
    other.mkdir()
    shutil.copy(PLUGIN / "bin/vmoat", other)
    env["PATH"] += f":{other}:{PLUGIN / 'bin'}:{tmp_path / 'real'}"
    for shim in (other / "vmoat", PLUGIN / "bin/vmoat"):
        done = call(str(shim), "up", env=env, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (127, "")
        assert done.stderr.count("ERROR") == 1
    (tmp_path / "last").mkdir()
    program(tmp_path / "last", "#!/bin/sh\nexit 5")
    env["PATH"] += f":{tmp_path / 'last'}"
    assert call("bin/vmoat", "up", env=env, cwd=tmp_path).returncode == 5


def test_an_installed_vmoat_wins(tmp_path: Path) -> None:
    env = shell(tmp_path / "a b", "dirname", "cat")
    program(tmp_path / "a b", '#!/bin/sh\necho "real $# $2"\nexit 5\n')
    env["PATH"] = f"{PLUGIN / 'bin'}:{tmp_path / 'none'}:{env['PATH']}"
    done = call("bin/vmoat", "exec", "two words", env=env, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (5, "real 2 two words\n")
