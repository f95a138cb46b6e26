"""The lab: run a command as root inside a kernel that has device-mapper, on a machine whose kernel has none.

Everything here is the Python standard library, so that the lab works before anything was installed. `docs/lab.md`
says how to use it and how it works.
"""
