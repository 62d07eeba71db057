"""The command line: arguments to a command, its answer to stdout, errors to an exit code.

Nothing else prints to stdout or exits.  Modules are imported where they are used: `vmoat name`
stands in shell prompts, and must not wait for what it does not need.
"""

from __future__ import annotations

import os
import sys

from vmoat.errors import Code, VmoatError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmoat.output import Output

EXACT = ("test", "exec", "ssh")
"""These end with the exit code of what they ran; a failure before that is 125."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
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


def _known_name() -> str:
    from vmoat.quick import name

    return name()


def _run(words: list[str]) -> int:
    from vmoat.output import Output

    out = Output()
    command = ""
    try:
        from vmoat.parser import parse

        args = parse(words)
        command = args.command.name
        if args.verbose:
            from vmoat import proc

            proc.set_echo(out.call)
        module = __import__(f"vmoat.commands.{args.command.module}", fromlist=["*"])
        code = int(getattr(module, args.command.target)(args, out))
        out.stdout.flush()
        return code
    except VmoatError as error:
        return _failed(out, command, error)
    except BrokenPipeError:
        raise
    except OSError as error:
        return _failed(out, command, system_error(error))
    except Exception:
        return _failed(out, command, defect())


def _failed(out: Output, command: str, error: VmoatError) -> int:
    out.error(error)
    return exit_code(command, error)


def system_error(error: OSError) -> VmoatError:
    """The error of a file or folder that nothing nearer to it has explained."""
    import errno

    place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    hints = {
        errno.ENOSPC: "make room on this disk",
        errno.EDQUOT: "make room within this user's quota",
        errno.EROFS: "name writable folders in XDG_STATE_HOME and XDG_DATA_HOME",
        errno.EMFILE: "raise the limit of open files (ulimit -n)",
    }
    return VmoatError(
        f"{place}{error.strerror or error}",
        hint=hints.get(error.errno or 0, "`vmoat doctor` checks this machine"),
        code=Code.MISSING,
    )


def defect() -> VmoatError:
    """The error of a mistake in vmoat itself; its place stands under it, for the report."""
    import traceback

    return VmoatError(
        "vmoat itself failed; this is a defect",
        hint="please report it with these lines and what `vmoat logs --bundle DIR` writes",
        details=traceback.format_exc().splitlines()[-15:],
    )


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
