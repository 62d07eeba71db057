"""The golden guest image: Debian 13 by mmdebstrap, once per recipe digest.

An image is a folder ``images/DIGEST`` with ``root.qcow2``, ``kernel``, ``initrd``, ``cmdline`` and
``image.toml``; it appears whole, by one rename.  The recipe is ``templates/guest``: packages, the
files laid over the root, the script run in the chroot, the initramfs.

mmdebstrap runs as root, or in a user namespace (``--mode=unshare``: newuidmap and /etc/subuid).
In both, the tree travels as a tar that keeps owners, modes and capabilities, and ``mke2fs -d``
makes the file system of it without root or loop devices.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from vmoat import paths, proc
from vmoat.drivers import Say
from vmoat.errors import Code, VmoatError
from vmoat.locks import in_turn
from vmoat.state import read_toml, write_toml

SUITE = "trixie"
ROOT_SIZE = "16G"
"""Virtual size of the system disk; it takes what is written."""

FORMAT = 1
"""Raised when the same recipe would have to be packed in another way."""

KEYRINGS = (
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
)
"""Of the package debian-archive-keyring, under its old and its new name."""

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
PARTS = ("root.qcow2", "kernel", "initrd", "cmdline", "image.toml")

_MKE2FS = (
    "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
    # From e2fsprogs 1.47: nothing of the inode tables is left over for the guest to zero.
    "assume_storage_prezeroed=1",
)


@dataclass(frozen=True)
class Image:
    """One image on this machine."""

    digest: str
    folder: Path
    size: int
    """Bytes on the disk."""
    built: str
    current: bool
    """Of the recipe of this version of vmoat."""


def recipe_folder() -> Path:
    return Path(str(files("vmoat.templates").joinpath("guest")))


def architecture() -> str:
    """Debian's name of this machine's architecture; raises MISSING where there is no image."""
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise VmoatError(
            f"there is no guest image for {machine}",
            hint="vmoat's images are for x86_64 and arm64 hosts",
            code=Code.MISSING,
        )
    return ARCHITECTURES[machine]


def digest(mirror: str) -> str:
    """The recipe's digest: its files, the architecture, the mirror that the guest will use."""
    hasher = hashlib.sha256(f"{FORMAT} {SUITE} {architecture()} {mirror}\n".encode())
    root = recipe_folder()
    for path in sorted(recipe_files(root)):
        hasher.update(f"{path.relative_to(root)}\n".encode())
        hasher.update(path.read_bytes())
    return hasher.hexdigest()[:16]


def recipe_files(root: Path) -> Iterator[Path]:
    """The recipe's files, without what Python or an editor leaves beside them."""
    for path in root.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and not path.name.endswith("~"):
            yield path


def folder(name: str) -> Path:
    return paths.images_dir() / name


def ready(name: str) -> bool:
    """Whether the image is there, whole."""
    return all((folder(name) / part).is_file() for part in PARTS)


def packages(root: Path) -> list[str]:
    """The recipe's package list."""
    rows = (root / "packages").read_text().splitlines()
    return [name for row in rows for name in row.partition("#")[0].split()]


def mmdebstrap_argv(
    mode: str, mirror: str, work: Path, root: Path, keyrings: Sequence[str] = ()
) -> list[str]:
    """The call that makes the tree, as a tar on its standard output."""
    quoted = shlex.quote(str(work))
    hooks = [
        'mkdir -p "$1/vmoat-build"',
        f"tar-in {quoted}/in.tar /vmoat-build",
        f"tar-in {quoted}/rootfs.tar /",
        'chroot "$1" sh /vmoat-build/customize.sh',
        'rm -rf "$1/vmoat-build" "$1"/var/cache/apt/archives/*.deb',
    ]
    sources = []
    if mirror:
        security = mirror.rstrip("/") + "-security"
        sources = [
            f"deb {mirror} {SUITE} main",
            f"deb {mirror} {SUITE}-updates main",
            f"deb {security} {SUITE}-security main",
        ]
    return [
        *("mmdebstrap", f"--mode={mode}", "--variant=minbase", "--format=tar"),
        # Ubuntu's apt does not trust Debian's keys by itself.
        *(f"--keyring={keyring}" for keyring in keyrings),
        # The lists stay: the first `apt-get install` of a VM need not fetch them.
        *("--skip=cleanup/apt/lists", "--skip=cleanup/apt/cache"),
        *('--aptopt=Acquire::Languages "none"', '--aptopt=Apt::Install-Recommends "false"'),
        "--dpkgopt=force-unsafe-io",
        *(
            f"--dpkgopt=path-exclude=/usr/share/{name}/*"
            for name in ("man", "doc", "info", "locale")
        ),
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        "--include=" + ",".join(packages(root)),
        *(f"--customize-hook={hook}" for hook in hooks),
        # Without sources mmdebstrap takes its own mirror, with updates and security.
        *(SUITE, "-"),
        *sources,
    ]


