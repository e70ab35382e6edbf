"""Laws in words and tables: compared, coefficient by coefficient, and with what their residuals show."""

from collections.abc import Sequence

from umscale.laws.compare import Compared
from umscale.laws.fit import FitResult
from umscale.laws.forms import LocalLaw
from umscale.laws.holdout import EDGES, Edge
from umscale.laws.sections import Report, Section
from umscale.laws.uncertainty import Estimate
from umscale.say.blocks import Block, Bullets, Fold, Grid, Heading, Paragraph
from umscale.say.estimates import fixed, pair, significant
from umscale.say.labels import COMPENSATION_WORDS, STAGE_WORDS, capital, loss_name, sentence
from umscale.say.numbers import count

_FEW_INTERVALS = 5


def estimate_text(estimate: Estimate | None, digits: int = 4) -> str:
    """Return ``+0.0123 [+0.0101, +0.0145]``; without the interval where there is none."""
    if estimate is None or estimate.value != estimate.value:
        return "–"
    value = f"{estimate.value:+.{digits}f}"
    if not estimate.has_interval:
        return f"{value} (no interval)"
    return f"{value} [{estimate.low:+.{digits}f}, {estimate.high:+.{digits}f}]"


def spread_words(equal: bool) -> str:
    """Say, after other words, that architectures' runs lie unequally far apart; nothing where they may not."""
    if equal:
        return ""
    return "; runs of some lie further apart than others' (Bartlett, 1%), so each interval is of its own pairs of runs"


def by_chance(n_intervals: int) -> str:
    """Say, after other words, how many of so many 95% intervals leave out zero where nothing differs."""
    if n_intervals < _FEW_INTERVALS:
        return ""
    return f"; of {n_intervals} such intervals {0.05 * n_intervals:.1f} leave out zero by chance alone"


def interval_text(estimate: Estimate, digits: int = 5) -> str:
    """``[0.32, 0.37]``; an end that the rows do not bound is infinite."""
    if estimate.low != estimate.low or estimate.high != estimate.high:
        return "(no interval)"
    return f"[{estimate.low:.{digits}g}, {estimate.high:.{digits}g}]"


def edges_tested(section: Section) -> dict[Edge, str]:
    """The edges at which any law could be held out, each with its heading."""
    axes = {h.edge: h.axis for c in section.comparison.laws for h in c.holdouts if not h.skipped}
    return {edge: f"{edge} {axes[edge]} held out" for edge in EDGES if edge in axes}


def holdout_text(compared: Compared, edge: str) -> str:
    """Error on the rows held out at an edge, nats and percent; a dash where there is none."""
    holdout = next((h for h in compared.holdouts if h.edge == edge), None)
    if holdout is None or holdout.skipped:
        return "–"
    return f"{holdout.rmse_nats:.4f} ({holdout.mean_percent:.2f}%)"


def columns_text(found: Report) -> str:
    """What every symbol stands for, with unit and convention."""
    first = found.sections[0]
    columns: dict[str, str] = {}
    for compared in first.comparison.laws:
        columns |= {symbol: compared.fit.columns[symbol] for symbol in compared.fit.law.symbols}
    units = found.settings.units
    said = [
        f"{s} is {c}, {units.get(s, 'unit not given (--unit)')}"
        for s, c in (("loss", first.loss), *columns.items())
    ]
    return f"columns: {'; '.join(said)}"


def loss_unit(found: Report) -> str:
    """Unit of the losses in a word, for headings; nothing for a table that did not say (--unit loss=...)."""
    return "nats" if found.n_runs is not None else found.settings.loss_unit


def fitted_text(fit: FitResult) -> str:
    """How a law was fitted, and how surely the optimum was found."""
    delta = {
        "huber": f" (delta {fit.delta:g})",
        "least_absolute": f" (as Huber with delta {fit.delta:g})",
        "least_squares": "",
    }[fit.objective_name]
    residuals = "ln L" if fit.residual == "log" else "L"
    text = f"{fit.objective_name}{delta} on {residuals}, objective {fit.objective:.9g}"
    if fit.starts_at_optimum is not None:
        text += f", reached by {fit.starts_at_optimum:.0%} of {fit.n_starts} starts"
    return text


