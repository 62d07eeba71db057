"""help and version."""

from __future__ import annotations

from vmoat import __version__, parser
from vmoat.errors import Code, VmoatError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from vmoat.output import Output

PAGES = ("walls", "agents", "switching")


def version(args: argparse.Namespace, out: Output) -> int:
    out.answer(f"vmoat {__version__}")
    return int(Code.OK)


def show(args: argparse.Namespace, out: Output) -> int:
    """The overview, a command's help, or a page of the docs."""
    if not args.asked:
        # `vmoat` alone asked for nothing: a script that reads stdout gets no page of text.
        print(parser.overview(), end="", file=out.stderr, flush=True)
    elif not args.topic:
        out.answer(parser.overview().rstrip("\n"))
    elif args.topic in parser.BY_NAME:
        out.answer(parser.parser_of(parser.BY_NAME[args.topic]).format_help().rstrip("\n"))
        if args.topic == "config":
            from vmoat.config.reference import reference

            out.answer("\nEvery setting:\n\n" + reference().rstrip("\n"))
    elif args.topic in PAGES:
        from importlib.resources import files

        page = files("vmoat.docs").joinpath(f"{args.topic}.md")
        out.answer(page.read_text(encoding="utf-8").rstrip("\n"))
    else:
        raise VmoatError(
            f"there is no help on `{args.topic}`",
            hint=f"a command, or one of: config, {', '.join(PAGES)}",
            code=Code.USAGE,
        )
    return int(Code.OK)


def completion(args: argparse.Namespace, out: Output) -> int:
    """The script that a shell reads to complete the words of `vmoat`."""
    from vmoat.completion import script

    out.answer(script(args.shell).rstrip("\n"))
    return int(Code.OK)
