"""The TOML form: vmoat.toml, vmoat.local.toml and the user's config.toml.

``tomllib`` reads; the little scanner below adds the line of each key, which tomllib doesn't tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from vmoat.config.errors import config_error
from vmoat.config.stagetable import STAGE_KEYS
from vmoat.config.table import BY_KEY, BY_SHELL
from vmoat.config.values import closest, show, toml_value


class Given(NamedTuple):
    """A value as a file holds it, with its line."""

    value: object
    line: int


KeyPath = tuple[str, ...]

_TABLES = {key.rpartition(".")[0] for key in BY_KEY if "." in key} | {"stages"}


def parse(text: str, name: str) -> tuple[dict[str, Given], dict[str, dict[str, Given]]]:
    """The settings by dotted key, and the stages by name, untyped.

    Raises CONFIG naming file, line and key for broken TOML and for keys that there are not.
    """
    document = _document(text, name)
    lines = key_lines(text)
    values: dict[str, Given] = {}
    stages: dict[str, dict[str, Given]] = {}
    for path, value in _leaves(document):
        line = lines.get(path, 0)
        where = f"{name}:{line}" if line else name
        if path[0] == "stages":
            _stage(path, value, line, where, stages, lines)
            continue
        key = ".".join(path)
        if key not in BY_KEY:
            raise _unknown(key, value, where)
        values[key] = Given(value, line)
    return values, stages


def _document(text: str, name: str) -> dict[str, object]:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason, _, place = str(error).rpartition(" (at ")
        found = re.fullmatch(r"line (\d+), column (\d+)\)", place)
        if not found:
            line = text.rstrip().count("\n") + 1
            raise config_error(
                f"{name}:{line}", f"broken TOML: {error}", "correct the file's end"
            ) from error
        raise config_error(
            f"{name}:{found[1]}",
            f"broken TOML: {show_reason(reason)} (column {found[2]})",
            "correct that line; texts stand in quotes, lists in [ ]",
        ) from error
    except RecursionError as error:
        raise config_error(name, "is nested too deep", "flatten it") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        # tomllib lets some slip: an integer of 5000 digits, a date in the year 0.
        raise config_error(name, f"broken TOML: {error}", "correct the file") from error


def show_reason(reason: str) -> str:
    """tomllib's words, which may quote an odd character of the file."""
    return reason if reason.isprintable() else ascii(reason)


def _leaves(document: Mapping[str, object]) -> Iterator[tuple[KeyPath, object]]:
    """All that stands in the document, down to what is a setting, a stage's key or unknown."""
    for head, value in document.items():
        if head not in _TABLES or head in BY_KEY or not isinstance(value, dict):
            yield (head,), value
        elif head == "stages":
            for stage, keys in value.items():
                if not isinstance(keys, dict) or not keys:
                    yield (head, stage), keys
                else:
                    yield from (((head, stage, key), leaf) for key, leaf in keys.items())
        else:
            yield from (((head, key), leaf) for key, leaf in value.items())


def _stage(
    path: KeyPath,
    value: object,
    line: int,
    where: str,
    stages: dict[str, dict[str, Given]],
    lines: Mapping[KeyPath, int],
) -> None:
    if len(path) == 1:
        raise config_error(
            where, f"stages must be tables, not {show(value)}", "write [stages.NAME] and run = …"
        )
    shown = path[1] if path[1].isprintable() else ascii(path[1])
    if len(path) == 2:
        if value != {}:
            raise config_error(
                where,
                f"stages.{shown} must be a table, not {show(value)}",
                f'write [stages.{shown}] and under it run = "…"',
            )
        stages.setdefault(path[1], {})[""] = Given(None, line)
        return
    if path[2] not in STAGE_KEYS:
        meant = closest(path[2], list(STAGE_KEYS))
        raise config_error(
            where,
            f"stages.{shown} has no key {show(path[2])}",
            f'did you mean "{meant}"?' if meant else f"known: {', '.join(STAGE_KEYS)}",
        )
    stage = stages.setdefault(path[1], {"": Given(None, lines.get(path[:2], line))})
    stage[path[2]] = Given(value, line)


