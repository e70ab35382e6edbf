"""Counts, durations and numbers as text, as the command line and reports write them."""

import math

MANY_RUNS = 500
"""More runs than this nobody adds to a study as it is."""
_PLAIN = 1e4  # below it a count is written in full


def count(value: float | None, digits: int = 3) -> str:
    """Return a count with a unit: ``1.18B``, ``262k``, ``96``; a dash for a missing one."""
    if value is None or math.isnan(value):
        return "–"
    written = rounded(abs(value), digits) if abs(value) >= _PLAIN else abs(value)
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (_PLAIN, "k")):
        if written >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.{digits}g}{unit}"
    return f"{value:.0f}"


def axis_value(value: float) -> str:
    """Return a value of an axis: counts with a unit, small numbers as they are."""
    return count(value) if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def rounded(value: float, digits: int) -> float:
    """Return ``value`` as significant ``digits`` write it, which may reach the next unit: units are chosen for it."""
    return float(f"{value:.{digits - 1}e}")


def duration(seconds: float) -> str:
    """Return a duration such as ``3 min 05 s`` or ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 100 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    days = whole / 86400
    return f"{days:.0f} days" if days < 1000 else f"{days / 365.25:,.0f} years"


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with fixed digits, a dash for a missing one."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share as a percentage, a dash for a missing one."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}%}"


def further_runs(n_runs: int) -> str:
    """Say how many more runs would settle a question, as nearly as that can be known, or that they would not."""
    if n_runs > MANY_RUNS:
        return (
            f"more than {MANY_RUNS} runs like these would be needed to settle it (80% power): a design with wider axes "
            "or longer training would need fewer"
        )
    about = round(n_runs, 2 - len(str(n_runs))) if n_runs >= 100 else n_runs
    return f"about {about} more runs like these would settle it (80% power)"
