"""Scaling laws as data: what a form is called, where it comes from, which columns it reads, what it predicts.

Three classes cover the laws worth fitting.

``PowerLaw``: L = Σ_t scale_t · exp(Σ_k sign_k · θ_k · Π ln column), a sum of products of powers. Then
log L = logsumexp_t(X_t · θ) with known features X_t, which is what gives the engine its closed-form
gradient and Hessian.

``LocalLaw``: L = c0 + Σ_k slope_k · Π log2(column / reference), in nats per doubling. It is linear, hence
identified on grids far too small for exponents and irreducible losses.

``ExpressionLaw``: anything else that can be written with + - * / ** log exp, as a tree with exact derivatives.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

import numpy as np

from umscale import formulas as tree
from umscale import parts
from umscale.errors import UserError
from umscale.results.columns import Array

Residual = Literal["log", "raw"]
Objective = Literal["huber", "least_squares", "least_absolute"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """exp(sign · coefficient · Π ln symbols): a power of a column, or of a product of logarithms."""

    coefficient: str
    symbols: tuple[str, ...]
    sign: float = -1.0
    span: tuple[float, float] = (0.05, 1.2)
    """Where starting values are laid; spaced by ratio when both ends are positive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """constant · scale · Π factors · Π powers; scale and constant are positive."""

    scale: str | None
    """None where the term has no coefficient in front."""
    factors: tuple[Factor, ...] = ()
    constant: float = 1.0
    powers: tuple[tuple[tuple[str, ...], float], ...] = ()
    """(symbols, e): exp(e · Π ln symbols), powers with a known exponent."""

    @property
    def symbols(self) -> tuple[str, ...]:
        named = [*(f.symbols for f in self.factors), *(symbols for symbols, _ in self.powers)]
        return tuple(dict.fromkeys(s for symbols in named for s in symbols))


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLaw:
    """A sum of products of powers; ``coefficients`` lists scales and exponents in order of appearance.

    Scales are positive, except of a law with a ``root``: as its user wrote it, whose coefficients may have either sign.
    """

    name: str
    source: str
    formula: str
    terms: tuple[Term, ...]
    root: tree.Node | None = field(default=None, repr=False, compare=False)
    package: str = ""
    """Name and version of the package that offers it; empty for others."""

    objective: Objective = "huber"

    @property
    def coefficients(self) -> tuple[str, ...]:
        names = [name for term in self.terms for name in (term.scale, *(f.coefficient for f in term.factors))]
        return tuple(dict.fromkeys(name for name in names if name is not None))

    @property
    def scales(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(term.scale for term in self.terms if term.scale is not None))

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s for term in self.terms for s in term.symbols))

    @property
    def positive(self) -> tuple[str, ...]:
        """Symbols whose values must be positive."""
        return self.symbols if self.root is None else tree.positive_symbols(self.root)

    @property
    def residual(self) -> Residual:
        return "log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """coefficient · Π log2(symbol / reference)."""

    coefficient: str
    symbols: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalLaw:
    """A plane (or, with products, a saddle) through the reference point; ``c0`` is the loss there."""

    name: str
    source: str
    formula: str
    slopes: tuple[Slope, ...]
    package: str = ""
    """Name and version of the package that offers it; empty for others."""

    @property
    def coefficients(self) -> tuple[str, ...]:
        return ("c0", *(slope.coefficient for slope in self.slopes))

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s for slope in self.slopes for s in slope.symbols))

    @property
    def positive(self) -> tuple[str, ...]:
        """Symbols whose values must be positive."""
        return self.symbols

    @property
    def residual(self) -> Residual:
        return "raw"

    @property
    def objective(self) -> Objective:
        return "least_squares"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpressionLaw:
    """A formula of the grammar of ``tree``; coefficients in order of appearance, of either sign."""

    name: str
    source: str
    formula: str
    root: tree.Node
    spans: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Where starting values are laid, for coefficients that are not linear; others are laid by the rows."""
    objective: Objective = "huber"
    package: str = ""
    """Name and version of the package that offers it; empty for others."""

    @property
    def coefficients(self) -> tuple[str, ...]:
        return tree.coefficient_names(self.root)

    @property
    def symbols(self) -> tuple[str, ...]:
        return tree.symbol_names(self.root)

    @property
    def positive(self) -> tuple[str, ...]:
        """Symbols whose values must be positive."""
        return tree.positive_symbols(self.root)

    @property
    def residual(self) -> Residual:
        return "log"


