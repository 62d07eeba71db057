"""open, shot, browser-args: a browser of the host for which localhost is the VM."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from vmoat import proc
from vmoat.browser import argv, find, profiles, proxy, target
from vmoat.commands import context
from vmoat.commands.inside import running
from vmoat.context import Context
from vmoat.errors import Code, VmoatError
from vmoat.output import Output

START_PATIENCE = 1.5
"""Seconds in which a browser that cannot start has ended."""
KEPT_SHOTS = 40
"""Files of earlier shots that stay in the VM's folder."""


def open_page(args: argparse.Namespace, out: Output) -> int:
    """Start the user's browser with the worktree's own profile; returns while it runs."""
    _check_page(args.page)
    ctx = context(args)
    command = find.command(ctx.settings.browser_command)
    if not find.has_display(os.environ, sys.platform):
        raise VmoatError(
            "there is no display to open a browser on",
            hint="`vmoat shot` takes a picture without one; `vmoat tunnel` forwards ports, for a "
            "browser elsewhere",
            code=Code.MISSING,
        )
    ctx = running(args, out)
    url = target.url_of(ctx, args.page)
    profile = profiles.window(ctx.instance.vm_id, command)
    port = proxy.port(ctx)
    if not profiles.has(profile, argv.network(port)[0]):
        out.say("the window that was open has lost its port to another program: it is opened anew")
        profiles.end(profile)
    words = [*command, *argv.window(port, profile, root=is_root()), url]
    _start(words, profile.with_name("window.log"))
    if args.json:
        out.json({"schema": "vmoat.open/1", "url": url, "profile": str(profile),
                  "proxy": argv.proxy_url(port), "argv": words})  # fmt: skip
    else:
        out.answer(url)
    return int(Code.OK)


def _check_page(page: str | None) -> None:
    """What can name no page in any VM is told before one is started for it."""
    if page is not None:
        target.said(page)


def _start(words: list[str], log: Path) -> None:
    """One that is open with this profile takes the URL, and the new process ends at once with 0."""
    with open(log, "wb") as errors:
        process = proc.spawn(words, stderr=errors)
    try:
        code = process.wait(START_PATIENCE)
    except subprocess.TimeoutExpired:
        return
    if code != 0:
        raise VmoatError(
            f"the browser {words[0]} ended with exit code {code}",
            hint="`browser.command` of your config.toml names another",
            code=Code.MISSING,
            details=log.read_text(errors="replace").splitlines()[-8:],
        )


def browser_args(args: argparse.Namespace, out: Output) -> int:
    """The arguments, one a line; they stay right through `down` and `up`."""
    ctx = context(args)
    if ctx.status.state == "running":
        ctx.guest.connect()
    else:
        out.say(f"the VM {ctx.instance.name} does not run: its port answers after `vmoat up`")
    port = proxy.port(ctx)
    command = _found(ctx)
    display = find.has_display(os.environ, sys.platform)
    mcp = argv.devtools_mcp(port, command, root=is_root(), display=display)
    profile = profiles.home(ctx.instance.vm_id, command) / "args"
    words = argv.window(port, profile, root=is_root())
    if args.json:
        out.json({"schema": "vmoat.browser-args/1", "proxy": argv.proxy_url(port),
                  "args": words, "mcp": mcp})  # fmt: skip
        return int(Code.OK)
    for word in mcp if args.mcp else words:
        out.answer(word)
    return int(Code.OK)


def _found(ctx: Context) -> list[str]:
    """The browser; empty where vmoat knows of none: the arguments serve any other."""
    if ctx.settings.browser_command:
        return find.command(ctx.settings.browser_command)
    try:
        return find.command("")
    except VmoatError:
        return []


def shot(args: argparse.Namespace, out: Output) -> int:
    """A picture and a report, as files; 1 where the page has an error, 6 where it isn't loaded."""
    from vmoat.browser import shot as shots

    _check_page(args.page)
    stem = shots.stem(args.out) if args.out is not None else None
    ctx = context(args)
    command = find.command(ctx.settings.browser_command)
    ctx = running(args, out)
    url = target.url_of(ctx, args.page)
    stem = stem or _place(ctx, url)
    port = proxy.port(ctx)
    with profiles.throwaway(ctx.instance.vm_id, command) as profile:
        words = [*command, *argv.headless(port, profile, root=is_root())]
        log = profile / "browser.log"
        taken = shots.take(words, url, log, full=args.full, limit=args.timeout)
    files = shots.write(taken, stem)
    for line in shots.told(taken.report):
        out.say(line)
    if args.json:
        out.json(taken.report)
    else:
        for kind in sorted(files, reverse=True):
            out.answer(files[kind])
    if not taken.report["loaded"]:
        return int(Code.TIMEOUT)
    return int(Code.OK if taken.ok else Code.STAGE)


def _place(ctx: Context, url: str) -> Path:
    """Not in the worktree: a new file there would have the next `up` start the stack again."""
    folder = ctx.instance.folder / "shots"
    for file in sorted(folder.glob("*"))[:-KEPT_SHOTS]:
        file.unlink(missing_ok=True)
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", url.partition("://")[2])[:60].strip("-.")
    return folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{slug}-{os.getpid()}"


def is_root() -> bool:
    return os.geteuid() == 0
