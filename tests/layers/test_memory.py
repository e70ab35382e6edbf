"""The memory layer against a float64 brute-force rendering of the paper's equations, and its init."""

import dataclasses
import math
import sys
from types import ModuleType

import pytest
import torch

from tests.numerics import assert_close, seeded
from umscale.errors import UserError
from umscale.layers.ffn import SwiGlu
from umscale.layers.loss import mean_loss
from umscale.layers.memory import Memory
from umscale.layers.tables import Shuffle, first_table
from umscale.layers.tucker import TuckerMemory, balance_loss
from umscale.model.decoder import Decoder
from umscale.model.initialise import initialise
from umscale.model.scaling import effective_width, value_std
from umscale.rng import generator
from umscale.spec import FfnSpec, MemorySpec, ModelSpec, TrainSpec
from umscale_kernels import available_backends, key_scores, select

SPECS = [
    MemorySpec(n_keys=9, top_m=5, d_key=6, d_pre_value=8, d_value=12),
    MemorySpec(n_keys=8, top_m=7, d_key=4, d_pre_value=6, d_value=10, heads=2),
    MemorySpec(n_keys=10, top_m=6, d_key=4, d_pre_value=0, d_value=6, n_cores=1),
    MemorySpec(n_keys=8, top_m=11, d_key=4, d_pre_value=4, d_value=8, preselect_m=4, tucker_rank=3),
    MemorySpec(n_keys=6, top_m=6, d_key=4, d_pre_value=4, d_value=8, key_expansion=2),
    MemorySpec(n_keys=6, top_m=6, d_key=4, d_pre_value=4, d_value=8, sharing="ring", share_layers=2),
    MemorySpec(n_keys=6, top_m=6, d_key=4, d_pre_value=4, d_value=8, sharing="all"),
    MemorySpec(n_keys=9, top_m=6, d_key=4, d_pre_value=4, d_value=8, quadrants=2, preselect_m=3),
    MemorySpec(kind="ultramem", n_keys=6, top_m=7, d_key=5, d_value=8),
    MemorySpec(
        kind="ultramem", n_keys=6, top_m=7, d_key=5, d_value=8, heads=2, sharing="block", share_layers=2
    ),
    MemorySpec(kind="pkm", n_keys=9, top_m=5, d_key=6, d_value=12, heads=2),
    MemorySpec(kind="memory_plus", n_keys=9, top_m=5, d_key=6, d_value=12, heads=2),
    MemorySpec(kind="peer", n_keys=9, top_m=5, d_key=6, heads=3),
]
IDS = [f"{s.kind}-{i}" for i, s in enumerate(SPECS)]


def layer(
    memory: MemorySpec, h: int = 16, dtype: torch.dtype = torch.float32
) -> tuple[Memory, tuple[torch.Tensor | None, torch.Tensor]]:
    spec = ModelSpec(d_model=h, n_layers=2, n_heads=2, vocab_size=11, ffn=FfnSpec(d_ffn=32), memory=memory)
    model = Decoder(spec, seed=1, max_seq_len=8).to(dtype)
    return model.blocks[1].memory, model.tables.per_layer()[1][:2]


