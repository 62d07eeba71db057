"""How this package's errors look: file:line, the key, what is wrong with it, and the cure."""

from __future__ import annotations

from collections.abc import Iterable

from vmoat.config.table import Setting
from vmoat.config.values import Form, shell_value, toml_value
from vmoat.errors import Code, VmoatError


def config_error(where: str, problem: str, cure: str, details: Iterable[str] = ()) -> VmoatError:
    """A CONFIG error; ``where`` is ``vmoat.toml:12``, a variable or a flag ("" adds nothing)."""
    message = f"{where}: {problem}" if where else problem
    return VmoatError(message, hint=cure, code=Code.CONFIG, details=details)


def name_of(setting: Setting, form: Form) -> str:
    """What the user calls the setting in this form."""
    return (setting.shell or setting.key) if form == "shell" else setting.key


def cure_of(setting: Setting, form: Form) -> str:
    """A line that would work there."""
    example = setting.default if setting.example is None else setting.example
    if form == "shell":
        return f"write, for example, {setting.shell}={shell_value(example)}"
    if form == "env":
        return f"set, for example, {setting.env}={shell_value(example)}"
    table, _, leaf = setting.key.rpartition(".")
    place = f" under [{table}]" if table else " above the first [table]"
    if form == "flag":
        return f"a value that works: {toml_value(example)}"
    return f"write, for example, {leaf} = {toml_value(example)}{place}"
