"""`vmoat init`: what is detected, the file that it writes, and what a vmoat.conf becomes."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path

import pytest

from vmoat.config import init
from vmoat.config import settings as config
from vmoat.config.detect import Detected, detect
from vmoat.config.lockfiles import filled
from vmoat.config.settings import HostSize
from vmoat.errors import Code, VmoatError
from vmoat.worktree import Worktree, find

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STATE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / "xdg" / name))


# -- detection --


def test_a_compose_file_comes_first_and_the_rest_is_named(tmp_path: Path) -> None:
    (tmp_path / "docker-compose.yml").write_text("services: {}\n")
    (tmp_path / "Makefile").write_text(".PHONY: up\nall:\n\ttrue\nup: all\n\ttrue\n")
    (tmp_path / "package.json").write_text(json.dumps({"scripts": {"dev": "vite"}}))
    (tmp_path / "Procfile").write_text("web: x\n")
    assert detect(tmp_path) == Detected(
        "docker compose up -d --build", False, "docker compose stop", "docker-compose.yml",
        ("Makefile (make up)", "package.json (npm run dev)", "Procfile"),
    )  # fmt: skip


@pytest.mark.parametrize("rule", ["up:\n", "up: a b\n", "down up:\n", "up::\n", "x:\nup :\n"])
def test_a_makefile_with_up(tmp_path: Path, rule: str) -> None:
    (tmp_path / "Makefile").write_text(rule)
    assert detect(tmp_path) == Detected("make up", source="Makefile")


@pytest.mark.parametrize("rule", ["up := 1\n", "up = 1\n", "update:\n", ".PHONY: up\n", "#up:\n"])
def test_a_makefile_without_up(tmp_path: Path, rule: str) -> None:
    (tmp_path / "Makefile").write_text(rule)
    assert detect(tmp_path) == Detected()


def test_a_dev_script_is_a_service(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text(json.dumps({"scripts": {"dev": "vite"}}))
    assert detect(tmp_path) == Detected("npm run dev", True, "", "package.json")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"scripts": []}', '{"scripts": {"dev": 1}}',
                                  "[" * 9999, "\udcff"])  # fmt: skip
def test_broken_files_detect_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "package.json").write_bytes(text.encode(errors="surrogateescape"))
    (tmp_path / "Makefile").symlink_to("/dev/zero")
    (tmp_path / "compose.yaml").mkdir()
    assert detect(tmp_path) == Detected()


# -- a new file --


def test_the_new_file(tmp_path: Path) -> None:
    found = Detected(
        "docker compose up -d --build", False, "docker compose stop", "compose.yaml",
        ("Makefile (make up)",),
    )  # fmt: skip
    text = init.render(found)
    assert text == (GOLDEN / "config_init.toml").read_text()
    path = init.create(tmp_path, found)
    got = config.load(tmp_path, tmp_path, env={}, flags={}, host=HostSize(8, 32))
    assert path.read_text() == text
    assert (got.up_command, got.down_command) == (found.command, found.down)


def test_every_line_that_is_commented_out_works(tmp_path: Path) -> None:
    text = init.render(Detected())
    lines = [
        line.removeprefix("# ") if line.startswith("# ") and " = " in line else line
        for line in text.splitlines()
    ]
    stage = "\n".join(lines).replace("# [stages", "[stages")
    assert "generate" in tomllib.loads(stage)["stages"]
    (tmp_path / "vmoat.toml").write_text(stage)
    got = config.load(tmp_path, tmp_path, env={}, flags={}, host=HostSize(8, 32))
    assert got.provision_apt == ("git", "jq")


def test_folders_of_lock_files_are_set(tmp_path: Path) -> None:
    text = init.render(Detected(), ["node_modules", 'web/"x/.venv'])
    assert tomllib.loads(text)["mounts"] == {"local": ["node_modules", 'web/"x/.venv']}


def project(folder: Path, ignored: str, *files: str) -> Worktree:
    """A repository with empty files, the last ones not yet added."""
    subprocess.run(["git", "init", "-q", folder], check=True)
    (folder / ".gitignore").write_text(ignored)
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return find(folder)


def test_lock_files_tell_of_folders(tmp_path: Path) -> None:
    tree = project(
        tmp_path, "node_modules/\n/target\n.venv\nvendor/\n",
        "package-lock.json", "yarn.lock", "web/pnpm-lock.yaml", "Cargo.lock", "old/Cargo.lock",
        "api/it's/uv.lock", "composer.lock", "Gemfile.lock",
        "node_modules/deep/package-lock.json",
    )  # fmt: skip
    assert filled(tree.git) == {
        "node_modules": "package-lock.json",
        "target": "Cargo.lock",
        "vendor": "composer.lock",
        "web/node_modules": "web/pnpm-lock.yaml",
        "api/it's/.venv": "api/it's/uv.lock",
    }, "old/target is not ignored, vendor/bundle lies in vendor, node_modules' own are nobody's"


def test_a_folder_that_git_tracks_a_file_in_is_not_proposed(tmp_path: Path) -> None:
    tree = project(tmp_path, "vendor/\n", "composer.lock", "vendor/mine.php")
    assert list(filled(tree.git)) == ["vendor"]
    subprocess.run(["git", "-C", tmp_path, "add", "-f", "vendor/mine.php"], check=True)
    assert filled(tree.git) == {}


def test_odd_names_break_nothing() -> None:
    odd = Detected('a"b\\c\n', True, "", "x\ny", ("\n[walls]",))
    text = init.render(odd)
    assert tomllib.loads(text)["up"] == {"command": 'a"b\\c\n', "service": True}


def test_an_existing_config_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "vmoat.conf").write_text("")
    with pytest.raises(VmoatError, match=r"vmoat init --from vmoat\.conf") as caught:
        init.create(tmp_path, Detected())
    assert caught.value.code == Code.CONFIG
    (tmp_path / "vmoat.conf").unlink()
    (tmp_path / "vmoat.toml").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VmoatError, match="is there already"):
        init.create(tmp_path, Detected())
    assert not (tmp_path / "elsewhere").exists()


# -- from the shell form --

CONF = """\
VM_CPU=6; VM_MEMORY=$(free -g); VM_DISK=80
VM_MOUNT="$HOME/github"
PROVISION_APT="git jq"
PROVISION_SCRIPT='a | b'
PROVISION_SEED=".env"
CMD_UP="$HOME/bin/up"
CMD_TEST="make test"
EXPOSE_PORTS=(30001
  "5432:15432")
