"""The columns of a store's tables, and Parquet files that carry a checksum of their every byte.

The footer of a file holds ``umscale_checksum = umscale-sha256:<64 hex digits>``: the SHA-256 of the file with zeros in
place of those digits. Any Parquet reader ignores it. Parquet's own page checksums are written too (other readers can
verify those), but they leave page headers and the footer unprotected.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, get_args

from umscale.spec import Probe

if TYPE_CHECKING:
    import pyarrow as pa

STORE_VERSION = 2
PACKED_VERSION = 3
"""Of a store with packed tables; one that has none stays readable by what reads version 2."""
STAGES = ("stable", "annealed")
"""Ends of a branch that are measured: before the decay of the learning rate and after it."""

# Column types: s text, i int64, f float64, F list of float64. Sizes in parameters, losses in nats per token.
SPEC_COLUMNS = {
    "run_id": "s",
    "study": "s",
    "status": "s",
    "reason": "s",
    "seed": "i",
    "budget": "i",
    "stage": "s",
    "architecture": "s",
    "d_model": "i",
    "n_layers": "i",
    "n_heads": "i",
    "d_ffn": "i",
    "vocab_size": "i",
    "seq_len": "i",
    "n_keys": "i",
    "n_values": "i",
    "top_m": "i",
    "heads": "i",
    "d_key": "i",
    "d_pre_value": "i",
    "d_value": "i",
    "n_experts": "i",
    "top_k": "i",
    "batch_size": "i",
    "lr": "f",
    "value_lr": "f",
    "sparse_params": "i",
    "active_sparse_params": "i",
    "density": "f",
    "total_params": "i",
    "active_params": "i",
    "embedding_params": "i",
    "flops_per_token": "f",
    "mcp": "f",
    "memory_to_ffn": "f",
    "corpus": "s",
    "data_hash": "s",
    "spec": "s",
}
_RESULT_COLUMNS = {
    "tokens": "i",
    "step": "i",
    "loss": "f",
    "loss_ema": "f",
    "bits_per_byte": "f",
    "bits_per_byte_ema": "f",
    "loss_by_position": "F",
    "floor_nats": "f",
    "value_use": "F",
    "value_entropy": "F",
    "access_bytes_b1": "f",
    "access_bytes_b16": "f",
    "access_bytes_b64": "f",
    "access_bytes_b256": "f",
    "train_seconds": "f",
    "eval_seconds": "f",
    "tokens_per_second": "f",
    "peak_memory_bytes": "i",
    "input_seconds": "f",
    "step_seconds": "f",
    "checkpoint_seconds": "f",
    "mfu": "f",
    "peak_flops": "f",
    "mfu_convention": "s",
    "precision": "s",
    "device": "s",
    "kernels": "s",
    "versions": "s",
    "git_revision": "s",
    "machine": "s",
    "written_at": "s",
}
TABLES = {
    "runs": SPEC_COLUMNS | _RESULT_COLUMNS,
    "documents": {
        "run_id": "s",
        "budget": "i",
        "stage": "s",
        "document": "s",
        "n_tokens": "i",
        "n_bytes": "i",
        "nats": "f",
        "nats_ema": "f",
    },
    "curves": {
        "run_id": "s",
        "phase": "s",
        "tokens": "i",
        "loss": "f",
        "lr": "f",
        "value_lr": "f",
        "train_seconds": "f",
    },
    "probes": {
        "run_id": "s",
        "budget": "i",
        "stage": "s",
        "task": "s",
        "n_answers": "i",
        "answer_symbols": "i",
        "accuracy": "f",
        "answer_accuracy": "f",
        "nats": "f",
        "chance": "f",
        "ceiling": "f",
        "exposures": "f",
        "stored_bits": "f",
        "bits_per_param": "f",
    },
    "evaluations": {
        "run_id": "s",
        "budget": "i",
        "stage": "s",
        "evaluation": "s",
        "package": "s",
        "metric": "s",
        "value": "f",
    },
    "cells": {
        "run_id": "s",
        "study": "s",
        "label": "s",
        "compensation": "s",
        "seed": "i",
        "targets": "s",
        "wanted": "s",
        "achieved": "s",
        "reason": "s",
    },
}

FEW_ROWS = 64
"""Up to so many rows a file is written plainly, in a third of the time and half of the size."""

_PROBE_LOSS = "_nats"

_KEY, _PREFIX, _DIGITS = b"umscale_checksum", b"umscale-sha256:", 64


def probe_column(task: str) -> str:
    """Return the name under which a generated task's loss stands beside the losses of a run."""
    return task + _PROBE_LOSS


