"""All VMs of this user at once: what each is doing, which belong to nobody, what may be removed.

From files and processes of this machine alone: no ssh, no program started, nothing written.
"""
