"""vmoat(1), made from the command line's own table and the table of settings.

``python -m vmoat.manpage`` prints it; ``vmoat/docs/vmoat.1`` is that text, which the wheel installs
as share/man/man1/vmoat.1.  The macros are those of man(7), which groff and mandoc both have.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator

from vmoat import __version__, parser
from vmoat.config.table import SETTINGS, Setting
from vmoat.config.values import toml_value
from vmoat.errors import Code

EXIT_STATUS: dict[int, str] = {
    Code.OK: "Done.",
    Code.STAGE: "A stage failed; its last lines are shown, `vmoat logs --stage STAGE` has all.",
    Code.USAGE: "Usage.",
    Code.CONFIG: "Configuration, trust.",
    Code.MISSING: "Something is missing on this machine; `vmoat doctor` knows what.",
    Code.VM: "The VM or its driver failed.",
    Code.TIMEOUT: "A time limit passed; behind --timeout the work goes on.",
    Code.BUSY: "Busy: another command changes this VM.",
    Code.BEFORE: "`test`, `exec` or `ssh` failed before the command ran; else theirs is the "
    "command's own.",
    Code.INTERRUPTED: "Interrupted.",
}

DESCRIPTION = (
    "`vmoat up` in a git worktree ends with that worktree's own stack, healthy, on its own kernel "
    "and its own Docker daemon; a second `vmoat up` proves that everything still holds, and does "
    "nothing.",
    "stdout is the answer (a URL, a name, JSON), stderr the story. Options that hold for every "
    "command stand before it or after it; after `test`, `exec` and `ssh` all words belong to "
    "the command that is run.",
)

FILES = (
    ("vmoat.toml", "The project's config; `vmoat init` writes it."),
    ("vmoat.local.toml", "The same, yours alone: ignored by git."),
    ("vmoat.conf, vmoat.local.conf", "The shell form of both; never both forms in one worktree."),
    ("~/.config/vmoat/config.toml", "Your own config, for every worktree."),
    ("~/.local/state/vmoat", "What is known of each VM ($XDG_STATE_HOME)."),
    ("~/.local/share/vmoat", "Images, disks, cached container images ($XDG_DATA_HOME)."),
)


def render() -> str:
    """The page's source."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield '.\\" Made by `python -m vmoat.manpage`; do not edit.'
    # No date: the page is the same whenever it is made.
    yield f'.TH VMOAT 1 "" "vmoat {__version__}" "User Commands"'
    yield from (".SH NAME", "vmoat \\- one ephemeral VM for every git worktree")
    yield from (".SH SYNOPSIS", _synopsis("[-C PATH | -w BRANCH] [-v] COMMAND [ARGUMENTS]"))
    yield ".SH DESCRIPTION"
    for number, paragraph in enumerate(DESCRIPTION):
        yield from (*([".PP"] if number else []), text(paragraph))
    yield ".SH OPTIONS"
    for entry in parser.COMMON:
        yield from _argument(entry)
    yield ".SH COMMANDS"
    for command in parser.COMMANDS:
        yield from _command(command)
    yield ".SH SETTINGS"
    yield text(
        "As keys of vmoat.toml; in parentheses the name in a vmoat.conf. The environment sets them "
        "as VMOAT_UP_COMMAND and the like."
    )
    for setting in SETTINGS:
        yield from _setting(setting)
    yield ".SH EXIT STATUS"
    for code, meaning in EXIT_STATUS.items():
        yield from (".TP", f"\\fB{code}\\fR", text(meaning))
    yield ".SH FILES"
    for name, meaning in FILES:
        yield from (".TP", f"\\fI{escaped(name)}\\fR", text(meaning))
    yield from (".SH SEE ALSO", ".BR git-worktree (1),", ".BR ssh (1)")


def _synopsis(rest: str) -> str:
    return f"\\fBvmoat\\fR {escaped(rest)}".rstrip()


def _command(command: parser.Command) -> Iterator[str]:
    words = " ".join([*(_usage(entry) for entry in command.args), *_rest(command)])
    yield f".SS {escaped(command.name)}"
    yield f"\\fBvmoat {escaped(command.name)}\\fR {words}".rstrip()
    yield from (".PP", text(command.help[0].upper() + command.help[1:] + "."))
    for entry in command.args:
        yield from _argument(entry)


def _rest(command: parser.Command) -> list[str]:
    return [f"[\\fI{command.rest}\\fR...]"] if command.rest else []


def _usage(entry: parser.Arg) -> str:
    """An argument as the synopsis has it."""
    value = _value(entry)
    if entry.names[0].startswith("-"):
        flag = f"\\fB{escaped(entry.names[-1])}\\fR"
        return f"[{flag} {value}]" if value else f"[{flag}]"
    forms = {"?": f"[{value}]", "*": f"[{value}...]", "+": f"{value}..."}
    return forms.get(str(entry.options.get("nargs")), value)


def _value(entry: parser.Arg) -> str:
    """What stands for an argument's value; "" for a flag."""
    options = entry.options
    if options.get("action") == "store_true":
        return ""
    if "choices" in options:
        return "|".join(f"\\fB{escaped(word)}\\fR" for word in options["choices"])
    value = f"\\fI{escaped(options['metavar'])}\\fR"
    return f"[{value}]" if options.get("nargs") == "?" and entry.names[0][0] == "-" else value


def _argument(entry: parser.Arg) -> Iterator[str]:
    if "help" not in entry.options:
        return
    names, value = entry.names, _value(entry)
    if names[0].startswith("-"):
        flags = ", ".join(f"\\fB{escaped(name)}\\fR" for name in names)
        yield from (".TP", f"{flags} {value}".rstrip())
    else:
        yield from (".TP", value)
    yield text(entry.options["help"])


def _setting(setting: Setting) -> Iterator[str]:
    shell = f" ({setting.shell})" if setting.shell else ""
    words = [setting.help]
    if setting.default not in ("", ()):
        words.append(f"Default: {toml_value(setting.default)} {setting.unit}".rstrip() + ".")
    if setting.widens:
        words.append("Widens a wall: from a project's file it counts only after `vmoat trust`.")
    yield from (".TP", f"\\fB{escaped(setting.key)}\\fR{escaped(shell)}", text(" ".join(words)))


def text(words: str) -> str:
    """Running text in lines: `code` becomes bold, a leading dot or quote stays what it is."""
    parts = re.split(r"`([^`]*)`", words)
    line = "".join(f"\\fB{escaped(p)}\\fR" if i % 2 else escaped(p) for i, p in enumerate(parts))
    rows = textwrap.wrap(line, 78, break_long_words=False, break_on_hyphens=False)
    return "\n".join("\\&" + row if row.startswith((".", "'")) else row for row in rows)


def escaped(words: str) -> str:
    """Text that roff prints as it is; what is no ASCII by its code point (groff_char(7))."""
    plain = words.replace("\\", "\\e").replace("-", "\\-")
    return "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in plain)


if __name__ == "__main__":
    sys.stdout.write(render())
