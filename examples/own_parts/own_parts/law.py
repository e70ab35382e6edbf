"""A law in tokens and activated values that has no size in it: how far do these two alone carry?"""

from umscale.laws.forms import Factor, PowerLaw, Term

TOKENS_AND_DENSITY = PowerLaw(
    name="tokens_and_density",
    source="own-parts",
    formula="E + B·D^-beta + M·m^-kappa",
    terms=(
        Term(scale="E"),
        Term(scale="B", factors=(Factor(coefficient="beta", symbols=("D",)),)),
        Term(scale="M", factors=(Factor(coefficient="kappa", symbols=("m",)),)),
    ),
)
