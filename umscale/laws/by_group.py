"""One law for several groups of rows: some coefficients are each group's own, all others shared.

A corpus, a tokenizer or a router has a floor of its own while exponents are common: every coefficient that is to differ
becomes Σ_g c_g [row is of g], with a column for each group that is 1 in its rows and 0 elsewhere.
"""

import re
from collections.abc import Mapping, Sequence

from umscale import formulas as tree
from umscale.errors import UserError, nearest
from umscale.laws.forms import ExpressionLaw, Law, LocalLaw, PowerLaw, Term


def group_symbols(labels: Sequence[str]) -> dict[str, str]:
    """Label of a group → the symbol of its column, an identifier; raises ``UserError`` for labels that give the
    same.
    """
    symbols = {label: "is_" + re.sub(r"\W+", "_", label).strip("_") for label in labels}
    if len(set(symbols.values())) < len(symbols):
        raise UserError(
            f"groups {', '.join(labels)} differ only in signs that a name cannot hold: rename them"
        )
    return symbols


def with_own(law: Law, names: Sequence[str], symbols: Mapping[str, str]) -> ExpressionLaw:
    """The law with a value of each coefficient in ``names`` for every group, called ``NAME_group``.

    ``symbols`` as from ``group_symbols``. Raises ``UserError`` for a coefficient that the law lacks, and for local
    laws.
    """
    for name in names:
        if name not in law.coefficients:
            raise UserError(f"law {law.name!r} has no coefficient {name!r}{nearest(name, law.coefficients)}")
    if isinstance(law, LocalLaw):
        raise UserError(
            f"law {law.name!r} is linear in the loss: own coefficients are for power laws and formulas"
        )
    own: dict[str, tree.Node] = {}
    for name in names:
        parts = [
            tree.apply("*", tree.Coefficient(f"{name}_{symbol.removeprefix('is_')}"), tree.Symbol(symbol))
            for symbol in symbols.values()
        ]
        total = parts[0]
        for part in parts[1:]:
            total = tree.apply("+", total, part)
        own[name] = total
    root = tree.substitute(as_tree(law), own)
    spans = dict(law.spans) if isinstance(law, ExpressionLaw) else {}
    return ExpressionLaw(
        name=f"{law.name}, {' and '.join(names)} by group",
        source=law.source,
        formula=tree.unparse(root),
        root=root,
        spans={name: span for name, span in spans.items() if name not in names},
        objective=law.objective,
    )


def as_tree(law: PowerLaw | ExpressionLaw) -> tree.Node:
    """The law as a formula."""
    if isinstance(law, ExpressionLaw):
        return law.root
    total = _term(law.terms[0])
    for term in law.terms[1:]:
        total = tree.apply("+", total, _term(term))
    return total


def _term(term: Term) -> tree.Node:
    product: tree.Node = tree.Number(term.constant) if term.scale is None else tree.Coefficient(term.scale)
    if term.scale is not None and term.constant != 1:
        product = tree.apply("*", tree.Number(term.constant), product)
    for factor in term.factors:
        exponent = tree.apply("*", tree.Number(factor.sign), tree.Coefficient(factor.coefficient))
        product = tree.apply("*", product, _power(factor.symbols, exponent))
    for symbols, number in term.powers:
        product = tree.apply("*", product, _power(symbols, tree.Number(number)))
    return product


def _power(symbols: Sequence[str], exponent: tree.Node) -> tree.Node:
    """exp(exponent · Π ln symbols); a power where there is one symbol."""
    if len(symbols) == 1:
        return tree.apply("**", tree.Symbol(symbols[0]), exponent)
    for symbol in symbols:
        exponent = tree.apply("*", exponent, tree.apply("log", tree.Symbol(symbol)))
    return tree.apply("exp", exponent)
