"""The memory layer against a float64 brute-force rendering of the paper's equations, and its init."""

import math

import pytest
import torch

from umscale.init import initialise
from umscale.layers.memory import Memory, Shuffle, value_std
from umscale.model import Decoder, mean_loss
from umscale.rng import generator
from umscale.spec import FfnSpec, MemorySpec, ModelSpec

SPECS = [
    MemorySpec(n_keys=9, top_m=5, d_key=6, d_pre_value=8, d_value=12),
    MemorySpec(n_keys=8, top_m=7, d_key=4, d_pre_value=6, d_value=10, heads=2),
    MemorySpec(n_keys=10, top_m=6, d_key=4, d_pre_value=0, d_value=6, n_cores=1),
    MemorySpec(n_keys=8, top_m=11, d_key=4, d_pre_value=4, d_value=8, preselect_m=4, tucker_rank=3),
]


def layer(memory: MemorySpec, h: int = 16) -> tuple[Memory, tuple[torch.Tensor | None, torch.Tensor]]:
    spec = ModelSpec(d_model=h, n_layers=2, n_heads=2, vocab_size=11, ffn=FfnSpec(d_ffn=32), memory=memory)
    model = Decoder(spec, seed=1, max_seq_len=8)
    return model.blocks[1].memory, model.tables.per_layer()[1]


def brute_force(module: Memory, pre_values, values, y: torch.Tensor) -> torch.Tensor:
    """The equations token by token, in float64, with every pair of candidates written out."""
    spec = module.spec
    r, n, k, c = spec.tucker_rank, spec.n_keys, spec.d_key, spec.n_cores

    def rms(x, gain):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * gain

    wq = module.query.weight.double().view(2, r, k, -1)
    keys = rms(module.keys.double(), module.key_norm.weight.double()).view(spec.heads, 2, r, n, k)
    width = spec.d_value // c
    out = []
    for token in y.double():
        q = rms(torch.einsum("srkh,h->srk", wq, token), module.query_norm.weight.double())
        p = module.pre_value.weight.double() @ token if module.pre_value is not None else None
        pooled = torch.zeros(spec.d_value, dtype=torch.float64)
        for head in range(spec.heads):
            S = torch.einsum("srk,srnk->srn", q, keys[head])
            cores = module.cores[head].double()
            left, _, right = torch.linalg.svd(cores.sum(0))
            u, v = left[:, 0], right[0]
            if (u + v).sum() < 0:
                u, v = -u, -v
            rows = sorted((u @ S[0]).topk(spec.candidates).indices.tolist())
            cols = sorted((v @ S[1]).topk(spec.candidates).indices.tolist())
            pairs = [(i, j, S[0, :, i] @ cores @ S[1, :, j]) for i in rows for j in cols]
            pairs.sort(key=lambda pair: -pair[2].sum().item())
            for i, j, s in pairs[: spec.top_m]:
                row = int(module.shuffle(torch.tensor(i * n + j)))
                z = p @ pre_values[row].double() if p is not None else 1.0
                value = values[row].double()
                pooled += torch.cat([s[q] * z * value[q * width : (q + 1) * width] for q in range(c)])
        out.append(module.out.weight.double() @ pooled)
    return torch.stack(out)


@pytest.mark.parametrize("memory", SPECS)
@pytest.mark.parametrize("backend", ["auto", "aten", "reference"])
def test_layer_computes_the_papers_equations(memory, backend):
    module, tables = layer(memory)
    module.backend = backend
    y = torch.randn(1, 13, 16, generator=generator(int(torch.randint(2**31, (1,))), "y"))
    got = module(y, *tables)[0]
    want = brute_force(module, *tables, y[0])
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6)


def test_every_part_of_the_query_learns():
    module, tables = layer(SPECS[0])
    module(torch.randn(1, 64, 16), *tables).square().sum().backward()
    blocks = module.query.weight.grad.view(4, -1).norm(dim=1)
    assert (blocks > 0).all(), "a rank or side shares another's query"
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_fresh_layer_selects_by_its_cores():
    module, _ = layer(SPECS[0])
    left, _, right = torch.linalg.svd(module.cores[0].sum(0))
    assert abs(float(module.u[0] @ left[:, 0])) == pytest.approx(1, abs=1e-5)
    assert abs(float(module.v[0] @ right[0])) == pytest.approx(1, abs=1e-5)


def test_signs_stay_when_cores_move():
    module, _ = layer(SPECS[0])
    before = module.u.clone()
    with torch.no_grad():
        module.cores.add_(0.01 * torch.randn_like(module.cores))
    module.refresh()
    assert float(before[0] @ module.u[0]) > 0


@pytest.mark.parametrize("n", [1, 2, 3, 9, 64, 1000, 4096])
def test_shuffle_is_a_bijection(n):
    for seed in (0, 1, 12345):
        image = Shuffle(n, seed, enabled=True)(torch.arange(n))
        assert sorted(image.tolist()) == list(range(n))