def pack_script(extra: str) -> str:
    """Turns the tree's tar (stdin) into a tar of the disk, kernel and initrd (stdout).

    Runs as (the user namespace's) root, which cannot write into the user's own folders.
    """
    return f"""\
set -e
PATH=$PATH:/usr/sbin:/sbin
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
mkdir "$d/r"
tar -x -p --exclude='./dev/*' --numeric-owner --xattrs --xattrs-include='*' -C "$d/r"
mv "$d/r/boot/initrd" "$d/initrd"
mv "$d/r/boot/vmlinux" "$d/kernel"
rm -f "$d/r/boot/vmlinuz"
truncate -s {ROOT_SIZE} "$d/root.img"
mke2fs -q -F -t ext4 -L vmoat-root -m 0 -d "$d/r" -J size=32 -E {extra} "$d/root.img"
cd "$d"
tar -c -S root.img kernel initrd
"""


def build(mirror: str, say: Say) -> None:
    """Build this recipe's image; returns at once when it is there.

    Two builders at once: the second waits and finds it done.  Raises MISSING for absent tools and
    STAGE with mmdebstrap's last lines.
    """
    name = digest(mirror)
    paths.make_private(paths.images_dir())
    with _locked(name, say):
        if ready(name):
            return
        for stale in paths.images_dir().glob(f".{name}.*.draft"):
            shutil.rmtree(stale, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".draft", dir=paths.images_dir()))
        try:
            _build_into(draft, name, mirror, say)
            _place(draft, name)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _build_into(draft: Path, name: str, mirror: str, say: Say) -> None:
    root = recipe_folder()
    mode = "root" if os.geteuid() == 0 else "unshare"
    say(f"building the guest image {name} (Debian {SUITE}, once on this machine; 1 to 4 minutes)")
    work = draft / "work"
    work.mkdir()
    (work / "in.tar").write_bytes(_tar(root, root / "rootfs"))
    (work / "rootfs.tar").write_bytes(_tar(root / "rootfs", None))
    if mode == "unshare":
        # The namespace's root is another user: it must reach the two tars.
        for place in (draft, work):
            place.chmod(0o755)
    keyrings = [name for name in KEYRINGS if os.path.isfile(name)][:1]
    _mmdebstrap(mmdebstrap_argv(mode, mirror, work, root, keyrings), draft / "tree.tar", say)
    say("packing the tree into a disk")
    _pack(mode, draft)
    proc.run(["qemu-img", "convert", "-O", "qcow2", draft / "root.img", draft / "root.qcow2"])
    (draft / "root.img").unlink()
    shutil.copyfile(root / "cmdline", draft / "cmdline")
    shutil.rmtree(work)
    write_toml(draft / "image.toml", _record(name, mirror))


def _record(name: str, mirror: str) -> dict[str, str]:
    import datetime

    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"digest": name, "suite": SUITE, "architecture": architecture(), "mirror": mirror,
            "built": now}  # fmt: skip


def _environment() -> dict[str, str]:
    # The tree is a gigabyte: /tmp may be a small tmpfs.  An ordinary user's namespace root must
    # be able to enter it, which rules out the user's own folders.
    return {"TMPDIR": "/var/tmp"} if os.access("/var/tmp", os.W_OK) else {}


def _mmdebstrap(argv: list[str], target: Path, say: Say) -> None:
    last: list[str] = []
    # On SIGTERM it unmounts and removes its tree: also when this process is killed outright.
    argv = ["setpriv", "--pdeathsig", "TERM", *argv]
    with open(target, "wb") as tree:
        builder = proc.spawn(
            argv, stdout=tree, stderr=subprocess.PIPE, env=_environment(), detach=False
        )
        assert builder.stderr is not None
        for raw in builder.stderr:
            line = raw.decode(errors="replace").rstrip().rpartition("\r")[2]
            if line:
                last = [*last[-14:], line]
                say(line)
    if builder.wait() != 0:
        raise VmoatError(
            "the guest image could not be built",
            hint="`vmoat doctor` checks the tools; is the Debian mirror reachable? "
            "(image.mirror in your config.toml names another)",
            details=tuple(last),
        )
    _sync(target)