Law = PowerLaw | LocalLaw | ExpressionLaw


def as_written(law: PowerLaw, root: tree.Node | None = None) -> ExpressionLaw:
    """A power law as an expression, whose coefficients may have either sign; ``root`` instead of its terms."""
    return ExpressionLaw(
        name=law.name,
        source=law.source,
        formula=law.formula,
        root=_sum_of_terms(law) if root is None else root,
        objective=law.objective,
    )


def _sum_of_terms(law: PowerLaw) -> tree.Node:
    whole: tree.Node | None = None
    for term in law.terms:
        part: tree.Node = tree.Number(term.constant)
        if term.scale is not None:
            part = tree.apply("*", part, tree.Coefficient(term.scale))
        named = [
            (f.symbols, tree.apply("*", tree.Number(f.sign), tree.Coefficient(f.coefficient)))
            for f in term.factors
        ]
        for symbols, number in (*named, *((s, tree.Number(e)) for s, e in term.powers)):
            exponent: tree.Node = number
            for symbol in symbols[1:]:
                exponent = tree.apply("*", exponent, tree.apply("log", tree.Symbol(symbol)))
            power = (
                tree.apply("**", tree.Symbol(symbols[0]), exponent)
                if symbols
                else tree.apply("exp", exponent)
            )
            part = tree.apply("*", part, power)
        whole = part if whole is None else tree.apply("+", whole, part)
    assert whole is not None
    return whole


def power_features(law: PowerLaw, values: Mapping[str, Array]) -> tuple[Array, Array]:
    """Features X [terms, rows, coefficients] and offsets o [terms, rows] with log L = logsumexp_t(o_t + X_t · θ).

    θ holds ln(scale) for scales. ``values`` maps symbols, those of the law and any others, to positive arrays of
    one length.
    """
    n_rows = len(next(iter(values.values())))
    index = {name: k for k, name in enumerate(law.coefficients)}
    features = np.zeros((len(law.terms), n_rows, len(index)))
    offsets = np.zeros((len(law.terms), n_rows))
    for t, term in enumerate(law.terms):
        offsets[t] = np.log(term.constant)
        if term.scale is not None:
            features[t, :, index[term.scale]] = 1.0
        for factor in term.factors:
            product = np.prod([np.log(values[s]) for s in factor.symbols], axis=0)
            features[t, :, index[factor.coefficient]] += factor.sign * product
        for symbols, exponent in term.powers:
            offsets[t] += exponent * np.prod([np.log(values[s]) for s in symbols], axis=0)
    return features, offsets


def local_features(law: LocalLaw, values: Mapping[str, Array], reference: Mapping[str, float]) -> Array:
    """Design matrix [rows, coefficients] of a local law, axes in doublings from the reference point."""
    columns = [np.ones(len(next(iter(values.values()))))]
    for slope in law.slopes:
        columns.append(np.prod([np.log2(values[s] / reference[s]) for s in slope.symbols], axis=0))
    return np.stack(columns, axis=1)


def evaluate(
    law: Law, coefficients: Array, values: Mapping[str, Array], reference: Mapping[str, float]
) -> Array:
    """Loss [..., rows] in nats for coefficients [..., coefficients] (scales as they are, not as logarithms).

    ``values`` maps symbols, those of the law and any others, to arrays of one length.
    """
    coefficients = np.asarray(coefficients, dtype=np.float64)
    if isinstance(law, LocalLaw):
        linear: Array = coefficients @ local_features(law, values, reference).T
        return linear
    if isinstance(law, ExpressionLaw):
        flat = coefficients.reshape(-1, coefficients.shape[-1])
        index = {name: k for k, name in enumerate(law.coefficients)}
        loss = tree.evaluate(law.root, values, flat, index, order=0).value
        n_rows = len(next(iter(values.values())))
        return np.broadcast_to(loss, (len(flat), n_rows)).reshape(*coefficients.shape[:-1], n_rows)
    features, offsets = power_features(law, values)
    theta = to_theta(law, coefficients)
    return np.asarray(sum(np.exp(offsets[t] + theta @ features[t].T) for t in range(len(law.terms))))


