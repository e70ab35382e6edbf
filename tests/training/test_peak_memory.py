"""Predicted memory beside the peak of processes that train, for three shapes: tables, activations, experts in parts."""

import json
import os
import subprocess
import sys

import pytest

from umscale.data.corpus import open_corpus
from umscale.spec import DataSpec, FfnSpec, MemorySpec, ModelSpec, RunSpec, TrainSpec, from_dict, to_dict
from umscale.training.peak_memory import Split, predict_memory

WIDE = {"d_model": 192, "n_heads": 4}
MEMORY = {"top_m": 8, "d_key": 16, "d_pre_value": 32, "d_value": 32}
SHAPES = {
    "tables": (
        ModelSpec(d_model=64, n_layers=2, n_heads=2, ffn=FfnSpec(d_ffn=128), memory=MemorySpec(n_keys=384, **MEMORY)),
        {"batch_size": 4},
    ),
    "activations": (
        ModelSpec(n_layers=6, ffn=FfnSpec(d_ffn=512), memory=MemorySpec(n_keys=64, **MEMORY), **WIDE),
        {"batch_size": 8},
    ),
    "experts": (
        ModelSpec(n_layers=5, ffn=FfnSpec(kind="moe", d_ffn=256, n_experts=16, top_k=2), **WIDE),
        {"batch_size": 4, "micro_batch_size": 2, "activation_checkpointing": True},
    ),
}  # fmt: skip

PROGRAM = """
import json, os, sys, tempfile, torch
from pathlib import Path
torch.set_num_threads(1)
import torch._dynamo, torch.profiler
from umscale.machine import keep_freed_memory, peak_memory_bytes
from umscale.data.corpus import open_corpus
from umscale.spec import RunSpec, from_dict
from umscale.training.peak_memory import predict_memory
from umscale.training.run import Run

def train(spec):
    keep_freed_memory()
    run = Run(spec, open_corpus(spec.data.corpus), Path(tempfile.mkdtemp()), torch.device("cpu"))
    for _ in range(2):  # the first makes the moments
        run.launch_step()
    run.settle()
    return peak_memory_bytes()

def in_a_process_of_its_own(work, spec):
    read, write = os.pipe()
    if not os.fork():
        os.write(write, str(work(spec)).encode())
        os._exit(0)
    os.close(write)
    os.wait()
    return int(os.read(read, 100))

for text in sys.argv[1:]:
    spec = from_dict(RunSpec, json.loads(text))
    predicted = in_a_process_of_its_own(lambda spec: sum(predict_memory(spec).values()), spec)
    print(predicted, in_a_process_of_its_own(train, spec))
"""


def spec_of(shape: str) -> RunSpec:
    corpus = open_corpus("kjv")
    model, train = SHAPES[shape]
    return RunSpec(
        model=from_dict(ModelSpec, to_dict(model) | {"vocab_size": corpus.vocab_size}, "model"),
        data=DataSpec(corpus="kjv", hash=corpus.hash, seq_len=256, validation_tokens=2000, validation_documents=0),
        train=TrainSpec(budgets=(10**6,), precision="float32", checkpoint_seconds=1e9, **train),
    )  # fmt: skip


def test_predicted_within_15_percent_of_measured(source_paths: str) -> None:
    """In processes that are forked from one that has imported what a run needs, and nothing else."""
    specs = [json.dumps(to_dict(spec_of(shape))) for shape in SHAPES]
    environment = os.environ | {"PYTHONPATH": source_paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *specs], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    for shape, line in zip(SHAPES, done.stdout.splitlines(), strict=True):
        predicted, measured = map(int, line.split())
        assert predicted == pytest.approx(measured, rel=0.15), shape


def test_a_split_divides_what_is_split() -> None:
    spec = spec_of("tables")
    alone, together = (
        predict_memory(spec),
        predict_memory(spec, Split(size=2, shard_tables=True, shard_dense=True)),
    )
    for part in ("value tables", "gradients of tables"):
        assert together[part] == alone[part] // 2
    assert together["moments"] == pytest.approx(alone["moments"] / 2, rel=1e-6)
    assert together["other weights"] == pytest.approx(alone["other weights"] / 2, rel=1e-3)
    assert together["activations"] == pytest.approx(alone["activations"] / 2, rel=1e-3)
