"""How `umscale fit` prints laws: side by side, by group, compared, and with what their residuals show."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from umscale.say.laws import (
    columns_text,
    edges_tested,
    estimate_text,
    fitted_text,
    heading,
    holdout_text,
    interval_text,
    loss_unit,
)
from umscale_cli.answers import print_verdict
from umscale_cli.console import count, number

if TYPE_CHECKING:
    from umscale.laws.diagnostics import Diagnostics
    from umscale.laws.fit import FitResult
    from umscale.laws.uncertainty import Estimate
    from umscale.questions.laws import Report, Section


def print_fit(found: "Report", console: Any, details: "Iterable[str]" = ("loss",)) -> None:
    """Print laws and verdicts of the losses in ``details`` in full, and a line for every other verdict."""
    shown = [section for section in found.sections if section.loss in details]
    _print_sections(found, shown, console)
    for line in found.skipped:
        console.print(f"not fitted: {line}")
    console.print(columns_text(found), soft_wrap=True)
    for verdict in found.verdicts:
        if verdict.loss in details:
            console.print()
            print_verdict(verdict, console)
    console.print()
    for verdict in found.verdicts:
        if verdict.loss not in details:
            difference = verdict.from_law.difference if verdict.from_law else None
            where = heading(verdict.stage, verdict.compensation, verdict.loss)
            console.print(f"{where}: {verdict.answer}, difference {estimate_text(difference)}")


def print_table_fit(found: "Report", console: Any) -> None:
    """Print the laws of a table that is no study, with what was fitted and what each column means."""
    _print_sections(found, found.sections, console)
    for line in found.skipped:
        console.print(f"not fitted: {line}", soft_wrap=True)
    console.print()
    for line in _provenance(found):
        console.print(line, soft_wrap=True)


def print_comparison(found: "Report", console: Any) -> None:
    """Print one table of all laws a section, and which of them to use for what."""
    for section in found.sections:
        console.print()
        console.print(_comparison_table(found, section))
        for compared in section.comparison.laws:
            loose = compared.fit.unidentified
            if loose:
                console.print(f"{compared.fit.law.name}: not identified: {', '.join(loose)}")
        for use in section.comparison.uses:
            console.print(f"{use.purpose}: {use.law} ({use.reason})", soft_wrap=True)
        console.print(
            f"one law for all: {section.comparison.recommended} ({section.comparison.reason})", soft_wrap=True
        )
        for index, diagnostics in enumerate(section.diagnostics):
            _print_diagnostics(section.comparison.laws[index].fit, diagnostics, console, loss_unit(found))
    for line in found.skipped:
        console.print(f"not fitted: {line}", soft_wrap=True)
    console.print()
    for line in _provenance(found):
        console.print(line, soft_wrap=True)


def _print_sections(found: "Report", sections: "Sequence[Section]", console: Any) -> None:
    if found.settings.by:
        places = dict.fromkeys((s.stage, s.compensation, s.loss) for s in sections)
        for place in places:
            inside = [s for s in sections if (s.stage, s.compensation, s.loss) == place]
            for law in dict.fromkeys(c.fit.law.name for s in inside for c in s.comparison.laws):
                console.print()
                console.print(_group_table(found, inside, law))
    for section in sections:
        if not found.settings.by:
            console.print()
            console.print(_law_table(found, section))
            if found.n_runs is not None or len(section.comparison.laws) > 1:
                words = section.comparison
                console.print(f"Law to use: {words.recommended} ({words.reason})", soft_wrap=True)
            if found.n_runs is not None:  # a table's notes stand beside how it was fitted
                for compared, uncertainty in zip(section.comparison.laws, section.uncertainty, strict=True):
                    for line in (*compared.fit.warnings, *uncertainty.warnings):
                        console.print(f"note: {compared.fit.law.name}: {line}", soft_wrap=True)
        for index, diagnostics in enumerate(section.diagnostics):
            _print_diagnostics(
                section.comparison.laws[index].fit,
                diagnostics,
                console,
                loss_unit(found),
                ", ".join(section.by) or None,
            )


def plain_table(title: str, columns: Mapping[str, str]) -> Any:
    """Return a table without lines; ``columns`` maps names to ``left`` or ``right``."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, side in columns.items():
        justify: Any = side
        table.add_column(name, justify=justify)
    return table


def _rmse(found: "Report") -> str:
    return f"RMSE {loss_unit(found)}".rstrip()


def _title(found: "Report", section: "Section") -> str:
    return f"Laws: {_heading(found, section)} ({section.comparison.laws[0].fit.n_rows} records)"


def _heading(found: "Report", section: "Section") -> str:
    if found.n_runs is not None:
        return heading(section.stage, section.compensation, section.loss)
    return ", ".join(part for part in (section.stage, section.compensation, section.loss) if part)


def _law_table(found: "Report", section: "Section") -> Any:
    profiled = {"profile": "left"} if section.profiles else {}
    tested = edges_tested(section)
    right = ("free", _rmse(found), "R²", "AICc", *tested.values())
    columns = {
        "law": "left",
        "coefficients, 95% interval": "left",
        **profiled,
        **dict.fromkeys(right, "right"),
    }
    table = plain_table(_title(found, section), columns)
    for index, compared in enumerate(section.comparison.laws):
        fit = compared.fit
        estimates = section.uncertainty[index].coefficients()
        lines = [f"{name} {_coefficient(fit, name, value)}" for name, value in estimates.items()]
        profiles = section.profiles[index] if section.profiles else {}
        table.add_row(
            fit.law.name,
            "\n".join(lines),
            *(["\n".join(interval_text(p) for p in profiles.values())] if profiles else []),
            str(compared.n_parameters - 1),
            number(fit.rmse_nats),
            number(fit.r_squared, 3),
            number(compared.aicc, 1),
            *(holdout_text(compared, edge) for edge in tested),
        )
    return table