def to_theta(law: PowerLaw, coefficients: Array) -> Array:
    """Coefficients [..., p] → θ [..., p]: scales become their logarithms."""
    theta = np.array(coefficients, dtype=np.float64)
    positions = [law.coefficients.index(s) for s in law.scales]
    # A start may sit on the boundary scale = 0; the floor keeps its logarithm finite.
    theta[..., positions] = np.log(np.maximum(theta[..., positions], 1e-300))
    return theta


def from_theta(law: PowerLaw, theta: Array) -> Array:
    """θ [..., p] → coefficients [..., p]; inverse of ``to_theta``."""
    coefficients = np.array(theta, dtype=np.float64)
    positions = [law.coefficients.index(s) for s in law.scales]
    with np.errstate(over="ignore"):  # a trial step may overshoot; its infinite loss rejects it
        coefficients[..., positions] = np.exp(coefficients[..., positions])
    return coefficients


def without_axes(law: Law, constant: Iterable[str], keep: Iterable[str] = ()) -> tuple[Law, tuple[str, ...]]:
    """The law on rows where the symbols in ``constant`` take one value, and the coefficients that dropped out.

    A power of a constant merges into its scale; a term left without powers merges into the constant term. What
    involves a coefficient in ``keep`` (its value means something) and expressions stay as they are.
    """
    if isinstance(law, ExpressionLaw):
        return law, ()
    kept = frozenset(keep)
    gone = (frozenset(constant) & set(law.symbols)) - _bound_to(law, kept)
    if not gone:
        return law, ()
    reduced: Law
    if isinstance(law, LocalLaw):
        reduced = replace(law, slopes=tuple(s for s in law.slopes if not gone & set(s.symbols)))
    else:
        terms: list[Term] = []
        for term in law.terms:
            factors = tuple(f for f in term.factors if not gone & set(f.symbols))
            powers = tuple(p for p in term.powers if not gone & set(p[0]))
            left = replace(term, factors=factors, powers=powers)
            if not _is_free_constant(left, kept) or not any(_is_free_constant(t, kept) for t in terms):
                terms.append(left)
        reduced = replace(law, terms=tuple(terms))
    return reduced, tuple(c for c in law.coefficients if c not in reduced.coefficients)


def _bound_to(law: PowerLaw | LocalLaw, kept: frozenset[str]) -> set[str]:
    """Symbols that cannot leave the law: no free scale of their own would take up their powers."""
    if isinstance(law, LocalLaw):
        return {s for slope in law.slopes if slope.coefficient in kept for s in slope.symbols}
    scales = [term.scale for term in law.terms]
    bound: set[str] = set()
    for term in law.terms:
        names = {term.scale, *(f.coefficient for f in term.factors)}
        if term.scale is None or scales.count(term.scale) > 1 or names & kept:
            bound |= set(term.symbols)
    return bound


def _is_free_constant(term: Term, kept: frozenset[str]) -> bool:
    return term.scale is not None and term.scale not in kept and not term.factors and not term.powers


def _power(coefficient: str, symbol: str) -> Factor:
    return Factor(coefficient=coefficient, symbols=(symbol,))


_E = Term(scale="E")
_TOKENS = Term(scale="B", factors=(_power("beta", "D"),))
_ACTIVE = Term(scale="A", factors=(_power("alpha", "N"),))
_EFFECTIVE = Term(scale="A", factors=(_power("alpha", "N"), _power("gamma", "N_s")))
_SIGNED = (-0.4, 0.4)
_EXPONENT = (0.05, 1.2)
_FEW = (-0.02, 0.02)
_SATURATED = "(1/(1/(experts - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max))"
_SATURATION = "1/Ê = 1/(experts - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max"
_SATURATION_SPANS = {"E_start": (1.05, 10.0), "E_max": (50.0, 2000.0)}
_SATURATED_RATIO = "(1/(1/(rho + 1/(1/A_start - 1/A_max)) + 1/A_max))"
_SPARSITY = "(1/(1/(1/rho - 1 + 1/(1/X_start - 1/X_max)) + 1/X_max))"
_SPARSE = Term(scale="S", factors=(_power("gamma", "N_s"), _power("kappa", "m")))
_CAPACITY_P3 = Term(
    scale="A",
    factors=(
        _power("alpha", "N"),
        Factor(coefficient="delta", symbols=("rho",), sign=1.0, span=_SIGNED),
        Factor(coefficient="eta", symbols=("rho", "N"), span=_FEW),
    ),
)
_TOKENS_P3 = Term(
    scale="B",
    factors=(_power("beta", "D"), Factor(coefficient="omega", symbols=("rho",), span=_SIGNED)),
)

