"""The keys of a stage of the project's own: the table beside ``vmoat.config.table``."""

from __future__ import annotations

EVERY = ("change", "boot", "up")
"""When a user's stage runs again: its command, inputs or disk changed; also each boot; each up."""

STAGE_KEYS: dict[str, str] = {
    "run": "The shell command, in the worktree, inside the VM.",
    "inputs": "What it is made from, as globs; it runs again when one of these files changed.",
    "after": 'The stages that come before it; by default `["script", "seed"]`. The stack waits '
    "for every stage that doesn't come after the stack itself.",
    "every": '`"change"` (default): once a disk, again when its command or inputs changed; '
    '`"boot"`: also at each boot; `"up"`: at each `vmoat up`.',
}
"""The keys of a ``[stages.NAME]`` table."""
