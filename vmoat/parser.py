"""The command line's grammar, as one table: names, help, arguments, where the code is.

A pure description: the parser, the help texts and the README's list of commands are made from it.
Only the asked-for command's parser is built, because ``vmoat name`` is called from shell prompts.
"""

from __future__ import annotations

from vmoat.errors import Code, VmoatError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any

# No dataclasses here: they load `inspect`, which takes longer than printing the help.


class Arg:
    """One argument or option of a command, in argparse's words.

    ``completes`` names what a shell offers for it (``vmoat.completion.VALUES``); "" where that is
    its ``choices`` or files.
    """

    __slots__ = ("completes", "names", "options")

    def __init__(self, names: tuple[str, ...], options: dict[str, Any], completes: str) -> None:
        self.names = names
        self.options = options
        self.completes = completes


def arg(*names: str, completes: str = "", **options: Any) -> Arg:
    return Arg(names, options, completes)


class Command:
    """A command: ``module`` and ``function`` are imported when it is called.

    ``rest`` is the name of the words that are passed on as they are (``test WORDS``).
    """

    __slots__ = ("args", "help", "module", "name", "rest", "target")

    @property
    def several(self) -> bool:
        """Whether it takes several worktrees."""
        return self.name in ("up", "down", "status", "provision")

    def __init__(
        self,
        name: str,
        module: str,
        help: str,
        args: tuple[Arg, ...] = (),
        rest: str = "",
        function: str = "",
    ) -> None:
        self.name = name
        self.module = module
        self.help = help
        self.args = args
        self.rest = rest
        self.target = function or name.replace("-", "_")


def seconds(text: str) -> float:
    """A time limit; argparse says "invalid seconds value" where this raises."""
    value = float(text)
    if not 0 <= value < 1e9:  # also refuses nan
        raise ValueError(text)
    return value


def lines(text: str) -> int:
    """A number of lines; argparse says "invalid lines value" where this raises."""
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def port(text: str) -> int:
    """A TCP port, 0 for any; argparse says "invalid port value" where this raises."""
    value = int(text)
    if not 0 <= value <= 65535:
        raise ValueError(text)
    return value


COMMON = (
    arg("-C", dest="path", metavar="PATH", completes="folders",
        help="act on the worktree at PATH"),
    arg("-w", dest="branches", action="append", metavar="BRANCH", completes="branches",
        help="act on the worktree of BRANCH; `up`, `down`, `status` take several"),
    arg("-v", dest="verbose", action="store_true", help="show each program call, ready to paste"),
)  # fmt: skip
_JSON = arg("--json", action="store_true", help="answer in JSON")
_TIMEOUT = arg(
    "--timeout", type=seconds, metavar="SECONDS",
    help="stop watching after SECONDS (exit 6); the work goes on",
)  # fmt: skip
_NO_WAIT = arg("--no-wait", action="store_true",
               help="an error (exit 7) where other VMs leave no room for this one's memory")

_PAGE = arg(
    "page", nargs="?", metavar="SERVICE|URL", completes="services",
    help="a service, port, /path or URL as inside the VM; else the health URL's site",
)  # fmt: skip

_TAIL = arg(
    "--tail", type=lines, metavar="N",
    help="of the stages' output, only the running one's last N lines, at the end",
)  # fmt: skip
_TAIL_OWN = arg(
    "--tail", type=lines, metavar="N",
    help="only the command's last N lines, on stdout, when it has ended; all of it in a file",
)  # fmt: skip

