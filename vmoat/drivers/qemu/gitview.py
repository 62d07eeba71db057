"""What a VM sees of the repository's git folder: an assembled view, exported read-only.

The view's top-level *files* are copies, because a mount over a file vanishes as soon as the host's
git renames a new one over it (``config.lock`` to ``config``: tried), and because the config must
lose its credentials.  Its *directories* (objects, refs, …) are the host's own, mounted read-only,
so they are always current.  ``refresh`` copies again what has changed; it costs a stat per file.

Only what is named here is shown: a file with credentials, vmoat's own id, the other worktrees'
administration are not.  Facts: gitrepository-layout(5); ``git config --list -z`` (git-config(1)).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vmoat import proc
from vmoat.companion.gitindex import prepared, stamp
from vmoat.drivers import VmSpec

if TYPE_CHECKING:
    from vmoat.drivers.qemu.shares import Plan

_LIVE = ("objects", "refs", "logs", "info", "hooks", "lfs", "annex", "branches", "reftable")
_COPIED_FOLDERS = ("rebase-merge", "rebase-apply", "sequencer")  # come and go
_FILES = re.compile(
    r"[A-Z][A-Z_]*|index|sharedindex\.[0-9a-f]+|packed-refs|shallow|description|config"
    r"|config\.worktree|commondir|gitdir|BISECT_[A-Z_]+|MERGE_[A-Z]+"
)
_CONFIGS = ("config", "config.worktree")

_DROPPED = re.compile(
    r"(credential|include|includeif|gpg|sendemail|imap)\..*|.*\.extraheader|.*\.proxy.*"
    r"|.*(password|passwd|smtppass|token|secret|apikey|privatekey).*"
    r"|http\.(.*\.)?(cookiefile|sslkey|sslcert)"
    # the guest's own answer to these is in its /etc/gitconfig
    r"|core\.(fsmonitor|checkstat|trustctime|sshcommand|askpass)"
    # its commits cannot be signed: the keys stay on the host
    r"|(commit|tag|push)\.gpgsign|user\.signingkey",
    re.DOTALL,
)
_USERINFO = re.compile(r"(?i)\b((?:https?|ftps?)://)[^/\s@\"']*@")
_PASSWORD = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^/\s:@\"']*):[^/\s@\"']*@")


def without_credentials(text: str) -> str:
    """The text with user and password taken out of its URLs (ssh user names stay)."""
    return _PASSWORD.sub(r"\1@", _USERINFO.sub(r"\1", text))


def _quote(value: str) -> str:
    for char, escape in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t")):
        value = value.replace(char, escape)
    return f'"{value}"'


def sanitised_config(listing: str) -> str:
    """A git config file from ``git config --list -z``, without what the guest must not know."""
    lines: list[str] = []
    for item in listing.split("\0"):
        key, has_value, value = item.partition("\n")
        if "." not in key or _DROPPED.fullmatch(key):
            continue
        section, _, rest = key.partition(".")
        middle, _, name = rest.rpartition(".")
        middle = without_credentials(middle)
        escaped = middle.replace("\\", "\\\\").replace('"', '\\"')
        head = f'[{section} "{escaped}"]' if middle else f"[{section}]"
        text = f"\t{name} = {_quote(without_credentials(value))}" if has_value else f"\t{name}"
        lines += [head, text]
    return "".join(line + "\n" for line in lines)


@dataclass
class View:
    """What belongs into a view: source and place (relative to the view) of copies and mounts."""

    copies: list[tuple[Path, str]] = field(default_factory=list)
    mounts: list[tuple[Path, str]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    """Folders that must not vanish while they are mounted on."""


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError:
        return []


def _is_git_dir(folder: Path) -> bool:
    return (folder / "HEAD").is_file() and (folder / "objects").is_dir()


def _add_git_dir(view: View, source: Path, place: str, mine: Path | None) -> None:
    """One git folder: the common one, a worktree's own, or a submodule's."""
    view.folders.append(place)
    for entry in _entries(source):
        path, target = source / entry.name, f"{place}/{entry.name}"
        if entry.is_symlink():
            continue
        if entry.is_file():
            if _FILES.fullmatch(entry.name):
                view.copies.append((path, target))
        elif not entry.is_dir():
            continue
        elif entry.name in _LIVE:
            view.mounts.append((path, target))
        elif entry.name in _COPIED_FOLDERS:
            view.folders.append(target)
            view.copies += [
                (path / one.name, f"{target}/{one.name}")
                for one in _entries(path)
                if one.is_file(follow_symlinks=False)
            ]
        elif entry.name == "modules":
            _add_modules(view, path, target)
        elif entry.name == "worktrees" and mine is not None and mine.parent == path:
            view.folders.append(target)
            _add_git_dir(view, mine, f"{target}/{mine.name}", None)


def _add_modules(view: View, source: Path, place: str) -> None:
    view.folders.append(place)
    for entry in _entries(source):
        if not entry.is_dir(follow_symlinks=False):
            continue
        path, target = source / entry.name, f"{place}/{entry.name}"
        if _is_git_dir(path):
            _add_git_dir(view, path, target, None)
        else:
            _add_modules(view, path, target)  # a submodule's name may hold slashes


def survey(common_dir: Path, git_dir: Path) -> View:
    """What the view of this repository holds now; reads directories only."""
    view = View()
    _add_git_dir(view, common_dir, "common", None if git_dir == common_dir else git_dir)
    return view


def alternates(objects: Path, depth: int = 5) -> list[Path]:
    """Object folders that this one borrows from, and those borrow from (git-alternates)."""
    found: list[Path] = []
    try:
        lines = (objects / "info" / "alternates").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    for line in lines if depth else []:
        if line and not line.startswith(("#", '"')):
            path = Path(os.path.normpath(objects / line))
            if path.is_dir() and path not in found:
                found += [path, *alternates(path, depth - 1)]
    return list(dict.fromkeys(found))


def _ref_folders(folder: Path) -> Iterator[Path]:
    yield folder
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _ref_folders(folder / entry.name)


def _watched(view: View) -> Iterator[Path]:
    """Live folders whose change the guest's kernel must be told of (see ``refresh``)."""
    for source, place in view.mounts:
        name = place.rpartition("/")[2]
        if name == "refs":
            yield from _ref_folders(source)
        elif name == "objects":
            yield from (source, source / "pack", source / "info")


