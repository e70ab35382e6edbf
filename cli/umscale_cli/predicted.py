"""How predictions, sealed predictions and roll-outs are printed."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from umscale.say.labels import heading
from umscale.say.laws import interval_text
from umscale_cli.console import count, plain_table

if TYPE_CHECKING:
    from umscale.laws.uncertainty import Estimate
    from umscale.questions.predict import Predictions
    from umscale.questions.rollout import Rollout
    from umscale.questions.seal import Checked

_MOST_LINES = 60


def print_predictions(found: "Sequence[Predictions]", console: Any) -> None:
    """Print a table for each law and part, and what to know of it."""
    for one in found:
        title = ", ".join([part_text(one.stage, one.compensation, one.loss, one.by), f"law {one.law}"])
        symbols = list(one.columns)
        table = plain_table(
            title,
            dict.fromkeys(
                (
                    *symbols,
                    "loss",
                    f"{one.level:.0%} of the law",
                    f"{one.level:.0%} of a run",
                    "octaves outside",
                ),
                "right",
            ),
        )
        for point in one.points[:_MOST_LINES]:
            far = " ".join(f"{s} {v:+.1f}" for s, v in point.octaves.items() if v)
            table.add_row(
                *(value_text(point.at[s]) for s in symbols),
                f"{point.loss.value:.4f}",
                _ends(point.loss),
                _ends(point.run),
                far or "–",
            )
        console.print()
        console.print(table)
        if len(one.points) > _MOST_LINES:
            console.print(f"and {len(one.points) - _MOST_LINES} more; --json prints all")
        console.print(f"law {one.law}: {one.formula} ({one.reason})", soft_wrap=True)
        names = ", ".join(f"{s} is {c}" for s, c in one.columns.items())
        console.print(
            f"{one.rows} rows; {names}; runs lie {one.noise:.2g} off the law ({_space(one)})", soft_wrap=True
        )
        if one.method != "none":
            console.print(f"intervals: {one.method}; resampled {one.resampled}", soft_wrap=True)
        for line in one.statements:
            console.print(f"note: {line}", soft_wrap=True)


def print_rollouts(found: "Sequence[Rollout]", console: Any) -> None:
    """Print a line for each stretch that was predicted from smaller ones."""
    for one in found:
        title = f"{part_text(one.stage, one.compensation, one.loss, one.by)}, law {one.law}, along {one.axis}"
        right = (
            "rows fitted",
            "up to",
            "rows predicted",
            "up to ",
            "octaves",
            "RMSE",
            "mean error",
            "%",
            f"inside {one.level:.0%}",
        )
        table = plain_table(title, dict.fromkeys(right, "right"))
        for step in one.steps:
            fitted = (
                str(step.n_train),
                value_text(step.cut),
                str(step.n_test),
                value_text(step.high),
                f"{step.octaves:.1f}",
            )
            if step.skipped:
                table.add_row(*fitted, "–", "–", "–", "–")
                continue
            table.add_row(
                *fitted,
                f"{step.rmse:.4f}",
                f"{step.mean_error:+.4f}",
                f"{step.mean_percent:.2f}",
                f"{step.held} of {step.n_test}" if step.held is not None else "–",
            )
        console.print()
        console.print(table)
        for line in one.statements:
            console.print(f"note: {line}", soft_wrap=True)


def print_check(found: "Checked", console: Any) -> None:
    """Print how sealed intervals did."""
    console.print(
        f"sealed {found.sealed}: {found.predictions} predictions from {found.records_sealed} records; "
        f"{found.level:.0%} intervals of a run"
    )
    right = (
        "records",
        "runs",
        "held",
        "calibrated",
        "interval score",
        "calibrated score",
        "observed − predicted",
    )
    table = plain_table("", {"part": "left", **dict.fromkeys(right, "right")})
    for one in found.scores:
        low, high = one.calibrated
        mean, least, most = one.calibrated_score
        table.add_row(
            one.part,
            str(one.records),
            str(one.runs),
            str(one.held),
            f"{low} to {high}",
            f"{one.score:.4f}",
            f"{mean:.4f} [{least:.4f}, {most:.4f}]",
            f"{one.off:+.4f}",
        )
    if found.scores:
        console.print(table)
    for line in found.statements:
        console.print(f"note: {line}", soft_wrap=True)


def value_text(value: float) -> str:
    """A value of an axis: counts with a suffix, small numbers as they are."""
    return count(value) if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def _ends(estimate: "Estimate") -> str:
    if not estimate.has_interval:
        return interval_text(estimate)
    return f"[{estimate.low:.4f}, {estimate.high:.4f}]"


def _space(one: "Predictions") -> str:
    from umscale.laws.forms import LAWS, LocalLaw

    return "in the loss" if isinstance(LAWS.get(one.law), LocalLaw) else "in ln L, one standard deviation"


def part_text(stage: str | None, compensation: str | None, loss: str, by: Mapping[str, str]) -> str:
    """Which part of a table, in words."""
    where = heading(stage, compensation, loss) if stage else loss
    return ", ".join([where, *(f"{name} {value}" for name, value in by.items())])
