"""What a branch's config may not do until its user agreed, and how the agreement is kept."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vmoat import paths
from vmoat.config import settings as config
from vmoat.config import trust
from vmoat.config.settings import HostSize, Settings
from vmoat.config.table import SETTINGS
from vmoat.config.values import toml_value
from vmoat.errors import Code, VmoatError

HOST = HostSize(8, 32)
WIDE = {
    "walls": "false",
    "mounts.share": '["~/secrets"]',
    "git.writable": "true",
    "network.open": "true",
    "qemu.args": '["-nic", "user"]',
    "colima.start_args": '["--mount", "/"]',
    "ssh.forward_agent": "true",
    "credentials.docker": "true",
    "credentials.registries": '["ghcr.io"]',
    "image.mirror": '"http://evil.example/debian"',
    "cache.size": "9",
    "cache.registries": '["127.0.0.1:5001"]',
    "gc.grace": '"1s"',
}


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A main checkout and a linked worktree of it."""
    for name in ("STATE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    main, linked = tmp_path / "main", tmp_path / "linked"
    git = ("git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C", str(main))
    subprocess.run(["git", "init", "-q", str(main)], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    subprocess.run([*git, "worktree", "add", "-q", str(linked)], check=True)
    return main, linked


def load(tree: Path, main: Path | None, **env: str) -> Settings:
    return config.load(tree, main, env={"HOME": "/h", **env}, flags={}, host=HOST)


def refused(tree: Path, main: Path | None) -> VmoatError:
    with pytest.raises(VmoatError) as caught:
        load(tree, main)
    assert caught.value.code == Code.CONFIG
    return caught.value


def agree(tree: Path, main: Path | None) -> trust.Pending:
    asked = trust.pending(tree, main, env={"HOME": "/h"})
    trust.grant(asked)
    return asked


def test_every_widening_key_is_tried_here() -> None:
    assert set(WIDE) == {s.key for s in SETTINGS if s.widens}


@pytest.mark.parametrize("key", WIDE)
@pytest.mark.parametrize("name", ["vmoat.toml", "vmoat.local.toml"])
def test_a_widening_key_of_the_project_is_refused_until_trusted(
    repo: tuple[Path, Path], key: str, name: str
) -> None:
    main, linked = repo
    path = linked / name
    path.write_text(f"\n{key} = {WIDE[key]}\n")
    error = refused(linked, main)
    assert error.message.startswith(f"{name}:2: {key} = ")
    assert "vmoat trust" in error.hint
    asked = agree(linked, main)
    (wish,) = asked.wishes
    assert (wish.file, wish.line, wish.key) == (name, 2, key)
    assert not asked.trusted
    assert wish.why
    got = load(linked, main)
    field = next(s.field for s in SETTINGS if s.key == key)
    assert toml_value(getattr(got, field)) == WIDE[key].replace("~", "/h")
    path.write_text(path.read_text() + "#")
    refused(linked, main)


def test_own_config_and_environment_need_no_trust(repo: tuple[Path, Path]) -> None:
    main, linked = repo
    config.user_file().parent.mkdir(parents=True)
    config.user_file().write_text("".join(f"{k} = {v}\n" for k, v in WIDE.items()))
    assert load(linked, main).network_open
    config.user_file().unlink()
    assert not load(linked, main, VMOAT_WALLS="0").walls
    flags = {"git.writable": True}
    assert config.load(linked, main, env={}, flags=flags, host=HOST).git_writable


def test_a_project_may_close_what_its_user_opened(repo: tuple[Path, Path]) -> None:
    main, linked = repo
    config.user_file().parent.mkdir(parents=True)
    config.user_file().write_text("network.open = true\n")
    (linked / "vmoat.toml").write_text("network.open = false\n")
    assert not load(linked, main).network_open


def test_trust_is_for_the_content_in_one_repository(
    repo: tuple[Path, Path], tmp_path: Path
) -> None:
    main, linked = repo
    text = "git.writable = true\n"
    (linked / "vmoat.toml").write_text(text)
    agree(linked, main)
    (main / "vmoat.toml").write_text(text)
    assert load(main, main).git_writable, "the same content in another worktree of the repository"
    other = tmp_path / "other"
    (other / ".git").mkdir(parents=True)
    (other / "vmoat.toml").write_text(text)
    refused(other, other)
    assert trust.pending(linked, main, env={}).trusted
    assert trust.revoke(trust.common_git_dir(linked)) == 1
    refused(linked, main)


def test_content_that_moves_between_files_is_not_the_same(repo: tuple[Path, Path]) -> None:
    main, linked = repo
    (linked / "vmoat.toml").write_text("git.writable = true\n")
    (linked / "vmoat.local.toml").write_text("[vm]\ncpu = 1\n")
    agree(linked, main)
    load(linked, main)
    (linked / "vmoat.toml").write_text("git.writable = true\n[vm]\ncpu = 1\n")
    (linked / "vmoat.local.toml").write_text("")
    refused(linked, main)


def test_the_repository_is_found_as_git_finds_it(repo: tuple[Path, Path], tmp_path: Path) -> None:
    main, linked = repo
    assert trust.common_git_dir(linked) == trust.common_git_dir(main) == main / ".git"
    assert trust.common_git_dir(tmp_path) == tmp_path


@pytest.mark.parametrize("form", ["toml", "shell"])
def test_a_seed_that_main_does_not_list_needs_trust(repo: tuple[Path, Path], form: str) -> None:
    main, linked = repo
    name = "vmoat.toml" if form == "toml" else "vmoat.conf"

    def text(*seeds: str) -> str:
        if form == "toml":
            return f"provision.seed = {toml_value(seeds)}\n"
        return f'PROVISION_SEED="{" ".join(seeds)}"\n'

    (linked / name).write_text(text(".env", "keys/a"))
    assert refused(linked, main).details == (
        f"{name}:1: provision.seed = .env", f"{name}:1: provision.seed = keys/a",
    )  # fmt: skip
    (main / "vmoat.toml").write_text("provision.seed = ['.env']\n")
    assert refused(linked, main).details == (f"{name}:1: provision.seed = keys/a",)
    (main / "vmoat.toml").write_text("provision.seed = ['.env', 'keys/']\n")
    assert load(linked, main).provision_seed == (".env", "keys/a")
    (main / "vmoat.toml").write_text("broken")
    refused(linked, main)
    asked = agree(linked, main)
    assert [wish.value for wish in asked.wishes] == [".env", "keys/a"]
    load(linked, main)
    load(linked, None)  # a bare repository has no main checkout to take seeds from
    load(linked, linked)


def test_the_store_can_be_read_by_a_person_and_survives_two_grants(
    repo: tuple[Path, Path],
) -> None:
    main, linked = repo
    (linked / "vmoat.toml").write_text("git.writable = true\n")
    first = agree(linked, main)
    agree(linked, main)
    (linked / "vmoat.toml").write_text("git.writable = true \n")
    agree(linked, main)
    text = (paths.state_home() / "trust.toml").read_text()
    assert text.count("[[trusted]]") == 2
    assert f'repository = "{main}/.git"' in text
    assert first.digest in text
    assert [p.name for p in paths.state_home().iterdir()] in (
        ["trust.lock", "trust.toml"], ["trust.toml", "trust.lock"],
    )  # fmt: skip


@pytest.mark.parametrize("text", ["x", "trusted = 3", "a = 1", "\udcff"])
def test_a_damaged_store_is_an_error_that_names_it(repo: tuple[Path, Path], text: str) -> None:
    main, linked = repo
    (linked / "vmoat.toml").write_text("git.writable = true\n")
    paths.state_home().mkdir(parents=True)
    (paths.state_home() / "trust.toml").write_bytes(text.encode(errors="surrogateescape"))
    assert "trust.toml" in refused(linked, main).message


def test_a_state_folder_that_cannot_be_written(
    repo: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    main, linked = repo
    (linked / "vmoat.toml").write_text("git.writable = true\n")
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nothing")
    with pytest.raises(VmoatError) as caught:
        agree(linked, main)
    assert caught.value.code == Code.MISSING
