"""What a study does not show: said from what it holds constant, what it lacks and how large it is."""

import numpy as np

from umscale.report.design import statuses
from umscale.report.evidence import Evidence
from umscale.results.table import levels, numeric, text
from umscale.say.basis import basis
from umscale.say.estimates import listed
from umscale.say.numbers import count
from umscale.spec import read_run
from umscale.store.store import MEASURED

_FEW_SEEDS = 5


def limits(evidence: Evidence) -> list[str]:
    """Sentences, the weightiest first."""
    if not evidence.n_finished:
        return ["Nothing yet: no run has finished."]
    return [
        *_scale(evidence),
        *_compensation(evidence),
        *_rates(evidence),
        *_seeds(evidence),
        *_gaps(evidence),
        *basis(evidence.store, evidence.table),
    ]


def _range(evidence: Evidence, name: str) -> str:
    values = numeric(evidence.table, name)
    values = values[np.isfinite(values)]
    if not len(values):
        return "–"
    low, high = count(float(values.min())), count(float(values.max()))
    return low if low == high else f"{low} to {high}"


def _scale(evidence: Evidence) -> list[str]:
    table = evidence.table
    said = [
        f"The models have {_range(evidence, 'total_params')} parameters ({_range(evidence, 'active_params')} "
        f"active) and were trained on {_range(evidence, 'budget')} tokens of "
        f"{listed(list(levels(table, 'corpus')))}: nothing here says that effects keep their size, or their "
        "order, in larger models, in longer training or on other text."
    ]
    if len(set(numeric(table, "budget").tolist())) == 1:
        said.append("There is one token budget: how effects change with training is not measured.")
    said += evidence.answer.limits() if evidence.answer else []
    return said


def _compensation(evidence: Evidence) -> list[str]:
    modes = levels(evidence.table, "compensation")
    said = []
    if "none" in modes and evidence.question == "density-over-size":
        said.append(
            "With nothing compensated, a doubling of `top_m` also costs compute and memory access, and a "
            "doubling of `N_s` storage: what each is worth for its price is another question."
        )
    if "iso_flops" in modes:
        said.append(
            "Equal forward FLOPs are not equal time: memory access and the speed of kernels are not compensated."
        )
    if "iso_active" in modes:
        said.append("Equal active parameters are not equal FLOPs or time.")
    return said


def _rates(evidence: Evidence) -> list[str]:
    table = evidence.table
    if evidence.question == "learning-rates" or evidence.search:
        return []
    trains = [read_run(spec).train for spec in sorted(set(text(table, "spec").tolist()))]
    if len({(train.lr, train.value_lr, train.rate_scaling) for train in trains}) == 1 and len(trains) > 1:
        if trains[0].rate_scaling == "shape":
            return [
                "Learning rates follow each model's shape by a rule, not by a search in every cell: part of a "
                "difference may be how far each cell is from its own best rate."
            ]
        return [
            "One learning rate serves all cells: part of a difference may be how far each cell is from its "
            "own best rate."
        ]
    return ["Learning rates differ between cells: a difference includes how well each was chosen."]


def _seeds(evidence: Evidence) -> list[str]:
    if evidence.search:
        return [
            "A search tries each setting once and prefers good ones: the best trials are partly lucky, and "
            "what it tried is no design for a law. Train the winners again with several seeds (`umscale "
            "search --winners`)."
        ]
    seeds = len(levels(evidence.table, "seed"))
    if seeds == 1:
        return [
            "There is one seed: run-to-run noise is not measured"
            + (", and intervals rest on what the law misses." if evidence.laws else ".")
        ]
    if seeds < _FEW_SEEDS:
        return [
            f"There are {seeds} seeds: run-to-run noise is pooled over cells and taken to be the same in all of them."
        ]
    return []


def _gaps(evidence: Evidence) -> list[str]:
    found = statuses(evidence.every)
    missing = len(evidence.planned - set(levels(evidence.every, "run_id")))
    lost = [f"{n} {status}" for status, n in found.items() if status not in MEASURED]
    lost += [f"{missing} not begun or in progress"] if missing else []
    said = []
    if lost:
        said.append(f"Not every planned run is in the comparison: {', '.join(lost)}.")
    if evidence.damaged:
        said.append(f"{len(evidence.damaged)} damaged files are left out.")
    if any(revision.endswith("+dirty") for revision in levels(evidence.table, "git_revision")):
        said.append(
            "Some runs were made from sources with uncommitted changes: their revision alone does not reproduce them."
        )
    return said