def _pack(mode: str, draft: Path) -> None:
    for extra in (",".join(_MKE2FS), _MKE2FS[0]):
        argv = ["sh", "-c", pack_script(extra)]
        if mode == "unshare":
            argv = ["mmdebstrap", "--unshare-helper", *argv]
        with open(draft / "tree.tar", "rb") as tree:
            packer = proc.spawn(
                argv, stdin=tree, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env=_environment(), detach=False,
            )  # fmt: skip
            assert packer.stdout is not None
            assert packer.stderr is not None
            # tar, for it keeps the holes of the 16 GiB file
            unpacker = proc.spawn(
                ["tar", "-x", "-S", "--no-same-owner", "-C", draft], stdin=packer.stdout,
                detach=False,
            )  # fmt: skip
            words = packer.stderr.read().decode(errors="replace")
            codes = (packer.wait(), unpacker.wait())
        if codes == (0, 0):
            (draft / "tree.tar").unlink()
            return
    raise VmoatError(
        "the guest image could not be packed", hint="`vmoat doctor` checks e2fsprogs and tar",
        details=tuple(words.splitlines()[-10:]),
    )  # fmt: skip


def _tar(root: Path, without: Path | None) -> bytes:
    """The folder as a tar of root's files; scripts and init are executable, the rest is not."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for path in sorted(recipe_files(root)):
            if without is not None and path.is_relative_to(without):
                continue
            name = path.relative_to(root)
            entry = tarfile.TarInfo(f"./{name}")
            content = path.read_bytes()
            entry.size = len(content)
            entry.mode = 0o755 if content.startswith(b"#!") else 0o644
            tar.addfile(entry, io.BytesIO(content))
    return data.getvalue()


def _place(draft: Path, name: str) -> None:
    for part in PARTS:
        (draft / part).chmod(0o444)
        _sync(draft / part)
    # QEMU may run as the worktree's owner, who has to read it.
    draft.chmod(0o755)
    target = folder(name)
    if target.exists():
        shutil.rmtree(target)
    os.rename(draft, target)


def _sync(file: Path) -> None:
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())


@contextmanager
def _locked(name: str, say: Say) -> Iterator[None]:
    lock = paths.images_dir() / f".{name}.lock"
    with in_turn(lock, lambda: say("another vmoat builds this image: waiting for it")):
        yield


def images(mirror: str) -> list[Image]:
    """The images on this machine, the newest first."""
    found = []
    current = digest(mirror)
    for place in paths.images_dir().glob("[!.]*"):
        if ready(place.name):
            size = sum((place / part).stat().st_blocks * 512 for part in PARTS)
            built = str(read_toml(place / "image.toml").get("built", ""))
            found.append(Image(place.name, place, size, built, place.name == current))
    return sorted(found, key=lambda image: image.built, reverse=True)


def remove(name: str) -> None:
    """Remove an image; raises USAGE where there is none of that digest."""
    place = folder(name)
    if not name.isalnum() or not place.is_dir():
        raise VmoatError(
            f"there is no image `{name}`", hint="`vmoat image ls` lists them", code=Code.USAGE
        )
    shutil.rmtree(place)
    (paths.images_dir() / f".{name}.lock").unlink(missing_ok=True)


def export(name: str, target: Path) -> None:
    """Write an image into one file, for a cache or another machine."""
    if not ready(name):
        raise VmoatError(
            f"there is no image `{name}`", hint="`vmoat image build` makes it", code=Code.USAGE
        )
    draft = target.with_name(f".{target.name}.draft")
    try:
        proc.run(["tar", "-c", "-S", "--zstd", "-C", folder(name), "-f", draft.absolute(), *PARTS])
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def import_(source: Path, say: Say) -> str:
    """Take an image from a file that ``export`` wrote; returns its digest.

    Raises USAGE for a file that is none.
    """
    if not source.is_file():
        raise VmoatError(f"there is no file {source}", code=Code.USAGE)
    paths.make_private(paths.images_dir())
    draft = Path(tempfile.mkdtemp(prefix=".import.", suffix=".draft", dir=paths.images_dir()))
    try:
        done = proc.run(
            ["tar", "-x", "-S", "--zstd", "--no-same-owner", "-C", draft, "-f",
             source.absolute(), *PARTS],
            check=False,
        )  # fmt: skip
        name = str(read_toml(draft / "image.toml").get("digest", ""))
        whole = all((draft / part).is_file() for part in PARTS)
        if done.rc != 0 or not whole or not name.isalnum():
            raise VmoatError(
                f"{source} is no exported image", code=Code.USAGE, details=done.last_lines(3),
                hint="`vmoat image export FILE` writes one",
            )  # fmt: skip
        with _locked(name, say):
            if not ready(name):
                _place(draft, name)
        return name
    finally:
        shutil.rmtree(draft, ignore_errors=True)
