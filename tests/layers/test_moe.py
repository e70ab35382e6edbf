"""The mixture of experts against a token-by-token float64 computation, its auxiliary losses and its routing."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.numerics import assert_close, seeded
from umscale.layers.moe import Moe
from umscale.spec import FfnSpec

H = 12
SPECS = {
    "top 1": FfnSpec(kind="moe", d_ffn=8, n_experts=4, top_k=1),
    "top 2, normalised": FfnSpec(kind="moe", d_ffn=6, n_experts=5, top_k=2, normalize_gates=True),
    "top 8, many empty": FfnSpec(kind="moe", d_ffn=3, n_experts=64, top_k=8),
    "all": FfnSpec(kind="moe", d_ffn=5, n_experts=3, top_k=3),
    "all, normalised": FfnSpec(kind="moe", d_ffn=5, n_experts=3, top_k=3, normalize_gates=True),
    "shared": FfnSpec(kind="moe", d_ffn=4, n_experts=6, top_k=2, n_shared_experts=2),
    "one expert": FfnSpec(kind="moe", d_ffn=4, n_experts=1, top_k=1, n_shared_experts=1),
}


def build(spec: FfnSpec, seed: int = 0, d_model: int = H) -> Moe:
    moe = Moe(d_model, spec)
    g = seeded(seed)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.5)
    return moe


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, H, generator=seeded(seed))


def swiglu_layer(gate_up: Tensor, out: Tensor, x: Tensor) -> Tensor:
    gate, up = (gate_up @ x).chunk(2)
    return out @ (F.silu(gate) * up)


def brute_force(p: dict[str, Tensor], spec: FfnSpec, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [T, h] and the auxiliary loss, one token, one expert and one choice at a time."""
    E, k, T = spec.n_experts, spec.top_k, x.shape[0]
    outputs, z = [], torch.zeros((), dtype=x.dtype)
    assigned, mean_p = [0.0] * E, torch.zeros(E, dtype=x.dtype)
    for t in range(T):
        logits = p["router.weight"] @ x[t]
        probabilities = logits.exp() / logits.exp().sum()
        values = probabilities.tolist()
        chosen = sorted(range(E), key=lambda e, v=values: (-v[e], e))[:k]
        total = probabilities[chosen].sum() if spec.normalize_gates else 1.0
        y = torch.zeros_like(x[t])
        for e in chosen:
            assigned[e] += 1
            y = y + probabilities[e] / total * swiglu_layer(p["gate_up"][e], p["out"][e], x[t])
        if spec.n_shared_experts:
            y = y + swiglu_layer(p["shared.gate_up.weight"], p["shared.out.weight"], x[t])
        outputs.append(y)
        mean_p = mean_p + probabilities / T
        z = z + logits.exp().sum().log() ** 2 / T
    balance = sum(E * assigned[e] / (T * k) * mean_p[e] for e in range(E))
    return torch.stack(outputs), spec.balance_loss * balance + spec.z_loss * z


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_outputs_and_all_gradients(name: str, dtype: torch.dtype) -> None:
    spec = dataclasses.replace(SPECS[name], balance_loss=0.3, z_loss=0.2)
    moe, x = build(spec).to(dtype), tokens(3, 7).to(dtype).requires_grad_()
    cotangent = tokens(3, 7, seed=2).to(dtype)
    y = moe(x)
    assert y.shape == x.shape
    assert moe.auxiliary is not None
    ((y * cotangent).sum() + moe.auxiliary).backward()

    exact = {n: p.detach().double().requires_grad_() for n, p in moe.named_parameters()}
    flat = x.detach().double().view(-1, H).requires_grad_()
    want, auxiliary = brute_force(exact, spec, flat)
    ((want * cotangent.double().view(-1, H)).sum() + auxiliary).backward()

    assert_close(y.view(-1, H), want, dtype, floor=1.0)
    assert_close(moe.auxiliary, auxiliary, dtype, floor=1.0)
    assert_close(x.grad.view(-1, H), flat.grad, dtype, floor=1.0)
    for n, parameter in moe.named_parameters():
        expected = exact[n].grad if exact[n].grad is not None else torch.zeros_like(exact[n])
        assert_close(parameter.grad, expected, dtype, floor=1.0, name=n)


@pytest.mark.parametrize("normalise", [False, True])
def test_gradcheck(normalise: bool) -> None:
    spec = FfnSpec(kind="moe", d_ffn=3, n_experts=4, top_k=2, n_shared_experts=1, normalize_gates=normalise)
    moe = build(spec, d_model=4).double()
    names, parameters = zip(*moe.named_parameters(), strict=True)

    def run(x: Tensor, *values: Tensor) -> tuple[Tensor, Tensor | None]:
        y = torch.func.functional_call(moe, dict(zip(names, values, strict=True)), (x,))
        return y, moe.auxiliary

    x = torch.randn(5, 4, dtype=torch.float64, generator=seeded(3), requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *parameters))


def test_one_expert_of_gate_one_is_the_dense_layer() -> None:
    moe, x = build(FfnSpec(kind="moe", d_ffn=8, n_experts=1)), tokens(6)
    want = torch.stack([swiglu_layer(moe.gate_up[0], moe.out[0], row) for row in x])
    assert_close(moe(x), want)


def test_equal_probabilities_go_to_the_lowest_experts() -> None:
    spec = FfnSpec(kind="moe", d_ffn=4, n_experts=6, top_k=2)
    moe, x = build(spec), tokens(5)
    nn.init.zeros_(moe.router.weight)
    moe.usage = torch.zeros(6, dtype=torch.int64)
    moe(x)
    assert moe.usage.tolist() == [5, 5, 0, 0, 0, 0]
    with torch.no_grad():  # experts 2 and 4 tie above the rest, 0, 1, 3 and 5 tie below
        moe.router.weight[[2, 4]] = x[0] * 3
    moe.usage.zero_()
    moe(x[:1])
    assert moe.usage.tolist() == [0, 0, 1, 0, 1, 0]


