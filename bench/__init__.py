"""Benchmarks: each compares thinpool with a peer, or with the bare kernel, in one run.

`python -m bench --help` lists them. Figures are medians with their spread; the order of the contestants alternates.
"""
