"""A report of a study, from its store: the answer first, then what it rests on."""

import shlex
from typing import Any

import umscale_studies
from umscale.design.study import load_study, parse
from umscale.errors import UserError
from umscale.files import is_url
from umscale.report import design, figures, fits
from umscale.report.answers import answer, question_words
from umscale.report.evidence import Evidence, gather
from umscale.report.limits import limits
from umscale.results.table import levels
from umscale.say.blocks import SIGNATURE, Block, Bullets, Fold, Listing, Page, Paragraph, Section
from umscale.spec import to_toml
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
        ("Noise", fits.noise(evidence)),
        (
            "Diagnostics",
            [*fits.diagnostics(evidence), *behind, *_missed(missed_behind), *design.every_run(evidence)],
        ),
        ("What this study does not show", [Bullets(items=tuple(limits(evidence)))]),
        ("How to reproduce", _reproduce(evidence)),
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


def _reproduce(evidence: Evidence) -> list[Block]:
    """The commands, and the study file."""
    tree = evidence.tree
    where = shlex.quote(evidence.source)
    if tree:
        file = evidence.name if _ships(evidence) else "study.toml"
        command = "search" if evidence.search else "sweep"
        lines = [f"umscale {command} {shlex.quote(file)}"]
        own = evidence.source if file != "study.toml" else f"umscale-runs/{evidence.name}"
        lines += [f"umscale {each} {shlex.quote(own)}" for each in ("fit", "plot", "report")]
    else:
        lines = [f"umscale {each} {where}" for each in ("fit", "plot", "report")]
    blocks: list[Block] = []
    corpora = [f"`{name}`" for name in levels(evidence.every, "corpus")]
    hashes = [f"`{one[:16]}`" for one in levels(evidence.every, "data_hash")]
    if corpora:
        blocks.append(
            Paragraph(
                text=f"Data: corpus {', '.join(corpora)}, hash {', '.join(hashes) or 'unknown'}. `umscale "
                "data list` shows what is prepared, `umscale data prepare` makes a corpus from a file."
            )
        )
    if tree and not _ships(evidence):
        blocks.append(Paragraph(text="Save the study file below as study.toml."))
    blocks.append(Listing(text="\n".join(lines), language="sh"))
    if levels(evidence.table, "run_id"):
        blocks.append(
            Paragraph(
                text="The same revision, packages and machine give the same losses; others give them up to rounding, "
                "which training amplifies to the run-to-run noise above."
            )
        )
    if tree:
        blocks.append(
            Fold(summary="The study file", blocks=(Listing(text=to_toml(dict(tree)), language="toml"),))
        )
    return blocks


def _ships(evidence: Evidence) -> bool:
    """Whether the study file that comes with umscale under this name is the one that was run."""
    if evidence.name not in umscale_studies.shipped():
        return False
    try:
        return _plain(load_study(evidence.name).to_dict()) == _plain(
            parse(evidence.tree, "study.toml").to_dict()
        )
    except UserError:
        return False


def _plain(tree: dict[str, Any]) -> dict[str, Any]:
    """A study without what does not change its runs, or what each of them has a value of its own for."""
    varied = {*tree["axes"], *tree.get("search", {}).get("space", {}), "train.checkpoint_seconds"}
    flat = {key: value for key, value in tree.items() if key not in ("description", "search")}
    flat["train"] = {key: value for key, value in tree["train"].items() if f"train.{key}" not in varied}
    return flat
