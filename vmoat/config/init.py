"""`vmoat init`: a commented vmoat.toml with what was detected, or one made from a vmoat.conf."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vmoat.config.detect import Detected
from vmoat.config.errors import config_error
from vmoat.config.files import decode, exists, read_bytes
from vmoat.config.headings import SECTIONS
from vmoat.config.shell_form import Assigned, Computes, Value, parse
from vmoat.config.sources import home_of, known_variables
from vmoat.config.table import BY_SHELL, PROJECT_FILES, SETTINGS, Setting
from vmoat.config.typed import typed_value
from vmoat.config.values import Port, toml_value
from vmoat.errors import Code, VmoatError

TEMPLATE = "vmoat.toml.j2"
NAME = "vmoat.toml"
LOCAL = "vmoat.local.toml"


class _Shown(NamedTuple):
    leaf: str
    help: str


def render(detected: Detected, local: Sequence[str] = ()) -> str:
    """The text of a new vmoat.toml: what was detected is set, all else is commented out.

    ``local``: folders that lock files tell of (``vmoat.config.lockfiles``).  Keys that widen a
    wall are left out: they belong to the user, not to the project.
    """
    import jinja2

    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    environment.filters |= {"toml": toml_value, "comment": _one_line, "wrapped": _wrapped}
    return environment.from_string(_template()).render(
        detected=detected,
        sections=_sections(detected, local),
        user_file="config.toml in your own vmoat config folder",
    )


def _template() -> str:
    """`templates/` stands beside the package in a checkout, and is vmoat.templates installed."""
    from importlib import resources

    try:
        return (resources.files("vmoat.templates") / TEMPLATE).read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError):
        beside = Path(__file__).resolve().parents[2] / "templates" / TEMPLATE
        return beside.read_text(encoding="utf-8")


def _sections(
    detected: Detected, local: Sequence[str]
) -> list[tuple[str, str, list[tuple[_Shown, str, bool]]]]:
    given: dict[str, object] = {}
    if detected.command:
        given["up.command"] = detected.command
    if detected.service:
        given["up.service"] = True
    if detected.down:
        given["down.command"] = detected.down
    if local:
        given["mounts.local"] = tuple(local)
    found = []
    for table, heading in SECTIONS.items():
        rows = [
            (
                _Shown(setting.key.rpartition(".")[2], setting.help),
                toml_value(given.get(setting.key, _example(setting))),
                setting.key in given,
            )
            for setting in SETTINGS
            if setting.key.startswith(table + ".") and not setting.widens
            # They belong to another driver, or to the shell form.
            if setting.key not in ("vm.mount", "vm.type")
        ]
        if rows:
            found.append((table, heading, rows))
    return found


def _example(setting: Setting) -> object:
    return setting.default if setting.example is None else setting.example


def _one_line(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f]", "?", text)


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 96)


def create(worktree: Path, detected: Detected, local: Sequence[str] = ()) -> Path:
    """Write a new vmoat.toml and return it; raises CONFIG where a config file is already."""
    there = [name for name in PROJECT_FILES if exists(worktree / name)]
    if NAME in there or any(name.endswith(".conf") for name in there):
        raise config_error(
            str(worktree / there[0]),
            "is there already, and is left as it is",
            f"edit it, or `vmoat init --from {there[0]}`" if ".conf" in there[0] else "edit it",
        )
    return write_new(worktree / NAME, render(detected, local))


def write_new(path: Path, text: str) -> Path:
    """Write a file that must not be there yet (no symlink is followed); CONFIG, MISSING."""
    try:
        with open(path, "x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise config_error(
            str(path), "is there already, and is left as it is", "edit it"
        ) from error
    except OSError as error:
        raise VmoatError(
            f"{path} can't be written: {error.strerror}",
            hint="make the folder writable",
            code=Code.MISSING,
        ) from error
    return path


# -- from the shell form ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Migrated:
    """The TOML of a vmoat.conf, of its vmoat.local.conf ("": none), and what changed meaning."""

    text: str
    local_text: str
    notes: tuple[str, ...]


def migrate(conf: Path, *, env: Mapping[str, str]) -> Migrated:
    """The TOML form of ``conf`` and of the vmoat.local.conf beside it; runs nothing.

    Values that the file computes are left out, and a note says so.  Raises CONFIG for a file that
    can't be read and for values that no setting takes.
    """
    local = conf.with_name("vmoat.local.conf")
    known: dict[str, Value] = {**known_variables(env)}
    notes: list[str] = []
    text = _migrate_one(conf, known, notes, env)
    local_text = ""
    if local != conf and exists(local):
        local_text = _migrate_one(local, known, notes, env)
    names = conf.name + (f" and {local.name}" if local_text else "")
    notes.append(f"remove {names} once you are content: both forms in one worktree are an error")
    return Migrated(text, local_text, tuple(notes))


def _migrate_one(
    conf: Path, known: dict[str, Value], notes: list[str], env: Mapping[str, str]
) -> str:
    import tomli_w

    name = conf.name
    assigned = _recover(decode(read_bytes(conf, name), name), name, known, notes)
    tables: dict[str, dict[str, object]] = {}
    for key, (value, line) in assigned.items():
        where = f"{name}:{line}"
        setting = BY_SHELL.get(key)
        if setting is None:
            notes.append(f"{where}: {key} is a variable of your own; it was left out")
            continue
        if setting.key == "vm.mount":
            notes.append(
                f"{where}: VM_MOUNT was left out: it shared a folder with the VM, which now sees "
                "the worktree only; mounts.share in your own config shares more"
            )
            continue
        typed = typed_value(setting, value, "shell", where, home_of(env))
        if typed is None or typed in ("", ()):
            continue
        table, _, leaf = setting.key.rpartition(".")
        tables.setdefault(table, {})[leaf] = _storable(typed)
        notes.extend(_changes(setting, typed, where, home_of(env)))
    order = {table: index for index, table in enumerate(SECTIONS)}
    document = {table: tables[table] for table in sorted(tables, key=lambda t: order[t])}
    return f"# Made from {name} by `vmoat init`.\n\n" + tomli_w.dumps(document)


def _storable(value: object) -> object:
    if isinstance(value, tuple) and not isinstance(value, Port):
        return [_storable(item) for item in value]
    if isinstance(value, Port):
        return str(value) if value.host else value.guest
    return value


def _changes(setting: Setting, value: object, where: str, home: str) -> list[str]:
    """What a key means now that it didn't mean to the shell tool."""
    found = []
    if setting.key in ("vm.cpu", "vm.memory", "vm.disk"):
        found.append(
            f"{where}: {setting.shell} ({setting.key}) applied when the VM was made; now it "
            "applies at every start"
        )
    if setting.key == "test.command":
        found.append(
            f"{where}: arguments of `vmoat test` are appended to CMD_TEST each quoted: one with "
            "a space stays one"
        )
    if setting.key == "provision.script":
        found.append(
            f"{where}: PROVISION_SCRIPT ran each time; now once a disk, and again when it or "
            "provision.inputs changed: list the files that it reads there"
        )
    if setting.key == "provision.seed":
        found.append(
            f"{where}: a seed that the main checkout's own config doesn't list needs "
            "`vmoat trust`: commit this file there first"
        )
    if home not in ("", "/") and home in str(value):
        found.append(f"{where}: $HOME was written out as {home}: it is yours, not everybody's")
    return found


