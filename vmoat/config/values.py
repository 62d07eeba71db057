"""From what a file, a variable or a flag holds to the typed value of a setting.

Pure: nothing here knows where a value stands; the caller adds file, line and key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from vmoat.config import amounts
from vmoat.config.table import PROJECT_FILES, Setting

Form = Literal["toml", "shell", "env", "flag"]

PORT_MAX = 65_535
NAME_MAX = 32

# Characters that no apt package selection (name:arch=version/release) holds; above all no
# whitespace and no shell.  Debian policy 5.6.1 is stricter, but apt itself takes more.
_REGISTRY = re.compile(r"[A-Za-z0-9.*_-]+(:[0-9*]+)?")
_APT = re.compile(r"[A-Za-z0-9][A-Za-z0-9+.:~=/_-]*")
_PROJECT = re.compile(r"[a-z0-9][a-z0-9_-]*")  # Compose specification, top-level `name`
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_INT = re.compile(r"[+-]?[0-9]{1,12}")
_ENDPOINT = re.compile(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\]):([0-9]{1,5})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Bad(ValueError):  # noqa: N818  (it never leaves this package: callers make it a VmoatError)
    """A value that a setting can't take; the text reads on after "KEY "."""


class Port(NamedTuple):
    """A port of the VM and the one asked for on the host (0: any that is free)."""

    guest: int
    host: int = 0

    def __str__(self) -> str:
        return f"{self.guest}:{self.host}" if self.host else str(self.guest)


def parse_port(text: str | int) -> Port:
    """``8080`` or ``5432:15432`` (GUEST:HOST) as a Port; raises Bad with the reason."""
    guest, colon, host = str(text).strip().partition(":")
    return Port(_port(guest), _port(host) if colon else 0)


def _port(text: str) -> int:
    if not _INT.fullmatch(text):
        raise Bad(f"must hold ports (PORT or GUEST:HOST), not {show(text)}")
    number = int(text)
    if not 1 <= number <= PORT_MAX:
        raise Bad(f"holds port {number}; ports go from 1 to {PORT_MAX}")
    return number


def split_share(text: str) -> tuple[Path, bool]:
    """A checked ``mounts.share`` entry as (folder, writable)."""
    return (Path(text[:-3]), False) if text.endswith(":ro") else (Path(text), True)


def expand_home(text: str, home: str) -> str:
    """``~``, ``~/x``, ``$HOME/x`` and ``${HOME}/x`` with the home folder; else the text itself."""
    for head in ("~", "$HOME", "${HOME}"):
        if text == head or text.startswith(head + "/"):
            return home + text[len(head) :]
    return text


def show(value: object, limit: int = 60) -> str:
    """A value as an error message shows it: short, on one line, printable."""
    try:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    except (ValueError, RecursionError):  # an integer of 5000 digits, a list a thousand deep
        return "a value that long"
    text = text.replace("\n", " ")
    return text if len(text) <= limit else text[: limit - 1] + "…"


_MAY_BE_EMPTY = ("str", "choice", "name", "url", "path", "duration")


def coerce(setting: Setting, raw: object, form: Form, home: str) -> object:
    """The typed value; None where an empty text means "not set".  Raises Bad."""
    if isinstance(raw, str) and form != "toml":
        if not raw.strip() and setting.kind not in _MAY_BE_EMPTY:
            return () if setting.is_list else None
        if not setting.is_list:
            return _scalar(setting, _from_text(setting, raw), home)
        raw = _split(setting, raw, form)
    if setting.is_list:
        return _list(setting, raw, form, home)
    return _scalar(setting, raw, home)


def _from_text(setting: Setting, text: str) -> object:
    """Integers and booleans from the text of a shell file or a variable."""
    text = text.strip() if setting.kind in ("int", "bool") else text
    if setting.kind == "int" and _INT.fullmatch(text):
        return int(text)
    if setting.kind == "bool":
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    return text


def _split(setting: Setting, text: str, form: Form) -> list[str]:
    if setting.kind == "args":  # QEMU's own values hold commas
        import shlex

        try:
            return shlex.split(text)
        except ValueError:
            raise Bad("has a quote that never ends") from None
    if form == "shell":
        return text.split()
    return [word for word in re.split(r"[,\s]+", text) if word]


