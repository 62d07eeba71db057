"""`vmoat mcp`: the commands of vmoat as tools of an MCP server, on stdio.

The server runs no stage and asks no guest.  Each tool is one `vmoat … --json` as a child process:
what a tool does is what the command line does, a crash there is one failed call, and nothing of
the project's is ever imported here.

- ``calls``: children, their ends, their last lines, their errors.
- ``progress``: what a client sees while a tool runs.
- ``invocation``: a tool's child, in the worktree that the call means.
- ``bounds``: how much an answer may hold.
- ``results``: what the tools answer; the output schemas are made from it.
- ``tools``: the tools.
- ``server``: all of it together.

A client that cancels a call, goes away or is killed ends every child that only watches, and with
``test`` and ``exec`` the command in the guest.  The work of an ``up`` goes on, as it does when a
terminal is closed: a client that ran out of patience sends the same message as a user who changed
his mind, and a VM that boots is not to be lost to the first.  ``down`` cancels it.  A ``down`` that
has begun is left to end.

Only ``server`` and what it imports need the SDK (the extra ``vmoat[mcp]``).
"""
