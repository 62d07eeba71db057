"""`vmoat cp`: files and folders between this machine and a VM, as a tar over the ssh master.

As cp(1) has it: into a folder that is there, under the name of the source; else under the target's
own name, in a folder that has to be there.  A symbolic link that is named is followed; inside a
folder links stay links.  Modes come along, but for setuid, setgid and sticky; so do times.

The VM is not trusted: a tar that comes from there is unpacked by descriptors of folders, each
opened by itself and through no symbolic link, and every file is made under a new name and renamed.
So nothing outside of the target is read or written, whatever the tar says.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import secrets
import shlex
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TYPE_CHECKING

from vmoat import proc
from vmoat.errors import Code, VmoatError

if TYPE_CHECKING:
    from vmoat.guest import Guest

SIDE = "vm:"
LOOK_LIMIT = 60.0
"""Seconds for the guest to say what is there."""
BUFFER = 1 << 18
"""Bytes that are read or written at once."""
LAST_SECOND = 2.0**33
"""Times beyond are cut: Linux has no later ones."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

LOOK = """\
look() {
  if [ -d "$1" ]; then k=folder; elif [ -f "$1" ]; then k=file
  elif [ -e "$1" ]; then k=other; elif [ -L "$1" ]; then k=dangling; else k=none; fi
  [ "$k" = none ] || [ -r "$1" ] || [ "$k" = dangling ] || k=unreadable
  printf '%s\\n' "$k"
}
"""
"""What there is at a path, links followed; builtins of the guest's shell only."""

Notice = Callable[[str], None]
"""Takes a line on what was not copied as it is."""


def copy(guest: Guest, words: Sequence[str], *, recursive: bool, notice: Notice) -> None:
    """Copy the sources to the last word; ``vm:`` stands before what is in the VM.

    Raises USAGE for words that name no copy, STAGE where something is not there or cannot be read
    or written (what was copied until then stays), VM where the connection breaks.
    """
    *sources, target = words
    if not sources or not all(words):
        raise _usage("`cp` wants a source and a target", "`vmoat cp vm:dist .`")
    inside = {source.startswith(SIDE) for source in sources}
    if inside == {target.startswith(SIDE)}:
        where = "in the VM" if True in inside else "on this machine"
        cure = "`vmoat exec cp …` copies inside it" if True in inside else f"write {SIDE}PATH"
        raise _usage(f"source and target are both {where}", cure)
    if len(inside) > 1:
        raise _usage("some sources are in the VM and some are not", "copy them one after another")
    if True in inside:
        paths = [_in_vm(guest, source) for source in sources]
        _receive(guest, paths, target, recursive=recursive, notice=notice)
    else:
        _send(guest, sources, _in_vm(guest, target), recursive=recursive, notice=notice)


def _usage(message: str, hint: str) -> VmoatError:
    return VmoatError(message, hint=hint, code=Code.USAGE)


def _in_vm(guest: Guest, word: str) -> str:
    """The path in the VM, from the worktree on; ``~`` is left for the guest's shell."""
    path = word.removeprefix(SIDE)
    home = path == "~" or path.startswith("~/")
    return path if home else posixpath.join(os.fspath(guest.worktree), path)


def _quoted(path: str) -> str:
    """The path for the guest's shell; it begins with ``/``, so that no program takes an option."""
    if path == "~" or path.startswith("~/"):
        return '"$HOME"' + shlex.quote(path[1:]) if path[1:] else '"$HOME"'
    return shlex.quote(path)


def _look(guest: Guest, paths: Sequence[str]) -> list[str]:
    """What there is in the VM: folder, file, other, dangling, unreadable or none, each."""
    rows = "".join(f"look {_quoted(path)}\n" for path in paths)
    done = guest.run(f"{guest.before}\n{LOOK}{rows}exit 0\n", timeout=LOOK_LIMIT)
    found = done.out.splitlines()
    if len(found) != len(paths):
        raise guest.lost(done.last_lines())
    return found


def _split(path: str) -> tuple[str, str]:
    """The folder that a path lies in, and its name there."""
    plain = posixpath.normpath(path)
    return posixpath.dirname(plain) or ".", posixpath.basename(plain)


def _named(source: str) -> str:
    name = _split(source)[1]
    return name if name not in ("", ".", "..", "~") else ""


class _Target:
    """Where the sources go: a folder that is there, and each one's name in it."""

    def __init__(
        self, words: Sequence[str], target: str, kind: str, above: str, where: str
    ) -> None:
        """``kind``, ``above``: what is at the target, and at the folder that it lies in."""
        names = [_named(word) for word in words]
        if kind == "folder":
            self.folder = target
            for word, name in zip(words, names, strict=True):
                if not name:
                    raise _usage(f"{word} has no name of its own", "name the target in full")
        elif len(words) > 1 or target.endswith("/"):
            raise _usage(f"{target} is no folder{where}", "make it first")
        else:
            self.folder, name = _split(target)
            names = [name]
            if above != "folder":
                raise VmoatError(
                    f"there is no folder {self.folder}{where}",
                    hint="make it first",
                    code=Code.STAGE,
                )
        double = {name for name in names if names.count(name) > 1}
        if double:
            raise _usage(f"two sources are called {min(double)}", "copy them one after another")
        self.names = names


