"""Every kind of figure by name: how a table's laws are fitted and its questions answered for it, and what draws it."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from umscale.errors import UserError
from umscale.figures.gallery import Gallery
from umscale.figures.kind import Figures, Kind
from umscale.laws.compare import Compared
from umscale.laws.holdout import Edge, rows_held_out
from umscale.plots import search as search_plots
from umscale.plots.allocation import allocation_figure
from umscale.plots.architectures import architectures
from umscale.plots.coefficients import coefficient_pairs
from umscale.plots.iso_flop import iso_flop
from umscale.plots.losses import loss_vs_density, loss_vs_size
from umscale.plots.plane import density_plane
from umscale.plots.predictions import predicted
from umscale.plots.rates import learning_rates
from umscale.plots.ratio import memory_ratio
from umscale.plots.residuals import residuals
from umscale.plots.scaling import Along, scaling
from umscale.plots.training import curves
from umscale.plots.trend import token_trend_figure
from umscale.questions.allocation import allocations
from umscale.questions.architectures import compare_architectures
from umscale.questions.density_map import DensityMap, density_map, slice_title, study_map, study_slices
from umscale.questions.density_over_size import fit_effects, why_thin
from umscale.questions.iso_flops import iso_flops_of, training_flops
from umscale.questions.learning_rates import rates_reports
from umscale.questions.memory_to_ffn import ratio_curves
from umscale.questions.token_trend import token_trends
from umscale.results.table import Table, levels, numeric, where

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from umscale.search.results import Found

_PLANE = ("m", "N_s")
_EDGE: Mapping[Along, Edge] = {"N": "largest", "D": "future", "C": "largest"}
"""Which rows a law is drawn without, along an axis."""


def _losses(draw: "Callable[..., Figure]") -> Callable[[Gallery], Figures]:
    def figures(gallery: Gallery) -> Figures:
        out: Figures = {}
        for suffix, mode, part in gallery.parts():
            fits, words = gallery.laws_at(mode)
            out[suffix] = draw(part, fits, loss=gallery.loss, columns=gallery.columns, words=words)
        return out

    return figures


def density_maps(gallery: Gallery, per_octave: int = 8) -> dict[str, dict[str, DensityMap]]:
    """File-name suffix → stage → map, from the laws asked for or a study's own; raises ``UserError`` for none.

    ``per_octave`` points of the lattice are enough for a picture.
    """
    for symbol in _PLANE:
        if gallery.columns[symbol] not in gallery.table:
            raise UserError(
                f"the table has no column {gallery.columns[symbol]!r} for {symbol}: a map needs it"
            )
    found: dict[str, dict[str, DensityMap]] = {}
    if gallery.laws or not gallery.settings.is_study:
        for suffix, section, i in gallery.fits(stages=False):
            one = density_map(section.uncertainty[i], per_octave=per_octave)
            found.setdefault(suffix, {})[section.stage or ""] = one
        return found
    gallery.require_one_architecture()
    for suffix, _, part in gallery.parts():
        for stage in _stages(part):
            loss, columns = gallery.loss, gallery.settings.columns
            if thin := why_thin(fit_effects(part, stage=stage, loss=loss, columns=columns)):
                raise UserError(thin)
            found.setdefault(suffix, {})[stage or ""] = study_map(
                part, stage=stage, loss=loss, columns=columns, per_octave=per_octave, seed=gallery.seed
            )
    return found


def _map(gallery: Gallery) -> Figures:
    maps = density_maps(gallery)
    m, n = (numeric(gallery.table, gallery.columns[s]) for s in _PLANE)
    measured = np.unique(np.stack([m, n])[:, np.isfinite(m) & np.isfinite(n)], axis=1)

    def words(part: Table) -> str:
        runs, seeds = len(levels(part, "run_id")), len(levels(part, "seed"))
        counted = f"{runs} runs" if runs else f"{len(numeric(part, gallery.columns['m']))} rows"
        blocks = f" in {seeds} seed block{'s' if seeds > 1 else ''}" if seeds else ""
        return f"From {counted} of {len(measured[0])} cells{blocks}; bootstrap intervals."

    parts = {suffix: part for suffix, _, part in gallery.parts()}
    return {
        suffix: density_plane(one, cells=(measured[0], measured[1]), words=words(parts[suffix]))
        for suffix, one in maps.items()
    }


def density_slices(gallery: Gallery, per_octave: int = 8) -> dict[str, dict[str, DensityMap]]:
    """File-name suffix → title → map at a number of tokens, of the last stage; raises ``UserError`` for none."""
    gallery.require_one_architecture()
    found: dict[str, dict[str, DensityMap]] = {}
    for suffix, _, part in gallery.parts():
        slices = study_slices(
            part,
            stage=_stages(part)[-1],
            loss=gallery.loss,
            columns=gallery.settings.columns,
            per_octave=per_octave,
            seed=gallery.seed,
        )
        found[suffix] = {slice_title(one): one for one in slices}
    return found


def _slices(gallery: Gallery) -> Figures:
    words = "Law and intervals of all budgets together; a dashed boundary lies beyond the tokens that were trained."
    return {suffix: density_plane(one, words=words) for suffix, one in density_slices(gallery).items()}


def _ratio(gallery: Gallery) -> Figures:
    return {
        suffix: memory_ratio(
            ratio_curves(part, loss=gallery.loss, columns=gallery.columns, seed=gallery.seed),
            part,
            loss=gallery.loss,
            columns=gallery.columns,
        )
        for suffix, _, part in gallery.parts()
    }


def _trend(gallery: Gallery) -> Figures:
    return {
        suffix: token_trend_figure(token_trends(part, losses=(gallery.loss,), seed=gallery.seed))
        for suffix, _, part in gallery.parts()
    }


def _allocation(gallery: Gallery) -> Figures:
    return {
        suffix: allocation_figure(allocations(part, losses=(gallery.loss,), seed=gallery.seed))
        for suffix, _, part in gallery.parts()
    }


def _residuals(gallery: Gallery) -> Figures:
    return {
        suffix: residuals(section.uncertainty[i], section.diagnostics[i])
        for suffix, section, i in gallery.fits()
    }


def _predicted(gallery: Gallery) -> Figures:
    found: dict[str, dict[str, Compared]] = {}
    for suffix, section, i in gallery.fits(stages=False):
        found.setdefault(suffix, {})[section.stage or ""] = section.comparison.laws[i]
    return {
        suffix: predicted(
            parts, {title: rows_held_out(one.fit, one.holdouts) for title, one in parts.items()}
        )
        for suffix, parts in found.items()
    }


def _bootstrap(gallery: Gallery) -> Figures:
    return {suffix: coefficient_pairs(section.uncertainty[i]) for suffix, section, i in gallery.fits()}


def _iso_flop(gallery: Gallery) -> Figures:
    out: Figures = {}
    for suffix, mode, part in gallery.parts():
        fits = gallery.laws_at(mode)[0] if gallery.laws else []
        for stage in _stages(part):
            law = next((f for f in fits if f.fit.stage in (None, stage)), None)
            rows = where(part, stage=stage)
            words = f"-{stage}" if len(levels(part, "stage")) > 1 else ""
            found = iso_flops_of(rows, law, loss=gallery.loss, columns=gallery.columns)
            study, size = bool(levels(rows, "stage")), gallery.columns["N"]
            out[suffix + words] = iso_flop(found, size=size, loss=gallery.loss, study=study)
    return out


def _scaling(along: Along) -> Callable[[Gallery], Figures]:
    def figures(gallery: Gallery) -> Figures:
        if not gallery.laws:
            raise UserError("this figure needs a law of N and D: name one with --law, as in --law chinchilla")
        out: Figures = {}
        for suffix, section, i in gallery.fits():
            found, compared = section.uncertainty[i], section.comparison.laws[i]
            compute, source = None, ""
            if along == "C":
                rows = where(gallery.table, stage=section.stage, compensation=section.compensation)
                every, source = training_flops(rows, gallery.columns)
                compute = every[found.fit.rows.index]
            edges = [test for test in compared.holdouts if test.edge == _EDGE[along]]
            held = next(iter(rows_held_out(found.fit, edges)), None)
            out[suffix] = scaling(found, held, along, compute=compute, source=source)
        return out

    return figures


def _curves(gallery: Gallery) -> Figures:
    if gallery.training is None:
        raise UserError("training curves are recorded by sweeps: name a study, not a table")
    return {"": curves(gallery.training())}


def _architectures(gallery: Gallery) -> Figures:
    if "architecture" not in gallery.table:
        raise UserError(
            "the table has no column 'architecture': this figure compares a study's architectures"
        )
    return {
        suffix: architectures(compare_architectures(part, loss=gallery.loss), part, loss=gallery.loss)
        for suffix, _, part in gallery.parts()
    }


def _rates(gallery: Gallery) -> Figures:
    if "value_lr" not in gallery.table:
        raise UserError("the table has no column 'value_lr': this figure compares a study's learning rates")
    return {
        suffix: learning_rates(rates_reports(part, loss=gallery.loss)[0], part)
        for suffix, _, part in gallery.parts()
    }


def _stages(part: Table) -> tuple[str | None, ...]:
    """The stages of a table, the one before the decay first; None for a table without."""
    return tuple(sorted(levels(part, "stage"), reverse=True)) or (None,)


KINDS: Mapping[str, Kind[Gallery]] = MappingProxyType(
    {
        "density": Kind(
            title="Loss against values per token",
            look="Follow a line to the right: how steeply it falls is what reading more values buys at "
            "that size. The distance between lines is what size buys. Density beats size where a "
            "doubling along a line gains more than the step to the next line that is a doubling in "
            "size away.",
            shows="loss against top_m by sparse parameters, with the law and its band",
            needs="two values of top_m or more, beside N_s",
            draw=_losses(loss_vs_density),
        ),
        "size": Kind(
            title="Loss against sparse parameters",
            look="The same losses, seen along the other axis: flat lines far apart mean that density "
            "matters and size does not.",
            shows="loss against sparse parameters by top_m, with the law and its band",
            needs="two values of N_s or more, beside top_m",
            draw=_losses(loss_vs_size),
        ),
        "map": Kind(
            title="Where density beats size",
            look="Look where the border between the two winners runs and how much of the measured grid "
            "lies clearly on one side; what is left undecided is the width of the intervals.",
            shows="where in the (top_m, N_s) plane density beats size, with iso-loss contours",
            needs="a law of top_m and N_s",
            draw=_map,
        ),
        "slices": Kind(
            title="Where density beats size, by token budget",
            look="Follow the border from panel to panel: the last lies beyond the tokens that were trained, and "
            "is what a straight line makes of them.",
            shows="the map at the shortest, a middle and the longest budget, and two octaves beyond",
            needs="two token budgets or more, beside top_m and N_s",
            draw=_slices,
        ),
        "trend": Kind(
            title="What a doubling buys, by token budget",
            look="Follow the difference to the right: where it meets zero, size buys as much as density. "
            "The shaded stretch holds every number of tokens at which that cannot be ruled out.",
            shows="what a doubling of top_m and of N_s buys by token budget, and where their difference turns",
            needs="two token budgets or more, beside top_m and N_s",
            draw=_trend,
        ),
        "ratio": Kind(
            title="Loss against the memory's share of computation",
            look="Look at the bottom of the parabola and the shaded interval about it: does it hold the "
            "paper's dashed line?",
            shows="loss against the memory's share of compute, its optimum and the paper's 17%",
            needs="three memory-to-FFN ratios or more",
            draw=_ratio,
        ),
        "allocation": Kind(
            title="Loss over the shares of the sparse budget",
            look="Look at the least point and the interval or region about it: does it reach an end, and "
            "do the cells lie on the curve there?",
            shows="loss over the shares of experts and memories, its optimum and region, or loss against n-gram rows",
            needs="three shares or more (axes memory_share, ngram_share), or four sizes of n-gram tables",
            draw=_allocation,
        ),
        "residuals": Kind(
            title="Residuals of the law",
            look="Squares that drift up or down along an axis are an effect that the law misses; single "
            "points far out are runs to look at.",
            shows="what the law misses, against the fitted loss and every axis",
            needs="a law",
            draw=_residuals,
        ),
        "predicted": Kind(
            title="Observed against predicted loss",
            look="Points on the diagonal are predicted well. The marked ones were held out: they say how "
            "far beyond the grid the law may be trusted.",
            shows="observed against predicted loss, rows held out at the design's edges marked",
            needs="a law",
            draw=_predicted,
        ),
        "bootstrap": Kind(
            title="Coefficients, draw by draw",
            look="Long thin clouds are coefficients that the runs cannot tell apart; one that runs into a"
            " wall is not identified.",
            shows="bootstrap draws of every pair of coefficients, with intervals and correlations",
            needs="a law with two free coefficients and rows to spare",
            draw=_bootstrap,
            terminal=False,
        ),
        "iso-flop": Kind(
            title="Loss against size at constant compute",
            look="Look whether the bottoms of the parabolas lie inside the sizes trained, and how "
            "straight the line through them is.",
            shows="loss against size at constant compute, with parabolas and the best size",
            needs="four sizes N or more at one compute",
            draw=_iso_flop,
        ),
        "loss-n": Kind(
            title="Loss against size",
            look="Where points leave the band the law does not hold; the dashed line says what it would "
            "have said of the largest models before they were trained.",
            shows="loss against size N by tokens, with a law's curves, bands and hold-out",
            needs="a law of N, and of D or nothing else",
            draw=_scaling("N"),
        ),
        "loss-d": Kind(
            title="Loss against tokens",
            look="Where points leave the band the law does not hold; the dashed line says what it would "
            "have said of the longest training before it was done.",
            shows="loss against tokens D by size, with a law's curves, bands and hold-out",
            needs="a law of D, and of N or nothing else",
            draw=_scaling("D"),
        ),
        "loss-c": Kind(
            title="Loss against compute",
            look="Each curve is one size; the dotted line below them is the best that any size can do "
            "with that compute.",
            shows="loss against compute C by size, with a law's curves and its least loss at each compute",
            needs="a law of N and D",
            draw=_scaling("C"),
        ),
        "curves": Kind(
            title="Training curves",
            look="Look for spikes and for runs that leave the others: at right, each run is shown minus "
            "the mean of its seed on the same batch.",
            shows="training loss by run along trunk and branches",
            needs="a study's store",
            draw=_curves,
        ),
        "architectures": Kind(
            title="Losses of the architectures",
            look="A bar that misses the dashed line is a difference from the baseline. Compare the order "
            "before and after the decay: it need not be the same.",
            shows="loss of every architecture beside the baseline, with intervals",
            needs="a study of two architectures or more",
            draw=_architectures,
        ),
        "rates": Kind(
            title="Loss against learning rates",
            look="In each panel, look whether the dashed default lies in the shaded interval of the best "
            "rate, and how flat the bottom is there.",
            shows="loss against the learning rates of every cell, with the default ones",
            needs="a study that varies train.lr and train.value_lr",
            draw=_rates,
        ),
    }
)
"""Every kind by the name that ``umscale plot`` knows it by."""


def _searched(draw: "Callable[[Found], Figure]") -> "Callable[[Found], Figures]":
    return lambda found: {"": draw(found)}


SEARCH_KINDS: "Mapping[str, Kind[Found]]" = MappingProxyType(
    {
        "front": Kind(
            title="What the search tried, and its front",
            look="Nothing measured lies below and to the left of the joined points.",
            shows="every finished trial by its objectives, with the front that no other beats",
            needs="two objectives or more",
            draw=_searched(search_plots.front),
        ),
        "history": Kind(
            title="The search, trial by trial",
            look="A front or a best that still moves late in the search says that it was short.",
            shows="the first objective in the order of trials, with the best so far",
            needs="a finished trial",
            draw=_searched(search_plots.history),
        ),
        "importances": Kind(
            title="Which parameters mattered",
            look="A large share means that good trials have values of this parameter in common.",
            shows="each parameter's share of what sets the better trials apart (PED-ANOVA)",
            needs="enough finished trials",
            draw=_searched(search_plots.importances),
        ),
    }
)
"""Every kind that a search's results give, as ``umscale search`` and a report draw them."""
