"""One frozen ``Settings``: every value typed, checked, and with the place that it came from.

Order: defaults, the user's config.toml, vmoat.toml (or vmoat.conf), vmoat.local.toml (or
vmoat.local.conf), environment, flags.  This is on the way of every command: it imports nothing
that takes time to load, and starts no program unless a trusted vmoat.conf computes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vmoat import paths
from vmoat.config.errors import config_error, cure_of
from vmoat.config.sources import Layer, Project, home_of, read_project, read_user
from vmoat.config.stages import UserStage, validate_stages
from vmoat.config.table import BY_ENV, BY_KEY, SETTINGS
from vmoat.config.typed import typed_layer, typed_stages, typed_value
from vmoat.config.values import Form, Port, closest

__all__ = ["HostSize", "Origin", "Port", "Row", "Settings", "UserStage", "load", "user_file"]

OriginKind = Literal["default", "user", "project", "local", "env", "flag"]


class HostSize(NamedTuple):
    """What the host has."""

    cpus: int
    memory_gib: int


class Origin(NamedTuple):
    """Where a value came from; ``where`` is ``vmoat.toml:12``, a variable's or flag's name."""

    kind: str
    where: str = ""

    def __str__(self) -> str:
        return self.where or self.kind


class Row(NamedTuple):
    """One line of ``vmoat config``; ``value`` is made of what JSON has."""

    key: str
    value: object
    origin: str


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one worktree (``vmoat.config.table`` says what each means)."""

    up_command: str
    up_inputs: tuple[str, ...]
    up_retries: int
    up_service: bool
    up_project: str
    test_command: str
    down_command: str
    vm_cpu: int
    vm_memory: int
    vm_disk: int
    vm_type: str
    vm_mount: str
    vm_mount_type: str
    vm_idle: str
    vm_prefix: str
    provision_apt: tuple[str, ...]
    provision_script: str
    provision_inputs: tuple[str, ...]
    provision_seed: tuple[str, ...]
    health_url: str
    health_timeout: int
    tunnel_ports: tuple[Port, ...]
    tunnel_auto: bool
    browser_command: str
    driver: str
    walls: bool
    mounts_local: tuple[str, ...]
    mounts_share: tuple[str, ...]
    git_writable: bool
    network_open: bool
    qemu_args: tuple[str, ...]
    colima_start_args: tuple[str, ...]
    layers_enabled: bool
    watch_enabled: bool
    ssh_forward_agent: bool
    hook_up: bool
    credentials_docker: bool
    credentials_registries: tuple[str, ...]
    image_mirror: str
    cache_enabled: bool
    cache_size: int
    cache_registries: tuple[str, ...]
    fleet_memory: str
    fleet_evict: str
    gc_grace: str
    stages: tuple[UserStage, ...]
    origins: Mapping[str, Origin]
    warnings: tuple[str, ...]
    form: Literal["toml", "shell", "none"]
    files: tuple[Path, ...]

    def dump(self) -> tuple[Row, ...]:
        """Every key, its value and its origin, in the order of the table, then the stages."""
        rows = [
            Row(s.key, _plain(getattr(self, s.field)), str(self.origins[s.key])) for s in SETTINGS
        ]
        for stage in self.stages:
            for key in ("run", "inputs", "after", "every"):
                value = _plain(getattr(stage, key))
                rows.append(Row(f"stages.{stage.name}.{key}", value, stage.where))
        return tuple(rows)


def _plain(value: object) -> object:
    if isinstance(value, Port):
        return str(value) if value.host else value.guest
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def user_file() -> Path:
    """The user's own config file."""
    return paths.config_home() / "config.toml"


def load(
    worktree_path: Path,
    main_path: Path | None,
    *,
    env: Mapping[str, str],
    flags: Mapping[str, object],
    host: HostSize,
    common_dir: Path | None = None,
) -> Settings:
    """The settings of a worktree.

    ``main_path`` is the main checkout (None: the repository has none), ``flags`` are values by
    dotted key (None: not given), ``common_dir`` the repository's git folder where it is known.
    Raises CONFIG, naming file, line, variable or key and the cure; also for what is not trusted.
    """
    user = read_user(user_file())
    read = read_project(worktree_path, env)
    project = read
    if read.code:
        from vmoat.config import trust

        repository = common_dir or trust.common_git_dir(worktree_path)
        project = trust.ready(read, env=env, repository=repository)
    layers = [*([user] if user else []), *project.layers]
    merged = _Merged(env, host)
    for layer in layers:
        merged.layer(layer)
    merged.environment()
    merged.flags(flags)
    merged.clamp()
    stages = typed_stages(layers)
    validate_stages(stages)
    _check_mount(merged, worktree_path)
    _check_trust(merged, project, main_path, env, common_dir)
    values: dict[str, Any] = {BY_KEY[key].field: value for key, value in merged.values.items()}
    return Settings(
        **values,
        stages=stages,
        origins=merged.origins,
        warnings=(*project.warnings, *merged.warnings),
        form=project.form,
        files=project.files,
    )


