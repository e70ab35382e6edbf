"""Suggested runs narrow the interval as predicted, and their study file is one that sweeps."""

import dataclasses
import itertools
import tomllib

import numpy as np
import pytest
from scipy.special import stdtrit

from umscale.accounting import cost
from umscale.design.study import parse, points
from umscale.errors import UserError
from umscale.laws.uncertainty import bootstrap
from umscale.questions.density_over_size import density_over_size, fit_effects
from umscale.questions.simulate import Truth, draw, study_design
from umscale.questions.suggest import suggest

TREE = {
    "name": "small",
    "axes": {"top_m": [8, 16, 32, 64], "n_keys": [64, 128, 256], "tokens": ["1M", "2M"], "seed": [0, 1]},
    "model": {
        "d_model": 64,
        "n_layers": 2,
        "n_heads": 2,
        "ffn": {"d_ffn": 128},
        "memory": {"n_keys": 128, "top_m": 32, "d_key": 16, "d_pre_value": 16, "d_value": 32},
    },
}
TRUTH = Truth(delta_m=0.022, delta_n=0.012, run_sd=0.02)


def table(seed: int, tree: dict = TREE) -> dict[str, np.ndarray]:
    return draw(study_design(parse(tree, "tree")), TRUTH, np.random.default_rng(seed))


def variance(runs: list[tuple[float, float, int]]) -> float:
    """c'(X'X)^-1 c for δ_m − δ_N of runs (log2 m, log2 N, seed), written out anew."""
    m, n, seeds = (np.array(column, dtype=float) for column in zip(*runs, strict=True))
    blocks = (seeds[:, None] == np.unique(seeds)).astype(float)
    design = np.hstack([m[:, None], n[:, None], blocks])
    c = np.array([-1.0, 1.0, *([0.0] * blocks.shape[1])])
    return float(c @ np.linalg.pinv(design.T @ design) @ c)


def test_the_first_run_narrows_the_interval_most_per_flop() -> None:
    """Against every candidate, each added to the study and put through the procedure itself."""
    full = table(0)
    part = {k: v[(full["seed"] == 0) | (full["top_m"] < 64)] for k, v in full.items()}
    first = suggest(part, TREE, 1, extend=False).runs[0]
    assert not first.outside

    def interval(rows: dict[str, np.ndarray]) -> float:
        """Half-width in units of the noise."""
        keys = zip(rows["top_m"], rows["n_keys"], rows["seed"], strict=True)
        runs = sorted({(float(np.log2(m)), 2 * float(np.log2(k)), int(s)) for m, k, s in keys})
        freedom = bootstrap(fit_effects(rows, stage=None), n_draws=1).degrees_of_freedom
        return float(stdtrit(freedom, 0.975)) * variance(runs) ** 0.5

    rates = {}
    for n_keys in (64, 128, 256):
        wanted = (full["top_m"] == 64) & (full["n_keys"] == n_keys) & (full["seed"] == 1)
        grown = {k: np.concatenate([part[k], full[k][wanted]]) for k in full}
        model = parse(TREE, "t").reference.model
        memory = dataclasses.replace(model.memory, top_m=64, n_keys=n_keys)
        flops = cost(dataclasses.replace(model, memory=memory), 256).flops_per_token
        rates[n_keys] = (interval(part) - interval(grown)) / flops
    assert first.seed == 1
    assert first.targets == {"top_m": 64, "n_keys": max(rates, key=rates.__getitem__)}


def test_half_widths_shrink_and_come_true() -> None:
    """Predicted from the design alone; measured on tables that hold the suggested runs."""
    suggestion = suggest(table(0), TREE, 12)
    widths = [suggestion.half_width, *(r.half_width for r in suggestion.runs)]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(widths))
    more = tomllib.loads(suggestion.to_toml())

    def median_width(with_suggestion: bool) -> float:
        found = []
        for seed in range(30):
            designs = [study_design(parse(TREE, "t"))]
            if with_suggestion:
                designs.append(study_design(parse(more, "m")))
            joined = {k: np.concatenate([d[k] for d in designs]) for k in designs[0]}
            rows = draw(joined, TRUTH, np.random.default_rng([seed, 1]))
            difference = density_over_size(rows, stage=None).from_law.difference
            found.append((difference.high - difference.low) / 2)
        return float(np.median(found))

    expected = suggestion.runs[-1].half_width / suggestion.half_width
    assert median_width(True) / median_width(False) == pytest.approx(expected, rel=0.25)


def test_the_study_file_holds_the_runs_and_nothing_else() -> None:
    suggestion = suggest(table(1), TREE, 7)
    study = parse(tomllib.loads(suggestion.to_toml()), "suggested")
    held = {(t["top_m"], t["n_keys"], s) for t, seeds in points(study) for s in seeds}
    assert held == {(r.targets["top_m"], r.targets["n_keys"], r.seed) for r in suggestion.runs}
    assert study.name == "small"
    assert study.reference.train.budgets == (1_000_000, 2_000_000)
    assert study.compensation == ("none",)


def test_new_seeds_open_with_two_runs() -> None:
    suggestion = suggest(table(2), TREE, 4, extend=False)
    assert {r.seed for r in suggestion.runs} == {2, 3}
    assert all(sum(r.seed == s for r in suggestion.runs) == 2 for s in (2, 3))
    with pytest.raises(UserError, match="two or more"):
        suggest(table(2), TREE, 1, extend=False)


def test_runs_to_settle_settle() -> None:
    """With as many suggested runs as it asks for, most tables from what the first one said are decided."""
    first = next(
        t for s in range(50) if density_over_size(t := table(s), stage=None).answer == "inconclusive"
    )
    suggestion = suggest(first, TREE, 2)
    assert suggestion.runs_to_settle is not None
    assert suggestion.flops_to_settle is not None
    assert suggestion.flops_to_settle > 0
    fit = fit_effects(first, stage=None)
    truth = Truth(delta_m=-fit.coefficients["a"], delta_n=-fit.coefficients["b"], run_sd=0.02)
    more = tomllib.loads(suggest(first, TREE, suggestion.runs_to_settle).to_toml())
    designs = [study_design(parse(tree, "t")) for tree in (TREE, more)]
    joined = {k: np.concatenate([d[k] for d in designs]) for k in designs[0]}
    answers = [
        density_over_size(draw(joined, truth, np.random.default_rng([s, 2])), stage=None).answer
        for s in range(24)
    ]
    assert sum(a != "inconclusive" for a in answers) >= 12


def test_a_settled_question_needs_no_runs() -> None:
    clear = draw(
        study_design(parse(TREE, "t")),
        Truth(delta_m=0.1, delta_n=0.0, run_sd=0.005),
        np.random.default_rng(0),
    )
    assert suggest(clear, TREE, 2).runs_to_settle == 0


def test_what_cannot_be_suggested_for_says_why() -> None:
    with pytest.raises(UserError, match="varies d_model too"):
        suggest(table(0), {**TREE, "axes": {**TREE["axes"], "d_model": [32, 64]}}, 2)
    with pytest.raises(UserError, match="one or more"):
        suggest(table(0), TREE, 0)
    thin = {k: v[table(0)["top_m"] == 8] for k, v in table(0).items()}
    with pytest.raises(UserError, match="one level"):
        suggest(thin, TREE, 2)
