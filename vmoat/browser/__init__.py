"""A browser of the host for which localhost is the VM, and evidence of what a page does in it.

The browser's every connection goes through a SOCKS proxy of the VM's ssh master, and the guest's
sshd makes it (``proxy``): ``http://localhost:8080/`` is the VM's own, as it stands in the project's
code, its OAuth call-backs and cookies.  Each worktree has a profile of its own (``profiles``).
"""