_OURS = "this project"
_WITH_TOKENS = "+ p·log2(m/m0)·log2(D/D0) + q·log2(N_s/N_s0)·log2(D/D0)"
_TREND = (
    Slope(coefficient="a", symbols=("m",)),
    Slope(coefficient="b", symbols=("N_s",)),
    Slope(coefficient="d", symbols=("D",)),
    Slope(coefficient="p", symbols=("m", "D")),
    Slope(coefficient="q", symbols=("N_s", "D")),
)
_PUBLISHED: tuple[Law, ...] = (
    LocalLaw(
        name="null",
        source=_OURS,
        formula="c0 + d·log2(D/D0)",
        slopes=(Slope(coefficient="d", symbols=("D",)),),
    ),
    LocalLaw(
        name="additive",
        source=_OURS,
        formula="c0 + a·log2(m/m0) + b·log2(N_s/N_s0) + d·log2(D/D0)",
        slopes=(
            Slope(coefficient="a", symbols=("m",)),
            Slope(coefficient="b", symbols=("N_s",)),
            Slope(coefficient="d", symbols=("D",)),
        ),
    ),
    LocalLaw(
        name="interaction",
        source=_OURS,
        formula="c0 + a·log2(m/m0) + b·log2(N_s/N_s0) + x·log2(m/m0)·log2(N_s/N_s0) + d·log2(D/D0)",
        slopes=(
            Slope(coefficient="a", symbols=("m",)),
            Slope(coefficient="b", symbols=("N_s",)),
            Slope(coefficient="x", symbols=("m", "N_s")),
            Slope(coefficient="d", symbols=("D",)),
        ),
    ),
    LocalLaw(
        name="curved",
        source=f"{_OURS}: interaction, with diminishing returns along each axis",
        formula="c0 + a·log2(m/m0) + b·log2(N_s/N_s0) + x·log2(m/m0)·log2(N_s/N_s0) + d·log2(D/D0) "
        "+ a2·log2²(m/m0) + b2·log2²(N_s/N_s0)",
        slopes=(
            Slope(coefficient="a", symbols=("m",)),
            Slope(coefficient="b", symbols=("N_s",)),
            Slope(coefficient="x", symbols=("m", "N_s")),
            Slope(coefficient="d", symbols=("D",)),
            Slope(coefficient="a2", symbols=("m", "m")),
            Slope(coefficient="b2", symbols=("N_s", "N_s")),
        ),
    ),
    LocalLaw(
        name="trend",
        source=f"{_OURS}: effects of m and N_s that change with tokens",
        formula=f"c0 + a·log2(m/m0) + b·log2(N_s/N_s0) + d·log2(D/D0) {_WITH_TOKENS}",
        slopes=_TREND,
    ),
    LocalLaw(
        name="trend_interaction",
        source=f"{_OURS}: trend, and what either buys changes with the other",
        formula=f"c0 + a·log2(m/m0) + b·log2(N_s/N_s0) + d·log2(D/D0) {_WITH_TOKENS} + x·log2(m/m0)·log2(N_s/N_s0)",
        slopes=(*_TREND, Slope(coefficient="x", symbols=("m", "N_s"))),
    ),
    LocalLaw(
        name="trend_curved",
        source=f"{_OURS}: trend, and what tokens buy changes with tokens",
        formula=f"c0 + a·log2(m/m0) + b·log2(N_s/N_s0) + d·log2(D/D0) {_WITH_TOKENS} + d2·log2²(D/D0)",
        slopes=(*_TREND, Slope(coefficient="d2", symbols=("D", "D"))),
    ),
    PowerLaw(
        name="power_product",
        source=f"{_OURS}: effects of m and N_s shrink with tokens as the reducible loss does",
        formula="E + B·D^-beta·m^-kappa·N_s^-gamma",
        terms=(
            _E,
            Term(scale="B", factors=(_power("beta", "D"), _power("kappa", "m"), _power("gamma", "N_s"))),
        ),
    ),
    PowerLaw(
        name="power_trend",
        source=f"{_OURS}: effects of m and N_s of which a part stays and a part shrinks with tokens",
        formula="E + A·m^-kappa·N_s^-gamma + B·D^-beta·m^-mu·N_s^-nu",
        terms=(
            _E,
            Term(scale="A", factors=(_power("kappa", "m"), _power("gamma", "N_s"))),
            Term(scale="B", factors=(_power("beta", "D"), _power("mu", "m"), _power("nu", "N_s"))),
        ),
    ),
    PowerLaw(
        name="chinchilla",
        source="Hoffmann et al. 2022 (arXiv 2203.15556); refit Besiroglu et al. 2024 (arXiv 2404.10102)",
        formula="E + A·N^-alpha + B·D^-beta",
        terms=(_E, _ACTIVE, _TOKENS),
    ),
    PowerLaw(name="power_null", source=_OURS, formula="E + B·D^-beta", terms=(_E, _TOKENS)),
    PowerLaw(
        name="power_additive",
        source=_OURS,
        formula="E + S·N_s^-gamma + M·m^-kappa + B·D^-beta",
        terms=(
            _E,
            Term(scale="S", factors=(_power("gamma", "N_s"),)),
            Term(scale="M", factors=(_power("kappa", "m"),)),
            _TOKENS,
        ),
    ),
    PowerLaw(
        name="power_interaction",
        source=_OURS,
        formula="E + S·N_s^-gamma·m^-kappa + B·D^-beta",
        terms=(_E, _SPARSE, _TOKENS),
    ),
    PowerLaw(
        name="effective_size",
        source=_OURS,
        formula="E + A·N^-alpha·N_s^-gamma + B·D^-beta",
        terms=(_E, _EFFECTIVE, _TOKENS),
    ),
    PowerLaw(
        name="density_interaction",
        source=_OURS,
        formula="E + A·N^-alpha·rho^(delta - eta·ln N) + B·D^-beta·rho^-omega",
        terms=(_E, _CAPACITY_P3, _TOKENS_P3),
    ),
    PowerLaw(
        name="granularity",
        source="Krajewski et al. 2024 (arXiv 2402.07871), eq. 9",
        formula="c + (g·G^-gamma + a)·N^-alpha + b·D^-beta",
        terms=(
            Term(scale="c"),
            Term(scale="g", factors=(_power("gamma", "G"), _power("alpha", "N"))),
            Term(scale="a", factors=(_power("alpha", "N"),)),
            Term(scale="b", factors=(_power("beta", "D"),)),
        ),
    ),
    PowerLaw(
        name="sparsity",
        source="Abnar et al. 2025 (arXiv 2501.12370), eq. 6",
        formula="e + a·N^-alpha + b·D^-beta + c·rho^-lambda + d·rho^-delta·N^-gamma",
        terms=(
            Term(scale="e"),
            Term(scale="a", factors=(_power("alpha", "N"),)),
            Term(scale="b", factors=(_power("beta", "D"),)),
            Term(scale="c", factors=(Factor(coefficient="lambda", symbols=("rho",), span=_SIGNED),)),
            Term(
                scale="d",
                factors=(
                    Factor(coefficient="delta", symbols=("rho",), span=_SIGNED),
                    _power("gamma", "N"),
                ),
            ),
        ),
    ),
    ExpressionLaw(
        name="bilinear",
        source="Clark et al. 2022 (arXiv 2202.01169), eq. 1, with saturation",
        formula=f"log10 L = a·log10 N + b·log10 Ê + c·log10 N·log10 Ê + d, {_SATURATION}",
        root=tree.parse(
            f"exp(a*log(N) + b*log({_SATURATED}) + c*log(N)*log({_SATURATED})/log(10) + d*log(10))",
            ("N", "experts"),
        ),
        spans=_SATURATION_SPANS,
        objective="least_squares",
    ),
    ExpressionLaw(
        name="joint_moe",
        source="Ludziejewski et al. 2025 (arXiv 2502.05172), eq. 6",
        formula=f"a·Ê^delta·N^(alpha + gamma·ln Ê) + b·Ê^omega·D^(beta + zeta·ln Ê) + c, {_SATURATION}",
        root=tree.parse(
            f"a*{_SATURATED}**delta*N**(alpha + gamma*log({_SATURATED}))"
            f" + b*{_SATURATED}**omega*D**(beta + zeta*log({_SATURATED})) + c",
            ("N", "D", "experts"),
        ),
        spans={
            **_SATURATION_SPANS,
            "alpha": (-0.5, -0.02),
            "beta": (-0.5, -0.02),
            "delta": _SIGNED,
            "omega": (-0.6, 0.6),
            "gamma": _FEW,
            "zeta": (-0.04, 0.04),
        },
    ),
    ExpressionLaw(
        name="leverage",
        source="Tian et al. 2025 (arXiv 2507.17702), eq. 13; of compute saved against dense (EL), not of loss",
        formula=(
            "EL = Â^(a + d·ln C + gamma·ln²G + beta·ln G), 1/Â = 1/(rho + 1/(1/A_start - 1/A_max)) + 1/A_max"
        ),
        root=tree.parse(
            f"exp((a + d*log(C) + gamma*log(G)**2 + beta*log(G))*log({_SATURATED_RATIO}))", ("rho", "C", "G")
        ),
        spans={"A_start": (0.003, 0.1), "A_max": (1.5, 100.0)},
        objective="least_squares",
    ),
    LocalLaw(
        name="sparse_size",
        source="shape at fixed compute in UltraMem, Huang et al. 2024 (arXiv 2411.12364), fig. 6b",
        formula="c0 + b·log2(N_s/N_s0) + d·log2(D/D0)",
        slopes=(Slope(coefficient="b", symbols=("N_s",)), Slope(coefficient="d", symbols=("D",))),
    ),
    LocalLaw(
        name="memory_ratio",
        source="U shape in the memory's share of compute in UltraMemV2 (arXiv 2508.18756), fig. 5",
        formula="c0 + p·log2(r/r0) + q·log2²(r/r0) + d·log2(D/D0)",
        slopes=(
            Slope(coefficient="p", symbols=("r",)),
            Slope(coefficient="q", symbols=("r", "r")),
            Slope(coefficient="d", symbols=("D",)),
        ),
    ),
)

