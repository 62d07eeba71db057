"""env: what a shell of the host needs to talk to the VM's dockerd."""

from __future__ import annotations

import argparse
import os
import shlex

from vmoat import dockercontext
from vmoat.commands.inside import running
from vmoat.context import guest_environment
from vmoat.errors import Code
from vmoat.output import Output


def environment(args: argparse.Namespace, out: Output) -> int:
    """Variables on stdout, to be evaluated.

    compose's project comes along: the host's `docker compose ps` then means the VM's stack.
    """
    ctx = running(args, out)
    ctx.guest.connection.channel("docker", dockercontext.GUEST_SOCKET)
    variables = {"DOCKER_HOST": dockercontext.endpoint(ctx.instance.vm_id)}
    if project := guest_environment(ctx).get("COMPOSE_PROJECT_NAME"):
        variables["COMPOSE_PROJECT_NAME"] = project
    if args.json:
        name = dockercontext.name_of(ctx.instance.name)
        out.json({"schema": "vmoat.env/1", "context": name, "environment": variables})
        return int(Code.OK)
    fish = (args.shell or os.path.basename(os.environ.get("SHELL", ""))) == "fish"
    for name, value in variables.items():
        out.answer(assignment(name, value, fish=fish))
    return int(Code.OK)


def assignment(name: str, value: str, *, fish: bool) -> str:
    """A line for the shell."""
    if not fish:
        return f"export {name}={shlex.quote(value)}"
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")  # fish(1), Quotes
    return f"set -gx {name} '{quoted}'"