# -- blocks ---------------------------------------------------------------------------------------------------


def law_blocks(found: Report, losses: Sequence[str]) -> list[Block]:
    """A study's laws compared and their coefficients, those of the first loss open and of others folded away."""
    blocks: list[Block] = [
        Paragraph(
            text="Laws of the loss about the centre of the design (local laws: coefficients in nats per "
            "doubling), fitted to all finished runs of one stage. Held-out errors are of rows beyond an edge "
            "of the rows fitted on."
        )
    ]
    for loss in dict.fromkeys((*losses, *(section.loss for section in found.sections))):
        mine = [
            block
            for section in in_order(found)
            if section.loss == loss
            for block in (*_compared(found, section), *_coefficients(found, section))
        ]
        if mine and loss == losses[0]:
            blocks += mine
        elif mine:
            blocks.append(Fold(summary=f"The same with {loss_name(loss)}", blocks=tuple(mine)))
    return [*blocks, Paragraph(text=sentence(columns_text(found))), _sources(found), *_skipped(found)]


def table_blocks(found: Report) -> list[Block]:
    """The laws of a table that is no study, with what was fitted and what each column means."""
    blocks: list[Block] = []
    if found.settings.by:
        for place in dict.fromkeys((s.stage, s.compensation, s.loss) for s in found.sections):
            inside = [s for s in found.sections if (s.stage, s.compensation, s.loss) == place]
            laws = dict.fromkeys(c.fit.law.name for s in inside for c in s.comparison.laws)
            blocks += [_by_group(found, inside, law) for law in laws]
    for section in found.sections:
        if not found.settings.by:
            blocks += [*_compared(found, section), *_coefficients(found, section)]
        blocks += all_residuals(found, section)
    return [*blocks, *_skipped(found), *_provenance(found)]


def comparison_blocks(found: Report) -> list[Block]:
    """One table of all laws a section, and which of them to use for what."""
    blocks: list[Block] = []
    for section in found.sections:
        blocks += _compared(found, section)
        blocks += [
            Paragraph(text=f"{c.fit.law.name}: not identified: {', '.join(c.fit.unidentified)}")
            for c in section.comparison.laws
            if c.fit.unidentified
        ]
        blocks += all_residuals(found, section)
    return [*blocks, *_skipped(found), *_provenance(found)]


def in_order(found: Report) -> list[Section]:
    """Sections by compensation, the stage before the decay first."""
    return sorted(found.sections, key=lambda s: (s.compensation or "", s.stage == "annealed"))


def _place(found: Report, section: Section) -> str:
    """Words for a section: of a study in its terms, else the values that it has."""
    if found.n_runs is None:
        words = [section.stage, section.compensation, section.loss, *section.by]
        return ", ".join(word for word in words if word)
    words = [STAGE_WORDS.get(section.stage or "", section.stage), loss_name(section.loss)]
    if section.compensation not in (None, "none"):
        words.append(COMPENSATION_WORDS.get(section.compensation or "", section.compensation))
    return capital(", ".join(word for word in words if word))


def _in_unit(words: str, found: Report) -> str:
    unit = loss_unit(found)
    return f"{words}, {unit}" if unit else words


