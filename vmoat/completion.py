"""What a shell offers on TAB: the parser's own words, and what is known of this worktree.

`vmoat completion SHELL` prints a script of argcomplete; on TAB it calls `vmoat` again with
``_ARGCOMPLETE`` set, and the answer goes to descriptor 8.  Nothing is claimed, started or changed
by that, and the guest is asked only where a connection to it is open already.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vmoat import parser
from vmoat.arguments import Parser

if TYPE_CHECKING:
    from vmoat.context import Context
    from vmoat.facts import Facts

GUEST_LIMIT = 2.0
"""Seconds for the guest's answer: whoever pressed TAB waits for it."""

Values = Mapping[str, str]
"""What is offered, each with what it is (shown by zsh and fish)."""


def script(shell: str) -> str:
    """The script for bash, zsh or fish."""
    from argcomplete.shell_integration import shellcode

    # argcomplete has one text for bash and zsh, which finds out where it runs.
    return shellcode(["vmoat"], shell="bash" if shell == "zsh" else shell)


def answer() -> int:
    """Answer a shell, as argcomplete's protocol has it in the environment; the exit code.

    Whatever fails offers nothing, and says nothing: somebody is at the middle of a line.
    """
    from argcomplete.finders import CompletionFinder

    codes: list[int] = []
    finder = CompletionFinder()
    with contextlib.suppress(Exception):
        finder(whole_parser(), exit_method=codes.append, always_complete_options=False)
    return codes[-1] if codes else 1


def whole_parser() -> argparse.ArgumentParser:
    """All commands in one argparse parser, from the table; for completion only."""
    whole = Parser(prog="vmoat", add_help=False, allow_abbrev=False)
    for entry in parser.COMMON:
        _add(whole, entry)
    whole.add_argument("-h", "--help", action="store_true", help="show the commands")
    whole.add_argument("-V", "--version", action="store_true", help="print the version")
    below = whole.add_subparsers(parser_class=Parser)
    for command in parser.COMMANDS:
        one = below.add_parser(command.name, help=command.help, add_help=False, allow_abbrev=False)
        for entry in command.args:
            _add(one, entry)
        for entry in () if command.rest else parser.COMMON:
            # What stands before the command holds, unless it is said again.
            _add(one, entry, default=argparse.SUPPRESS)
        one.add_argument("-h", "--help", action="store_true", help="show its arguments")
        if command.rest:
            one.add_argument("rest", nargs=argparse.REMAINDER)
    return whole


def _add(to: argparse.ArgumentParser, entry: parser.Arg, **more: Any) -> None:
    action = to.add_argument(*entry.names, **{**entry.options, **more})
    if entry.completes:
        action.completer = Completer(VALUES[entry.completes])  # type: ignore[attr-defined]


class Completer:
    """Calls one of ``VALUES``; offers nothing where that fails, for a TAB prints no errors."""

    def __init__(self, values: Callable[[Question], Values]) -> None:
        self.values = values

    def __call__(
        self, *, prefix: str, action: argparse.Action, parser: argparse.ArgumentParser,
        parsed_args: argparse.Namespace,
    ) -> Values:  # fmt: skip
        try:
            found = self.values(Question(prefix, parsed_args))
        except Exception:
            return {}
        said = getattr(parsed_args, action.dest, None)
        before = {str(word) for word in said} if isinstance(said, list) else set()
        return {word: told for word, told in found.items() if word not in before}


class Question:
    """The word so far, and the worktree that the words before it name."""

    def __init__(self, prefix: str, args: argparse.Namespace) -> None:
        self.prefix = prefix
        self.args = args
        args.branch = (getattr(args, "branches", None) or [None])[0]

    def context(self) -> Context:
        from vmoat.commands import context

        return context(self.args, claim=False, tolerant=True)


def facts(ctx: Context) -> Facts | None:
    """What the guest says now, where a connection is open; None else."""
    if not ctx.instance.claimed or not ctx.guest.connected():
        return None
    from vmoat.facts import Probe

    return ctx.guest.facts(Probe(docker=True, units=("stack",), sockets=True), timeout=GUEST_LIMIT)


def _stages(asked: Question) -> Values:
    from vmoat import graph

    return {name: stage.help for name, stage in graph.stages_of(asked.context()).items()}


def _services(asked: Question) -> Values:
    ctx = asked.context()
    known = facts(ctx)
    if known is not None:
        return {c.service or c.name: c.state for c in known.containers}
    left: Mapping[str, str] = ctx.store.values("stack").get("containers", {})
    return dict.fromkeys(left.values(), "a container of the last `up`")


def _ports(asked: Question) -> Values:
    from vmoat import tunnels

    ctx = asked.context()
    found = {str(port): "tunnel.ports" for port in ctx.settings.tunnel_ports}
    ctx.take_facts(facts(ctx))
    for guest, _, service in tunnels.wanted(ctx):
        found.setdefault(str(guest), service or "listens in the VM")
    return found


def _forwards(asked: Question) -> Values:
    from vmoat import tunnels

    rows = sorted(tunnels.kept(asked.context()).read().items())
    return {str(guest): f"http://localhost:{host}" for host, guest in rows if guest}


def _branches(asked: Question) -> Values:
    from pathlib import Path

    from vmoat import worktree

    tree = worktree.find(Path(getattr(asked.args, "path", None) or "."))
    return {c.branch: str(c.path) for c in tree.checkouts() if c.branch}


def _vms(asked: Question) -> Values:
    from vmoat import instance, paths

    names = sorted(folder.name for folder in paths.vms_dir().glob("[!.]*"))
    owners = {name: instance.read_owner(name) for name in names}
    return {name: str(owner.worktree) for name, owner in owners.items() if owner}


def _keys(asked: Question) -> Values:
    from vmoat.config.table import SETTINGS

    return {setting.key: setting.help for setting in SETTINGS}


def _topics(asked: Question) -> Values:
    from vmoat.commands.help import PAGES

    return {**{c.name: c.help for c in parser.COMMANDS}, **dict.fromkeys(PAGES, "a page")}


def _schemas(asked: Question) -> Values:
    from vmoat import schemas

    return dict.fromkeys(schemas.names(), "")


def _folders(asked: Question) -> Values:
    head = os.path.dirname(asked.prefix)
    names: Iterable[str] = os.listdir(os.path.expanduser(head) or ".")
    found = (os.path.join(head, name) for name in sorted(names))
    return {path + "/": "" for path in found if os.path.isdir(os.path.expanduser(path))}


VALUES: Mapping[str, Callable[[Question], Values]] = {
    "stages": _stages,
    "services": _services,
    "ports": _ports,
    "forwards": _forwards,
    "branches": _branches,
    "vms": _vms,
    "keys": _keys,
    "topics": _topics,
    "schemas": _schemas,
    "folders": _folders,
}
"""What the table's ``completes`` names."""
