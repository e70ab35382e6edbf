"""What a run leaves of its model: the weights of records, and a trunk that runs of larger budgets go on from.

Both are files as checkpoints are (``umscale.training.checkpoint``): safetensors, with what they are and a checksum in
the header, written whole or not at all. ``train.keep`` says which there are.

A kept trunk is the checkpoint at the point where the last branch begins, with what was measured by then. A run that
differs in its budgets alone has the same trunk up to there, so it goes on from it and reaches the same losses, bitwise
on a CPU, as if it had been planned so; of its training curve only the points lie elsewhere.
"""

import dataclasses
import json
import logging
import re
import shutil
from typing import Any

from torch import nn

from umscale.data.corpus import TOKENIZER, Corpus, corpus_tokenizer
from umscale.files import Unusable
from umscale.spec import RunSpec, to_dict
from umscale.training.checkpoint import DamagedCheckpoint, Workspace, collect, read
from umscale.training.optimiser import WeightAverage
from umscale.trees import parse_object

Row = dict[str, Any]

log = logging.getLogger(__name__)

FORMAT, VERSION = "umscale-weights", 1
RAW, AVERAGED = "model/", "average/"
"""What the names of tensors begin with, of weights as trained and of their running average."""
_TRUNK = re.compile(r"(\d{1,18})\.safetensors")


def weights_name(budget: int, stage: str) -> str:
    """Return the name of a record's file in the folder of its run."""
    return f"{budget}-{stage}.safetensors"


def keep_record(
    workspace: Workspace, spec: RunSpec, corpus: Corpus, model: nn.Module, average: WeightAverage, record: Row
) -> None:
    """Keep the weights of a record, raw and averaged; all processes of the workspace's world call it."""
    if workspace.world.size == 1 and not workspace.weights:
        return
    workspace.ready()
    tensors = {RAW + name: value for name, value in model.state_dict().items()}
    tensors |= {AVERAGED + name: value for name, value in average.average.items()}
    tokenizer = corpus_tokenizer(corpus)
    notes = {
        "format": FORMAT,
        "version": VERSION,
        "run_id": spec.run_id,
        "spec": to_dict(spec),
        "record": record,
        "corpus": corpus.name,
        "tokenizer": {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "eot": tokenizer.eot},
    }
    content = collect(tensors, model, average, notes, workspace.world)
    if content is None or not workspace.weights:
        return
    if tokenizer.json:
        workspace.files.write(f"{workspace.weights}/{TOKENIZER}", tokenizer.json.encode())
    name = weights_name(record["budget"], record["stage"])
    workspace.write(f"{workspace.weights}/{name}", content)


def keep_trunk(workspace: Workspace, step: int) -> None:
    """Keep the checkpoint of the trunk, which is at ``step``, beyond the run."""
    workspace.ready()
    if workspace.in_parts:
        log.warning("a checkpoint in parts is not kept as a trunk")
        return
    if not workspace.trunks or not workspace.world.first:
        return
    with (
        workspace.files.reading(workspace.path("trunk")) as source,
        workspace.files.writing(f"{workspace.trunks}/{step}.safetensors") as target,
    ):
        shutil.copyfile(source, target)


def continue_trunk(workspace: Workspace, spec: RunSpec) -> int | None:
    """Make the longest kept trunk that ``spec`` can go on from its checkpoint; return its tokens, None without any.

    Nothing is done for a run that has a checkpoint. A damaged trunk is passed over.
    """
    files = workspace.files
    if not workspace.trunks or files.entries(workspace.folder):
        return None
    found = (_TRUNK.fullmatch(entry.name) for entry in files.entries(workspace.trunks))
    for step in sorted((int(match[1]) for match in found if match), reverse=True):
        try:
            with files.reading(f"{workspace.trunks}/{step}.safetensors") as path:
                content = read(path)
            state = _state_for(spec, parse_object(content.text))
        except (DamagedCheckpoint, Unusable, FileNotFoundError, ValueError, KeyError, TypeError) as error:
            log.warning("a kept trunk of %s cannot be used (%s)", spec.run_id, error)
            continue
        if state is not None:
            workspace.write(workspace.path("trunk"), dataclasses.replace(content, text=json.dumps(state)))
            return step * spec.tokens_per_step
    return None


def _state_for(spec: RunSpec, state: Row) -> Row | None:
    """Return a trunk's state as ``spec`` would have it there; None if ``spec`` branches off before."""
    measured = sorted({r["budget"] for r in state["records"] if r["stage"] == "annealed"})
    mine = list(spec.train.budgets)
    n_done = next((i for i, budget in enumerate(mine) if budget not in measured), len(mine))
    starts, ends = spec.branch_steps, spec.budget_steps
    if state["branch"] is not None or (n_done < len(mine) and state["step"] > starts[n_done]):
        return None
    done = mine[:n_done]
    phases = {f"branch-{measured.index(budget)}": f"branch-{i}" for i, budget in enumerate(done)} | {
        "trunk": "trunk"
    }
    steps = state["step"] + sum(ends[i] - starts[i] for i in range(n_done))
    share = steps / max(1, state["steps_done"])  # of the time, without branches that this run does not have
    times = {k: state.get(k, 0.0) * share for k in ("train_seconds", "input_seconds")}
    of_mine = {k: [r for r in state[k] if r["budget"] in done] for k in ("records", "documents", "probes")}
    of_mine["evaluations"] = [r for r in state.get("evaluations", []) if r["budget"] in done]
    curve = [
        point | {"phase": phases[point["phase"]]} for point in state["curve"] if point["phase"] in phases
    ]
    return {
        **state,
        **times,
        **of_mine,
        "curve": curve,
        "steps_done": steps,
        "run_id": spec.run_id,
        "pending": [],
    }
