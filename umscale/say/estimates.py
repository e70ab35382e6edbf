"""Numbers as a page writes them: with a true minus, intervals as [low, high]."""

import math

from umscale.laws.uncertainty import Estimate
from umscale.say.numbers import percent, rounded


def fixed(value: float | None, digits: int = 4) -> str:
    """A number with fixed digits, a dash for a missing one."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.{digits}f}"
    return (text.lstrip("-") if not float(text) else text).replace("-", "−")


def significant(value: float | None, digits: int = 3) -> str:
    """A number with significant digits, thousands in full; a dash for a missing one."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:,.0f}" if 1e3 <= rounded(abs(value), digits) < 1e7 else f"{value:.{digits}g}"
    return text.replace("-", "−")


def interval(estimate: Estimate | None, digits: int = 4) -> str:
    """``[0.0186, 0.0330]``, a dash where there is none."""
    if estimate is None or math.isnan(estimate.low) or math.isnan(estimate.high):
        return "–"
    return f"[{fixed(estimate.low, digits)}, {fixed(estimate.high, digits)}]"


def pair(estimate: Estimate | None, digits: int = 4) -> tuple[str, str]:
    """Value and interval, for two columns."""
    return ("–", "–") if estimate is None else (fixed(estimate.value, digits), interval(estimate, digits))


def both(estimate: Estimate | None, digits: int = 4) -> str:
    """``0.0258 [0.0186, 0.0330]``, in a sentence."""
    value, ends = pair(estimate, digits)
    return value if ends == "–" else f"{value} {ends}"


def share(estimate: Estimate | None) -> str:
    """``17.3% [12.0%, 24.8%]``."""
    if estimate is None or not estimate.has_interval:
        return percent(None if estimate is None else estimate.value)
    return f"{percent(estimate.value)} [{percent(estimate.low)}, {percent(estimate.high)}]"


def counted(n: int, thing: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{n} {thing}{'' if n == 1 else 's'}"


def listed(words: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
