"""The embedded driver: QEMU, one VM a worktree, behind walls that the host enforces."""
