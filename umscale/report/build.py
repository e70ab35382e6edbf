"""A report of a study, from its store: the answer first, then what it rests on."""

from umscale.files import is_url
from umscale.report import design, diagnostics, figures
from umscale.report.evidence import gather
from umscale.report.lead import answer, question_words
from umscale.report.limits import limits
from umscale.report.reproduce import reproduce
from umscale.say.blocks import SIGNATURE, Block, Bullets, Page, Section
from umscale.store.store import Store


def build(store: Store, source: str) -> Page:
    """Put the report of a store together; ``source`` is what its user calls it.

    Raises:
        UserError: the store holds neither a run nor a cell.
    """
    evidence = gather(store, store.name if is_url(source) else source)
    (shown, missed), (behind, missed_behind) = figures.draw(evidence)
    parts: list[tuple[str, list[Block]]] = [
        ("Design", design.design(evidence)),
        ("Cost", design.cost(evidence)),
        ("Figures", [*shown, *_missed(missed)]),
        ("Laws", evidence.answer.basis() if evidence.answer else []),
        ("Probes", design.probes(evidence)),
        ("Noise", diagnostics.noise(evidence)),
        (
            "Diagnostics",
            [
                *diagnostics.diagnostics(evidence),
                *behind,
                *_missed(missed_behind),
                *design.every_run(evidence),
            ],
        ),
        ("What this study does not show", [Bullets(items=tuple(limits(evidence)))]),
        ("How to reproduce", reproduce(evidence)),
        ("Versions", design.versions(evidence)),
    ]
    return Page(
        title=evidence.name,
        subtitle=str(evidence.tree.get("description", "")),
        question=question_words(evidence),
        lead=tuple(answer(evidence)),
        sections=tuple(Section(title=title, blocks=tuple(blocks)) for title, blocks in parts if blocks),
        footer="Losses are validation losses in nats per token, intervals 95%. N_s: sparse parameters. "
        f"{SIGNATURE}; the same store gives the same page.",
    )


def _missed(reasons: list[str]) -> list[Block]:
    return [Bullets(items=tuple(reasons))] if reasons else []
