"""umscale: decide how to spend a sparse parameter budget.

The names that ``umscale.api`` offers are here too, each loaded when it is first used: ``umscale.study``, ``sweep``,
``load_results``, ``read_table``, ``fit_law``, ``plan``, ``cost``, ``cells``, ``load_model``. docs/python.md shows them.
"""

from importlib import import_module

__version__ = "0.2.0"

_OFFERED = (
    "LawFit", "Model", "Results", "UserError", "cells", "cost", "fit_law", "load_model", "load_results", "plan",
    "read_table", "study", "sweep",
)  # fmt: skip


def __getattr__(name: str) -> object:
    """Load a name of the public interface, with what it needs, on first use."""
    if name not in _OFFERED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module("umscale.api"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *_OFFERED])
