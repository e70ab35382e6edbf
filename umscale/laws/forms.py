"""Scaling laws as data: what a form is called, where it comes from, which columns it reads, what it predicts.

Two classes cover nearly every law worth fitting.

``PowerLaw``: L = Σ_t scale_t · exp(Σ_k sign_k · θ_k · Π ln column), a sum of products of powers. Then
log L = logsumexp_t(X_t · θ) with known features X_t, which is what gives the engine its closed-form
gradient and Hessian.

``LocalLaw``: L = c0 + Σ_k slope_k · Π log2(column / reference), in nats per doubling. It is linear, hence
identified on grids far too small for exponents and irreducible losses.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from umscale.errors import UserError, nearest

Array = NDArray[np.float64]
Residual = Literal["log", "raw"]

COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "N": "active_params",
        "N_s": "sparse_params",
        "D": "tokens",
        "m": "top_m",
        "rho": "density",
        "G": "granularity",
    }
)
"""Symbol of a formula → column of a results table, unless the caller maps it elsewhere."""


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
    """scale · Π factors. The scale is positive and belongs to this term alone."""

    scale: str
    factors: tuple[Factor, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLaw:
    """A sum of products of powers; ``coefficients`` lists scales and exponents in order of appearance."""

    name: str
    source: str
    formula: str
    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        scales = [term.scale for term in self.terms]
        if len(set(scales)) != len(scales):
            raise ValueError(f"law {self.name}: every term needs a scale of its own, got {scales}")

    @property
    def coefficients(self) -> tuple[str, ...]:
        names = [name for term in self.terms for name in (term.scale, *(f.coefficient for f in term.factors))]
        return tuple(dict.fromkeys(names))

    @property
    def scales(self) -> tuple[str, ...]:
        return tuple(term.scale for term in self.terms)

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s for term in self.terms for f in term.factors for s in f.symbols))

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

    @property
    def coefficients(self) -> tuple[str, ...]:
        return ("c0", *(slope.coefficient for slope in self.slopes))

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s for slope in self.slopes for s in slope.symbols))

    @property
    def residual(self) -> Residual:
        return "raw"


Law = PowerLaw | LocalLaw


def power_features(law: PowerLaw, values: Mapping[str, Array]) -> Array:
    """Features X [terms, rows, coefficients] with log L = logsumexp_t(X_t · θ); θ holds ln(scale) for scales.

    ``values`` maps symbols, those of the law and any others, to positive arrays of one length.
    """
    n_rows = len(next(iter(values.values())))
    index = {name: k for k, name in enumerate(law.coefficients)}
    features = np.zeros((len(law.terms), n_rows, len(index)))
    for t, term in enumerate(law.terms):
        features[t, :, index[term.scale]] = 1.0
        for factor in term.factors:
            product = np.prod([np.log(values[s]) for s in factor.symbols], axis=0)
            features[t, :, index[factor.coefficient]] += factor.sign * product
    return features


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
    features = power_features(law, values)
    theta = to_theta(law, coefficients)
    return np.asarray(sum(np.exp(theta @ features[t].T) for t in range(len(law.terms))))


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
    coefficients[..., positions] = np.exp(coefficients[..., positions])
    return coefficients


def without_axes(law: Law, constant: Iterable[str]) -> tuple[Law, tuple[str, ...]]:
    """The law on rows where the symbols in ``constant`` take one value, and the coefficients that dropped out.

    A power of a constant merges into its scale; a term left without powers merges into the constant term.
    """
    gone = frozenset(constant) & set(law.symbols)
    if not gone:
        return law, ()
    reduced: Law
    if isinstance(law, LocalLaw):
        reduced = replace(law, slopes=tuple(s for s in law.slopes if not gone & set(s.symbols)))
    else:
        terms: list[Term] = []
        for term in law.terms:
            factors = tuple(f for f in term.factors if not gone & set(f.symbols))
            if factors or not any(not kept.factors for kept in terms):
                terms.append(replace(term, factors=factors))
        reduced = replace(law, terms=tuple(terms))
    return reduced, tuple(c for c in law.coefficients if c not in reduced.coefficients)


def _power(coefficient: str, symbol: str) -> Factor:
    return Factor(coefficient=coefficient, symbols=(symbol,))


_E = Term(scale="E")
_TOKENS = Term(scale="B", factors=(_power("beta", "D"),))
_ACTIVE = Term(scale="A", factors=(_power("alpha", "N"),))
_SIGNED = (-0.4, 0.4)

_OURS = "this project"
_ALL: tuple[Law, ...] = (
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
        terms=(_E, Term(scale="S", factors=(_power("gamma", "N_s"), _power("kappa", "m"))), _TOKENS),
    ),
    PowerLaw(
        name="effective_size",
        source=_OURS,
        formula="E + A·N^-alpha·N_s^-gamma + B·D^-beta",
        terms=(_E, Term(scale="A", factors=(_power("alpha", "N"), _power("gamma", "N_s"))), _TOKENS),
    ),
    PowerLaw(
        name="density_interaction",
        source=_OURS,
        formula="E + A·N^-alpha·rho^(delta - eta·ln N) + B·D^-beta·rho^-omega",
        terms=(
            _E,
            Term(
                scale="A",
                factors=(
                    _power("alpha", "N"),
                    Factor(coefficient="delta", symbols=("rho",), sign=1.0, span=_SIGNED),
                    Factor(coefficient="eta", symbols=("rho", "N"), span=(-0.02, 0.02)),
                ),
            ),
            Term(
                scale="B",
                factors=(
                    _power("beta", "D"),
                    Factor(coefficient="omega", symbols=("rho",), span=_SIGNED),
                ),
            ),
        ),
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
)

LAWS: Mapping[str, Law] = MappingProxyType({law.name: law for law in _ALL})
"""Every law by name."""

FIRST_LAWS = ("null", "additive", "interaction")
"""What a study is fitted with unless the user names laws: the ones a small grid identifies."""


def law_named(name: str) -> Law:
    """The law called ``name``; raises ``UserError`` with the nearest name."""
    if name not in LAWS:
        raise UserError(f"no law is called {name!r}{nearest(name, LAWS)}")
    return LAWS[name]