def is_probe_column(name: str) -> bool:
    """Return whether a column holds a generated task's loss."""
    return name in map(probe_column, get_args(Probe))


def is_evaluation_column(name: str) -> bool:
    """Return whether a column, ``EVALUATION.METRIC``, holds what an evaluation of a package gave."""
    return "." in name


class Damaged(Exception):
    """A file is not as it was written; the message says in what way."""


def schema(table: str) -> "pa.Schema":
    """Return the Arrow schema of ``runs``, ``documents``, ``curves``, ``probes`` or ``cells``."""
    import pyarrow as pa

    kinds = {"s": pa.string(), "i": pa.int64(), "f": pa.float64(), "F": pa.list_(pa.float64())}
    fields = [pa.field(name, kinds[kind]) for name, kind in TABLES[table].items()]
    return pa.schema(fields, metadata={"umscale_store_version": str(STORE_VERSION)})


def to_parquet(table: "pa.Table", notes: Mapping[str, str] | None = None, compression: str = "zstd") -> bytes:
    """Return ``table`` as a Parquet file with a checksum; ``notes`` go into its footer.

    Of a few rows in many columns most would be dictionaries, statistics and compressors' set-up: they go without.
    """
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    blank = (_PREFIX + b"0" * _DIGITS).decode()
    plain = len(table) <= FEW_ROWS
    with pq.ParquetWriter(
        stream,
        table.schema,
        compression="none" if plain else compression,
        use_dictionary=not plain,
        write_statistics=not plain,
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(dict(notes or {}) | {_KEY.decode(): blank})
    content = bytearray(stream.getbuffer())
    start = content.rindex(_PREFIX) + len(_PREFIX)
    content[start : start + _DIGITS] = hashlib.sha256(content).hexdigest().encode()
    return bytes(content)


def verify(content: bytes) -> None:
    """Check a file's checksum; one that never had any (an older umscale, another tool) passes.

    Raises:
        Damaged: a byte has changed, or the file was cut short.
    """
    if len(content) < 12 or not content.startswith(b"PAR1") or not content.endswith(b"PAR1"):
        raise Damaged("cut short, or no Parquet file")
    # Key and prefix are looked for apart, so that a flipped bit in one cannot make the file pass for one without.
    prefix = content.rfind(_PREFIX)
    if prefix < 0 and content.rfind(_KEY) < 0:
        return
    start = prefix + len(_PREFIX)
    view = memoryview(content)
    digest = hashlib.sha256(view[:start])
    digest.update(b"0" * _DIGITS)
    digest.update(view[start + _DIGITS :])
    if prefix < 0 or content[start : start + _DIGITS] != digest.hexdigest().encode():
        raise Damaged("its checksum does not match")


def from_parquet(
    content: bytes, wanted: "pa.Schema", columns: Sequence[str] | None = None
) -> "tuple[pa.Table, dict[str, str]]":
    """Return a verified file's rows with the columns of ``wanted`` (null where it has none) and its footer's notes.

    Args:
        columns: read these alone.

    Raises:
        Damaged: as ``verify`` does; or no Parquet, or columns of other types.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    verify(content)
    fields = [wanted.field(name) for name in (wanted.names if columns is None else columns)]
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        present = set(file.schema_arrow.names)
        names = [field.name for field in fields if field.name in present]
        data = file.read(columns=names, use_threads=file.metadata.num_rows > FEW_ROWS)
        held = dict(zip(data.column_names, data.columns, strict=True))
        arrays = [
            (column if column.type == field.type else column.cast(field.type))
            if (column := held.get(field.name)) is not None
            else pa.nulls(len(data), field.type)
            for field in fields
        ]
        notes = {
            k.decode(): v.decode() for k, v in (file.metadata.metadata or {}).items() if k != b"ARROW:schema"
        }
        return pa.table(arrays, schema=pa.schema(fields, metadata=wanted.metadata)), notes
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise Damaged(" ".join(str(error).split()) or type(error).__name__) from None
