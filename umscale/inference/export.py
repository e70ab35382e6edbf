"""A kept model as a folder of its own: weights, configuration, tokenizer, and a card with the record's numbers."""

import json
from pathlib import Path
from typing import Any

import umscale
from umscale.accounting import cost
from umscale.data.tokenizing import BYTES_EOT, Tokenizer
from umscale.errors import UserError
from umscale.files import atomic_path, write_text
from umscale.inference.kept import KeptModel
from umscale.spec import to_dict
from umscale.training.checkpoint import Content, write
from umscale.training.kept import FORMAT, RAW, VERSION

END_OF_TEXT = "<|endoftext|>"


def export(model: KeptModel, folder: Path) -> list[Path]:
    """Write ``model`` to ``folder``, which must be new or empty; return the files.

    ``model.safetensors`` holds the weights under the names that ``umscale.model.decoder.Decoder`` gives them, each
    after ``model/``, and in its header all that ``open_exported`` needs; ``tokenizer.json`` is read by the
    ``tokenizers`` library and begins documents with its last special token.

    Raises:
        UserError: the folder holds something, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds other files; export to a new folder")
    tensors = {RAW + name: value for name, value in model.decoder.state_dict().items()}
    words = model.tokenizer
    notes = {
        "format": FORMAT,
        "version": VERSION,
        "run_id": model.spec.run_id,
        "spec": to_dict(model.spec),
        "record": dict(model.record),
        "corpus": model.corpus,
        "tokenizer": {"kind": words.kind, "vocab_size": words.vocab_size, "eot": words.eot},
        "averaged": model.averaged,
    }
    with atomic_path(folder / "model.safetensors") as path:
        write(path, Content(tensors=tensors, text=json.dumps(notes)))
    write_text(folder / "config.json", json.dumps(config(model), indent=2) + "\n")
    write_text(folder / "tokenizer.json", tokenizer_json(words))
    if words.json:
        write_text(folder / "source-tokenizer.json", words.json)
    write_text(folder / "README.md", card(model))
    return sorted(folder.iterdir())


def config(model: KeptModel) -> dict[str, Any]:
    """Return what the model is, for readers other than umscale."""
    spec = model.spec
    return {
        "model_type": "umscale",
        "umscale_version": umscale.__version__,
        "run_id": spec.run_id,
        "architecture": spec.model.architecture,
        "max_position_embeddings": spec.data.seq_len,
        "bos_token_id": model.tokenizer.eot,
        "eos_token_id": model.tokenizer.eot,
        "torch_dtype": "float32",
        "weights": "averaged" if model.averaged else "raw",
        "model": to_dict(spec.model),
        "seed": spec.seed,
    }


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """Return the tokenizer as the ``tokenizers`` library reads it, with the same ids; bytes become one of bytes."""
    import tokenizers
    from tokenizers import AddedToken, decoders, models, pre_tokenizers

    if tokenizer.kind == "file":
        return tokenizer.json
    if tokenizer.json:
        made = tokenizers.Tokenizer.from_str(tokenizer.json)
    else:
        vocabulary = {character: byte for byte, character in enumerate(_characters_of_bytes())}
        made = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    if made.token_to_id(END_OF_TEXT) != tokenizer.eot:
        raise UserError(f"the tokenizer knows {END_OF_TEXT} as a word of its own: it cannot be exported")
    text: str = made.to_str()
    return text


def _characters_of_bytes() -> list[str]:
    """Return the printable character that byte-level tokenizers write for each byte, as GPT-2's encoder has it."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(BYTES_EOT) if byte not in plain]
    return [chr(byte) if byte in plain else chr(0x100 + rest.index(byte)) for byte in range(BYTES_EOT)]


def card(model: KeptModel) -> str:
    """Return the model card: what the record says, and how to load the model."""
    spec, record = model.spec, model.record
    sizes = cost(spec.model, spec.data.seq_len)
    measured = {
        "tokens of training": f"{record['tokens']:,}",
        "stage": record["stage"],
        "weights": "running average" if model.averaged else "raw",
        "validation loss, raw weights, nats per token": f"{record['loss']:.4f}",
        "validation loss, averaged weights, nats per token": f"{record['loss_ema']:.4f}",
        "bits per byte, raw weights": f"{record['bits_per_byte']:.4f}",
        "bits per byte, averaged weights": f"{record['bits_per_byte_ema']:.4f}",
        "parameters without embeddings": f"{sizes.total_params:,}",
        "of them sparse": f"{sizes.sparse_params:,}",
        "active per token": f"{sizes.active_params:,}",
        "forward FLOPs per token": f"{sizes.flops_per_token:,.0f}",
        "context, tokens": f"{spec.data.seq_len:,}",
        "vocabulary": f"{model.tokenizer.vocab_size:,} ({model.tokenizer.kind})",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in measured.items())
    return f"""---
library_name: umscale
tags: [umscale, {spec.model.architecture.replace(" & ", ", ").replace("+", "-")}]
---

# {spec.model.architecture}, run {spec.run_id}

A proxy language model trained by umscale {umscale.__version__} on the corpus `{model.corpus}` (content hash
`{spec.data.hash[:16]}`). Such models are made to compare architectures, not to be talked to.

| what | value |
| --- | --- |
{rows}

```python
import umscale

model = umscale.load_model(".")
print(model.generate("In the beginning", n_tokens=100))
```

The specification of the run is in the header of `model.safetensors`; `config.json` has the model's dimensions.
"""
