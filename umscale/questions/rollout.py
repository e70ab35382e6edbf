"""What a law would have predicted: fitted to the smaller values of an axis, asked for the next ones, as if then.

The axis is any symbol or column: sizes, tokens, compute, a learning rate. Where it takes few values each is a step;
where nearly every row has its own, steps are octaves of it.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from umscale.errors import UserError
from umscale.laws.fit import FitResult, fit_anew
from umscale.laws.uncertainty import LEVEL, bootstrap
from umscale.questions.predict import deviations, predict
from umscale.results.columns import Array
from umscale.say.blocks import Block, Grid, noted
from umscale.say.estimates import counted
from umscale.say.labels import part_words
from umscale.say.numbers import axis_value

_SAME_LEVEL = 1.01
_MOST_LEVELS = 30  # of an axis whose every level is a step
_DRAWS = 200  # refits behind an interval of each step


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One stretch of the axis, predicted from all that is smaller."""

    cut: float
    """Greatest value fitted to."""
    high: float
    """Greatest value predicted."""
    octaves: float
    """From one to the other."""
    n_train: int
    n_test: int
    rmse: float
    """In the unit of the losses; NaN where the law could not be fitted."""
    mean_error: float
    """Observed minus predicted."""
    mean_percent: float
    """Mean absolute error in percent of the loss."""
    held: int | None
    """Rows inside the interval of a run; None without intervals."""
    skipped: str
    """Why there is no error, or the empty string."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A law rolled out along an axis."""

    law: str
    axis: str
    stage: str | None
    compensation: str | None
    loss: str
    by: Mapping[str, str]
    level: float
    steps: tuple[Step, ...]
    statements: tuple[str, ...]

    def blocks(self) -> list[Block]:
        """A row for each stretch that was predicted from smaller ones."""
        rows = []
        for step in self.steps:
            row = (
                str(step.n_train),
                axis_value(step.cut),
                str(step.n_test),
                axis_value(step.high),
                f"{step.octaves:.1f}",
            )
            if step.skipped:
                rows.append((*row, "–", "–", "–", "–"))
                continue
            held = f"{step.held} of {step.n_test}" if step.held is not None else "–"
            errors = (f"{step.rmse:.4f}", f"{step.mean_error:+.4f}", f"{step.mean_percent:.2f}")
            rows.append((*row, *errors, held))
        place = part_words(self.stage, self.compensation, self.loss, self.by)
        head = ("rows fitted", "up to", "rows predicted", "up to", "octaves", "RMSE", "mean error", "%")
        grid = Grid(
            caption=f"{place}, law {self.law}, along {self.axis}",
            head=(*head, f"inside {self.level:.0%}"),
            sides="r" * 9,
            rows=tuple(rows),
        )
        return [grid, *noted(self.statements)]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def roll_out(
    fit: FitResult, axis: Array, name: str, *, by: Mapping[str, str] | None = None, draws: int = _DRAWS
) -> Rollout:
    """Refit a law without all rows beyond each step of ``axis`` [rows], and predict the next step.

    Raises ``UserError`` for an axis with one level or without a logarithm.
    """
    if not (axis > 0).all():
        raise UserError(f"{name} is not positive on every row: its steps are octaves")
    ends = _ends(axis)
    if len(ends) < 2:
        raise UserError(f"every row has the same {name}: nothing to roll out along")
    steps = [_step(fit, axis, cut, high, draws) for cut, high in itertools.pairwise(ends)]
    return Rollout(
        law=fit.law.name,
        axis=name,
        stage=fit.stage,
        compensation=fit.compensation,
        loss=fit.loss,
        by=dict(by or {}),
        level=LEVEL,
        steps=tuple(steps),
        statements=tuple(_statements(steps)),
    )


def _ends(axis: Array) -> list[float]:
    """The greatest value of each stretch, ascending: levels within 1%, or octaves where there are many levels."""
    ordered = np.sort(axis)
    jumps = np.flatnonzero(np.diff(np.log(ordered)) > np.log(_SAME_LEVEL))
    if len(jumps) >= _MOST_LEVELS:
        octave = np.floor(np.log2(ordered / ordered[0]) + 1e-9)
        jumps = np.flatnonzero(np.diff(octave))
    return [float(ordered[k]) for k in (*jumps.tolist(), len(ordered) - 1)]


def _step(fit: FitResult, axis: Array, cut: float, high: float, draws: int) -> Step:
    inside, following = axis <= cut, (axis > cut) & (axis <= high)
    train, test = fit.rows.take(inside), fit.rows.take(following)
    octaves = float(np.log2(high / cut))

    def skipped(why: str) -> Step:
        nan = float("nan")
        return Step(
            cut=cut, high=high, octaves=octaves, n_train=train.size, n_test=test.size, rmse=nan, mean_error=nan,
            mean_percent=nan, held=None, skipped=why,
        )  # fmt: skip

    try:
        refit = fit_anew(train, fit)
    except UserError as error:
        return skipped(str(error))
    if lost := (*refit.dropped, *refit.unidentified):
        return skipped(f"smaller rows do not determine {', '.join(lost)}")
    off = test.loss - refit.predict(test.values)
    return Step(
        cut=cut,
        high=high,
        octaves=octaves,
        n_train=train.size,
        n_test=test.size,
        rmse=float(np.sqrt(np.mean(off**2))),
        mean_error=float(off.mean()),
        mean_percent=float(100 * np.mean(np.abs(off / test.loss))),
        held=_held(refit, test.values, test.loss, draws),
        skipped="",
    )


def _held(fit: FitResult, values: Mapping[str, Array], losses: Array, draws: int) -> int | None:
    """Rows inside the intervals of a run that the fit gives them; None where it gives none."""
    if deviations(fit)[1] < 1:
        return None
    found = bootstrap(fit, n_draws=draws, group="run")
    points = [{s: float(v[i]) for s, v in values.items()} for i in range(len(losses))]
    try:
        expected = predict(found, points)
    except UserError:  # a law that cannot speak of more tokens
        return None
    if not all(one.run.has_interval for one in expected.points):
        return None
    return sum(
        one.run.low <= x <= one.run.high for one, x in zip(expected.points, losses.tolist(), strict=True)
    )


def _statements(steps: Sequence[Step]) -> list[str]:
    why = dict.fromkeys(one.skipped for one in steps if one.skipped)
    first = next(iter(why), "")
    skipped = counted(sum(bool(s.skipped) for s in steps), "step")
    return [f"{skipped} without an error, as: {first}"] if why else []