COMMANDS = (
    Command(
        "up", "lifecycle", "bring the worktree's stack up, healthy, in its own VM",
        (
            arg("stages", nargs="*", metavar="STAGE", completes="stages",
                help="only these and what they need"),
            arg("--force", nargs="?", const="", default=None, metavar="STAGE", completes="stages",
                help="run STAGE (without one: apt and all after it) though it is up to date"),
            arg("--detach", action="store_true", help="return at once; `vmoat wait` follows"),
            _NO_WAIT,
            _TIMEOUT,
            _TAIL,
            arg("--json", action="store_true", help="the events, one JSON object a line"),
        ),
    ),
    Command(
        "plan", "lifecycle", "show what `up` would run and why; touches nothing",
        (arg("stages", nargs="*", metavar="STAGE", completes="stages",
             help="only these and what they need"), _JSON),
    ),
    Command(
        "wait", "lifecycle", "follow the work that goes on and end with its exit code",
        (_TIMEOUT, _TAIL,
         arg("--json", action="store_true", help="the events, one JSON object a line")),
    ),
    Command(
        "test", "inside", "run the project's tests inside the VM; words are added to the command",
        (arg("--no-up", action="store_true", help="an error where the stack is not up"),
         _NO_WAIT,
         arg("--timeout", type=seconds, metavar="SECONDS",
             help="give up on bringing it up after SECONDS (exit 125); that work goes on"),
         _TAIL_OWN),
        rest="WORDS",
    ),
    Command("exec", "inside", "run a command inside the VM, without a terminal", (_TAIL_OWN,),
            rest="COMMAND", function="execute"),
    Command("ssh", "inside", "a shell inside the VM, or a command with a terminal",
            rest="COMMAND"),
    Command(
        "cp", "inside", "copy files between this machine and the VM (vm:PATH)",
        (
            arg("-r", dest="recursive", action="store_true", help="folders, with all in them"),
            arg("paths", nargs="+", metavar="PATH",
                help="sources and a target; vm:PATH is in the VM, from the worktree on"),
        ),
        function="copy",
    ),
    Command("ssh-config", "inside", "print a block for ~/.ssh/config: VS Code, rsync, scp"),
    Command(
        "env", "environment", "print DOCKER_HOST for a shell: eval \"$(vmoat env)\"",
        (
            arg("--shell", choices=("sh", "fish"), metavar="SHELL",
                help="sh (bash, zsh too) or fish; else by $SHELL"),
            _JSON,
        ),
        function="environment",
    ),
    Command(
        "tunnel", "ports", "forward ports of the VM to the host's loopback",
        (
            arg("ports", nargs="*", metavar="PORT", completes="ports",
                help="GUEST or GUEST:HOST; else discovered"),
            arg("--open", action="store_true",
                help="open the health URL's, or the first, in the browser"),
            _JSON,
        ),
    ),
    Command(
        "untunnel", "ports", "close forwarded ports and forget them; else they come back",
        (arg("ports", nargs="*", metavar="PORT", completes="forwards",
             help="these ports of the VM; else all"),),
    ),
    Command(
        "open", "browser", "open a page in a browser for which localhost is the VM",
        (_PAGE, _JSON), function="open_page",
    ),
    Command(
        "shot", "browser", "a page's picture, console errors and failed requests; 1 for a bad page",
        (
            _PAGE,
            arg("--out", metavar="FILE", help="write FILE.png and FILE.json"),
            arg("--full", action="store_true", help="the whole page, not the first screen"),
            arg("--timeout", type=seconds, default=60.0, metavar="SECONDS",
                help="for the page to load (60; exit 6)"),
            _JSON,
        ),
    ),
    Command(
        "browser-args", "browser", "print the arguments that make the VM a Chromium's localhost",
        (
            arg("--mcp", action="store_true",
                help="as the Chrome DevTools MCP server takes them"),
            _JSON,
        ),
    ),
    Command("provision", "lifecycle", "the VM, its packages, script and seed files; no stack",
            (_NO_WAIT, _TIMEOUT, _TAIL)),
    Command("status", "inspect", "what is true now: VM, stack, health, tunnels, disk", (_JSON,)),
    Command(
        "logs", "inspect", "the stack's logs, a stage's, or the console's",
        (
            arg("service", nargs="?", metavar="SERVICE", completes="services",
                help="one service of the stack"),
            arg("-f", "--follow", action="store_true", help="go on with what comes"),
            arg("--tail", type=lines, metavar="N", help="the last N lines"),
            arg("--stage", metavar="STAGE", completes="stages",
                help="the output of a stage's last run"),
            arg("--console", action="store_true", help="the guest's console"),
            arg("--bundle", metavar="DIR", completes="folders",
                help="write everything into DIR, for a report"),
        ),
    ),
    Command(
        "dashboard", "dashboard", "every worktree on one local page: stages, logs, URLs, buttons",
        (
            arg("--no-open", action="store_true", help="do not open the browser"),
            arg("--port", type=port, metavar="PORT",
                help="listen there, 0: on a free one; else where the last one did"),
            arg("--json", action="store_true", help="answer in JSON, and open no browser"),
        ),
    ),
    Command("down", "lifecycle",
            "stop the stack (and an `up` at work), power the VM off; its disks stay",
            (arg("--all", action="store_true", help="every VM of yours that runs"),)),
    Command(
        "destroy", "lifecycle", "remove the VM and every byte of it",
        (
            arg("name", nargs="?", metavar="NAME", completes="vms",
                help="a VM by name, whose worktree is gone"),
            arg("-f", "--force", action="store_true", help="do not ask"),
        ),
    ),
    Command("ls", "fleet", "every VM of yours: worktree, state, health, URLs, load, idle since",
            (_JSON,)),
    Command("top", "fleet", "the same, live; q quits"),
    Command(
        "gc", "fleet", "remove VMs whose worktree is gone, and what others left behind",
        (
            arg("--dry-run", action="store_true", help="only say what would be removed, and why"),
            arg("--quiet", action="store_true", help="say only what was done"),
            _JSON,
        ),
    ),
    Command("name", "inspect", "print the VM's name"),
    Command(
        "init", "project", "write a commented vmoat.toml with what was detected",
        (arg("--from", dest="source", metavar="vmoat.conf", help="migrate the shell form"),),
    ),
    Command("config", "project", "print every setting, its value and where it comes from",
            (arg("keys", nargs="*", metavar="KEY", completes="keys", help="only these settings"),
             _JSON)),
    Command("trust", "project", "show what the project's config would widen, and allow it",
            (arg("--yes", action="store_true", help="do not ask"),)),
    Command(
        "doctor", "machine", "check what vmoat needs on this machine",
        (
            arg("--fix", action="store_true", help="install what is missing"),
            arg("--yes", action="store_true", help="do not ask before --fix installs"),
            _JSON,
        ),
    ),
    Command(
        "image", "machine", "the golden guest image",
        (
            arg("action", choices=("build", "ls", "rm", "export", "import", "digest")),
            arg("operand", nargs="?", metavar="DIGEST|FILE"),
            arg("--force", action="store_true", help="build: again; rm: though a VM stands on it"),
            _JSON,
        ),
    ),
    Command("mcp", "mcp", "serve these commands as tools to an agent's client (MCP on stdio)",
            function="serve"),
    Command(
        "demo", "demo", "show it all in a throwaway repository",
        (arg("--keep", action="store_true", help="leave the repository and its VM"),
         arg("--dir", metavar="DIR", completes="folders", help="where to put it")),
    ),
    Command("schema", "agents", "print the JSON schema of what `--json` prints",
            (arg("name", nargs="?", metavar="NAME", completes="schemas",
                 help="the form; without one, all their names"),)),
    Command(
        "skill", "agents", "install the skill that tells agents how to use vmoat",
        (arg("action", choices=("install",)),
         arg("--dir", metavar="DIR", completes="folders",
             help="folder of skills; else .agents/skills in the worktree")),
    ),
    Command(
        "hook", "agents", "git's post-checkout hook: bring up new worktrees (hook.up)",
        (arg("action", choices=("install", "remove", "run", "facts"),
             help="run and facts are what git's hook and the plugin's call"),
         arg("words", nargs="*", metavar="WORD", help="what git gives its hook")),
    ),
    Command("completion", "help", "print the script that completes words in a shell",
            (arg("shell", choices=("bash", "zsh", "fish")),)),
    Command("help", "help", "this text, a command's, or a page (walls, agents, config, …)",
            (arg("topic", nargs="?", metavar="TOPIC", completes="topics"),), function="show"),
    Command("version", "help", "print the version"),
)  # fmt: skip

