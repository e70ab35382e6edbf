"""How many further runs settle a difference, and with what chance: Student's t on designs that grow.

A difference d with standard error s at f degrees of freedom rests on a design. A design x times as large has

    s(x)² = s² (1 − a + a/x)      and x f degrees of freedom

where a is the share of the variance that its further runs average away. The interval leaves out zero with 80%
power, *if d is what it seems*, once |d| is at least (t₀.₉₇₅ + t₀.₈) s(x). The *chance* does not take d for the truth:
it is the probability, given the rows there are and a flat prior, that the larger design's interval will leave out
zero. Its centre will lie about d as Student's t with scale √(s² − s(x)²).
"""

import numpy as np

from umscale.laws.uncertainty import LEVEL, Estimate

POWER = 0.8
"""With which further runs are counted."""
_STEPS = 50


def standard_error(estimate: Estimate, freedom: float) -> float:
    """Return the standard error behind a 95% interval of Student's t; NaN where there is none."""
    if not estimate.has_interval or freedom <= 0:
        return float("nan")
    return 0.5 * (estimate.high - estimate.low) / _quantile(freedom, (1 + LEVEL) / 2)


def factor_to_settle(estimate: Estimate, freedom: float, averages: float = 1.0) -> float:
    """Return how many times the present design settles the difference with 80% power if it is what it seems.

    1 where it needs no more; infinite where no number would do.
    """
    error = standard_error(estimate, freedom)
    if not error >= 0 or estimate.value == 0:
        return float("inf")
    factor = 1.0
    for _ in range(_STEPS):
        quantiles = _quantile(freedom * factor, (1 + LEVEL) / 2) + _quantile(freedom * factor, POWER)
        left = (estimate.value / (quantiles * error)) ** 2 - (1 - averages) if error else float("inf")
        if left <= 0:
            return float("inf")
        factor = max(1.0, 0.5 * (factor + averages / left))
    return factor


def shrunk(averages: float, factor: float) -> float:
    """Return the standard error of a design ``factor`` times as large, over the present one's."""
    return float(np.sqrt(1 - averages + averages / factor))


def chance(estimate: Estimate, freedom: float, ratio: float, grown: float) -> float:
    """Return the probability that the interval leaves out zero once its standard error is ``ratio`` times what it is.

    Args:
        ratio: see ``shrunk``; at most 1.
        grown: degrees of freedom then.
    """
    error = standard_error(estimate, freedom)
    if not error > 0:
        return float("nan")
    return clear_of_zero(
        estimate.value,
        spread=error * float(np.sqrt(max(1 - ratio**2, 0.0))),
        error=ratio * error,
        freedom=freedom,
        grown=grown,
    )


def clear_of_zero(value: float, *, spread: float, error: float, freedom: float, grown: float) -> float:
    """Return the probability that an estimate yet to come leaves out zero.

    Args:
        value: where it is expected.
        spread: how far from there it may come to lie, as the scale of Student's t with ``freedom``.
        error: its standard error once it is there, with ``grown`` degrees of freedom.
    """
    from umscale.laws.special import stdtr

    needed = _quantile(grown, (1 + LEVEL) / 2) * error
    if spread <= 0:
        return float(abs(value) > needed)
    above, below = ((sign * value - needed) / spread for sign in (1, -1))
    return float(stdtr(freedom, above) + stdtr(freedom, below))


def _quantile(freedom: float, probability: float) -> float:
    from umscale.laws.special import stdtrit

    return float(stdtrit(freedom, probability))
