"""The companion: what a running VM needs of its host all day, in one process beside it.

It watches the worktree and tells the guest what changed (``watching``, ``feed``), keeps the guest's
ways back to the host (reverse forwards) open, and sees whether anybody uses the VM (``idleness``):
one that was idle for as long as ``[vm] idle`` says is stopped.  Started with the VM, found again by
any command (``process.ensure``), and gone when the VM is.
"""