def _check_source(word: str, kind: str, *, recursive: bool, where: str) -> None:
    why = {
        "none": "is not there",
        "dangling": "is a symbolic link to what is not there",
        "other": "is neither a file nor a folder",
        "unreadable": "cannot be read",
    }.get(kind, "")
    if kind == "folder" and not recursive:
        raise _usage(f"{word} is a folder", "add -r")
    if kind in ("none", "dangling", "unreadable", "other"):
        hint = f"`vmoat exec ls -la` shows the VM's files, {SIDE}/… is from its root"
        raise VmoatError(
            f"{word}{where} {why}", hint=hint if where else "look at the path", code=Code.STAGE
        )


def _check_over(path: str, new: str, old: str) -> None:
    """tar would remove a file, or an empty folder, that is in the way."""
    if old not in ("none", "dangling") and (new == "folder") != (old == "folder"):
        raise VmoatError(
            f"{path} in the VM is {'a' if old == 'folder' else 'no'} folder",
            hint="remove it first, or name another target",
            code=Code.STAGE,
        )


# --- to the VM


def _send(
    guest: Guest, sources: Sequence[str], target: str, *, recursive: bool, notice: Notice
) -> None:
    kinds = [_kind(word) for word in sources]
    for word, is_now in zip(sources, kinds, strict=True):
        _check_source(word, is_now, recursive=recursive, where="")
    inner = [posixpath.join(target, _named(word)) for word in sources]
    kind, above, *within = _look(guest, [target, _split(target)[0], *inner])
    to = _Target(sources, target, kind, above, " in the VM")
    for name, new, old in zip(to.names, kinds, within if kind == "folder" else [kind], strict=True):
        _check_over(posixpath.join(to.folder, name), new, old)
    command = (
        f"tar -xf - -C {_quoted(to.folder)} -p --no-same-owner --no-overwrite-dir "
        f"--warning=no-timestamp; rc=$?; {guest.behind}exit $rc"
    )
    with _session(guest, command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        with (
            contextlib.suppress(BrokenPipeError),  # its tar has ended: it says why
            tarfile.open(
                fileobj=process.stdin, mode="w|", format=tarfile.GNU_FORMAT, bufsize=BUFFER
            ) as pack,
        ):
            for word, name in zip(sources, to.names, strict=True):
                _pack(pack, word, name, notice)


def _kind(path: str) -> str:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "dangling" if os.path.islink(path) else "none"
    except OSError:
        return "unreadable"
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        return "other"
    kind = "folder" if stat.S_ISDIR(mode) else "file"
    return kind if os.access(path, os.R_OK) else "unreadable"


def _pack(pack: tarfile.TarFile, path: str, name: str, notice: Notice) -> None:
    """Add a file, or a folder with all that is in it."""

    def entry(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if not (info.isreg() or info.isdir() or info.issym() or info.islnk()):
            notice(f"{info.name} is left out: it is neither a file nor a folder")
            return None
        info.mode &= 0o777
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        return info

    try:
        pack.add(os.path.realpath(path), arcname=name, filter=entry)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise VmoatError(
            f"{error.filename or path} cannot be read: {error.strerror or error}",
            hint="what was copied until then stays in the VM",
            code=Code.STAGE,
        ) from error


# --- from the VM


def _receive(
    guest: Guest, sources: Sequence[str], target: str, *, recursive: bool, notice: Notice
) -> None:
    kinds = _look(guest, sources)
    for path, kind in zip(sources, kinds, strict=True):
        _check_source(path, kind, recursive=recursive, where=" in the VM")
    to = _Target(sources, target, _kind(target), _kind(_split(target)[0]), "")
    try:
        folder = os.open(to.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unwritable(to.folder, error) from error
    try:
        for path, kind, name in zip(sources, kinds, to.names, strict=True):
            _fetch(guest, path, kind, _Unpacked(folder, to.folder, name), notice)
    finally:
        os.close(folder)


def _unwritable(path: str, error: OSError | ValueError) -> VmoatError:
    return VmoatError(
        f"{path} cannot be written: {getattr(error, 'strerror', '') or error}",
        hint="what was copied until then stays",
        code=Code.STAGE,
    )


def _fetch(guest: Guest, path: str, kind: str, to: _Unpacked, notice: Notice) -> None:
    above, base = _split(path)
    file = f"-h -C {_quoted(above)} ./{shlex.quote(base)}"
    what = f"-C {_quoted(path)} ." if kind == "folder" else file
    command = f"exec tar -cf - --hard-dereference --warning=no-file-changed {what}"
    with _session(guest, command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|", bufsize=BUFFER) as pack:
                for member in pack:
                    _take(pack, member, kind, to, notice)
                to.finish()
        except (tarfile.TarError, EOFError):  # cut off: the session says why; else it is no tar
            if process.wait() == 0:
                raise VmoatError(
                    "what the VM sent is no tar", hint="`vmoat exec tar --version` is GNU tar's?",
                    code=Code.STAGE,
                ) from None  # fmt: skip
        while process.stdout.read(BUFFER):
            pass  # tar's padding


def _take(
    pack: tarfile.TarFile, member: tarfile.TarInfo, kind: str, to: _Unpacked, notice: Notice
) -> None:
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if kind == "file":
        parts = []
    if member.name.startswith("/") or ".." in parts or (kind == "file" and not member.isreg()):
        raise VmoatError(
            f"the VM sent what was not asked for: {member.name!r}",
            hint="nothing was written outside of the target",
            code=Code.STAGE,
        )
    try:
        if member.isdir():
            to.folder(parts, member)
        elif member.isreg():
            content = pack.extractfile(member)
            assert content is not None
            to.file(parts, member, content)
        elif member.issym():
            to.link(parts, member)
        else:
            notice(f"{member.name} is left out: it is neither a file nor a folder")
    except (OSError, ValueError) as error:
        raise _unwritable("/".join([to.shown, to.name, *parts]), error) from error


def _time(member: tarfile.TarInfo) -> float:
    return max(0.0, min(float(member.mtime), LAST_SECOND))


class _Unpacked:
    """What comes from the VM, below ``name`` in a folder that is open."""

    def __init__(self, top: int, shown: str, name: str) -> None:
        self.top = top
        self.shown = shown
        self.name = name
        owner = os.fstat(top)
        self._owner = (owner.st_uid, owner.st_gid) if os.geteuid() == 0 else None
        self._made: list[tuple[list[str], int, float]] = []

    @contextlib.contextmanager
    def _in(self, parts: Sequence[str]) -> Iterator[tuple[int, str]]:
        """The folder of an entry, and the entry's name in it."""
        *above, name = [self.name, *parts]
        place = os.dup(self.top)
        try:
            for part in above:
                inner = os.open(part, _FOLDER, dir_fd=place)
                os.close(place)
                place = inner
            yield place, name
        finally:
            os.close(place)

    def folder(self, parts: Sequence[str], member: tarfile.TarInfo) -> None:
        """Make a folder; one that is there is filled, and keeps its mode."""
        with self._in(parts) as (place, name):
            try:
                os.mkdir(name, 0o700, dir_fd=place)
            except FileExistsError:
                os.close(os.open(name, _FOLDER, dir_fd=place))  # a link to a folder is none
                return
            self._own(place, name)
            self._made.append(([*parts], member.mode, _time(member)))

    def file(self, parts: Sequence[str], member: tarfile.TarInfo, content: IO[bytes]) -> None:
        """Write a file whole, or leave what is there as it was."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        draft = f".vmoat-cp-{secrets.token_hex(6)}"
        with self._in(parts) as (place, name):
            try:
                with open(os.open(draft, flags, 0o600, dir_fd=place), "wb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
                    self._own(place, draft)
                    os.fchmod(file.fileno(), member.mode & 0o777)
                    file.flush()
                    os.utime(file.fileno(), (_time(member), _time(member)))
                os.rename(draft, name, src_dir_fd=place, dst_dir_fd=place)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(draft, dir_fd=place)
                raise

    def link(self, parts: Sequence[str], member: tarfile.TarInfo) -> None:
        """Make a symbolic link, wherever it leads: nothing here follows one."""
        with self._in(parts) as (place, name):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=place)
            os.symlink(member.linkname, name, dir_fd=place)
            self._own(place, name)

    def finish(self) -> None:
        """Give the folders their modes and times, now that they are full."""
        for parts, mode, mtime in reversed(self._made):
            with self._in(parts) as (place, name):
                inner = os.open(name, _FOLDER, dir_fd=place)
                try:
                    os.utime(inner, (mtime, mtime))
                    os.fchmod(inner, mode & 0o777)
                finally:
                    os.close(inner)

    def _own(self, place: int, name: str) -> None:
        if self._owner:
            os.chown(name, *self._owner, dir_fd=place, follow_symlinks=False)


@contextlib.contextmanager
def _session(
    guest: Guest, command: str, *, stdin: int, stdout: int
) -> Iterator[subprocess.Popen[bytes]]:
    """A command of the guest's user with one end of it ours; raises where it fails.

    Its exit code is judged where the block ends well: 1 is GNU tar's for a file that changed while
    it was read.
    """
    guest.connect()
    with tempfile.TemporaryFile() as errors:
        process = proc.spawn(
            guest.argv(command), stdin=stdin, stdout=stdout, stderr=errors, detach=False
        )
        try:
            yield process
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
            rc = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
        if rc == 255:
            raise guest.lost(said[-5:])
        if rc > 1 or (rc == 1 and said):
            raise VmoatError(
                "the copy is not whole: tar failed in the VM",
                hint="its own words are above",
                code=Code.STAGE,
                details=said[-12:],
            )