def _compared(found: Report, section: Section) -> list[Block]:
    """What each law misses, on the rows fitted and on those held out, and which law to use."""
    edges = edges_tested(section)
    comparison = section.comparison
    uses = [f"{capital(use.purpose)}: {use.law} ({use.reason})." for use in comparison.uses]
    return [
        Heading(text=f"{_place(found, section)}: {comparison.laws[0].fit.n_rows} records"),
        Grid(
            caption="Laws compared",
            head=(
                *("law", "free", _in_unit("RMSE", found), "RMSE, %", "R²", "AICc", "BIC"),
                *(_in_unit(words, found) for words in edges.values()),
            ),
            sides="l" + "r" * (6 + len(edges)),
            rows=tuple(
                (
                    f"{c.fit.law.name} (null)" if c.is_null and c.fit.law.name != "null" else c.fit.law.name,
                    str(c.n_parameters - 1),
                    fixed(c.fit.rmse_nats),
                    fixed(c.fit.rmse_percent, 2),
                    fixed(c.fit.r_squared, 3),
                    fixed(c.aicc, 1),
                    fixed(c.bic, 1),
                    *(holdout_text(c, edge) for edge in edges),
                )
                for c in comparison.laws
            ),
            notes=(f"Law to use: {comparison.recommended} ({comparison.reason}).", *uses)
            if found.n_runs is not None or len(comparison.laws) > 1
            else (),
        ),
    ]


def _coefficients(found: Report, section: Section) -> list[Block]:
    rows = []
    for i, (c, uncertainty) in enumerate(zip(section.comparison.laws, section.uncertainty, strict=True)):
        for name, estimate in uncertainty.coefficients().items():
            profile = [interval_text(section.profiles[i][name])] if section.profiles else []
            loose = "no" if name in c.fit.unidentified else "yes"
            first = name == c.fit.law.coefficients[0]
            rows.append(
                (c.fit.law.name if first else "", name, *_coefficient(c.fit, name, estimate), *profile, loose)
            )
    notes = [
        f"{c.fit.law.name}: {line}"
        for c, uncertainty in zip(section.comparison.laws, section.uncertainty, strict=True)
        for line in (*c.fit.warnings, *uncertainty.warnings)
    ]
    profiled = ("profile",) if section.profiles else ()
    return [
        Grid(
            caption="Coefficients, 95% intervals",
            head=("law", "coefficient", _in_unit("value", found), "interval", *profiled, "identified"),
            sides="llrr" + "r" * len(profiled) + "l",
            rows=tuple(rows),
            notes=tuple(sentence(note) for note in notes),
        )
    ]


def _coefficient(fit: FitResult, name: str, estimate: Estimate, digits: int = 5) -> tuple[str, str]:
    """Value and interval: nats per doubling with fixed digits, others with two significant ones more than the ends."""
    if isinstance(fit.law, LocalLaw):
        return pair(estimate)
    ends = "pinned" if name in fit.constraints.pins else interval_text(estimate, digits)
    return significant(estimate.value, digits + 2), ends


def _by_group(found: Report, sections: Sequence[Section], law: str) -> Grid:
    """One law, a row for each value of the grouping columns."""
    pairs = [(s, i) for s in sections for i, c in enumerate(s.comparison.laws) if c.fit.law.name == law]
    names = list(dict.fromkeys(n for s, i in pairs for n in s.comparison.laws[i].fit.law.coefficients))
    tested = {edge: head for s, _ in pairs for edge, head in edges_tested(s).items()}
    rows = []
    for section, i in pairs:
        compared = section.comparison.laws[i]
        estimates = section.uncertainty[i].coefficients()
        cells = [
            "\n".join(_coefficient(compared.fit, name, estimates[name], 3))
            + ("\nnot identified" if name in compared.fit.unidentified else "")
            if name in estimates
            else "–"
            for name in names
        ]
        errors = (fixed(compared.fit.rmse_nats), *(holdout_text(compared, edge) for edge in tested))
        rows.append((*section.by, str(compared.fit.n_rows), *cells, *errors))
    right = ("rows", *names, _in_unit("RMSE", found), *tested.values())
    place = ", ".join(
        word for word in (sections[0].stage, sections[0].compensation, sections[0].loss) if word
    )
    return Grid(
        caption=f"{law}: {place}",
        head=(*found.settings.by, *right),
        sides="l" * len(found.settings.by) + "r" * len(right),
        rows=tuple(rows),
    )


def _skipped(found: Report) -> list[Block]:
    lines = tuple(f"Not fitted: {line}" for line in found.skipped)
    return [Bullets(items=lines)] if lines else []