def defaults(host: HostSize) -> Settings:
    """The settings of nobody: no file and no variable is read."""
    merged = _Merged({}, host)
    merged.clamp()
    values: dict[str, Any] = {BY_KEY[key].field: value for key, value in merged.values.items()}
    return Settings(
        **values, stages=(), origins=merged.origins, warnings=(), form="none", files=()
    )


class _Merged:
    """The values so far; each later source replaces whole values."""

    def __init__(self, env: Mapping[str, str], host: HostSize) -> None:
        self.env = env
        self.host = host
        self.home = home_of(env)
        self.values: dict[str, object] = {s.key: s.default for s in SETTINGS}
        self.origins = {s.key: Origin("default") for s in SETTINGS}
        self.warnings: list[str] = []

    def put(self, key: str, value: object, origin: Origin) -> None:
        self.values[key] = value
        self.origins[key] = origin

    def layer(self, layer: Layer) -> None:
        for key, typed in typed_layer(layer, self.home).items():
            self.put(key, typed.value, Origin(layer.kind, layer.where(typed.line)))

    def environment(self) -> None:
        for name, text in self.env.items():
            if not name.startswith("VMOAT_"):
                continue
            setting = BY_ENV.get(name)
            if setting is None:
                self.warnings += _misspelt(name)
                continue
            value = typed_value(setting, text, "env", name, self.home)
            if value is not None and (text.strip() or not setting.is_list):
                self.put(setting.key, value, Origin("env", name))

    def flags(self, flags: Mapping[str, object]) -> None:
        for key, raw in flags.items():
            if raw is None:
                continue
            if key not in BY_KEY:
                meant = closest(key, list(BY_KEY))
                raise config_error(
                    "", f"there is no setting {key!r}",
                    f"did you mean {meant}?" if meant else "`vmoat help config` lists them",
                )  # fmt: skip
            form: Form = "flag" if isinstance(raw, str) else "toml"
            value = typed_value(BY_KEY[key], raw, form, "on the command line", self.home)
            if value is not None:
                self.put(key, value, Origin("flag", "the command line"))

    def clamp(self) -> None:
        """Defaults fit the host; what was asked for beyond it is cut, and said."""
        for key, most, share in (
            ("vm.cpu", max(1, self.host.cpus), max(1, self.host.cpus)),
            ("vm.memory", max(1, self.host.memory_gib), max(1, self.host.memory_gib // 2)),
        ):
            asked = self.values[key]
            assert isinstance(asked, int)
            if self.origins[key].kind == "default":
                self.values[key] = min(asked, share)
            elif asked > most:
                unit = BY_KEY[key].unit or "CPUs"
                self.warnings.append(
                    f"{self.origins[key]}: {key} = {asked}, but this machine has {most} {unit}; "
                    f"the VM gets {most}"
                )
                self.values[key] = most


def _misspelt(name: str) -> list[str]:
    """Other VMOAT_ variables may belong to a CI or a script; one that looks like a typo is said."""
    meant = closest(name, list(BY_ENV), 0.85)
    return [f"{name} sets nothing; did you mean {meant}?"] if meant else []


def _check_mount(merged: _Merged, worktree: Path) -> None:
    mount = str(merged.values["vm.mount"])
    if not mount:
        return
    real = os.path.realpath(worktree)
    if os.path.commonpath([real, os.path.realpath(mount)]) != os.path.realpath(mount):
        setting = BY_KEY["vm.mount"]
        origin = merged.origins["vm.mount"]
        name = setting.shell if ".conf" in origin.where else setting.key
        raise config_error(
            str(origin),
            f"the worktree {worktree} does not lie under {name} = {mount}",
            f"move the worktree there (git worktree move), or change {name}; "
            + cure_of(setting, "shell" if name == setting.shell else "toml"),
        )


def _check_trust(
    merged: _Merged,
    project: Project,
    main: Path | None,
    env: Mapping[str, str],
    common_dir: Path | None,
) -> None:
    """Refuse values of the branch that open something, unless the user agreed to these files."""
    if not any(_needs_trust(merged, layer) for layer in project.layers):
        return
    from vmoat.config import trust

    repository = common_dir or trust.common_git_dir(project.root)
    asked = [
        wish
        for wish in trust.wishes(project, main, env=env, repository=repository)
        if wish.key in merged.origins and merged.origins[wish.key].where == wish.where
    ]
    if asked and not trust.is_trusted(repository, project.digest()):
        raise trust.untrusted(asked, user_file())


def _needs_trust(merged: _Merged, layer: Layer) -> bool:
    """Quick: whether a value of this layer counts that may need trust."""
    return any(
        (BY_KEY[key].widened_by(merged.values[key]) or key == "provision.seed")
        and merged.origins[key].kind == layer.kind
        for key in layer.values
    )


def changed(rows: Sequence[Row]) -> Iterator[Row]:
    """The rows of ``dump`` that somebody set."""
    return (row for row in rows if row.origin != "default")