def test_usage_counts_every_lookup():
    module, tables = layer(SPECS[1])
    module.usage = torch.zeros(module.spec.n_values, dtype=torch.int64)
    module(torch.randn(1, 20, 16), *tables)
    assert int(module.usage.sum()) == 20 * module.spec.heads * module.spec.top_m


@pytest.mark.parametrize(
    ("h", "layers", "d_ffn", "memory"),
    [
        (768, 20, 2496, MemorySpec(n_keys=360, top_m=32, d_key=192, d_pre_value=192, d_value=192)),
        (2048, 16, 6976, MemorySpec(n_keys=552, top_m=128, d_key=512, d_pre_value=384, d_value=768)),
    ],
)
def test_paper_init_matches_the_ffns_output(h, layers, d_ffn, memory):
    """Paper section 3.4: memory and FFN start with the same output size, std sqrt(0.032 d_ffn / (h L))."""
    from umscale_kernels import lookup

    module = Memory(h, memory, table=0, seed=0)
    g = torch.Generator().manual_seed(5)
    std = math.sqrt(2 / (5 * h))
    with torch.no_grad():
        for linear in (module.query, module.pre_value, module.out):
            linear.weight.copy_(torch.randn(linear.weight.shape, generator=g) * std)
        module.keys.copy_(torch.randn(module.keys.shape, generator=g))
        module.cores.copy_(torch.rand(module.cores.shape, generator=g))
        variance = module.calibrate(g, 256)
        sigma = value_std(h, layers, d_ffn, memory, variance)
        T = 256
        y = torch.randn(T, h, generator=g)
        rows, scores = module.retrieve(y)
        assert float(scores.mean()) == pytest.approx(1, abs=0.05)
        # Only the rows that are read need to exist.
        used, local = rows.unique(return_inverse=True)
        pre = torch.randn(len(used), memory.d_pre_value, generator=g) * sigma
        values = torch.randn(len(used), memory.d_value, generator=g) * sigma
        out = module.out(lookup(module.pre_value(y), scores, local, pre, values))
    target = math.sqrt(0.032 * d_ffn / h / layers)
    assert float(out.std()) == pytest.approx(target, rel=0.03)


def test_official_init_uses_the_released_constants():
    memory = MemorySpec(n_keys=8, top_m=4, d_key=16, d_pre_value=8, d_value=8, init="official")
    spec = ModelSpec(d_model=32, n_layers=2, n_heads=2, vocab_size=11, memory=memory)
    model = Decoder(spec, seed=0, max_seq_len=8)
    assert model.memories[0].query_norm.weight[0].item() == pytest.approx(16**-0.4)
    assert model.tables.values.std().item() == pytest.approx(0.02, rel=0.1)


def test_same_tensors_start_equal_across_cells():
    small = ModelSpec(d_model=32, n_layers=2, n_heads=2, vocab_size=11, memory=MemorySpec(n_keys=8, top_m=4))
    large = ModelSpec(d_model=32, n_layers=2, n_heads=2, vocab_size=11, memory=MemorySpec(n_keys=16, top_m=8))
    a, b = (dict(Decoder(s, seed=7, max_seq_len=8).named_parameters()) for s in (small, large))
    shared = [n for n in a if a[n].shape == b[n].shape and "norm" not in n]
    assert "blocks.0.attention.qkv.weight" in shared
    assert "blocks.1.memory.query.weight" in shared
    for name in shared:
        assert torch.equal(a[name], b[name]), name
    c = dict(Decoder(small, seed=8, max_seq_len=8).named_parameters())
    assert not torch.equal(a["embedding.weight"], c["embedding.weight"])


def test_initialise_is_deterministic():
    spec = ModelSpec(d_model=32, n_layers=2, n_heads=2, vocab_size=11, memory=MemorySpec(n_keys=8, top_m=4))
    model = Decoder(spec, seed=3, max_seq_len=8)
    before = {n: p.clone() for n, p in model.named_parameters()}
    initialise(model, spec, seed=3)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_decoder_is_causal_and_trains():
    spec = ModelSpec(
        d_model=32, n_layers=2, n_heads=2, vocab_size=11, ffn=FfnSpec(d_ffn=32),
        memory=MemorySpec(n_keys=8, top_m=4, d_key=8, d_pre_value=8, d_value=8),
    )  # fmt: skip
    model = Decoder(spec, seed=0, max_seq_len=16)
    tokens = torch.randint(0, 11, (2, 16))
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 11
    torch.testing.assert_close(model(tokens)[:, :9], model(changed)[:, :9])
    assert float(mean_loss(model(tokens), torch.randint(0, 11, (2, 16)))) == pytest.approx(
        math.log(11), abs=0.5
    )
