"""The command line: click commands, one file a group, and how their results are shown.

Nothing here decides anything about layers: a command turns words into one or two calls of `thinpool.store.Store` (or,
for `device`, of `thinpool.dm`), and a value into text or JSON.
"""
