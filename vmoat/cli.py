"""The command line: arguments to a command, its answer to stdout, errors to an exit code.

Nothing else prints to stdout or exits.  Modules are imported where they are used: `vmoat name`
stands in shell prompts, and must not wait for what it does not need.
"""

from __future__ import annotations

import os
import sys

from vmoat.errors import Code, as_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmoat.errors import VmoatError
    from vmoat.output import Output

EXACT = ("test", "exec", "ssh")
"""These end with the exit code of what they ran; a failure before that is 125."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    if "_ARGCOMPLETE" in os.environ and "COMP_LINE" in os.environ:  # TAB (`vmoat completion`)
        from vmoat.completion import answer

        return answer()
    try:
        known = _known_name() if words == ["name"] else ""
        if known:
            sys.stdout.write(known + "\n")
            sys.stdout.flush()
            return int(Code.OK)
        return _run(words)
    except BrokenPipeError:
        # The reader went away (`| head`); Python would complain once more at its end.
        _drop_stdout()
        return 128 + 13  # SIGPIPE
    except KeyboardInterrupt:
        return int(Code.INTERRUPTED)


def _open_streams() -> None:
    """Started with a closed descriptor (`>&-`), Python has no stream at all: nobody listens."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def _known_name() -> str:
    from vmoat.quick import name

    return name()


def _run(words: list[str]) -> int:
    from vmoat.output import Output

    out = Output()
    command, as_json = "", False
    try:
        from vmoat.parser import asks_for_json, parse

        as_json = asks_for_json(words)  # also where the rest of the line is wrong
        args = parse(words)
        command, as_json = args.command.name, getattr(args, "json", False)
        if args.verbose:
            from vmoat import proc

            proc.set_echo(out.call)
        module = __import__(f"vmoat.commands.{args.command.module}", fromlist=["*"])
        from vmoat import patience

        run = getattr(module, args.command.target)
        call_off = patience.begin(command, out, quiet=getattr(args, "quiet", False))
        try:
            if len(args.branches or ()) > 1:
                from vmoat.commands.several import each

                code = each(run, args, out)
            else:
                code = int(run(args, out))
        finally:
            call_off()
        out.stdout.flush()
        return code
    except BrokenPipeError:
        raise
    except Exception as error:
        return _failed(out, command, as_error(error), as_json=as_json)


def _failed(out: Output, command: str, error: VmoatError, *, as_json: bool) -> int:
    out.error(error)
    code = exit_code(command, error)
    if as_json:
        from vmoat.errors import as_document

        # On one line: behind the events of `up` it is the last of them.
        out.json_line({**as_document(error), "code": code})
    return code


def _drop_stdout() -> None:
    import contextlib

    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_code(command: str, error: VmoatError) -> int:
    """125 says that vmoat failed before the command of `test`, `exec`, `ssh` ran.

    Any other code could be the command's own.
    """
    if command in EXACT and error.code != Code.INTERRUPTED:
        return int(Code.BEFORE)
    return error.code


if __name__ == "__main__":
    sys.exit(main())