_P0 = PowerLaw(
    name="P0",
    source="chinchilla as a null: sparse parameters count for nothing",
    formula="E + A·N^-alpha + B·D^-beta",
    terms=(_E, _ACTIVE, _TOKENS),
)
_P1 = PowerLaw(
    name="P1",
    source=f"{_OURS}: effective_size, (N^(1-g)·N_s^g)^-a with alpha = a(1-g), gamma = a·g",
    formula="E + A·N^-alpha·N_s^-gamma + B·D^-beta",
    terms=(_E, _EFFECTIVE, _TOKENS),
)
_P2 = PowerLaw(
    name="P2",
    source=f"{_OURS}: sparse parameters and activated values act together",
    formula="E + A·N^-alpha + S·N_s^-gamma·m^-kappa + B·D^-beta",
    terms=(_E, _ACTIVE, _SPARSE, _TOKENS),
)
_P2_SEPARATE = PowerLaw(
    name="P2_separate",
    source=f"{_OURS}: sparse parameters and activated values act apart",
    formula="E + A·N^-alpha + S·N_s^-gamma + M·m^-kappa + B·D^-beta",
    terms=(
        _E,
        _ACTIVE,
        Term(scale="S", factors=(_power("gamma", "N_s"),)),
        Term(scale="M", factors=(_power("kappa", "m"),)),
        _TOKENS,
    ),
)
_P3 = PowerLaw(
    name="P3",
    source=f"{_OURS}: density_interaction, in x = ln(1/rho)",
    formula="E + A·N^-alpha·e^(x·(eta·ln N - delta)) + B·D^-beta·e^(omega·x)",
    terms=(_E, _CAPACITY_P3, _TOKENS_P3),
)


