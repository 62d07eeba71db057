"""vmoat: one ephemeral VM for every git worktree."""

__version__ = "0.2.0"
