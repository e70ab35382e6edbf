"""Every kind of figure by name: what it shows, what it needs, and how it is drawn from a table and its laws."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from umscale.errors import UserError
from umscale.laws.compare import Compared
from umscale.laws.forms import FIRST_LAWS, Law
from umscale.laws.sections import Section, Settings, table_report
from umscale.laws.uncertainty import Uncertainty
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
from umscale.questions.density_map import DensityMap, density_map, study_map
from umscale.questions.density_over_size import fit_effects, why_thin
from umscale.questions.iso_flops import training_flops
from umscale.questions.laws import LAWS
from umscale.questions.learning_rates import rates_reports
from umscale.questions.token_trend import token_trends
from umscale.results.columns import COLUMNS
from umscale.results.table import Table, levels, numeric, where

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PLANE = ("m", "N_s")


class Gallery:
    """A table, and the laws on it once a figure asks for them."""

    def __init__(
        self,
        table: Table,
        *,
        laws: Sequence[Law] = (),
        question: str = "",
        loss: str = "loss",
        stage: str | None = None,
        settings: Settings | None = None,
        training: Callable[[], Table] | None = None,
        seed: int = 0,
    ) -> None:
        """A gallery of ``table``.

        Args:
            laws: those to draw; none takes a study's own and draws the one it recommends.
            question: a study's, which says what its own laws are.
            stage: one stage alone; None takes all.
            settings: of the fits; the default ones are a study's.
            training: gives the training curves of a study's runs; None where there are none.
            seed: of the bootstrap.
        """
        self.table = where(table, stage=stage)
        self.laws = tuple(laws)
        self.question = question
        self.loss = loss
        self.settings = settings or Settings()
        self.training = training
        self.seed = seed
        self.skipped: tuple[str, ...] = ()
        """Laws that could not be fitted somewhere, with the reason; known once a figure has asked for laws."""

    @property
    def columns(self) -> Mapping[str, str]:
        """Symbol → column."""
        return {**COLUMNS, **self.settings.columns}

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """The laws on every stage and compensation, stages before the decay first; raises ``UserError`` for none."""
        if not self.laws and not self.settings.is_study:
            raise UserError("this figure needs a law: name one with --law; `umscale laws` lists them")
        self.require_one_architecture()
        settings = replace(self.settings, diagnostics=True)
        laws = self.laws or (LAWS if self.question == "laws" else FIRST_LAWS)
        found = table_report(self.table, laws, settings, loss=self.loss, seed=self.seed)
        self.skipped = found.skipped
        for section in found.sections:
            for fit in (section.comparison.laws[i].fit for i in self.chosen(section)):
                if not np.isfinite(fit.vector).all():
                    raise UserError(
                        f"law {fit.law.name!r} has no finite coefficients on these rows: nothing to draw"
                    )
        return tuple(sorted(found.sections, key=lambda section: section.stage == "annealed"))

    def require_one_architecture(self) -> None:
        """Raise ``UserError`` where a law of a study would mix architectures that it cannot tell apart."""
        names = levels(self.table, "architecture")
        if not self.laws and len(names) > 1:
            raise UserError(f"the study compares {', '.join(names)}: no law holds across architectures")

    def chosen(self, section: Section) -> list[int]:
        """Positions of the laws that are drawn: those asked for, or the recommended one."""
        names = [compared.fit.law.name for compared in section.comparison.laws]
        if self.laws:
            return list(range(len(names)))
        # A flat line says nothing of how flat: the band of the additive law does.
        best = section.comparison.recommended
        return [names.index("additive" if best == "null" and "additive" in names else best)]

    def laws_at(self, compensation: str | None) -> tuple[list[Uncertainty], str]:
        """The laws to draw beside points of one compensation, or why there are none."""
        if not self.laws and not self.settings.is_study:
            return [], ""
        try:
            sections = [s for s in self.sections if s.compensation == compensation]
        except UserError as error:
            if self.laws:
                raise
            return [], f"No law drawn: {error}."
        return [section.uncertainty[i] for section in sections for i in self.chosen(section)], ""

    def parts(self) -> Iterator[tuple[str, str | None, Table]]:
        """File-name suffix, compensation and rows of every compensation of the table."""
        modes = levels(self.table, "compensation")
        for mode in modes or (None,):
            yield (f"-{mode}" if len(modes) > 1 else ""), mode, where(self.table, compensation=mode)

    def fits(self, *, stages: bool = True) -> Iterator[tuple[str, Section, int]]:
        """File-name suffix, section and position of every law that is drawn.

        Suffixes tell apart what there are several of: compensations, laws and, unless a figure holds them all, stages.
        """
        names = ("compensation", "stage") if stages else ("compensation",)
        several = [name for name in names if len({getattr(s, name) for s in self.sections}) > 1]
        for section in self.sections:
            words = [str(getattr(section, name)) for name in several]
            positions = self.chosen(section)
            for i in positions:
                law = [_file_name(section.comparison.laws[i].fit.law.name)] if len(positions) > 1 else []
                yield "".join(f"-{word}" for word in (*words, *law)), section, i


Figures = dict[str, "Figure"]
"""Figures of one kind by file-name suffix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of figure."""

    shows: str
    needs: str
    draw: Callable[[Gallery], Figures]
    """Raises ``UserError`` for data that cannot give it."""
    terminal: bool = True
    """Whether points and lines on a terminal can stand for it."""


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


def _ratio(gallery: Gallery) -> Figures:
    return {
        suffix: memory_ratio(part, loss=gallery.loss, columns=gallery.columns, seed=gallery.seed)
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
    return {suffix: predicted(parts) for suffix, parts in found.items()}


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
            out[suffix + words] = iso_flop(rows, law, loss=gallery.loss, columns=gallery.columns)
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
            out[suffix] = scaling(found, compared, along, compute=compute, source=source)
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


def _file_name(law: str) -> str:
    """A law's name as part of a file's; an expression may hold anything."""
    return re.sub(r"[^A-Za-z0-9_.]+", "_", law).strip("_")[:40]


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "density": Kind(
            shows="loss against top_m by sparse parameters, with the law and its band",
            needs="two values of top_m or more, beside N_s",
            draw=_losses(loss_vs_density),
        ),
        "size": Kind(
            shows="loss against sparse parameters by top_m, with the law and its band",
            needs="two values of N_s or more, beside top_m",
            draw=_losses(loss_vs_size),
        ),
        "map": Kind(
            shows="where in the (top_m, N_s) plane density beats size, with iso-loss contours",
            needs="a law of top_m and N_s",
            draw=_map,
        ),
        "trend": Kind(
            shows="what a doubling of top_m and of N_s buys by token budget, and where their difference turns",
            needs="two token budgets or more, beside top_m and N_s",
            draw=_trend,
        ),
        "ratio": Kind(
            shows="loss against the memory's share of compute, its optimum and the paper's 17%",
            needs="three memory-to-FFN ratios or more",
            draw=_ratio,
        ),
        "allocation": Kind(
            shows="loss over the shares of experts and memories, its optimum and region, or loss against n-gram rows",
            needs="three shares or more (axes memory_share, ngram_share), or four sizes of n-gram tables",
            draw=_allocation,
        ),
        "residuals": Kind(
            shows="what the law misses, against the fitted loss and every axis",
            needs="a law",
            draw=_residuals,
        ),
        "predicted": Kind(
            shows="observed against predicted loss, rows held out at the design's edges marked",
            needs="a law",
            draw=_predicted,
        ),
        "bootstrap": Kind(
            shows="bootstrap draws of every pair of coefficients, with intervals and correlations",
            needs="a law with two free coefficients and rows to spare",
            draw=_bootstrap,
            terminal=False,
        ),
        "iso-flop": Kind(
            shows="loss against size at constant compute, with parabolas and the best size",
            needs="four sizes N or more at one compute",
            draw=_iso_flop,
        ),
        "loss-n": Kind(
            shows="loss against size N by tokens, with a law's curves, bands and hold-out",
            needs="a law of N, and of D or nothing else",
            draw=_scaling("N"),
        ),
        "loss-d": Kind(
            shows="loss against tokens D by size, with a law's curves, bands and hold-out",
            needs="a law of D, and of N or nothing else",
            draw=_scaling("D"),
        ),
        "loss-c": Kind(
            shows="loss against compute C by size, with a law's curves and its least loss at each compute",
            needs="a law of N and D",
            draw=_scaling("C"),
        ),
        "curves": Kind(
            shows="training loss by run along trunk and branches",
            needs="a study's store",
            draw=_curves,
        ),
        "architectures": Kind(
            shows="loss of every architecture beside the baseline, with intervals",
            needs="a study of two architectures or more",
            draw=_architectures,
        ),
        "rates": Kind(
            shows="loss against the learning rates of every cell, with the default ones",
            needs="a study that varies train.lr and train.value_lr",
            draw=_rates,
        ),
    }
)
"""Every kind by the name that ``umscale plot`` knows it by."""
