"""Models that runs have kept (``train.keep``), or that were exported, ready to be used."""

import contextlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from umscale.data.canonical import canonical_ids
from umscale.data.corpus import TOKENIZER
from umscale.data.tokenizing import Tokenizer
from umscale.errors import UserError
from umscale.files import Files, LocalFiles, Unusable
from umscale.layers.token_memory import Vocabulary
from umscale.model.decoder import Decoder, resolve_device
from umscale.spec import RunSpec, read_run
from umscale.store.schema import STAGES
from umscale.store.store import Store
from umscale.training.checkpoint import DamagedCheckpoint, read
from umscale.training.kept import AVERAGED, FORMAT, RAW, VERSION, weights_name
from umscale.trees import parse_object


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptModel:
    """A model as a record left it."""

    decoder: Decoder
    """In evaluation mode."""
    spec: RunSpec
    record: Mapping[str, Any]
    """The record that was made of these weights: ``budget``, ``stage``, ``tokens``, ``loss`` and so on."""
    corpus: str
    """Name of the corpus it was trained on."""
    tokenizer: Tokenizer
    averaged: bool
    """Whether the weights are the running average, whose loss is ``loss_ema``."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.rotary.device

    def precision(self) -> AbstractContextManager[object]:
        """Matrix products as in training, so that losses are those of the record."""
        if self.spec.train.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()


def kept_records(store: Store, run_id: str) -> list[tuple[int, str]]:
    """Return (budget, stage) of the records of a run whose weights are kept, in order."""
    found = []
    for entry in store.files.entries(store.weights_folder(run_id)):
        budget, _, stage = entry.name.removesuffix(".safetensors").partition("-")
        if budget.isdecimal() and stage in STAGES:
            found.append((int(budget), stage))
    return sorted(found, key=lambda key: (key[0], STAGES.index(key[1])))


def open_kept(
    store: Store,
    run_id: str,
    *,
    budget: int | None = None,
    stage: str | None = None,
    averaged: bool = False,
    device: str = "cpu",
) -> KeptModel:
    """Open the model of a run's record: the last one kept, or that of ``budget`` and ``stage``.

    Raises:
        UserError: nothing (such) is kept of this run, or it is damaged.
    """
    known = kept_records(store, run_id)
    if not known:
        raise UserError(
            f"no weights of run {run_id} are kept; train it with --set train.keep=final (and --force if it is over)"
        )
    fitting = [key for key in known if budget in (None, key[0]) and stage in (None, key[1])]
    if not fitting:
        kept = ", ".join(f"{b:,} {s}" for b, s in known)
        raise UserError(f"run {run_id} keeps no weights of that budget and stage; there are: {kept}")
    folder = store.weights_folder(run_id)
    return _open(
        store.files, f"{folder}/{weights_name(*fitting[-1])}", f"{folder}/{TOKENIZER}", averaged, device
    )


def open_exported(folder: Path, device: str = "cpu") -> KeptModel:
    """Open what ``umscale export`` wrote.

    Raises:
        UserError: it is no export, or damaged.
    """
    return _open(LocalFiles(folder), "model.safetensors", "source-tokenizer.json", False, device)


def _open(files: Files, name: str, tokenizer: str, averaged: bool, device: str) -> KeptModel:
    where = files.describe(name)
    try:
        with files.reading(name) as path:
            content = read(path)
        notes = parse_object(content.text)
        if notes["format"] != FORMAT or notes["version"] > VERSION:
            raise ValueError(f"format {notes['format']!r}, version {notes['version']!r}")
        spec = read_run(json.dumps(notes["spec"]))
        known = notes["tokenizer"]
        text = "" if known["kind"] == "bytes" else files.read(tokenizer).decode()
        words = Tokenizer(kind=known["kind"], vocab_size=known["vocab_size"], eot=known["eot"], json=text)
        vocabulary = None
        if spec.model.ngram is not None:
            vocabulary = Vocabulary(words.eot, torch.from_numpy(canonical_ids(words)))
        decoder = Decoder(spec.model, spec.seed, spec.data.seq_len, vocabulary=vocabulary)
        tensors = {k.removeprefix(RAW): v for k, v in content.tensors.items() if k.startswith(RAW)}
        if averaged:
            tensors |= {
                k.removeprefix(AVERAGED): v for k, v in content.tensors.items() if k.startswith(AVERAGED)
            }
        decoder.load_state_dict(tensors)
    except FileNotFoundError:
        raise UserError(f"{where}: no such weights") from None
    except (
        DamagedCheckpoint,
        Unusable,
        UnicodeDecodeError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
    ) as error:
        raise UserError(f"{where}: no readable weights ({' '.join(str(error).split())[:300]})") from None
    decoder.separator = words.eot if spec.data.document_mask else None
    decoder.to(resolve_device(device)).eval()
    decoder.refresh()
    return KeptModel(
        decoder=decoder,
        spec=spec,
        record=notes["record"],
        corpus=str(notes["corpus"]),
        tokenizer=words,
        averaged=averaged or bool(notes.get("averaged")),
    )