def _sources(found: Report) -> Grid:
    laws = {c.fit.law.name: c.fit.law for s in found.sections for c in s.comparison.laws}
    fitted = {c.fit.law.name: fitted_text(c.fit) for s in reversed(found.sections) for c in s.comparison.laws}
    drawn = {
        c.fit.law.name: f"{u.method}; resampled {u.resampled}"
        for s in reversed(found.sections)
        for c, u in zip(s.comparison.laws, s.uncertainty, strict=True)
        if len(u.draws)
    }
    rows = tuple(
        (name, f"`{law.formula}`", law.source, fitted[name].partition(", objective")[0], drawn.get(name, "–"))
        for name, law in laws.items()
    )
    head = ("law", "loss in nats", "source", "fitted by", "intervals by")
    return Grid(caption="Where laws and intervals come from", head=head, sides="lllll", rows=rows)


def _provenance(found: Report) -> list[Block]:
    """How laws were fitted, section by section, where their numbers come from, and in what units."""
    blocks: list[Block] = []
    for law in {c.fit.law.name: c.fit.law for s in found.sections for c in s.comparison.laws}.values():
        lines = []
        for section in found.sections:
            place = f"{_place(found, section)}: " if len(found.sections) > 1 else ""
            for c, u in zip(section.comparison.laws, section.uncertainty, strict=True):
                if c.fit.law.name == law.name:
                    lines.append(f"{place}{fitted_text(c.fit)}")
                    lines += [f"note: {line}" for line in (*c.fit.warnings, *u.warnings)]
                    lines += [f"intervals: {u.method}; resampled {u.resampled}"] if len(u.draws) else []
        formula = f"{law.name}: `{law.formula}`   [{law.source}]"
        blocks += [Paragraph(text=formula), Bullets(items=tuple(dict.fromkeys(lines)))]
    return [*blocks, Paragraph(text=sentence(columns_text(found)))]


def all_residuals(found: Report, section: Section) -> list[Block]:
    """What every law of a section leaves behind; nothing unless diagnostics were asked for."""
    return [residuals(found, section, i) for i in range(len(section.diagnostics))]


def residuals(found: Report, section: Section, index: int | None = None) -> Grid:
    """What a law leaves behind: the one that a section recommends, unless another is named by position."""
    names = [c.fit.law.name for c in section.comparison.laws]
    index = names.index(section.comparison.recommended) if index is None else index
    left = section.diagnostics[index]
    rows = []
    for axis in left.axes:
        for i, one in enumerate(axis.bins):
            rows.append(
                (
                    f"`{axis.column}`" if i == 0 else "",
                    _size(one.low) if one.low == one.high else f"{_size(one.low)} to {_size(one.high)}",
                    str(one.n_rows),
                    *(fixed(one.mean), fixed(one.rms)),
                    *((fixed(axis.slope), fixed(axis.t, 1)) if i == 0 else ("", "")),
                )
            )
    runs = ", ".join(f"{r.name} {fixed(r.mean)} ({fixed(abs(r.deviations), 1)} sd)" for r in left.runs)
    moved = ", ".join(
        f"{i.row} ({i.coefficient} by {fixed(abs(i.standard_errors), 2)} standard errors)"
        for i in left.influence
    )
    place = _place(found, section)
    unit = "nats per token" if found.n_runs is not None else loss_unit(found)
    return Grid(
        caption=", ".join(
            filter(None, (f"Residuals of the law {names[index]}", place[:1].lower() + place[1:], unit))
        ),
        head=("axis", "values", "rows", "mean residual", "RMS", "slope per octave", "t"),
        sides="llrrrrr",
        rows=tuple(rows),
        notes=(
            f"Furthest from the law: {runs}.",
            *([f"Rows that move a coefficient most: {moved}."] if moved else []),
            *(sentence(line) for line in left.statements),
        ),
    )


def _size(value: float) -> str:
    return count(value) if abs(value) >= 1000 else significant(value)