def _with_ratio(law: PowerLaw, scale: str) -> PowerLaw:
    """P4: the capacity term in front of which ``scale`` stands, times exp(c1·ln r + c2·ln² r).

    The best memory-to-FFN ratio is r* = exp(−c1/2c2).
    """
    ratio = (
        Factor(coefficient="c1", symbols=("r",), sign=1.0, span=(-0.1, 0.1)),
        Factor(coefficient="c2", symbols=("r", "r"), sign=1.0, span=(-0.05, 0.05)),
    )
    return replace(
        law,
        name="P4" if law.name == "P0" else f"P4_{law.name}",
        source=f"{_OURS}: {law.name} with a best memory-to-FFN ratio",
        formula=law.formula.replace(f"{scale}·", f"{scale}·e^(c1·ln r + c2·ln²r)·"),
        terms=tuple(replace(t, factors=(*t.factors, *ratio)) if t.scale == scale else t for t in law.terms),
    )


_CANDIDATES: tuple[Law, ...] = (
    _P0,
    ExpressionLaw(
        name="P0_log",
        source=f"{_OURS}: null that is linear in ln N_s",
        formula="E + A·N^-alpha + B·D^-beta - kappa·ln N_s",
        root=tree.parse("E + A*N**-alpha + B*D**-beta - kappa*log(N_s)", ("N", "D", "N_s")),
        spans={"alpha": _EXPONENT, "beta": _EXPONENT},
    ),
    _P1,
    _P2,
    _P2_SEPARATE,
    _P3,
    ExpressionLaw(
        name="P3_saturated",
        source=f"{_OURS}: P3 with a sparsity that saturates as in Clark et al. 2022",
        formula=(
            "E + A·N^-alpha·X^(eta·ln N - delta) + B·D^-beta·X^omega, "
            "1/X = 1/(1/rho - 1 + 1/(1/X_start - 1/X_max)) + 1/X_max"
        ),
        root=tree.parse(
            f"E + A*N**-alpha*{_SPARSITY}**(eta*log(N) - delta) + B*D**-beta*{_SPARSITY}**omega",
            ("N", "D", "rho"),
        ),
        spans={
            "alpha": _EXPONENT,
            "beta": _EXPONENT,
            "eta": _FEW,
            "delta": _SIGNED,
            "omega": _SIGNED,
            "X_start": (1.05, 10.0),
            "X_max": (50.0, 2000.0),
        },
    ),
    _with_ratio(_P0, "A"),
    _with_ratio(_P1, "A"),
    _with_ratio(_P2, "S"),
    _with_ratio(_P2_SEPARATE, "S"),
    _with_ratio(_P3, "A"),
)