def _own(path: Path, owner: tuple[int, int] | None) -> None:
    """The view's owner is the guest's user, who must be able to write in the overlay above it."""
    if owner is not None and os.getuid() == 0:
        os.chown(path, *owner, follow_symlinks=False)


def _folder(path: Path, owner: tuple[int, int] | None) -> None:
    path.mkdir(parents=True, exist_ok=True)
    if owner is not None and path.stat().st_uid != owner[0]:
        _own(path, owner)


def _write(target: Path, data: bytes, owner: tuple[int, int] | None = None) -> None:
    temporary = target.with_name(target.name + ".vmoat-new")
    temporary.write_bytes(data)
    temporary.chmod(0o644)  # QEMU may be another user; the folder above is closed to others
    _own(temporary, owner)
    os.replace(temporary, target)


def _copy(source: Path, target: Path, owner: tuple[int, int] | None) -> None:
    if source.name in _CONFIGS:
        listing = proc.run(
            ["git", "config", "--file", source, "--no-includes", "--list", "-z"],
            check=False,
            timeout=20,
        )
        _write(target, sanitised_config(listing.out).encode("utf-8", "surrogateescape"), owner)
    elif source.name == "FETCH_HEAD":
        text = source.read_bytes().decode("utf-8", "surrogateescape")
        _write(target, without_credentials(text).encode("utf-8", "surrogateescape"), owner)
    else:
        _write(target, source.read_bytes(), owner)


def refresh(
    common_dir: Path, git_dir: Path, folder: Path, owner: tuple[int, int] | None = None
) -> bool:
    """Bring the copies up to date; whether the host's git folder changed since the last time.

    When it did, the guest's overlay must forget the names that it remembers as missing:
    ``mount -o remount`` on it drops them.  Raises nothing for
    files that vanish meanwhile.
    """
    view = survey(common_dir, git_dir)
    stamps_file = folder / "stamps.json"
    try:
        before = json.loads(stamps_file.read_text())
    except (OSError, ValueError):
        before = {}
    root = folder / "view"
    for place in view.folders:
        _folder(root / place, owner)
    now: dict[str, list[int]] = {}
    for source, place in view.copies:
        now[place] = stamp(source)
        better = prepared(folder.parent, source) if source == git_dir / "index" else None
        if better:
            now[place] += stamp(better)
        if now[place] != before.get(place) or not (root / place).exists():
            try:
                _copy(better or source, root / place, owner)
            except OSError:
                now[place] = []  # gone, or half made: next time
    for path in _watched(view):
        now["live:" + str(path)] = stamp(path)
    if now == before:
        return False
    _remove_stale(root, set(before) - set(now), view.folders)
    _write(stamps_file, json.dumps(now).encode("utf-8", "surrogateescape"))
    return True


def _remove_stale(root: Path, places: Iterable[str], folders: list[str]) -> None:
    for place in places:
        if not place.startswith("live:"):
            (root / place).unlink(missing_ok=True)
    for name in _COPIED_FOLDERS:
        for path in root.glob(f"**/{name}"):
            if str(path.relative_to(root)) not in folders:
                shutil.rmtree(path, ignore_errors=True)


def add_git(spec: VmSpec, plan: Plan, folder: Path) -> list[tuple[str, str]]:
    """Add the git folder's export to the plan, and make its view.

    Returns what the guest binds from the export to its own path: (place in the export, path).
    """
    from vmoat.drivers.qemu.sandbox import Bind
    from vmoat.drivers.qemu.shares import GIT, Export

    inside_worktree = spec.common_dir.is_relative_to(spec.worktree)
    borrowed = alternates(spec.common_dir / "objects")
    binds: list[Bind] = []
    guest: list[tuple[str, str]] = []
    root = folder / "view"
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(0o755)
    if not spec.git_writable:
        refresh(spec.common_dir, spec.git_dir, folder, (spec.owner.uid, spec.owner.gid))
        for source, place in survey(spec.common_dir, spec.git_dir).mounts:
            (root / place).mkdir(parents=True, exist_ok=True)
            binds.append(Bind(str(source), f"{GIT}/{place}"))
    elif not inside_worktree:
        common = str(spec.common_dir)
        plan.exports.append(Export("gitrw", "/vm/gitrw", common, True, common))
        plan.binds.append(Bind(common, "/vm/gitrw", writable=True))
    for number, path in enumerate(borrowed):
        place = f"alternate{number}"
        (root / place).mkdir(exist_ok=True)
        binds.append(Bind(str(path), f"{GIT}/{place}"))
        guest.append((place, str(path)))
    if binds:
        plan.exports.append(Export("git", GIT, "/run/vmoat/git", False, str(root)))
        plan.binds.append(Bind(str(root), GIT))
        plan.binds += binds
    return guest
