"""umscale: decide how to spend a sparse parameter budget."""

__version__ = "0.2.0"