def rms(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * gain.double()


def tucker_pairs(module: Memory, token: torch.Tensor) -> list[list[tuple[int, int, torch.Tensor]]]:
    """Kept (row, col, scores by core) of every head."""
    spec = module.spec
    r, n, k = spec.tucker_rank, spec.keys_per_side, spec.d_key
    wq = module.query.weight.double().view(2, -1, k, len(token))
    wq = wq.expand(2, r, k, -1) if wq.shape[1] < r else wq  # UltraMem: one query a side
    keys = rms(module.keys.double(), module.key_norm.weight).view(spec.heads, 2, r, n, k)
    q = rms(torch.einsum("srkh,h->srk", wq, token), module.query_norm.weight)
    heads = []
    for head in range(spec.heads):
        S = torch.einsum("srk,srnk->srn", q, keys[head])
        cores = module.cores[head].double()
        left, _, right = torch.linalg.svd(cores.sum(0))
        u, v = left[:, 0], right[0]
        if (u + v).sum() < 0:
            u, v = -u, -v
        cells = set()
        for sign in (1, -1)[: spec.quadrants]:
            rows = (sign * u @ S[0]).topk(spec.candidates).indices.tolist()
            cols = (sign * v @ S[1]).topk(spec.candidates).indices.tolist()
            cells |= {(i, j) for i in rows for j in cols}
        pairs = [(i, j, S[0, :, i] @ cores @ S[1, :, j]) for i, j in cells]
        heads.append(sorted(pairs, key=lambda pair: -pair[2].sum().item())[: spec.top_m])
    return heads


def additive_pairs(module: Memory, token: torch.Tensor) -> list[list[tuple[int, int, torch.Tensor]]]:
    spec = module.spec
    q = (module.query.weight.double() @ token).view(spec.heads, 2, spec.d_key)
    q = rms(q, module.query_norm.weight)
    keys = module.keys.double()
    if spec.kind == "memory_plus":
        keys = rms(keys, module.key_norm.weight)
    heads = []
    for head in range(spec.heads):
        a, b = (keys[head, side] @ q[head, side] for side in range(2))
        total = a[:, None] + b  # every pair: the candidate grid must not lose any of the best
        best = total.flatten().topk(spec.top_m)
        weights = best.values.softmax(0)
        n = spec.keys_per_side
        heads.append(
            [(int(f) // n, int(f) % n, w.view(1)) for f, w in zip(best.indices, weights, strict=True)]
        )
    return heads


def brute_force(module: Memory, pre_values, values, y: torch.Tensor) -> torch.Tensor:
    """The equations token by token, in float64, with every pair of candidates written out."""
    spec = module.spec
    width = spec.d_value // spec.n_cores
    additive = spec.kind in ("pkm", "memory_plus", "peer")
    out = []
    for token in y.double():
        p = token if module.pre_value is None else module.pre_value.weight.double() @ token
        pooled = torch.zeros(spec.value_expansion, spec.d_value, dtype=torch.float64)
        heads = (additive_pairs if additive else tucker_pairs)(module, token)
        for i, j, s in (pair for pairs in heads for pair in pairs):
            address = int(module.shuffle(torch.tensor(i * spec.keys_per_side + j)))
            block, row = divmod(address, spec.visible_values)
            if spec.sharing != "none":
                row = (row + module.first_row) % len(values)
            z = p @ pre_values[row].double() if pre_values is not None else torch.tensor(1.0).double()
            z = torch.nn.functional.gelu(z) if spec.kind == "peer" else z
            value = values[row].double()
            slices = [s[q] * z * value[q * width : (q + 1) * width] for q in range(spec.n_cores)]
            pooled[block if spec.value_expansion > 1 else 0] += torch.cat(slices)
        total = pooled.flatten()
        if module.gate is not None:
            total = total * torch.nn.functional.silu(module.gate.weight.double() @ token)
        out.append(total if module.out is None else module.out.weight.double() @ total)
    return torch.stack(out)


@pytest.mark.parametrize("memory", SPECS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", ["auto", "aten", "reference"])
def test_layer_computes_the_papers_equations(memory, backend, dtype):
    if memory.quadrants == 2 and backend == "auto":
        backend = "aten"  # what auto falls back to
    module, tables = layer(memory, dtype=dtype)
    module.backend = backend
    y = torch.randn(1, 13, 16, generator=generator(int(torch.randint(2**31, (1,))), "y")).to(dtype)
    got = module(y, *tables)[0]
    want = brute_force(module, *tables, y[0])
    assert_close(got, want, dtype)


@pytest.mark.parametrize("memory", SPECS, ids=IDS)
def test_every_part_of_the_layer_learns(memory):
    module, tables = layer(memory)
    module(torch.randn(1, 64, 16), *tables).square().sum().backward()
    blocks = module.query.weight.grad.view(-1, memory.d_key, 16).flatten(1).norm(dim=1)
    assert (blocks > 0).all(), "a rank, side or head shares another's query"
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def scoring(module: Memory) -> ModuleType:
    """Where a layer's scores are formed and selected by."""
    own = sys.modules[type(module).__module__]
    return own if hasattr(own, "key_scores") else sys.modules["umscale_kernels.key_select"]


def threshold_ties(module: Memory, y: torch.Tensor) -> float:
    """Share of tokens in which the last pair kept and the first left out have equal totals, of one head."""
    seen = {}

    def spy(scores: torch.Tensor, *rest: object, **options: object) -> object:
        seen["raw"], seen["cores"] = scores.detach(), rest[2]
        return select(scores, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring(module), "select", spy)
        module.retrieve(y)
    raw, core = seen["raw"][0], seen["cores"][0].sum(0)
    assert raw.dtype == torch.float32
    with torch.autocast("cpu", enabled=False):
        total = torch.einsum("ati,ab,btj->tij", raw[0], core, raw[1]).flatten(1)
    best = total.topk(module.spec.top_m + 1).values
    return float((best[:, -1] == best[:, -2]).float().mean())


@pytest.mark.parametrize("kind", ["pkm", "ultramem_v2"])
def test_scores_under_bfloat16_do_not_tie(kind, monkeypatch):
    """Operands are bfloat16, results are not: rounded ones tie at the threshold in several percent of tokens."""
    module, _ = layer(MemorySpec(kind=kind, n_keys=128, top_m=32, d_key=32), h=64)
    module.backend = "aten"  # the native path forms no scores but the kept ones
    y = torch.randn(512, 64, generator=seeded(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert threshold_ties(module, y) == 0
        rounded = lambda q, keys: torch.matmul(q, keys.transpose(-1, -2)).float()  # noqa: E731
        monkeypatch.setattr(scoring(module), "key_scores", rounded)
        assert kind != "pkm" or threshold_ties(module, y) > 0.02


def test_gradients_of_scores_under_bfloat16():
    q, keys = (torch.randn(2, n, 16, generator=seeded(n)).requires_grad_() for n in (9, 7))
    exact = torch.autograd.grad((q @ keys.mT).sin().sum(), (q, keys))
    with torch.autocast("cpu", torch.bfloat16):
        scores = key_scores(q, keys)
    want = q.bfloat16().double() @ keys.bfloat16().double().mT
    assert_close(scores, want)
    for got, wanted in zip(torch.autograd.grad(scores.sin().sum(), (q, keys)), exact, strict=True):
        assert_close(got, wanted, torch.bfloat16)
    compiled = torch.compile(key_scores, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled(q, keys), scores)


def test_a_fresh_layer_selects_by_its_cores():
    module, _ = layer(SPECS[0])
    left, _, right = torch.linalg.svd(module.cores[0].detach().sum(0))
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


SIZES = [
    (64, 4, 160, MemorySpec(n_keys=64, top_m=32, d_key=32, d_pre_value=64, d_value=64)),
    (768, 20, 2496, MemorySpec(n_keys=360, top_m=32, d_key=192, d_pre_value=192, d_value=192)),
    (2048, 16, 6976, MemorySpec(n_keys=552, top_m=128, d_key=512, d_pre_value=384, d_value=768)),
]


def memory_size(h: int, layers: int, d_ffn: int, memory: MemorySpec, g: torch.Generator) -> float:
    """Root mean square of a fresh layer's output on unit-variance input, of the rows it reads alone."""
    from umscale_kernels import lookup

    module = TuckerMemory(h, memory, 0, layers, seed=0)
    spec = ModelSpec(d_model=h, n_layers=layers, n_heads=2, ffn=FfnSpec(d_ffn=d_ffn), memory=memory)
    std = math.sqrt(2 / (5 * h))
    with torch.no_grad():
        for linear in (module.query, module.pre_value, module.out):
            linear.weight.copy_(torch.randn(linear.weight.shape, generator=g) * std)
        module.keys.copy_(torch.randn(module.keys.shape, generator=g))
        module.cores.copy_(torch.rand(module.cores.shape, generator=g))
        sigma, _ = value_std(spec, memory, module.calibrate(g, 256))
        y = torch.randn(256, h, generator=g)
        rows, scores = module.retrieve(y)
        assert float(scores.mean()) == pytest.approx(1, abs=0.05)
        used, local = rows.unique(return_inverse=True)
        pre = torch.randn(len(used), memory.d_pre_value, generator=g) * sigma
        values = torch.randn(len(used), memory.d_value, generator=g) * sigma
        return float(
            module.out(lookup(module.pre_value(y), scores, local, pre, values)).square().mean().sqrt()
        )


def ffn_size(h: int, layers: int, d_ffn: int, g: torch.Generator) -> float:
    """Root mean square of a fresh SwiGLU's output on unit-variance input: the FFN itself, not a formula for it."""
    ffn = SwiGlu(h, d_ffn)
    std = math.sqrt(2 / (5 * h))
    with torch.no_grad():
        ffn.gate_up.weight.copy_(torch.randn(ffn.gate_up.weight.shape, generator=g) * std)
        ffn.out.weight.copy_(torch.randn(ffn.out.weight.shape, generator=g) * std / math.sqrt(2 * layers))
        return float(ffn(torch.randn(256, h, generator=g)).square().mean().sqrt())


@pytest.mark.parametrize(("h", "layers", "d_ffn", "memory"), SIZES)
def test_matched_init_starts_as_large_as_the_ffn_and_the_papers_1_8_times_larger(h, layers, d_ffn, memory):
    g = seeded(5)
    draws = 24 if h < 128 else 1  # small layers differ from one draw to the next
    mean = lambda size: math.sqrt(sum(size() ** 2 for _ in range(draws)) / draws)  # noqa: E731
    measured = mean(lambda: ffn_size(h, layers, d_ffn, g))
    matched = dataclasses.replace(memory, init="matched")
    assert mean(lambda: memory_size(h, layers, d_ffn, matched, g)) == pytest.approx(measured, rel=0.03)
    paper = mean(lambda: memory_size(h, layers, d_ffn, memory, g))
    assert paper == pytest.approx(math.sqrt(0.032 * d_ffn / h / layers), rel=0.03)  # eq. 26 as printed
    assert paper / measured == pytest.approx(1.81, rel=0.05)


def test_official_init_uses_the_released_constants():
    memory = MemorySpec(n_keys=8, top_m=4, d_key=16, d_pre_value=8, d_value=8, init="official")
    spec = ModelSpec(d_model=32, n_layers=2, n_heads=2, vocab_size=11, memory=memory)
    model = Decoder(spec, seed=0, max_seq_len=8)
    assert model.memories[0].query_norm.weight[0].item() == pytest.approx(16**-0.4)
    assert model.tables.values.std().item() == pytest.approx(0.02, rel=0.1)


FFNS = {
    "dense": FfnSpec(d_ffn=160),
    "mixture": FfnSpec(kind="moe", d_ffn=40, n_experts=16, top_k=4),
    "mixture, normalised, shared": FfnSpec(
        kind="moe", d_ffn=40, n_experts=16, top_k=3, n_shared_experts=1, normalize_gates=True
    ),
}


@pytest.mark.parametrize(
    ("memory", "ffn"),
    [*((memory, "dense") for memory in SPECS), *((SPECS[0], ffn) for ffn in FFNS if ffn != "dense")],
    ids=lambda part: part if isinstance(part, str) else f"{part.kind}-{SPECS.index(part)}",
)
def test_every_architecture_starts_in_proportion_to_the_ffn(memory, ffn):
    """``matched`` memories are as large as the FFN beside them, dense or a mixture; ``paper`` goes by the formula."""
    memory = dataclasses.replace(
        memory, n_keys=24, top_m=8, d_key=16, preselect_m=None,
        **({} if memory.kind == "peer" else {"d_value": 48}),
    )  # fmt: skip
    h, layers = 64, 4
    sizes = {}
    for init in ("paper", "matched"):
        found = []
        for seed in range(4):
            spec = ModelSpec(
                d_model=h, n_layers=layers, n_heads=2, vocab_size=11, ffn=FFNS[ffn],
                memory=dataclasses.replace(memory, init=init),
            )  # fmt: skip
            model = Decoder(spec, seed=seed, max_seq_len=8)
            tables = model.tables.per_layer()
            with torch.no_grad():
                y = torch.randn(1, 512, h, generator=generator(seed, "y"))
                for i, block in enumerate(model.blocks):
                    parts = (block.memory(y, *tables[i]), block.ffn(y))
                    found.append([part.square().mean() for part in parts])
        sizes[init] = torch.tensor(found).mean(0).sqrt()
    formula = math.sqrt(0.032 * FFNS[ffn].active_width / h / layers)
    assert float(sizes["paper"][0]) == pytest.approx(formula, rel=0.1)
    assert float(sizes["matched"][0] / sizes["matched"][1]) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(
    ("n_experts", "top_k", "normalize", "size"),
    [
        (75, 8, False, 0.035),
        (96, 8, True, 0.13),
        (18, 2, False, 0.14),
        (12, 1, False, 0.21),
        (24, 2, True, 0.51),
    ],
)
def test_a_mixture_starts_smaller_than_the_dense_ffn(n_experts, top_k, normalize, size):
    """Output against the dense SwiGLU of the active width: docs/layer.md quotes these."""
    ffn = FfnSpec(kind="moe", d_ffn=16, n_experts=n_experts, top_k=top_k, normalize_gates=normalize)
    dense = FfnSpec(d_ffn=ffn.active_width)
    found = []
    for seed in range(4):
        pair = []
        for one in (ffn, dense):
            spec = ModelSpec(d_model=64, n_layers=2, n_heads=2, vocab_size=11, ffn=one)
            model = Decoder(spec, seed=seed, max_seq_len=8)
            with torch.no_grad():
                y = torch.randn(1, 512, 64, generator=generator(seed, "y"))
                pair.append(sum(block.ffn(y).square().mean() for block in model.blocks))
        found.append(pair)
    ratio = math.sqrt(sum(p[0] for p in found) / sum(p[1] for p in found))
    assert ratio == pytest.approx(size, rel=0.1)
    assert math.sqrt(effective_width(ffn) / dense.d_ffn) == pytest.approx(ratio, rel=0.1)


@pytest.mark.parametrize(
    ("sharing", "g", "windows"),
    [  # the paper's Table 7 at 8 memory layers
        ("ring", 4, [[7, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4], [6, 7, 0, 1]]),
        ("no_ring", 4, [[0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3, 4], [4, 5, 6, 7]]),
        ("block", 4, [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]),
        ("ring", 3, [[7, 0, 1], [0, 1, 2], [1, 2, 3], [6, 7, 0]]),
    ],
)
def test_sharing_windows(sharing, g, windows):
    memory = MemorySpec(n_keys=8, sharing=sharing, share_layers=g, top_m=4)
    for layer_index, tables in zip((0, 1, 2, 7), windows, strict=True):
        first = first_table(memory, layer_index, 8)
        assert [(first + i) % 8 for i in range(g)] == tables


def test_shared_layers_read_their_window_and_nothing_else():
    memory = MemorySpec(n_keys=4, top_m=16, d_key=4, d_pre_value=4, d_value=4, sharing="ring", share_layers=2)
    spec = ModelSpec(d_model=16, n_layers=4, n_heads=2, vocab_size=11, memory=memory)
    model = Decoder(spec, seed=0, max_seq_len=8)
    for i, block in enumerate(model.blocks):
        model.zero_grad()
        block.memory(torch.randn(1, 200, 16), *model.tables.per_layer()[i]).square().sum().backward()
        touched = model.tables.values.grad.view(4, -1).abs().sum(1) > 0
        assert touched.tolist() == [table in (i, (i + 1) % 4) for table in range(4)]


@pytest.mark.parametrize("kind", ["ultramem_v2", "pkm"])
def test_compact_gradients_are_the_dense_ones(kind):
    memory = MemorySpec(
        kind=kind,
        n_keys=8,
        top_m=3,
        d_key=4,
        d_value=4,
        **({"d_pre_value": 4} if kind == "ultramem_v2" else {}),
    )
    spec = ModelSpec(d_model=16, n_layers=3, n_heads=2, vocab_size=11, memory=memory)
    tokens, grads = torch.randint(11, (2, 9), generator=seeded(3)), []
    for compact in (False, True):
        model = Decoder(spec, seed=0, max_seq_len=8)
        model.configure_tables(TrainSpec(), compact=compact)
        mean_loss(model(tokens[:, :-1]), tokens[:, 1:]).backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    found = {name: grad.to_dense() if grad.is_sparse else grad for name, grad in grads[1].items()}
    assert all(torch.equal(found[name], grad) for name, grad in grads[0].items())
    assert model.tables.values.grad.is_sparse == ("native" in available_backends("lookup"))


def test_skipped_memory_is_added_later():
    def logits(skip: int) -> torch.Tensor:
        memory = MemorySpec(n_keys=8, top_m=4, d_key=4, d_pre_value=4, d_value=4, layers=(0,), skip=skip)
        spec = ModelSpec(d_model=16, n_layers=3, n_heads=2, vocab_size=11, memory=memory)
        model = Decoder(spec, seed=0, max_seq_len=8)
        added = []
        for i, block in enumerate(model.blocks):
            block.register_forward_pre_hook(lambda _, inputs, i=i: added.append((i, inputs[0].clone())))
        return model(torch.arange(8).view(1, 8)), added

    (plain, at_once), (skipped, late) = logits(0), logits(1)
    assert not torch.equal(plain, skipped)
    assert not torch.equal(at_once[1][1], late[1][1]), "the next block must not see the skipped memory"
    with pytest.raises(UserError, match="after the last block"):
        logits(3)


def test_balance_loss_is_smallest_for_even_use():
    T, n = 64, 8
    even = torch.arange(T).remainder(n).view(1, T, 1)
    scores = torch.zeros(1, 1, T, n)
    assert float(balance_loss(scores, torch.ones(1, 1), even)) == pytest.approx(1)
    peaked = torch.zeros(1, 1, T, n)
    peaked[..., 0] = 5.0
    assert float(balance_loss(peaked, torch.ones(1, 1), torch.zeros_like(even))) > 4


def test_auxiliary_losses_reach_keys_and_cores():
    def after(**weights: float) -> Decoder:
        memory = MemorySpec(n_keys=8, top_m=4, **weights)
        spec = ModelSpec(d_model=16, n_layers=2, n_heads=2, vocab_size=11, memory=memory)
        model = Decoder(spec, seed=0, max_seq_len=8)
        model(torch.arange(8).view(1, 8))
        if weights:
            model.auxiliary_loss().backward()
        return model

    for layer_ in after(balance_loss=1e-3).memories:
        assert layer_.keys.grad.abs().sum() > 0
    for layer_ in after(tucker_penalty=1e-3).memories:
        assert layer_.keys.grad is None
        second = torch.linalg.svdvals(layer_.cores.sum(1))[0, 1]
        assert (layer_.cores.grad.abs().sum() > 0) == bool(second > 0.15)
    assert after().auxiliary_loss() is None


def test_row_gradients_equal_dense_ones():
    for memory in (SPECS[0], SPECS[5], SPECS[11]):
        grads = []
        for rows in (False, True):
            spec = ModelSpec(d_model=16, n_layers=2, n_heads=2, vocab_size=11, memory=memory)
            model = Decoder(spec, seed=0, max_seq_len=8)
            model.configure_tables(TrainSpec(table_gradient="rows" if rows else "dense"))
            mean_loss(model(torch.arange(8).view(1, 8)), torch.arange(8).view(1, 8)).backward()
            grads.append([p.grad.to_dense() if p.grad.is_sparse else p.grad for p in model.parameters()])
            assert model.tables.values.grad.is_sparse == rows
        for dense, sparse in zip(*grads, strict=True):
            assert_close(dense, sparse)


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
    assert_close(model(tokens)[:, :9], model(changed)[:, :9])
    loss = mean_loss(model(tokens), torch.randint(0, 11, (2, 16)))
    assert loss.item() == pytest.approx(math.log(11), abs=1.0)
