"""The config reference of the docs, made from the table."""

from __future__ import annotations

from vmoat.config.stagetable import STAGE_KEYS
from vmoat.config.table import SETTINGS, Setting
from vmoat.config.values import toml_value


def reference() -> str:
    """Every setting as Markdown: a table of the settings, one of the keys of a stage."""
    lines = ["| key | shell key | default | |", "|---|---|---|---|"]
    lines += [_row(setting) for setting in SETTINGS]
    lines += [
        "",
        "⚠ widens a wall: from a project's file it counts only after `vmoat trust`.",
        "",
        "| key of `[stages.NAME]` | |",
        "|---|---|",
    ]
    lines += [f"| `{key}` | {_cell(text)} |" for key, text in STAGE_KEYS.items()]
    return "\n".join(lines) + "\n"


def _row(setting: Setting) -> str:
    shell = f"`{setting.shell}`" if setting.shell else "-"
    default = "-" if setting.default in ("", ()) else f"`{toml_value(setting.default)}`"
    if setting.unit and default != "-":
        default += f" {setting.unit}"
    words = [setting.help]
    if setting.choices:
        words.append("One of " + ", ".join(f"`{c}`" for c in setting.choices if c) + ".")
    if setting.widens:
        words.append("⚠")
    return f"| `{setting.key}` | {shell} | {default} | {_cell(' '.join(words))} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
