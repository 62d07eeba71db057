"""`vmoat cp` with a real sshd on loopback; this machine stands for the VM."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_guest_ssh import SSHD, Server
from timing import until

from vmoat import copying
from vmoat.errors import Code, VmoatError
from vmoat.guest import Guest

pytestmark = pytest.mark.skipif(
    SSHD is None or not shutil.which("ssh-keygen"),
    reason="openssh-server is not installed (apt-get install openssh-server)",
)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    server = Server(tmp_path_factory.mktemp("sshd"))
    server.start()
    with tempfile.TemporaryDirectory(prefix="vm c", dir="/tmp") as folder:
        made = Guest(server.endpoint(), Path(folder), tmp_path_factory.mktemp("it's $HOME"), {})
        made.connect(60)
        yield made
        made.close()
    server.stop()


@pytest.fixture
def vm(guest: Guest) -> Iterator[Path]:
    """The worktree in the VM, empty."""
    yield guest.worktree
    for path in guest.worktree.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the host."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


Copy = Callable[..., list[str]]


@pytest.fixture
def cp(guest: Guest) -> Copy:
    """`vmoat cp` with these words; -r as a word.  Returns what was said."""

    def call(*words: str) -> list[str]:
        said: list[str] = []
        paths = [word for word in words if word != "-r"]
        copying.copy(guest, paths, recursive="-r" in words, notice=said.append)
        return said

    return call


def tree(top: Path) -> dict[str, tuple[str, object]]:
    """Each path below with its mode and what it holds."""
    found: dict[str, tuple[str, object]] = {}
    for path in sorted(top.rglob("*")):
        mode = path.lstat().st_mode
        what: object = os.readlink(path) if path.is_symlink() else ""
        if stat.S_ISREG(mode):
            what = (path.read_bytes(), int(path.stat().st_mtime))
        found[str(path.relative_to(top))] = (stat.filemode(mode), what)
    return found


def fill(top: Path) -> Path:
    """A folder with everything that a build makes, and odd names."""
    (top / "bin").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "bin" / "tool").write_text("#!/bin/sh\n")
    (top / "bin" / "tool").chmod(0o755)
    (top / "-n it's $(x)\n\\").write_bytes(b"\0\xff" * 1000)
    (top / os.fsdecode(b"latin-\xe9")).write_text("x")
    (top / "link").symlink_to("bin/tool")
    (top / "abs").symlink_to("/usr/bin/env")
    (top / "gone").symlink_to("../../nowhere")
    (top / "locked").mkdir()
    (top / "locked" / "x").write_text("x")
    (top / "locked").chmod(0o555)
    (top / "bin" / "tool.old").write_text("x" * 5000)
    os.utime(top / "bin" / "tool.old", (1_000_000_000, 1_000_000_000))
    os.link(top / "bin" / "tool.old", top / "bin" / "hard")
    return top


def test_a_folder_comes_back_as_it_was(cp: Copy, here: Path, vm: Path) -> None:
    fill(here / "build")
    assert cp("-r", "build", "vm:") == []
    assert tree(vm / "build") == tree(here / "build")
    assert cp("-r", "vm:build", "back") == []
    assert tree(here / "back") == tree(here / "build")
    assert cp("-r", "vm:build", ".") == [], "over what is there"
    assert tree(here / "back") == tree(here / "build")
    assert not [name for name in tree(here) if "vmoat-cp" in name]


def test_files_go_by_name_or_into_a_folder(cp: Copy, here: Path, vm: Path) -> None:
    (here / "a").write_text("a")
    (here / "-b").write_text("b")
    (vm / "into").mkdir()
    cp("a", "-b", "vm:into")
    cp("a", "vm:into/c")
    cp("-b", f"vm:{vm}/into/a")
    assert {p.name: p.read_text() for p in (vm / "into").iterdir()} == {
        "a": "b", "-b": "b", "c": "a",
    }  # fmt: skip
    (here / "sub").mkdir()
    cp("vm:into/-b", "vm:into/c", "sub/")
    cp("vm:into/c", "new")
    assert sorted(p.name for p in (here / "sub").iterdir()) == ["-b", "c"]
    assert (here / "new").read_text() == "a"


def test_a_link_that_is_named_is_followed(cp: Copy, here: Path, vm: Path) -> None:
    (vm / "pkg").mkdir()
    (vm / "pkg" / "cli.js").write_text("cli")
    (vm / "bin").symlink_to("pkg/cli.js")
    (vm / "folder").symlink_to("pkg")
    cp("vm:bin", ".")
    cp("-r", "vm:folder", ".")
    assert not (here / "bin").is_symlink()
    assert (here / "bin").read_text() == "cli"
    assert (here / "folder" / "cli.js").read_text() == "cli"
    (here / "to").symlink_to("folder")
    cp("-r", "to", "vm:sent")
    assert tree(vm / "sent") == tree(here / "folder")


def test_the_users_home_in_the_vm(cp: Copy, here: Path, vm: Path) -> None:
    name = f".vmoat-test-{os.getpid()}"
    (here / name).write_text("x")
    try:
        cp(name, "vm:~")
        cp(f"vm:~/{name}", "back")
        assert (here / "back").read_text() == "x"
    finally:
        (Path.home() / name).unlink()


def test_a_large_file_is_streamed(cp: Copy, here: Path, vm: Path) -> None:
    size = 150 << 20
    with open(here / "big", "wb") as file:
        file.truncate(size)
        file.write(b"begin")
        file.seek(size - 3)
        file.write(b"end")
    before = peak_memory()
    cp("big", "vm:")
    cp("vm:big", "back")
    assert (here / "back").stat().st_size == size
    with open(here / "back", "rb") as file:
        assert file.read(5) == b"begin"
        file.seek(-3, os.SEEK_END)
        assert file.read() == b"end"
    assert peak_memory() - before < size // 3


def peak_memory() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_setuid_does_not_come_along(cp: Copy, here: Path, vm: Path) -> None:
    for top in (here, vm):
        (top / "su").write_text("x")
        (top / "su").chmod(0o6755)
        (top / "d").mkdir()
        (top / "d").chmod(0o3777)
    cp("su", "vm:got")
    cp("-r", "d", "vm:gotd")
    cp("vm:su", "got")
    cp("-r", "vm:d", "gotd")
    for top in (here, vm):
        assert stat.S_IMODE((top / "got").stat().st_mode) == 0o755
        assert stat.S_IMODE((top / "gotd").stat().st_mode) == 0o777


def test_what_is_no_file_is_left_out_and_said(cp: Copy, here: Path, vm: Path) -> None:
    for top in (here, vm):
        (top / "d").mkdir()
        (top / "d" / "x").write_text("x")
        os.mkfifo(top / "d" / "pipe")
    assert cp("-r", "d", "vm:got") == ["got/pipe is left out: it is neither a file nor a folder"]
    assert cp("-r", "vm:d", "got") == ["./pipe is left out: it is neither a file nor a folder"]
    assert list(tree(vm / "got")) == list(tree(here / "got")) == ["x"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("a",), Code.USAGE, "wants a source and a target"),
        (("a", ""), Code.USAGE, "wants a source and a target"),
        (("a", "b"), Code.USAGE, "both on this machine"),
        (("vm:a", "vm:b"), Code.USAGE, "both in the VM"),
        (("vm:a", "a", "vm:b"), Code.USAGE, "some are not"),
        (("d", "vm:x"), Code.USAGE, "d is a folder"),
        (("vm:d", "x"), Code.USAGE, "/d is a folder"),
        (("none", "vm:x"), Code.STAGE, "none is not there"),
        (("vm:none", "x"), Code.STAGE, "/none in the VM is not there"),
        (("dangling", "vm:x"), Code.STAGE, "is a symbolic link to what is not there"),
        (("vm:dangling", "x"), Code.STAGE, "is a symbolic link to what is not there"),
        (("/dev/null", "vm:x"), Code.STAGE, "neither a file nor a folder"),
        (("vm:/dev/null", "x"), Code.STAGE, "neither a file nor a folder"),
        (("a", "vm:no/such/"), Code.USAGE, "/no/such/ is no folder in the VM"),
        (("a", "vm:no/such"), Code.STAGE, "there is no folder"),
        (("vm:a", "no/such"), Code.STAGE, "there is no folder no"),
        (("a", "d/x", "vm:a"), Code.USAGE, "/a is no folder in the VM"),
        (("a", "d/a", "vm:"), Code.USAGE, "two sources are called a"),
        (("-r", "vm:d", "a"), Code.STAGE, "./a cannot be written: Not a directory"),
        (("-r", "d", "vm:a"), Code.STAGE, "/a in the VM is no folder"),
        (("a", "vm:sub"), Code.STAGE, "/sub/a in the VM is a folder"),
        (("vm:a", "sub"), Code.STAGE, "sub/a cannot be written: Is a directory"),
        (("-r", "vm:/", "d"), Code.USAGE, "has no name of its own"),
    ],
)
def test_errors_say_what_is_wrong(
    cp: Copy, here: Path, vm: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    for top in (here, vm):
        (top / "a").write_text("a")
        (top / "d").mkdir()
        (top / "d" / "a").write_text("a")
        (top / "d" / "x").write_text("x")
        (top / "dangling").symlink_to("nowhere")
        (top / "sub" / "a").mkdir(parents=True)
    before = tree(here), tree(vm)
    with pytest.raises(VmoatError) as caught:
        cp(*words)
    assert said in caught.value.message
    assert caught.value.hint
    assert caught.value.code == code
    assert (tree(here), tree(vm)) == before, "and nothing is changed"


def test_tar_in_the_vm_says_itself_why(cp: Copy, here: Path, vm: Path) -> None:
    (here / "d").mkdir()
    (here / "d" / "x").write_text("x")
    with pytest.raises(VmoatError) as caught:
        cp("-r", "d", "vm:/proc")
    assert caught.value.code == Code.STAGE
    assert any("Cannot mkdir" in line for line in caught.value.details), caught.value.details


def test_a_broken_connection_leaves_no_half_file(
    guest: Guest, cp: Copy, here: Path, vm: Path
) -> None:
    with open(vm / "big", "wb") as file:
        file.truncate(2 << 30)
    (here / "big").write_text("the old one")

    def close_in_the_middle() -> None:
        until(lambda: any(draft.stat().st_size for draft in here.glob(".vmoat-cp-*")))
        guest.close()

    closing = threading.Thread(target=close_in_the_middle)
    closing.start()
    with pytest.raises(VmoatError) as caught:
        cp("vm:big", ".")
    closing.join()
    assert caught.value.code == Code.VM
    assert tree(here) == {"big": tree(here)["big"]}
    assert (here / "big").read_text() == "the old one"


# --- a VM that lies


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o6777
    info.size = 4 if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize(
    "members",
    [
        [entry("./../evil")],
        [entry("/tmp/evil")],
        [entry("./l", tarfile.SYMTYPE, ".."), entry("./l/evil")],
        [entry("./l", tarfile.SYMTYPE, "../evil"), entry("./l")],
        [entry("./d", tarfile.DIRTYPE), entry("./d", tarfile.SYMTYPE, ".."), entry("./d/evil")],
        [entry("./", tarfile.SYMTYPE, ".."), entry("./evil")],
        [entry("./h", tarfile.LNKTYPE, "../secret"), entry("./h")],
        [entry("./dev", tarfile.CHRTYPE)],
    ],
)
def test_nothing_is_written_outside_of_the_target(
    guest: Guest, cp: Copy, here: Path, vm: Path, members: list[tarfile.TarInfo],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pack = io.BytesIO()
    with tarfile.open(fileobj=pack, mode="w") as tar:
        for kind in (entry("./", tarfile.DIRTYPE), *members):
            tar.addfile(kind, io.BytesIO(b"evil"))
    (vm / "evil.tar").write_bytes(pack.getvalue())
    (vm / "d").mkdir()
    (here / "secret").write_text("kept")
    argv = guest.argv
    lie = f"exec cat '{str(vm).replace(chr(39), chr(39) + chr(92) + chr(39) + chr(39))}/evil.tar'"
    monkeypatch.setattr(
        guest, "argv", lambda text, **kw: argv(lie if "tar -cf" in text else text, **kw)
    )
    with contextlib.suppress(VmoatError):  # some of these are refused, others left out
        cp("-r", "vm:d", "got")
    assert sorted(p.name for p in here.iterdir()) in (["got", "secret"], ["secret"])
    assert (here / "secret").read_text() == "kept"
    assert sorted(p.name for p in here.parent.iterdir()) == ["here"]
    for path in (here / "got").rglob("*"):
        mode = path.lstat().st_mode
        assert stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)
        assert not mode & 0o7000
