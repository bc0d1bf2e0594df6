"""rayprep: nothing left to compile, to tune or to doubt when a benchmark campaign starts."""

__version__ = "0.1.0"

UMASK = 0o002
"""Of every process of ours: group members may write what we make, as the contract has it."""
