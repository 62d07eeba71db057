"""What the VM sees of the repository's git folder."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from test_qemu_shares import spec

from vmoat.drivers.qemu import gitview, host, shares

QUIET = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}


def git(folder: Path, *words: str) -> str:
    names = ["-c", "user.name=T", "-c", "user.email=t@t", "-c", "protocol.file.allow=always"]
    return subprocess.run(
        ["git", "-C", str(folder), *names, *words],
        check=True, capture_output=True, text=True, env={**os.environ, **QUIET},
    ).stdout.strip()  # fmt: skip


@pytest.fixture
def main(tmp_path: Path) -> Path:
    folder = tmp_path / "main"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    git(folder, "commit", "-q", "--allow-empty", "-m", "one")
    return folder


def listing(*entries: tuple[str, str | None]) -> str:
    return "".join(f"{k}\0" if v is None else f"{k}\n{v}\0" for k, v in entries)


def test_credentials_are_taken_out_of_the_config() -> None:
    text = gitview.sanitised_config(
        listing(
            ("core.bare", None),
            ("remote.origin.url", "https://me:hunter2@example.com/x.git"),
            ("remote.b.url", "ssh://git:hunter2@example.com/x"),
            ("remote.c.url", "git@example.com:x.git"),
            ("url.https://tok-hunter2@example.com/.insteadof", "gh:"),
            ("http.https://example.com/.extraheader", "AUTHORIZATION: basic hunter2"),
            ("http.proxy", "http://me:hunter2@proxy"),
            ("credential.helper", "store --file=hunter2"),
            ("include.path", "/home/me/hunter2"),
            ("includeif.gitdir:/x/.path", "/home/me/hunter2"),
            ("sendemail.smtppass", "hunter2"),
            ("github.token", "hunter2"),
            ("core.fsmonitor", "/bin/hunter2"),
            ("commit.gpgsign", "true"),
            ('branch.a"b\\c.merge', "refs/heads/x"),
            ("alias.x", 'log "a"\n\tb'),
        )
    )
    assert "hunter2" not in text
    for gone in ("credential", "include", "fsmonitor", "gpgsign", "proxy", "extraheader"):
        assert gone not in text
    assert 'url = "https://example.com/x.git"' in text
    assert 'url = "ssh://git@example.com/x"' in text
    assert 'url = "git@example.com:x.git"' in text


def test_git_reads_the_config_back_as_it_was(tmp_path: Path) -> None:
    entries = [
        ("core.bare", None),
        ('branch.a"b\\c d.merge', "refs/heads/x"),
        ("alias.x", 'log "a" \\ #;\n\tb '),
        ("core.worktree", "../../x"),
    ]
    file = tmp_path / "config"
    file.write_text(gitview.sanitised_config(listing(*entries)))
    out = subprocess.run(
        ["git", "config", "--file", file, "--list", "-z"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert out.stdout == listing(*entries)


def test_the_view_of_a_plain_clone(main: Path, tmp_path: Path) -> None:
    (main / ".git" / "credentials").write_text("https://me:hunter2@x")
    (main / ".git" / "vmoat-id").write_text("x")
    git(main, "config", "remote.o.url", "https://me:hunter2@example.com/x")
    assert gitview.refresh(main / ".git", main / ".git", tmp_path / "v")
    view = tmp_path / "v" / "view" / "common"
    shown = sorted(path.name for path in view.iterdir())
    assert "credentials" not in shown
    assert "vmoat-id" not in shown
    assert {"HEAD", "config"} <= set(shown)
    assert "hunter2" not in (view / "config").read_text()
    mounts = {place for _, place in gitview.survey(main / ".git", main / ".git").mounts}
    assert {"common/objects", "common/refs", "common/logs", "common/hooks"} <= mounts


def test_a_linked_worktree_sees_its_own_administration_and_no_others(
    main: Path, tmp_path: Path
) -> None:
    for name in ("mine", "other"):
        git(main, "worktree", "add", "-q", "-b", name, str(tmp_path / name))
    mine = main / ".git" / "worktrees" / "mine"
    gitview.refresh(main / ".git", mine, tmp_path / "v")
    view = tmp_path / "v" / "view" / "common" / "worktrees"
    assert [path.name for path in view.iterdir()] == ["mine"]
    assert (view / "mine" / "HEAD").read_text() == "ref: refs/heads/mine\n"
    assert (view / "mine" / "index").exists()


def test_submodules_configs_lose_their_credentials_too(main: Path, tmp_path: Path) -> None:
    lib = tmp_path / "lib"
    lib.mkdir()
    git(lib, "init", "-q")
    git(lib, "commit", "-q", "--allow-empty", "-m", "l")
    git(main, "submodule", "--quiet", "add", "--name", "a/b", str(lib), "libs/x")
    git(main / "libs/x", "config", "remote.origin.url", "https://me:hunter2@example.com/x")
    gitview.refresh(main / ".git", main / ".git", tmp_path / "v")
    config = tmp_path / "v/view/common/modules/a/b/config"
    assert "https://example.com/x" in config.read_text()
    assert host.gitlinks(main / ".git", main) == (main / "libs/x",)


def test_refresh_copies_what_changed_and_says_so(main: Path, tmp_path: Path) -> None:
    def refresh() -> bool:
        return gitview.refresh(main / ".git", main / ".git", tmp_path / "v")

    view = tmp_path / "v" / "view" / "common"
    assert refresh()
    assert not refresh(), "nothing changed"
    git(main, "branch", "new")
    assert refresh(), "a ref is live, but the guest must look again"
    (main / "f").write_text("x")
    git(main, "add", "f")
    assert refresh()
    assert (view / "index").read_bytes() == (main / ".git" / "index").read_bytes()
    (main / ".git" / "MERGE_HEAD").write_text("x")
    refresh()
    assert (view / "MERGE_HEAD").exists()
    (main / ".git" / "MERGE_HEAD").unlink()
    assert refresh()
    assert not (view / "MERGE_HEAD").exists()
    assert not list(view.glob("*.vmoat-new"))


def test_links_in_the_git_folder_are_not_followed(main: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("hunter2")
    (main / ".git" / "lfs").symlink_to(tmp_path / "secret")
    (main / ".git" / "LINK").symlink_to(tmp_path / "secret" / "key")
    view = gitview.survey(main / ".git", main / ".git")
    places = {place for _, place in view.copies + view.mounts}
    assert not {"common/lfs", "common/LINK"} & places


def test_borrowed_objects_are_shared_at_their_paths(main: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "--shared", main, clone], check=True)
    assert gitview.alternates(clone / ".git/objects") == [main / ".git/objects"]
    plan = shares.Plan()
    inside = gitview.add_git(spec(clone), plan, tmp_path / "v")
    assert inside == [("alternate0", str(main / ".git/objects"))]
    assert (str(main / ".git/objects"), "/vm/git/alternate0", False) in [
        (bind.source, bind.target, bind.writable) for bind in plan.binds
    ]
    assert not any(bind.writable for bind in plan.binds)


def test_a_writable_git_folder_is_the_hosts_own(main: Path, tmp_path: Path) -> None:
    plan = shares.Plan()
    other = tmp_path / "wt"
    other.mkdir()
    wanted = spec(other, common_dir=main / ".git", git_dir=main / ".git", git_writable=True)
    gitview.add_git(wanted, plan, tmp_path / "v")
    assert [(bind.source, bind.writable) for bind in plan.binds] == [(str(main / ".git"), True)]
