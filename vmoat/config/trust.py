"""`vmoat trust`: the user's agreement to what a branch's config asks for.

Three things of a worktree's own files need it: a vmoat.conf that computes (bash would run it on
the host), keys that widen a wall, and seed paths that the main checkout's own config doesn't list.
Trust is given to a repository and to the exact content of its config files, those that they source
included: the same content on another branch is trusted too, one changed byte is not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vmoat import paths
from vmoat.config.errors import config_error
from vmoat.config.files import decode, exists, read_bytes
from vmoat.config.sources import Project, home_of, read_project
from vmoat.config.table import BY_KEY
from vmoat.config.typed import typed_layer
from vmoat.config.values import toml_value
from vmoat.errors import VmoatError
from vmoat.locks import in_turn

STORE = "trust.toml"
_HEADER = "# What `vmoat trust` agreed to. Delete an entry to take it back.\n\n"


class Wish(NamedTuple):
    """One thing that trust would allow; ``line`` 0: the whole file."""

    file: str
    line: int
    key: str
    value: str
    why: str

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Pending:
    """What a worktree's config asks for, and whether the user has agreed to it."""

    repository: Path
    digest: str
    files: tuple[str, ...]
    wishes: tuple[Wish, ...]
    trusted: bool


def pending(
    worktree: Path, main: Path | None, *, env: Mapping[str, str], common_dir: Path | None = None
) -> Pending:
    """What trust would allow in this worktree.  Runs nothing that isn't trusted already.

    Raises CONFIG for files that are broken.
    """
    repository = common_dir or common_git_dir(worktree)
    project = read_project(worktree, env)
    digest = project.digest()
    trusted = is_trusted(repository, digest)
    if project.code and trusted:
        from vmoat.config.computed import evaluate

        project = evaluate(project, env)
    return Pending(
        repository=repository,
        digest=digest,
        files=tuple(name for name, data in project.contents if data is not None),
        wishes=tuple(wishes(project, main, env=env, repository=repository)),
        trusted=trusted,
    )


def wishes(
    project: Project, main: Path | None, *, env: Mapping[str, str], repository: Path
) -> Iterator[Wish]:
    """All that the project's files ask for, in the order of their lines."""
    for code in project.code:
        yield Wish(
            code.file, code.line, "(code)", code.text,
            f"it {code.why}: bash runs this file on your machine, outside of any VM",
        )  # fmt: skip
    listed: tuple[str, ...] | None = None
    for layer in project.layers:
        for key, typed in typed_layer(layer, home_of(env)).items():
            setting = BY_KEY[key]
            if setting.widened_by(typed.value):
                yield Wish(
                    layer.name, typed.line, key, toml_value(typed.value),
                    f"it widens a wall. {setting.help}",
                )  # fmt: skip
            if key != "provision.seed" or main is None or _same(main, project.root):
                continue
            if listed is None:
                listed = listed_seeds(main, env=env, repository=repository)
            items = typed.value if isinstance(typed.value, tuple) else ()
            for path in items:
                if not _covered(path, listed):
                    yield Wish(
                        layer.name, typed.line, key, path,
                        f"{main / path} would be copied into the worktree, where the VM reads it; "
                        "the main checkout's own config doesn't list it",
                    )  # fmt: skip


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _covered(path: str, listed: Iterable[str]) -> bool:
    return any(path == seed or path.startswith(seed + "/") for seed in listed)


def listed_seeds(main: Path, *, env: Mapping[str, str], repository: Path) -> tuple[str, ...]:
    """The seed paths of the main checkout's own config; none when that can't be read."""
    try:
        project = ready(read_project(main, env), env=env, repository=repository)
        found: tuple[str, ...] = ()
        for layer in project.layers:
            typed = typed_layer(layer, home_of(env)).get("provision.seed")
            if typed and isinstance(typed.value, tuple):
                found = typed.value
    except VmoatError:
        return ()
    return found