HEALTH_TIMEOUT=$((60 * 5))
OWN=1
if true; then
  HEALTH_URL=http://localhost/
fi
"""


def test_migration_says_what_changed(tmp_path: Path) -> None:
    (tmp_path / "vmoat.conf").write_text(CONF)
    (tmp_path / "vmoat.local.conf").write_text('VM_DISK=9\nCMD_DOWN="x $OWN"\n')
    got = init.migrate(tmp_path / "vmoat.conf", env={"HOME": "/h"})
    assert got.text + "\n".join(got.notes) + "\n" == (GOLDEN / "config_migrated.txt").read_text()
    assert tomllib.loads(got.local_text) == {
        "vm": {"disk": 9}, "down": {"command": "x 1"},
    }  # fmt: skip
    (tmp_path / "vmoat.conf").unlink()
    (tmp_path / "vmoat.local.conf").unlink()
    (tmp_path / "vmoat.toml").write_text(got.text)
    config.load(tmp_path, tmp_path, env={}, flags={}, host=HostSize(8, 32))


def test_migration_keeps_what_stands_before_code_and_no_commands_own(tmp_path: Path) -> None:
    (tmp_path / "vmoat.conf").write_text("VM_CPU=3; VM_DISK=$(x)\nVM_MEMORY=5 cmd\nCMD_UP=x\n")
    got = init.migrate(tmp_path / "vmoat.conf", env={"HOME": "/h"})
    assert tomllib.loads(got.text) == {"up": {"command": "x"}, "vm": {"cpu": 3}}


def test_migration_of_a_bad_value_names_it(tmp_path: Path) -> None:
    (tmp_path / "vmoat.conf").write_text("VM_CPU=x\n")
    with pytest.raises(VmoatError, match=r"vmoat\.conf:1: VM_CPU must be a whole number"):
        init.migrate(tmp_path / "vmoat.conf", env={})
    with pytest.raises(VmoatError, match="can't be read"):
        init.migrate(tmp_path / "gone.conf", env={})