def _scalar(setting: Setting, raw: object, home: str) -> object:
    if setting.kind == "int":
        return _integer(setting, raw)
    if setting.kind == "bool":
        if not isinstance(raw, bool):
            raise Bad(f"must be true or false, not {show(raw)}")
        return raw
    if setting.kind == "portion" and isinstance(raw, int) and not isinstance(raw, bool):
        raw = show(raw)
    text = checked_text(raw)
    match setting.kind:
        case "duration" | "portion":
            if wanted := amounts.FAULTS[setting.kind](text):
                raise Bad(f"must be {wanted}, not {show(text)}")
        case "choice":
            if text not in setting.choices:
                known = ", ".join(f'"{choice}"' for choice in setting.choices if choice)
                raise Bad(f"must be one of {known}, not {show(text)}")
        case "name":
            _name(setting, text)
        case "url":
            _url(setting, text)
        case "path":
            text = _absolute(text, home) if text else ""
    return text


def checked_text(raw: object) -> str:
    """A text that programs can be given; raises Bad for other types, NUL and broken unicode."""
    if not isinstance(raw, str):
        if isinstance(raw, (list, tuple)):
            raise Bad("must be one text, not a list")
        raise Bad(f"must be a text in quotes, not {show(raw)}")
    if "\0" in raw:
        raise Bad("holds a NUL byte")
    try:
        raw.encode()
    except UnicodeEncodeError:
        raise Bad("is not UTF-8") from None
    return raw


def _integer(setting: Setting, raw: object) -> int:
    unit = f" ({setting.unit})" if setting.unit else ""
    if isinstance(raw, bool) or not isinstance(raw, int):
        raise Bad(f"must be a whole number{unit}, not {show(raw)}")
    if raw < setting.minimum:
        raise Bad(f"must be at least {setting.minimum}{unit}, not {show(raw)}")
    if raw > setting.maximum:
        raise Bad(f"must be at most {setting.maximum}{unit}, not {_big(raw)}")
    return raw


def _big(number: int) -> str:
    return str(number) if number < 10**15 else "a number that large"


def _name(setting: Setting, text: str) -> None:
    pattern, letters = (
        (_PREFIX, "letters, digits and -")
        if setting.key == "vm.prefix"
        else (_PROJECT, "lower-case letters, digits, _ and -")
    )
    if text and not pattern.fullmatch(text):
        raise Bad(f"may hold {letters}, beginning with a letter or digit, not {show(text)}")
    if len(text) > NAME_MAX and setting.key == "vm.prefix":
        raise Bad(f"may be {NAME_MAX} characters long, not {len(text)}")


def _url(setting: Setting, text: str) -> None:
    """curl takes a URL without a scheme, and users' files have such; never an option, though."""
    if not text and not setting.default:
        return
    if not text or _CONTROL.search(text) or " " in text or text.startswith("-"):
        raise Bad(f"must be a URL, not {show(text)}")
    scheme, found, _ = text.partition("://")
    if (found or setting.default) and scheme.lower() not in ("http", "https"):
        raise Bad(f"must be a http:// or https:// URL, not {show(text)}")
    from urllib.parse import urlsplit

    try:
        port = urlsplit(text if found else f"http://{text}").port
    except ValueError as error:  # a port that is no number, a bracket that is not closed
        raise Bad(f"must be a URL with a port from 1 to 65535, not {show(text)}") from error
    if port == 0:
        raise Bad(f"must be a URL with a port from 1 to 65535, not {show(text)}")


def _absolute(text: str, home: str) -> str:
    path = expand_home(text, home)
    if not path.startswith("/") or _CONTROL.search(path):
        raise Bad(f"must be an absolute path or begin with ~/, not {show(text)}")
    return path


def _list(setting: Setting, raw: object, form: Form, home: str) -> tuple[object, ...]:
    if not isinstance(raw, (list, tuple)):
        raise Bad(f"must be a list, not {show(raw)}")
    items: Iterable[object] = raw
    if form == "shell" and setting.kind in ("apt", "ports"):
        items = [word for item in raw for word in str(item).split()]
    check = _ITEMS[setting.kind]
    found = tuple(check(item, home) for item in items)
    if setting.kind == "folders":
        _apart([str(item) for item in found])
    return found


def _apt_item(item: object, home: str) -> str:
    text = checked_text(item)
    if not _APT.fullmatch(text):
        raise Bad(f"must hold package names, not {show(text)}")
    return text


