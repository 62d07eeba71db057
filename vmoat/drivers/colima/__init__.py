"""The driver on Colima and Lima: VMs of their making, commands over vmoat's own ssh.

Facts about both stand where they are used, with the file of their sources that shows them
(Colima 0.10.3, Lima 2.2.0).
"""
