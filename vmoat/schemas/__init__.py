"""The forms of what ``--json`` prints: JSON Schema 2020-12, one file a form.

Each document names its form, ``"schema": "vmoat.NAME/1"``.  Within a version, members and kinds of
events are added and none changes its meaning or goes: readers pass over what they don't know.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


def names() -> list[str]:
    found = (entry.name for entry in _folder().iterdir())
    return sorted(name.removesuffix(".json") for name in found if name.endswith(".json"))


def read(name: str) -> str:
    """The schema's text; ``name`` is one of ``names()``."""
    return _folder().joinpath(f"{name}.json").read_text(encoding="utf-8").rstrip("\n")


def _folder() -> Traversable:
    from importlib.resources import files

    return files(__name__)
