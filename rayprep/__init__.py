"""rayprep: nothing left to compile, to tune or to doubt when a benchmark campaign starts."""

__version__ = "0.1.0"
