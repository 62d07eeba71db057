"""The whole way as an ordinary user, in a plain clone: no linked worktree, no root."""

from __future__ import annotations

import os
import pwd
import shutil
import site
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import FILES, Home, Lab, Vm, alive, git, make_repository
from test_walls import METADATA, host_status, listener, own_addresses

__all__ = ["listener"]  # a fixture

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="the whole run is an ordinary user's already"),
]

NAME = "vmoat-test-user"
PYTHON = "/usr/bin/python3"
SOURCE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def user() -> Iterator[pwd.struct_passwd]:
    """An account that is there for this module."""
    try:
        pwd.getpwnam(NAME)
    except KeyError:
        subprocess.run(["useradd", "--create-home", NAME], check=True, capture_output=True)
    yield pwd.getpwnam(NAME)
    subprocess.run(["userdel", "--remove", NAME], check=False, capture_output=True)


@pytest.fixture(scope="module")
def place(user: pwd.struct_passwd) -> Iterator[Path]:
    """A folder of that user's, outside of root's own."""
    folder = Path(tempfile.mkdtemp(prefix="vmoat-user-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def installation(folder: Path) -> Path:
    """vmoat and its libraries where everybody can read them."""
    target = folder / "lib"
    shutil.copytree(SOURCE / "vmoat", target / "vmoat")
    for name in ("tasks", "templates"):
        if not (target / "vmoat" / name).exists():
            shutil.copytree(SOURCE / name, target / "vmoat" / name)
    for library in ("doit", "cloudpickle", "plumbum", "jinja2", "markupsafe", "tomli_w",
                    "platformdirs", "rich", "pygments", "markdown_it", "mdurl", "watchfiles",
                    "anyio", "idna", "sniffio"):  # fmt: skip
        for packages in site.getsitepackages():
            if (source := Path(packages) / library).is_dir():
                shutil.copytree(source, target / library, dirs_exist_ok=True)
    return target


@pytest.fixture(scope="module")
def theirs(lab: Lab, user: pwd.struct_passwd, place: Path) -> Iterator[Vm]:
    """The user's clone."""
    words = [PYTHON, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if subprocess.run(words, check=False).returncode != 0:
        pytest.skip(f"{PYTHON} is too old; root's own Python cannot be reached by others")
    images = place / "home" / "data" / "vmoat" / "images"
    images.mkdir(parents=True)
    for image in lab.images.glob("[!.]*"):
        # Links, where they can be had: the image is a gigabyte, and nobody writes it.
        subprocess.run(["cp", "-al", image, images], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["cp", "-an", "--sparse=always", image, images], check=True)
    for name in ("state", "config"):
        (place / "home" / name).mkdir()
    env = {"PYTHONPATH": str(installation(place)), "HOME": user.pw_dir, "USER": user.pw_name,
           "LOGNAME": user.pw_name, "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}  # fmt: skip
    home = Home(place / "home", NAME, (PYTHON, "-P", "-m", "vmoat"), env)
    clone = make_repository(place / "clone", FILES)
    chain = [place / "home", images.parents[1], images.parents[0], images]
    subprocess.run(["chown", f"{NAME}:", *chain], check=True)
    for folder in (clone, place / "home" / "state", place / "home" / "config"):
        subprocess.run(["chown", "-R", f"{NAME}:", folder], check=True)
    vm = lab.vm(clone, clone, home, VMOAT_PROVISION_APT="")
    yield vm
    lab.destroy(vm)


def test_up_again_and_the_page(theirs: Vm, user: pwd.struct_passwd) -> None:
    assert "healthy" in theirs.up()
    assert "nothing to do" in theirs.up()
    assert theirs.ok("id -un") == NAME
    assert theirs.ok("curl -fsS localhost:8080") == "first version"
    for pid in theirs.processes().values():
        assert Path(f"/proc/{pid}").stat().st_uid == user.pw_uid
    assert (theirs.worktree / "build" / "provisioned").stat().st_uid == user.pw_uid
    assert theirs.root_sh("id -u")[1] == "0\n"


def test_what_root_of_the_vm_writes_is_the_users(theirs: Vm, user: pwd.struct_passwd) -> None:
    theirs.root_sh("echo x >by-root; chmod 4755 by-root; chown 12345 by-root")
    info = (theirs.worktree / "by-root").stat()
    assert (info.st_uid, info.st_mode & 0o6000) == (user.pw_uid, 0)


ATTACKS = (
    "cp -r /tmp/evil evil; mv .git old; mv evil/.git .git",
    "rm -rf .git; cp -r /tmp/evil/.git .git",
    "umount -l .git; umount .git; cp /tmp/evil/.git/config .git/config",
    "echo 'gitdir: /tmp/evil/.git' >.git; git config core.fsmonitor /tmp/evil/run",
    "cp /tmp/evil/.git/config /run/vmoat/git/common/config",
)


def test_git_in_a_plain_clone(theirs: Vm) -> None:
    before = {
        file: file.read_bytes() for file in (theirs.worktree / ".git").rglob("*") if file.is_file()
    }
    assert theirs.ok("git log -1 --format=%s") == "a page"
    theirs.ok("git config some.key value && git config --get some.key")
    theirs.ok("git commit -q --allow-empty -m 'made inside' && git status")
    assert theirs.ok("git log -1 --format=%s") == "made inside"
    after = {
        file: file.read_bytes() for file in (theirs.worktree / ".git").rglob("*") if file.is_file()
    }
    assert after == before
    safe = ("-c", f"safe.directory={theirs.worktree}")
    assert "made inside" not in git(theirs.worktree, *safe, "log", "--oneline", "--all").stdout


def test_the_walls_of_an_ordinary_users_clone(
    theirs: Vm, user: pwd.struct_passwd, place: Path, listener: tuple[int, list[str]]
) -> None:
    """As root in the VM: `.git`, $HOME, the host's loopback, the cloud's metadata.

    After this the guest has no view of git any more: its root has unmounted it.
    """
    mark = place / "ran"
    plant = (
        "rm -rf /tmp/evil; git init -q /tmp/evil; "
        f"printf '#!/bin/sh\\ntouch {mark}\\n' >/tmp/evil/run; chmod +x /tmp/evil/run; "
        "git -C /tmp/evil config core.fsmonitor /tmp/evil/run; "
    )
    config = (theirs.worktree / ".git" / "config").read_bytes()
    for attack in ATTACKS:
        theirs.root_sh(plant + attack)
        host_status(theirs.worktree)
        assert not mark.exists(), attack
        assert (theirs.worktree / ".git" / "config").read_bytes() == config, attack
    theirs.root_sh("rm -rf evil; git config --unset core.fsmonitor")
    secret = Path(user.pw_dir) / "secret"
    secret.write_text("of the user")
    assert "of the user" not in theirs.root_sh(f"cat {secret}; find / -xdev -name secret")[1]
    port, came = listener
    targets = ["10.0.2.2", "127.0.0.1", "0.0.0.0", METADATA, *own_addresses()]
    script = "".join(
        f"timeout 3 bash -c 'exec 3<>/dev/tcp/{address}/{port}' 2>/dev/null && echo reached &\n"
        for address in targets
    )
    assert "reached" not in theirs.root_sh(f"{script}wait")[1]
    assert came == []


def test_destroy_as_the_user(theirs: Vm) -> None:
    pids = list(theirs.processes().values())
    assert theirs.cli("destroy", "-f").returncode == 0
    assert not any(alive(pid) for pid in pids)
    assert list((theirs.home.state / "vms").glob("[!.]*")) == []
