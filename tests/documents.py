"""What ``--json`` printed, held against the schemas of ``vmoat schema``."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator

from vmoat import schemas


def closed(schema: Any) -> Any:
    """The schema, but a member that it doesn't name is an error: each is documented."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(part) for key, part in schema.items()}
    if "properties" in schema and "additionalProperties" not in schema:
        inner["additionalProperties"] = False
    return inner


def check(document: dict[str, Any]) -> str:
    """Validate a document against the form that it names; its name."""
    name = document["schema"].removeprefix("vmoat.").removesuffix("/1")
    schema = closed(json.loads(schemas.read(name)))
    errors = [error.message for error in Draft202012Validator(schema).iter_errors(document)]
    assert errors == [], document
    return str(name)


def names(text: str) -> list[str]:
    """The forms of documents that come one a line, each validated."""
    return [check(json.loads(line)) for line in text.splitlines()]