BY_NAME = {command.name: command for command in COMMANDS}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The namespace of a command line; raises USAGE.  ``--help`` becomes ``help COMMAND``."""
    words = list(argv)
    before: list[str] = []
    while words and words[0].startswith("-"):
        flag = words.pop(0)
        if flag in ("-h", "--help"):
            words = ["help", *words]
        elif flag in ("-V", "--version"):
            words = ["version"]
        else:
            before.append(flag)
            if flag in ("-C", "-w") and words:
                before.append(words.pop(0))
    asked = bool(words)
    if not words:
        words = ["help"]
    name, rest = words[0], words[1:]
    command = BY_NAME.get(name)
    if command is None:
        raise unknown_command(name)
    passed: list[str] = []
    if command.rest:
        rest, passed = split_rest(command, rest)
    elif "-h" in rest or "--help" in rest:
        return parse(["help", name])
    space = bare(command) if not before and not rest else None
    space = space or parser_of(command).parse_args([*before, *rest])
    space.command = command
    space.asked = asked
    space.branch = one_branch(command, space.branches or [])
    if command.rest:
        space.rest = passed
        if getattr(space, "help", False):
            return parse(["help", name])
    return space


def asks_for_json(words: Sequence[str]) -> bool:
    """Whether the words, which may be no command line, ask a command for JSON that has it."""
    if "--json" not in words:
        return False
    command = next((BY_NAME[word] for word in words if word in BY_NAME), None)
    return command is not None and any("--json" in entry.names for entry in command.args)


def one_branch(command: Command, branches: Sequence[str]) -> str | None:
    """The worktree that is named; the first of several where the command takes these."""
    if len(branches) > 1 and not command.several:
        raise VmoatError(f"`{command.name}` takes one -w", code=Code.USAGE)
    return branches[0] if branches else None


class Bare:
    """What argparse would make of a command without any words, without loading argparse."""


def bare(command: Command) -> Any:
    """The namespace of ``vmoat COMMAND``; None where the command wants a word."""
    space = Bare()
    for entry in (*command.args, *COMMON):
        options, positional = entry.options, not entry.names[0].startswith("-")
        if positional and options.get("nargs") not in ("?", "*"):
            return None
        unset: Any = [] if positional and options["nargs"] == "*" else None
        if options.get("action") == "store_true":
            unset = False
        name = options.get("dest") or entry.names[-1].lstrip("-").replace("-", "_")
        setattr(space, name, options.get("default", unset))
    return space


def split_rest(command: Command, words: list[str]) -> tuple[list[str], list[str]]:
    """Our own options, and the words that are passed on; the first ``--`` between is dropped.

    ``-v``, ``-w`` and the like are the test program's here; ours stand before the command.
    """
    if words in (["-h"], ["--help"]):
        return list(words), []
    taking = {n for a in command.args if "action" not in a.options for n in a.names}
    flags = {n for a in command.args if "action" in a.options for n in a.names}
    own: list[str] = []
    rest = list(words)
    while rest:
        if rest[0] in flags:
            own.append(rest.pop(0))
        elif rest[0] in taking and len(rest) > 1:
            own += [rest.pop(0), rest.pop(0)]
        elif rest[0] == "--":
            rest.pop(0)
            break
        else:
            break
    return own, rest


def parser_of(command: Command) -> argparse.ArgumentParser:
    """The parser of one command."""
    from vmoat.arguments import SUPPRESS, Parser

    parser = Parser(
        prog=f"vmoat {command.name}",
        description=command.help[0].upper() + command.help[1:] + ".",
        add_help=False,
        allow_abbrev=False,
        usage=None if not command.rest else f"vmoat {command.name} [options] [{command.rest}…]",
    )
    for entry in (*command.args, *COMMON):
        parser.add_argument(*entry.names, **entry.options)
    if command.rest:
        parser.add_argument("-h", "--help", action="store_true", help=SUPPRESS)
    return parser


def unknown_command(name: str) -> VmoatError:
    """The error for a word that is no command, with the nearest one."""
    import difflib

    near = difflib.get_close_matches(name, BY_NAME, 1)
    guess = f"did you mean `vmoat {near[0]}`?" if near else "`vmoat help` lists the commands"
    return VmoatError(f"unknown command `{name}`", hint=guess, code=Code.USAGE)


def overview() -> str:
    """What ``vmoat help`` prints."""
    width = max(len(command.name) for command in COMMANDS)
    rows = "\n".join(f"  {command.name:<{width}}  {command.help}" for command in COMMANDS)
    return (
        "vmoat: every git worktree its own VM\n\n"
        "usage: vmoat [-C PATH | -w BRANCH] [-v] COMMAND [ARGUMENTS]\n\n"
        f"{rows}\n\n"
        "`vmoat help COMMAND` shows its arguments; `vmoat help walls` what a VM can and cannot\n"
        "reach; `vmoat help config` every setting; `vmoat help agents` what programs may rely on.\n"
    )