def _port_item(item: object, home: str) -> Port:
    if isinstance(item, Port):
        return parse_port(str(item))
    if isinstance(item, bool) or not isinstance(item, (int, str)):
        raise Bad(f"must hold ports (PORT or GUEST:HOST), not {show(item)}")
    if isinstance(item, int) and abs(item) >= 10**12:
        raise Bad(f"holds a port that large; ports go from 1 to {PORT_MAX}")
    return parse_port(item)


def relative(item: object, home: str = "") -> str:
    """A path or glob inside the worktree; raises Bad for what leaves it or names its .git."""
    text = checked_text(item)
    if not text.strip() or _CONTROL.search(text):
        raise Bad(f"must hold paths, not {show(text)}")
    if text.startswith(("/", "~")):
        raise Bad(f"must hold paths inside the worktree, and {show(text)} is not relative")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Bad(f"must hold paths inside the worktree, and {show(text)} leaves it")
    return "/".join(parts)


def _seed_item(item: object, home: str) -> str:
    path = relative(item)
    if not path:
        raise Bad("names the whole worktree as a seed")
    if path.split("/")[0].lower() == ".git":
        raise Bad(f"names the git folder as a seed ({show(path)})")
    return path


def _folder_item(item: object, home: str) -> str:
    path = relative(item)
    if not path:
        raise Bad("names the whole worktree")
    if ".git" in path.lower().split("/"):
        raise Bad(f"names a git folder ({show(path)})")
    if path in PROJECT_FILES:
        raise Bad(f"names vmoat's own config ({path})")
    return path


def _apart(paths: Sequence[str]) -> None:
    """Raises Bad for a folder that is there twice, or lies in another one."""
    for number, path in enumerate(paths):
        for other in (*paths[:number], *paths[number + 1 :]):
            if path == other:
                raise Bad(f"names {show(path)} twice")
            if path.startswith(other + "/"):
                raise Bad(f"names {show(path)}, which lies in {show(other)}")


def _glob_item(item: object, home: str) -> str:
    """A pattern that pathlib takes (`**` stands for whole folders); "." is the whole worktree."""
    pattern = relative(item)
    if pattern in ("", ".", "**"):
        return "."
    if any("**" in part and part != "**" for part in pattern.split("/")):
        raise Bad(f"`**` must stand alone between slashes, not {show(pattern)}")
    return pattern


def _share_item(item: object, home: str) -> str:
    text = checked_text(item)
    path, readonly = (text[:-3], ":ro") if text.endswith(":ro") else (text, "")
    return _absolute(path, home) + readonly


def _endpoint_item(item: object, home: str) -> str:
    text = checked_text(item).lower()
    found = _ENDPOINT.fullmatch(text)
    if found is None or not 1 <= int(found[3]) <= PORT_MAX or not _is_host(found[1]):
        raise Bad(f"must hold registries as HOST:PORT, not {show(text)}")
    return text


def _is_host(text: str) -> bool:
    if not text.startswith("["):
        return True
    import ipaddress

    try:
        return bool(ipaddress.IPv6Address(text[1:-1]))
    except ValueError:
        return False


def _arg_item(item: object, home: str) -> str:
    return checked_text(item)


def _registry_item(item: object, home: str) -> str:
    text = checked_text(item)
    if not _REGISTRY.fullmatch(text):
        raise Bad(f"must hold registries (HOST or HOST:PORT; * for any text), not {show(text)}")
    return text


_ITEMS: Mapping[str, Callable[[object, str], object]] = {
    "apt": _apt_item,
    "ports": _port_item,
    "seeds": _seed_item,
    "globs": _glob_item,
    "shares": _share_item,
    "args": _arg_item,
    "folders": _folder_item,
    "registries": _registry_item,
    "endpoints": _endpoint_item,
}


def toml_value(value: object) -> str:
    """A value of a setting as it is written in TOML (for errors, docs and `vmoat config`)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Port):
        return f'"{value}"' if value.host else str(value.guest)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    return _quoted(str(value))


def _quoted(text: str) -> str:
    """A TOML basic string (toml.io, "String"): escapes for quotes, backslash and controls."""
    short = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    out = (short.get(c) or (f"\\u{ord(c):04x}" if _CONTROL.match(c) else c) for c in text)
    return '"' + "".join(out) + '"'


def shell_value(value: object) -> str:
    """A value as a vmoat.conf has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)) and not isinstance(value, Port):
        return '"' + " ".join(str(item) for item in value) + '"'
    return str(value) if isinstance(value, int) else f'"{value}"'


def closest(word: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    """The known word that was probably meant, or an empty text."""
    import difflib

    found = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return found[0] if found else ""
