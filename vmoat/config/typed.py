"""From what a file holds to typed values, with errors that name file, line, key and cure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vmoat.config.errors import config_error, cure_of, name_of
from vmoat.config.sources import Layer
from vmoat.config.stages import UserStage
from vmoat.config.stagetable import STAGE_KEYS
from vmoat.config.table import BY_KEY, Setting
from vmoat.config.toml_form import Given
from vmoat.config.values import Bad, Form, checked_text, coerce, relative, show


class Typed(NamedTuple):
    value: object
    line: int


def typed_value(setting: Setting, raw: object, form: Form, where: str, home: str) -> object:
    """The value, or None for an empty text that sets nothing; raises CONFIG."""
    try:
        return coerce(setting, raw, form, home)
    except Bad as error:
        raise config_error(
            where, f"{name_of(setting, form)} {error}", cure_of(setting, form)
        ) from error


def typed_layer(layer: Layer, home: str) -> dict[str, Typed]:
    """Every value of the file, by dotted key."""
    found: dict[str, Typed] = {}
    for key, given in layer.values.items():
        where = layer.where(given.line)
        value = typed_value(BY_KEY[key], given.value, layer.form, where, home)
        if value is not None:
            found[key] = Typed(value, given.line)
    return found


def typed_stages(layers: list[Layer]) -> tuple[UserStage, ...]:
    """The user's stages; a later file changes single keys of an earlier one's stage."""
    merged: dict[str, dict[str, object]] = {}
    for layer in layers:
        for name, keys in layer.stages.items():
            stage = merged.setdefault(name, {"where": layer.where(_first_line(keys))})
            for key, given in keys.items():
                if key in STAGE_KEYS:
                    stage[key] = _stage_value(name, key, given, layer.where(given.line))
    return tuple(_user_stage(name, keys) for name, keys in merged.items())


def _first_line(keys: Mapping[str, Given]) -> int:
    return min((given.line for given in keys.values() if given.line), default=0)


def _user_stage(name: str, keys: Mapping[str, object]) -> UserStage:
    def texts(key: str) -> tuple[str, ...]:
        value = keys.get(key, ())
        return value if isinstance(value, tuple) else ()

    return UserStage(
        name=name,
        run=str(keys.get("run", "")),
        inputs=texts("inputs"),
        after=texts("after"),
        every=str(keys.get("every", "change")),
        where=str(keys["where"]),
    )


def _stage_value(stage: str, key: str, given: Given, where: str) -> object:
    try:
        if key in ("run", "every"):
            return checked_text(given.value)
        if not isinstance(given.value, list):
            raise Bad(f"must be a list, not {show(given.value)}")
        if key == "inputs":
            return tuple(relative(item) or "." for item in given.value)
        return tuple(checked_text(item) for item in given.value)
    except Bad as error:
        name = stage if stage.isprintable() else ascii(stage)
        example = {
            "run": '"make data"', "every": '"change"', "inputs": '["data/**"]',
            "after": '["seed"]',
        }[key]  # fmt: skip
        raise config_error(
            where, f"stages.{name}.{key} {error}", f"write, for example, {key} = {example}"
        ) from error
