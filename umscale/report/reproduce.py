"""How to run a study again: the commands, and the file they read."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import umscale_studies
from umscale.design.study import load_study, parse
from umscale.errors import UserError
from umscale.report.evidence import Evidence
from umscale.results.table import levels
from umscale.say.blocks import Block, Fold, Listing, Paragraph
from umscale.spec import to_toml


def reproduce(evidence: Evidence) -> list[Block]:
    """The commands, and the study file."""
    tree, changed = evidence.tree, since_then(evidence)
    where = shlex.quote(evidence.source)
    if tree:
        file = evidence.name if changed == () else "study.toml"
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
    if tree and changed != ():
        blocks.append(
            Paragraph(
                text=f"Save the study file below as study.toml{_not_the_shipped(evidence.name, changed)}."
            )
        )
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


def since_then(evidence: Evidence) -> tuple[str, ...] | None:
    """Return the fields in which the study that comes with umscale under this name is not the one that was run.

    A store keeps the meaning of the version that wrote it; a study file that leaves a field out is swept with the
    defaults of today. None where no such study comes with umscale, or this one cannot be read.
    """
    if evidence.name not in umscale_studies.shipped():
        return None
    try:
        now, then = load_study(evidence.name), parse(evidence.tree, "study.toml")
    except UserError:
        return None
    return tuple(_differing(_plain(now.to_dict()), _plain(then.to_dict())))


def _differing(one: Mapping[str, Any], other: Mapping[str, Any], where: str = "") -> Iterator[str]:
    for key in sorted({*one, *other}):
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _differing(a, b, f"{where}{key}.")
        elif a != b:
            yield f"{where}{key}"


def _not_the_shipped(name: str, changed: tuple[str, ...] | None) -> str:
    if changed is None:
        return ""
    fields = ", ".join(f"`{field}`" for field in changed)
    return f", not the one that comes with umscale as {name}: that has other values of {fields} today"


def _plain(tree: dict[str, Any]) -> dict[str, Any]:
    """A study without what does not change its runs, or what each of them has a value of its own for."""
    varied = {*tree["axes"], *tree.get("search", {}).get("space", {}), "train.checkpoint_seconds"}
    flat = {key: value for key, value in tree.items() if key not in ("description", "search")}
    flat["train"] = {key: value for key, value in tree["train"].items() if f"train.{key}" not in varied}
    return flat