def _unknown(key: str, value: object, where: str) -> Exception:
    shown = key if key.isprintable() else ascii(key)
    if key in _TABLES:
        example = next(other for other in BY_KEY if other.startswith(key + "."))
        return config_error(
            where,
            f"{key} is a table, not {show(value)}",
            f"write [{key}] and under it, for example, {example.partition('.')[2]} = …",
        )
    if key in BY_SHELL:
        setting = BY_SHELL[key]
        return config_error(
            where, f"{key} is the name of a vmoat.conf", f"in TOML it is {setting.key}"
        )
    leaf = key.rpartition(".")[2]
    same_leaf = [other for other in BY_KEY if other.rpartition(".")[2] == leaf]
    meant = same_leaf[0] if len(same_leaf) == 1 else closest(key, list(BY_KEY))
    return config_error(
        where,
        f"there is no setting {show(shown) if len(shown) > 60 else shown}",
        f"did you mean {meant}? (it takes, for example, {toml_value(_example(meant))})"
        if meant
        else "`vmoat help config` lists the settings",
    )


def _example(key: str) -> object:
    setting = BY_KEY[key]
    return setting.default if setting.example is None else setting.example


# -- the lines of keys -----------------------------------------------------------------------

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_BASIC = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_LITERAL = re.compile(r"'[^'\n]*'")
_LONG_BASIC = re.compile(r'"""(?:[^\\]|\\.)*?"""+', re.DOTALL)
_LONG_LITERAL = re.compile(r"'''.*?'''+", re.DOTALL)
_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SCALAR = re.compile(r"[^,\]}\n#]*")


def key_lines(text: str) -> dict[KeyPath, int]:
    """The first line of each key and table of a text that tomllib takes; what it can't follow is
    left out."""
    scanner = _Scanner(text)
    with suppress(_Lost, RecursionError):
        scanner.scan()
    return scanner.lines


class _Lost(Exception):  # noqa: N818
    """The scanner doesn't understand the text."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0
        self.lines: dict[KeyPath, int] = {}
        self.counted = (0, 1)

    def scan(self) -> None:
        table: KeyPath = ()
        while self.skip():
            if self.text[self.pos] == "[":
                depth = 2 if self.text.startswith("[[", self.pos) else 1
                self.pos += depth
                table = self.key(())
                self.skip()
                self.expect("]" * depth)
            else:
                self.pair(table)

    def skip(self) -> bool:
        """Past whitespace and comments; whether anything is left."""
        found = _SPACE.match(self.text, self.pos)
        self.pos = found.end() if found else self.pos
        return self.pos < len(self.text)

    def expect(self, token: str) -> None:
        if not self.text.startswith(token, self.pos):
            raise _Lost
        self.pos += len(token)

    def take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.pos)
        if not found:
            raise _Lost
        self.pos = found.end()
        return found[0]

    def line(self) -> int:
        start, line = self.counted
        line += self.text.count("\n", start, self.pos)
        self.counted = (self.pos, line)
        return line

    def key(self, table: KeyPath) -> KeyPath:
        """A dotted key; each of its parts is a key that stands on this line."""
        path = table
        while True:
            self.skip()
            line = self.line()
            path = (*path, self.part())
            self.lines.setdefault(path, line)
            self.skip()
            if not self.text.startswith(".", self.pos):
                return path
            self.pos += 1

    def part(self) -> str:
        if self.text.startswith('"', self.pos):
            quoted = self.take(_BASIC)
            if "\\" not in quoted:
                return quoted[1:-1]
            import tomllib

            return str(tomllib.loads(f"k = {quoted}")["k"])
        if self.text.startswith("'", self.pos):
            return self.take(_LITERAL)[1:-1]
        return self.take(_BARE)

    def pair(self, table: KeyPath) -> None:
        path = self.key(table)
        self.expect("=")
        self.value(path)

    def value(self, path: KeyPath) -> None:
        self.skip()
        rest = self.text[self.pos : self.pos + 3]
        if rest == '"""':
            self.take(_LONG_BASIC)
        elif rest == "'''":
            self.take(_LONG_LITERAL)
        elif rest[:1] == '"':
            self.take(_BASIC)
        elif rest[:1] == "'":
            self.take(_LITERAL)
        elif rest[:1] == "[":
            self.items("]", lambda: self.value((*path, "")))
        elif rest[:1] == "{":
            self.items("}", lambda: self.pair(path))
        else:
            self.take(_SCALAR)

    def items(self, end: str, item: Callable[[], None]) -> None:
        self.pos += 1
        while self.skip() and not self.text.startswith(end, self.pos):
            before = self.pos
            item()
            self.skip()
            if self.text.startswith(",", self.pos):
                self.pos += 1
            if self.pos == before:
                raise _Lost
        self.expect(end)