def _group_table(found: "Report", sections: "Sequence[Section]", law: str) -> Any:
    """One law, a row for each value of the grouping column."""

    pairs = [(s, i) for s in sections for i, c in enumerate(s.comparison.laws) if c.fit.law.name == law]
    names = list(dict.fromkeys(n for s, i in pairs for n in s.comparison.laws[i].fit.law.coefficients))
    tested = {edge: head for s, _ in pairs for edge, head in edges_tested(s).items()}
    right = ("rows", *names, _rmse(found), *tested.values())
    title = f"{law}: {_heading(found, sections[0])}"
    table = plain_table(title, {**dict.fromkeys(found.settings.by, "left"), **dict.fromkeys(right, "right")})
    for section, index in pairs:
        compared = section.comparison.laws[index]
        estimates = section.uncertainty[index].coefficients()
        cells = [
            _coefficient(compared.fit, name, estimates[name], "\n", 3).replace("  ", "\n")
            if name in estimates
            else "–"
            for name in names
        ]
        table.add_row(
            *section.by,
            str(compared.fit.n_rows),
            *cells,
            number(compared.fit.rmse_nats),
            *(holdout_text(compared, edge) for edge in tested),
        )
    return table


def _comparison_table(found: "Report", section: "Section") -> Any:
    heads = edges_tested(section)
    right = ("free", _rmse(found), "%", "AICc", "BIC", *heads.values())
    table = plain_table(_title(found, section), {"law": "left", **dict.fromkeys(right, "right")})
    for compared in section.comparison.laws:
        name = compared.fit.law.name
        table.add_row(
            f"{name} (null)" if compared.is_null else name,
            str(compared.n_parameters - 1),
            number(compared.fit.rmse_nats),
            number(compared.fit.rmse_percent, 2),
            number(compared.aicc, 1),
            number(compared.bic, 1),
            *(holdout_text(compared, edge) for edge in heads),
        )
    return table


def _coefficient(
    fit: "FitResult", name: str, estimate: "Estimate", between: str = " ", digits: int = 5
) -> str:
    """A coefficient with its interval: nats per doubling with fixed digits, others with seven significant ones."""
    from umscale.laws.forms import LocalLaw

    loose = "  not identified" if name in fit.unidentified else ""
    if isinstance(fit.law, LocalLaw):
        return estimate_text(estimate) + loose
    if name in fit.constraints.pins:
        return f"{estimate.value:.{digits + 2}g}{between}pinned"
    return f"{estimate.value:.{digits + 2}g}{between}{interval_text(estimate, digits)}{loose}"


def _provenance(found: "Report") -> list[str]:
    """How the laws were fitted, where their numbers come from, and in what units."""
    lines: list[str] = []
    laws = {c.fit.law.name: c.fit.law for s in found.sections for c in s.comparison.laws}
    for law in laws.values():
        lines.append(f"{law.name}: {law.formula}   [{law.source}]")
        for section in found.sections:
            words: tuple[str | None, ...] = ()
            if found.n_runs is not None:
                words = (section.stage, section.compensation, section.loss)
            words = (*words, *(f"{n} {v}" for n, v in zip(found.settings.by, section.by, strict=True)))
            place = ", ".join(word for word in words if word)
            for compared, uncertainty in zip(section.comparison.laws, section.uncertainty, strict=True):
                if compared.fit.law.name != law.name:
                    continue
                lines.append(f"  {place}{': ' if place else ''}{fitted_text(compared.fit)}")
                lines += [f"    note: {line}" for line in (*compared.fit.warnings, *uncertainty.warnings)]
                if len(uncertainty.draws):
                    lines.append(f"    intervals: {uncertainty.method}; resampled {uncertainty.resampled}")
    return [*lines, columns_text(found)]


def _print_diagnostics(
    fit: "FitResult", found: "Diagnostics", console: Any, unit: str, group: str | None = None
) -> None:
    left = {"axis": "left", "from": "right", "to": "right"}
    right = dict.fromkeys(
        ("rows", f"mean residual{', ' if unit else ''}{unit}", "RMS", f"{unit or 'slope'}/octave (t)"),
        "right",
    )
    title = f"Residuals of {fit.law.name}{f', {group}' if group is not None else ''}"
    table = plain_table(title, left | right)
    for axis in found.axes:
        for i, one in enumerate(axis.bins):
            table.add_row(
                axis.column if i == 0 else "",
                _size(one.low),
                _size(one.high),
                str(one.n_rows),
                f"{one.mean:+.4f}",
                f"{one.rms:.4f}",
                f"{axis.slope:+.4f} ({axis.t:.1f})" if i == 0 else "",
            )
    console.print()
    console.print(table)
    runs = ", ".join(f"{r.name} {r.mean:+.4f} ({abs(r.deviations):.1f} sd)" for r in found.runs)
    console.print(f"furthest from the law: {runs}", soft_wrap=True)
    moved = ", ".join(
        f"{i.row} ({i.coefficient} by {abs(i.standard_errors):.2f} standard errors)" for i in found.influence
    )
    console.print(f"rows that move a coefficient most: {moved or '–'}", soft_wrap=True)
    for line in found.statements:
        console.print(f"  {line}", soft_wrap=True)


def _size(value: float) -> str:
    return count(value) if abs(value) >= 1000 else f"{value:.3g}"
