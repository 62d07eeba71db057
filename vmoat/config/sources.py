"""The config files of a user and of a worktree, read once each, not yet typed or merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from vmoat.config import toml_form
from vmoat.config.errors import config_error
from vmoat.config.files import decode, exists, read_bytes
from vmoat.config.table import BY_SHELL, PROJECT_SHELL, PROJECT_TOML
from vmoat.config.toml_form import Given

FormName = Literal["toml", "shell", "none"]


@dataclass(frozen=True, slots=True)
class Layer:
    """What one file sets: values by dotted key, stages by name."""

    kind: str
    name: str
    form: Literal["toml", "shell"]
    values: Mapping[str, Given]
    stages: Mapping[str, Mapping[str, Given]]

    def where(self, line: int) -> str:
        return f"{self.name}:{line}" if line else self.name


@dataclass(frozen=True, slots=True)
class Code:
    """A place where a vmoat.conf is more than assignments; ``why`` follows "it"."""

    file: str
    line: int
    why: str
    text: str


@dataclass(frozen=True, slots=True)
class Project:
    """The config files of one worktree.

    ``contents`` is what trust is given for: every file by its name in the worktree (or absolute),
    None for one that is sourced and not there.  With ``code``, ``layers`` is empty until
    ``vmoat.config.computed`` fills it.
    """

    root: Path
    form: FormName
    layers: tuple[Layer, ...]
    contents: tuple[tuple[str, bytes | None], ...]
    code: tuple[Code, ...] = ()
    warnings: tuple[str, ...] = ()
    own: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are there, absolute."""
        return tuple(self.root / name for name, data in self.contents if data is not None)

    def digest(self) -> str:
        """Of all names and contents: one changed byte anywhere is another digest."""
        import hashlib

        digest = hashlib.sha256()
        for name, data in self.contents:
            size = -1 if data is None else len(data)
            digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
            digest.update(data or b"")
        return f"sha256:{digest.hexdigest()}"


def read_user(path: Path) -> Layer | None:
    """The user's ``config.toml``; None when there is none."""
    if not exists(path):
        return None
    name = str(path)
    values, stages = toml_form.parse(decode(read_bytes(path, name), name), name)
    return Layer("user", name, "toml", values, stages)


def read_project(root: Path, env: Mapping[str, str]) -> Project:
    """The worktree's own config files; raises CONFIG for a broken one and for both forms."""
    toml = [name for name in PROJECT_TOML if exists(root / name)]
    shell = [name for name in PROJECT_SHELL if exists(root / name)]
    if toml and shell:
        raise config_error(
            str(root),
            f"has two forms of config: {' and '.join(toml)} beside {' and '.join(shell)}",
            f"keep one form (`vmoat init --from {shell[0]}` writes what the shell form says as "
            "TOML), and remove the other's files",
        )
    if toml:
        return _read_toml(root, toml)
    return _read_shell(root, shell, env) if shell else Project(root, "none", (), ())


def _kind(name: str) -> str:
    return "local" if ".local." in name else "project"


def _read_toml(root: Path, names: list[str]) -> Project:
    layers: list[Layer] = []
    contents: list[tuple[str, bytes | None]] = []
    for name in names:
        data = read_bytes(root / name, name)
        values, stages = toml_form.parse(decode(data, name), name)
        layers.append(Layer(_kind(name), name, "toml", values, stages))
        contents.append((name, data))
    return Project(root, "toml", tuple(layers), tuple(contents))


def known_variables(env: Mapping[str, str]) -> dict[str, str]:
    """What a vmoat.conf may use of the environment without trust: the home folder, and vmoat's
    own keys.  Any other variable may be a secret that a branch would carry into its VM."""
    known = {key: env[key] for key in BY_SHELL if env.get(key)}
    return {"HOME": home_of(env), **known}


def home_of(env: Mapping[str, str]) -> str:
    import os

    return env.get("HOME") or os.path.expanduser("~")


def _read_shell(root: Path, names: list[str], env: Mapping[str, str]) -> Project:
    from vmoat.config import shell_form

    known: dict[str, shell_form.Value] = {**known_variables(env)}
    layers: list[Layer] = []
    contents: list[tuple[str, bytes | None]] = []
    code: list[Code] = []
    warnings: list[str] = []
    own: dict[str, str] = {}
    for name in names:
        data = read_bytes(root / name, name)
        text = decode(data, name)
        contents.append((name, data))
        try:
            found = shell_form.parse(text, name, known)
        except shell_form.Computes as stop:
            line = text.split("\n")[stop.line - 1].strip()
            code.append(Code(name, stop.line, stop.why, line))
            continue
        known |= {key: assigned.value for key, assigned in found.items()}
        values = {
            BY_SHELL[key].key: Given(assigned.value, assigned.line)
            for key, assigned in found.items()
            if key in BY_SHELL
        }
        layers.append(Layer(_kind(name), name, "shell", values, {}))
        for key, assigned in found.items():
            if key not in BY_SHELL:
                own[key] = f"{name}:{assigned.line}"
                warnings += _near_miss(key, own[key])
    project = Project(
        root, "shell", tuple(layers), tuple(contents), tuple(code), tuple(warnings), own
    )
    if not code:
        return project
    from vmoat.config.computed import follow

    return replace(follow(project, env), layers=())


def _near_miss(key: str, where: str) -> list[str]:
    """The user's own variables are let through; one that looks like a typo is worth a line."""
    from vmoat.config.values import closest

    if not key.isupper() or not (meant := closest(key, list(BY_SHELL), 0.85)):
        return []
    return [f"{where}: {key} is no key of vmoat; did you mean {meant}?"]