def test_dropless_however_uneven() -> None:
    """Every assignment is computed and counted when all tokens want the same experts."""
    spec = FfnSpec(kind="moe", d_ffn=4, n_experts=16, top_k=3)
    moe, x = build(spec), tokens(200).abs()
    with torch.no_grad():
        moe.router.weight[[1, 7, 9]] = 5.0
    moe.usage = torch.zeros(16, dtype=torch.int64)
    y = moe(x)
    assert moe.usage.sum() == 200 * 3
    assert moe.usage[[1, 7, 9]].tolist() == [200] * 3
    exact = {n: p.detach().double() for n, p in moe.named_parameters()}
    assert_close(y, brute_force(exact, spec, x.double())[0])
    moe(x)
    assert moe.usage.sum() == 2 * 200 * 3


def test_auxiliary_losses_of_known_routings() -> None:
    """Even routing costs 1, everything on one of E experts costs E; z of equal logits is their log-sum squared."""
    x = tokens(40)
    balance = FfnSpec(kind="moe", d_ffn=4, n_experts=8, top_k=2, balance_loss=0.5, z_loss=0.0)
    moe = build(balance)
    nn.init.zeros_(moe.router.weight)
    moe(x)
    assert moe.auxiliary.item() == pytest.approx(0.5 * 1.0)
    one = build(dataclasses.replace(balance, top_k=1))
    with torch.no_grad():
        one.router.weight.zero_()[3] = 1e3
    one(x.abs())
    assert one.auxiliary.item() == pytest.approx(0.5 * 8)
    z = build(dataclasses.replace(balance, balance_loss=0.0, z_loss=0.25))
    nn.init.zeros_(z.router.weight)
    z(x)
    assert z.auxiliary.item() == pytest.approx(0.25 * math.log(8) ** 2)


def test_no_auxiliary_loss_in_evaluation_or_without_coefficients() -> None:
    moe, x = build(SPECS["shared"]), tokens(4)
    moe(x)
    assert moe.auxiliary is not None
    moe.eval()(x)
    assert moe.auxiliary is None
    free = build(dataclasses.replace(SPECS["shared"], balance_loss=0.0, z_loss=0.0))
    free(x)
    assert free.auxiliary is None


def test_balance_loss_evens_out_the_experts() -> None:
    spec = FfnSpec(kind="moe", d_ffn=4, n_experts=8, top_k=2, balance_loss=1.0, z_loss=0.0)
    moe, x = build(spec), tokens(256) + 1
    optimizer = torch.optim.Adam([moe.router.weight], lr=0.02)
    usage = []
    for _ in range(80):
        moe.usage = torch.zeros(8, dtype=torch.int64)
        moe(x)
        usage.append(moe.usage)
        optimizer.zero_grad()
        assert moe.auxiliary is not None
        moe.auxiliary.backward()
        optimizer.step()
    assert usage[0].max() > 90
    assert usage[-1].max() < 80
    assert usage[-1].min() > 50


def test_same_bits_every_time() -> None:
    x, results = tokens(8, 64), []
    for _ in range(2):
        moe, leaf = build(SPECS["top 8, many empty"]), x.clone().requires_grad_()
        y = moe(leaf)
        (y.square().sum() + moe.auxiliary).backward()
        results.append([y, leaf.grad, *(p.grad for p in moe.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_tokens_do_not_see_each_other() -> None:
    moe, x = build(SPECS["top 2, normalised"]).eval(), tokens(20)
    y = moe(x)
    assert_close(y[5:6], moe(x[5:6]), floor=float(y.detach().abs().max()))


def test_autocast_keeps_the_router_in_full_precision() -> None:
    """Routing of float32 inputs is that without autocast; experts compute in bfloat16."""
    spec = FfnSpec(kind="moe", d_ffn=8, n_experts=64, top_k=8, n_shared_experts=1)
    moe, x = build(spec), tokens(300)
    moe.usage = torch.zeros(64, dtype=torch.int64)
    want = moe(x)
    auxiliary, usage = moe.auxiliary, moe.usage.clone()
    moe.usage.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        y = moe(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(moe.usage, usage)
    assert moe.auxiliary.dtype == torch.float32
    assert torch.equal(moe.auxiliary, auxiliary)
    assert_close(y, want, 0.05)


def test_trains_under_bfloat16_autocast() -> None:
    spec = FfnSpec(kind="moe", d_ffn=16, n_experts=8, top_k=2, n_shared_experts=1)
    moe, x = build(spec), tokens(64)
    target = torch.randn(64, H, generator=seeded(5))
    optimizer = torch.optim.AdamW(moe.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        with torch.autocast("cpu", torch.bfloat16):
            y = moe(x)
        loss = F.mse_loss(y.float(), target)
        optimizer.zero_grad()
        (loss + moe.auxiliary).backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in moe.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_without_graph_breaks(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UMSCALE_NATIVE", "0")  # the C++ swiglu is found by code that is not traced
    moe, x = build(SPECS["shared"]), tokens(2, 9)
    compiled = torch.compile(moe, fullgraph=True, backend="aot_eager")
    results = []
    for layer in (moe, compiled):
        moe.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = layer(x)
        (y.float().square().sum() + moe.auxiliary).backward()
        results.append([y.float(), *(p.grad.clone() for p in moe.parameters())])
    for a, b in zip(*results, strict=True):
        assert_close(a, b, 1e-2 if autocast else torch.float32)