def ready(project: Project, *, env: Mapping[str, str], repository: Path) -> Project:
    """The project with its layers; one that computes is run by bash, if trusted, else CONFIG."""
    if not project.code:
        return project
    if not is_trusted(repository, project.digest()):
        first = project.code[0]
        raise config_error(
            f"{first.file}:{first.line}",
            f"is a program: it {first.why}, and you have not agreed to run it on this machine",
            'read it, then `vmoat trust`; or keep to plain assignments, KEY="value"',
            details=[f"{code.file}:{code.line}: {code.text}" for code in project.code],
        )
    from vmoat.config.computed import evaluate

    return evaluate(project, env)


def untrusted(asked: Iterable[Wish], user_file: Path) -> VmoatError:
    """The error for wishes that nobody agreed to."""
    rows = list(asked)
    first = rows[0]
    what = f"the seed {first.value}" if first.key == "provision.seed" else "it widens a wall"
    return config_error(
        first.where,
        f"{first.key} = {first.value} comes with the branch and is not trusted ({what})",
        "`vmoat trust` shows what it would allow and asks; your own "
        f"{user_file}, environment and flags need no trust",
        details=[f"{row.where}: {row.key} = {row.value}" for row in rows],
    )


# -- the repository --------------------------------------------------------------------------


def common_git_dir(worktree: Path) -> Path:
    """The repository's git folder, shared by all its worktrees (`man gitrepository-layout`).

    Read from ``.git`` and ``commondir`` as git does, without a process.  A folder outside git is
    its own repository.
    """
    dot = worktree / ".git"
    git_dir = dot
    if dot.is_file():
        text = read_bytes(dot, str(dot)).decode(errors="surrogateescape")
        git_dir = worktree / text.removeprefix("gitdir:").strip()
    common = git_dir / "commondir"
    if common.is_file():
        text = read_bytes(common, str(common)).decode(errors="surrogateescape")
        git_dir = git_dir / text.strip()
    return Path(os.path.realpath(git_dir if git_dir.exists() else worktree))


# -- the store -------------------------------------------------------------------------------


def is_trusted(repository: Path, digest: str) -> bool:
    """Whether the user agreed to this content in this repository."""
    return any(
        row.get("repository") == _text(repository) and row.get("digest") == digest
        for row in _rows()
    )


def grant(asked: Pending) -> None:
    """Remember the user's agreement to exactly what ``asked`` shows."""
    import datetime

    with _locked():
        rows = _rows()
        if is_trusted(asked.repository, asked.digest):
            return
        rows.append(
            {
                "repository": _text(asked.repository),
                "digest": asked.digest,
                "files": [os.fsencode(name).decode(errors="replace") for name in asked.files],
                "at": datetime.datetime.now(datetime.UTC).replace(microsecond=0),
            }
        )
        _write(rows)


def revoke(repository: Path) -> int:
    """Take back all trust in a repository; how many agreements there were."""
    with _locked():
        rows = _rows()
        kept = [row for row in rows if row.get("repository") != _text(repository)]
        if len(kept) < len(rows):
            _write(kept)
    return len(rows) - len(kept)


def _text(path: Path) -> str:
    """A path as TOML can hold it: a name that is no UTF-8 keeps its bytes, escaped."""
    return os.fsencode(os.path.realpath(path)).decode(errors="backslashreplace")


def _rows() -> list[dict[str, object]]:
    path = paths.state_home() / STORE
    if not exists(path):
        return []
    import tomllib

    try:
        rows = tomllib.loads(decode(read_bytes(path, str(path), 1 << 24), str(path)))["trusted"]
        return [row for row in rows if isinstance(row, dict)]
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise config_error(
            str(path), f"is damaged ({error})", f"remove it (rm {path}), then trust again"
        ) from error


@contextmanager
def _locked() -> Iterator[None]:
    """One writer at a time: two worktrees may be trusted at once."""
    with in_turn(paths.make_private(paths.state_home()) / "trust.lock"):
        yield


def _write(rows: list[dict[str, object]]) -> None:
    import tomli_w

    from vmoat.state import write_atomically

    text = _HEADER + tomli_w.dumps({"trusted": rows})
    write_atomically(paths.state_home() / STORE, text.encode())
