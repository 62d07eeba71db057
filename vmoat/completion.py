"""What the shell offers at TAB: the parser's own words, and the stages, services, ports, branches
and VMs that there are.

argcomplete does it: its shell function asks `vmoat` itself with ``_ARGCOMPLETE`` set, in bash, zsh
and fish.  What is offered is looked up in files; only services and ports ask the guest, and not for
longer than a person waits at TAB.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmoat import parser

if TYPE_CHECKING:
    from vmoat.context import Context

PATIENCE = 1.5
"""Seconds for the guest's answer."""

SHELLS = ("bash", "zsh", "fish")

Completer = Callable[..., Iterable[str]]


def script(shell: str) -> str:
    """What `vmoat completion SHELL` prints: to be evaluated, or put where the shell looks."""
    from argcomplete.shell_integration import shellcode

    code: str = shellcode(["vmoat"], shell=shell)
    return code


def run() -> None:
    """Answer the shell and end the process."""
    import argcomplete

    argcomplete.autocomplete(whole_parser(), always_complete_options=False)


def whole_parser() -> argparse.ArgumentParser:
    """Every command in one parser: for completion and the man page; a command line is parsed by
    the parser of its command alone."""
    top = argparse.ArgumentParser(
        prog="vmoat", description="Every git worktree its own VM.", allow_abbrev=False
    )
    _add(top, "", parser.COMMON)
    commands = top.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for command in parser.COMMANDS:
        text = command.help[0].upper() + command.help[1:] + "."
        # argparse takes % for a format
        one = commands.add_parser(
            command.name, help=command.help.replace("%", "%%"), description=text, allow_abbrev=False
        )
        _add(one, command.name, (*command.args, *parser.COMMON))
        if command.rest:
            one.add_argument("rest", nargs="...", metavar=command.rest, help="passed on as it is")
    return top


def _add(to: argparse.ArgumentParser, command: str, entries: Iterable[parser.Arg]) -> None:
    for entry in entries:
        action: Any = to.add_argument(*entry.names, **entry.options)
        found = COMPLETERS.get((command, action.dest)) or COMPLETERS.get(("", action.dest))
        if found:
            action.completer = found


# --- what there is


def _context(space: argparse.Namespace) -> Context | None:
    from vmoat.context import load
    from vmoat.errors import VmoatError

    try:
        start = Path(getattr(space, "path", None) or ".")
        return load(start, branch=getattr(space, "branch", None) or "", claim=False, tolerant=True)
    except (VmoatError, OSError):
        return None


def stages(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """The stages of the worktree's graph."""
    from vmoat.graph import BUILT_IN

    ctx = _context(parsed_args)
    return [*BUILT_IN, *(entry.name for entry in ctx.settings.stages)] if ctx else [*BUILT_IN]


def branches(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """The branches that are checked out in a worktree."""
    from vmoat import worktree
    from vmoat.errors import VmoatError

    try:
        return worktree.branches(Path(getattr(parsed_args, "path", None) or "."))
    except (VmoatError, OSError):
        return []


def machines(**_: Any) -> list[str]:
    """The VMs of this user."""
    from vmoat import paths

    return sorted(folder.name for folder in paths.vms_dir().glob("[!.]*"))


def services(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """The services of the stack as it runs."""
    found = _ask(parsed_args)
    return sorted({c.service or c.name for c in found[1].containers}) if found else []


def ports(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Ports that `tunnel` would take by itself."""
    from vmoat import tunnels

    found = _ask(parsed_args)
    return [str(guest) for guest, _, _ in tunnels.wanted(found[0])] if found else []


def open_ports(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Ports that have a tunnel."""
    from vmoat import tunnels

    ctx = _context(parsed_args)
    return sorted({str(guest) for guest in tunnels.kept(ctx).read().values()}) if ctx else []


def topics(**_: Any) -> list[str]:
    """What `vmoat help` knows."""
    return [*parser.BY_NAME, "walls", "switching", "config"]


def images(**_: Any) -> list[str]:
    """The golden images that there are."""
    from vmoat import paths

    return sorted(folder.name for folder in paths.images_dir().glob("[!.]*"))


def _ask(space: argparse.Namespace) -> tuple[Context, Any] | None:
    ctx = _context(space)
    if ctx is None or ctx.status.state != "running":
        return None
    asking = threading.Thread(target=ctx.facts, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    facts = None if asking.is_alive() else ctx.facts()
    return (ctx, facts) if facts else None


COMPLETERS: dict[tuple[str, str], Completer] = {
    ("", "branch"): branches,
    ("", "stages"): stages,
    ("", "stage"): stages,
    ("up", "force"): stages,
    ("logs", "service"): services,
    ("tunnel", "ports"): ports,
    ("untunnel", "ports"): open_ports,
    ("destroy", "name"): machines,
    ("help", "topic"): topics,
    ("image", "operand"): images,
}
"""By command ("" for each) and the argument's name."""