LAWS: Mapping[str, Law] = MappingProxyType({law.name: law for law in (*_PUBLISHED, *_CANDIDATES)})
"""Every law by name."""

FIRST_LAWS = ("null", "additive", "interaction")
"""What a study is fitted with unless the user names laws: the ones a small grid identifies."""


def law_named(name: str, package: str | None = None) -> Law:
    """Return the law called ``name``: umscale's own, or that of an installed package.

    Args:
        package: name and version of the package that a record says it is of; None takes whichever offers it.

    Raises:
        UserError: there is none (with the nearest name), or not of that package.
    """
    if name in LAWS and not package:
        return LAWS[name]
    if package:
        found = parts.require("laws", name, package)
    else:
        found = parts.find("laws", name, known=tuple(LAWS))
    return own_law(found)


def own_law(part: parts.Part) -> Law:
    """Return the law that a package's part is; raises ``UserError`` if it is none, or called something else."""
    found = parts.load_any(part)
    if not isinstance(found, PowerLaw | LocalLaw | ExpressionLaw):
        raise UserError(
            f"{part.noun}: {part.target} is no PowerLaw, LocalLaw or ExpressionLaw, but {found!r:.200}"
        )
    if not part.name.isidentifier() or found.name != part.name:
        raise UserError(
            f"{part.noun}: the law calls itself {found.name!r}; both names must be one, of letters, digits and '_'"
        )
    return replace(found, package=part.package)
