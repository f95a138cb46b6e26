"""How long a commit takes, against docker, containerd and the tools, on a disk that is slow and busy.

`bench/README.md` says what is compared and to whom that is unfair. `cli` has the options, `parts` what can be run,
a contender is a module of its own, and everything measured is a line in a file before the next thing is measured.
"""
