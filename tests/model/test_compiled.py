"""Every architecture is one graph to `torch.compile`, forward and backward."""

import pytest
import torch

from tests.numerics import assert_close, seeded
from umscale.model.decoder import Decoder
from umscale.spec import FfnSpec, MemorySpec, ModelSpec, NgramSpec

SMALL = {"n_keys": 8, "top_m": 4, "d_key": 8, "d_value": 8}
V2 = {**SMALL, "d_pre_value": 8}
ARCHITECTURES = {
    "dense": {},
    "moe": {"ffn": FfnSpec(kind="moe", d_ffn=16, n_experts=4, top_k=2, balance_loss=0.01, z_loss=0.001)},
    "ultramem_v2": {"memory": MemorySpec(**V2, balance_loss=0.01, tucker_penalty=0.001)},
    "ring": {"memory": MemorySpec(**V2, sharing="ring", share_layers=2)},
    "ultramem": {"memory": MemorySpec(kind="ultramem", **SMALL, heads=2)},
    "pkm": {"memory": MemorySpec(kind="pkm", **SMALL, heads=2)},
    "memory_plus": {"memory": MemorySpec(kind="memory_plus", **SMALL, heads=2, sharing="all")},
    "peer": {"memory": MemorySpec(kind="peer", **{**SMALL, "d_value": 32, "d_pre_value": 32}, heads=2)},
    "engram": {"ngram": NgramSpec(rows=50, heads=2)},
    "over_encoding": {"ngram": NgramSpec(kind="over_encoding", rows=50, heads=2)},
    "per_layer_embedding": {"ngram": NgramSpec(kind="per_layer_embedding", d_embedding=8)},
}


@pytest.mark.parametrize(
    ("name", "autocast"), [*((name, False) for name in ARCHITECTURES), ("dense", True), ("ultramem_v2", True)]
)
def test_one_graph(name, autocast):
    spec = ModelSpec(
        d_model=32, n_layers=2, n_heads=2, vocab_size=13, **{"ffn": FfnSpec(d_ffn=32), **ARCHITECTURES[name]}
    )
    tokens, found = torch.randint(13, (2, 17), generator=seeded(1)), []
    for compiled in (False, True):
        torch._dynamo.reset()
        model = Decoder(spec, seed=0, max_seq_len=16)
        model.separator = 3 if name == "dense" else None
        run = torch.compile(loss_of, fullgraph=True, backend="aot_eager") if compiled else loss_of
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = run(model, tokens)
        loss.backward()
        found.append((loss, *(p.grad for p in model.parameters())))
    for eager, graph in zip(*found, strict=True):
        assert_close(graph, eager, 2e-2 if autocast else 1e-6, floor=1e-2)


def loss_of(model, tokens):
    loss = model(tokens[:, :-1], tokens[:, 1:])
    auxiliary = model.auxiliary_loss()
    return loss if auxiliary is None else loss + auxiliary
