"""All VMs of this user at once: what each is doing (``rows``), which may start (``admission``),
which are used by nobody (``idle``, ``stopping``), which belong to nobody (``gc``).

``rows`` is from files and processes of this machine alone: no ssh, no program started, nothing
written.
"""