def _recover(
    text: str, name: str, known: dict[str, Value], notes: list[str]
) -> dict[str, Assigned]:
    """The assignments; past each that computes, the next line that parses goes on."""
    found: dict[str, Assigned] = {}
    rows = text.split("\n")
    start, flow = 0, 0
    while start < len(rows):
        length = _plain_length(rows, start, name, known)
        if length:
            part = parse("\n".join(rows[start : start + length]), name, known)
        else:
            line = start + 1
            length, part = _skip(rows, start, name, known, notes)
            flow = flow or (line if not re.match(r"\s*(export\s+)?\w+\+?=", rows[start]) else 0)
        for key, item in part.items():
            found[key] = Assigned(item.value, start + item.line)
            known[key] = item.value
            if flow and key in BY_SHELL:
                notes.append(
                    f"{name}:{start + item.line}: {key} follows code (line {flow}) that may "
                    "decide about it; check its value"
                )
        start += length
    return found


def _plain_length(rows: list[str], start: int, name: str, known: dict[str, Value]) -> int:
    """How many rows from ``start`` make one plain statement; 0 when it computes."""
    for length in range(1, min(len(rows) - start, 200) + 1):
        try:
            parse("\n".join(rows[start : start + length]), name, known)
        except Computes:
            return 0
        except VmoatError as error:
            if "never ends" not in error.message:
                raise
            continue
        if not rows[start + length - 1].endswith("\\"):
            return length
    return 0


def _skip(
    rows: list[str], start: int, name: str, known: dict[str, Value], notes: list[str]
) -> tuple[int, dict[str, Assigned]]:
    """One row that computes is left out from where it does, and said."""
    row = rows[start]
    found: dict[str, Assigned] = {}
    try:
        parse(row, name, known)
        why = "can't be read without running it"
    except Computes as stop:
        why, found = stop.why, stop.found
    except VmoatError as error:
        why = error.message.partition(": ")[2]
    lost = [key for key in re.findall(r"(?:^|[\s;])([A-Za-z_]\w*)\+?=", row) if key not in found]
    now = [BY_SHELL[key].key for key in lost if key in BY_SHELL]
    what = " and ".join(lost) if lost else "a line"
    cure = f"; set {' and '.join(now)} by hand" if now else ""
    notes.append(f"{name}:{start + 1}: {what} left out, because it {why}{cure}")
    return 1, found
