"""tunnel and untunnel: ports of the VM on the host's loopback."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping

from vmoat import proc, tunnels
from vmoat.commands import context, using, wake
from vmoat.errors import Code, VmoatError
from vmoat.output import Output


def tunnel(args: argparse.Namespace, out: Output) -> int:
    """Open the forwards; one URL a line on stdout."""
    asked = [tunnels.parse_port(text) for text in args.ports]
    ctx = context(args, claim=False)
    wake(ctx, args, out)
    if ctx.facts() is None:
        raise VmoatError(
            f"the VM {ctx.instance.name} does not run", hint="`vmoat up` starts it", code=Code.VM
        )
    with using(ctx, out):
        opened = tunnels.ensure(ctx, asked)
    if not asked:
        for text in tunnels.left_out(ctx):
            out.say(text)
    if args.json:
        rows = [{"url": t.url, "guest": t.guest, "host": t.host, "service": t.service}
                for t in opened]  # fmt: skip
        out.json({"schema": "vmoat.tunnel/1", "tunnels": rows})
        if args.open:
            show(tunnels.first_page(ctx, opened), out)
        return int(Code.OK)
    for entry in opened:
        out.answer(entry.url)
        why = tunnels.remapped(ctx, entry)
        out.say(f"{entry.url} → {entry.service or 'port'} {entry.guest}{why and f' ({why})'}")
    if args.open:
        show(tunnels.first_page(ctx, opened), out)
    return int(Code.OK)


def show(url: str, out: Output) -> None:
    """Have the desktop's browser open the page; where there is none, say so: the URL was told."""
    argv = browser_argv(os.environ, sys.platform)
    if not argv or not shutil.which(argv[0]):
        out.warn(f"no browser is known here: open {url} yourself")
        return
    proc.spawn([*argv, url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def browser_argv(env: Mapping[str, str], platform: str) -> list[str]:
    """What opens a URL; [] where there is no desktop.  ``$BROWSER`` as xdg-open(1) has it."""
    if browser := env.get("BROWSER", "").split(":")[0].strip():
        return shlex.split(browser.replace("%s", ""))
    if platform == "darwin":
        return ["open"]
    if env.get("WSL_DISTRO_NAME"):
        return ["wslview"]
    return ["xdg-open"] if env.get("DISPLAY") or env.get("WAYLAND_DISPLAY") else []


def untunnel(args: argparse.Namespace, out: Output) -> int:
    """Close and forget all of them, or those of some ports; no error where none is open."""
    ports = [tunnels.parse_port(text)[0] for text in args.ports]
    ctx = context(args, claim=False, tolerant=True)
    count = tunnels.close(ctx, ports)
    out.say(f"{ctx.instance.name}: {count} closed" if count else "no tunnel is open")
    return int(Code.OK)
