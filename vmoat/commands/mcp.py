"""mcp: the commands as tools for an agent's client."""

from __future__ import annotations

import argparse
import importlib

from vmoat.errors import Code, VmoatError
from vmoat.output import Output

SDK = ("mcp", "mcp_types", "pydantic")
"""The official SDK and what comes with it: an extra, because nothing else here needs it."""


def serve(args: argparse.Namespace, out: Output) -> int:
    """Speak MCP on stdin and stdout until stdin ends; stdout carries nothing else."""
    try:
        server = importlib.import_module("vmoat.mcpserver.server")
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in SDK:
            raise
        raise VmoatError(
            "the MCP server needs the package `mcp` from 2.3 on",
            hint="`pip install 'vmoat[mcp]'`; with pipx: `pipx inject vmoat 'mcp>=2.3'`",
            code=Code.MISSING,
        ) from error
    if out.interactive:
        out.say("an MCP server, for a client: it reads JSON-RPC on stdin, and ends with it")
    base = ["-C", args.path] if args.path else []
    server.serve([*base, "-w", args.branch] if args.branch else base)
    return int(Code.OK)
