"""Memory addressed by tokens against plain Python: addresses as exact integers, modules in float64."""

import math
import random

import pytest
import torch

from tests.numerics import assert_close
from umscale.data.canonical import canonical_ids, canonical_text
from umscale.data.tokenizing import BYTES, train_bpe
from umscale.errors import UserError
from umscale.layers.engram import Engram, causal_conv, gate
from umscale.layers.ngram_addresses import hashed_addresses, history, rolling_addresses
from umscale.layers.ngram_embedding import NgramEmbedding
from umscale.layers.per_layer_embedding import PerLayerEmbedding
from umscale.ngram_tables import multipliers, table_sizes
from umscale.spec import ModelSpec, NgramSpec

START = 7
VOCAB = 8


def random_tokens(seed: int, shape: tuple[int, int]) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.choice([*range(VOCAB), START]) for _ in range(shape[1])] for _ in range(shape[0])]


def past(row: list[int], t: int, i: int) -> int:
    """Token t - i of the same document, or the id that begins documents."""
    if t - i < 0 or START in row[t - i + 1 : t + 1]:
        return START
    return row[t - i]


def wrap(x: int) -> int:
    return (x + 2**63) % 2**64 - 2**63


@pytest.mark.parametrize("seed", range(20))
def test_history_stops_at_the_start_of_a_document(seed: int) -> None:
    rows = random_tokens(seed, (3, 11))
    got = history(torch.tensor(rows), START, 4)
    for i in range(4):
        assert got[i].tolist() == [[past(row, t, i) for t in range(11)] for row in rows]


@pytest.mark.parametrize("seed", range(20))
def test_hashed_addresses_equal_exact_arithmetic(seed: int) -> None:
    draw = random.Random(seed)
    order = draw.choice([2, 3, 5])
    spec = NgramSpec(rows=draw.choice([2, 17, 1000, 10**7]), max_order=order, heads=draw.choice([1, 2, 8]))
    sizes = table_sizes(spec, 2, VOCAB)[1]
    factors = multipliers(seed, 1, order)
    rows = random_tokens(seed, (2, 13))
    got = hashed_addresses(history(torch.tensor(rows), START, order), factors, sizes)
    for b, row in enumerate(rows):
        for t in range(13):
            expected = []
            for n, heads in zip(spec.orders, sizes, strict=True):
                mixed = 0
                for i in range(n):
                    mixed ^= wrap(past(row, t, i) * factors[i])
                expected += [mixed % size for size in heads]
            assert got[b, t].tolist() == expected


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", ["ngram_embedding", "over_encoding"])
def test_rolling_addresses_equal_exact_arithmetic(seed: int, kind: str) -> None:
    spec = NgramSpec(kind=kind, rows=10**6 + seed, max_order=5, heads=2)
    sizes = table_sizes(spec, 1, VOCAB)[0]
    rows = random_tokens(seed, (2, 9))
    got = rolling_addresses(history(torch.tensor(rows), START, 5), 100_000, sizes)
    for b, row in enumerate(rows):
        for t in range(9):
            ids = [sum(past(row, t, i) * 100_000**i for i in range(n)) for n in spec.orders]
            assert got[b, t].tolist() == [
                i % size for i, heads in zip(ids, sizes, strict=True) for size in heads
            ]


def test_tables_are_distinct_primes_over_the_whole_model() -> None:
    sizes = table_sizes(NgramSpec(rows=1000, heads=4), 3, VOCAB)
    flat = [size for module in sizes for heads in module for size in heads]
    assert len(set(flat)) == len(flat) == 3 * 2 * 4
    assert min(flat) == 1009
    assert all(all(size % p for p in range(2, math.isqrt(size) + 1)) for size in flat)


def test_input_tables_stay_away_from_multiples_of_the_vocabulary() -> None:
    sizes = table_sizes(NgramSpec(kind="ngram_embedding", rows=2000, heads=8), 1, 1000)
    for heads in sizes[0]:
        assert all(abs(size - round(size / 1000) * 1000) >= 10 for size in heads)


def test_multipliers_are_odd_and_their_own_for_every_module() -> None:
    drawn = [multipliers(3, module, 3) for module in range(2)]
    flat = [m for one in drawn for m in one]
    assert all(m % 2 == 1 and -(2**63) <= m < 2**63 for m in flat)
    assert len(set(flat)) == 6


# ---------------------------------------------------------------------------------------------------------
# Canonical ids


def test_canonical_ids_of_bytes_merge_case_and_white_space() -> None:
    ids = canonical_ids(BYTES)
    assert ids[ord("A")] == ids[ord("a")] == ord("A")
    assert ids[ord("\n")] == ids[ord(" ")] == ids[ord("\t")]
    assert [ids[i] for i in (200, 255, BYTES.eot)] == [200, 255, BYTES.eot]
    assert len(set(ids.tolist())) < BYTES.vocab_size


def test_canonical_text() -> None:
    assert canonical_text("Façade") == canonical_text("FACADE") == "facade"
    assert canonical_text("ﬁ \n x") == "fi x"
    assert canonical_text("\u0301") == "\u0301"  # an accent alone keeps its text


def test_canonical_ids_of_a_bpe_read_alike_or_stand_alone() -> None:
    text = "The the THE caf\u00e9 cafe Cafe \u4e2d\u6587 ".encode() * 50
    tokenizer = train_bpe([text], 300)
    ids = canonical_ids(tokenizer)
    assert ids[tokenizer.eot] == tokenizer.eot
    assert all(ids[i] == i for i in set(ids.tolist()))
    assert len(set(ids.tolist())) < tokenizer.vocab_size


# ---------------------------------------------------------------------------------------------------------
# Modules


def rms(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * gain


def filled(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


@pytest.mark.parametrize("kind", ["signed_sqrt", "linear", "none"])
@pytest.mark.parametrize("kernel", [0, 1, 4])
def test_engram_equals_its_equations(kind: str, kernel: int) -> None:
    h, B, S = 6, 2, 9
    spec = ModelSpec(
        d_model=h, n_heads=1, ngram=NgramSpec(rows=11, heads=2, d_embedding=4, gate=kind, conv_kernel=kernel)
    ).ngram
    assert spec is not None
    sizes = table_sizes(spec, 1, VOCAB)[0]
    module = filled(Engram(h, spec, sizes), 1)
    tokens = torch.tensor(random_tokens(5, (B, S)))
    addresses = hashed_addresses(history(tokens, START, 3), multipliers(0, 0, 3), sizes)
    document = (tokens == START).cumsum(1)
    x = torch.randn(
        B, S, h, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True
    )
    got = module(x, addresses, document)

    starts = [0, *torch.tensor([s for heads in sizes for s in heads]).cumsum(0).tolist()]
    passed = torch.zeros(B, S, h, dtype=torch.float64)
    for b in range(B):
        for t in range(S):
            e = torch.cat([module.table.rows[starts[a] + int(addresses[b, t, a])] for a in range(4)])
            value = module.value.weight @ e
            if kind != "none":
                query = rms(x[b, t], module.query_norm.weight)
                a = query @ rms(module.key.weight @ e, module.key_norm.weight) / math.sqrt(h)
                a = a.sign() * a.abs().sqrt() if kind == "signed_sqrt" else a
                value = torch.sigmoid(a) * value
            passed[b, t] = value
    expected = passed.clone()
    if kernel:
        normed = rms(passed, module.conv_norm.weight)
        for b in range(B):
            for t in range(S):
                mixed = torch.zeros(h, dtype=torch.float64)
                for j in range(kernel):
                    back = t - 3 * j
                    if back >= 0 and document[b, back] == document[b, t]:
                        mixed = mixed + module.conv[j] * normed[b, back]
                expected[b, t] = expected[b, t] + torch.nn.functional.silu(mixed)
    assert_close(got, expected, torch.float64)
    weight = torch.randn(B, S, h, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    inputs = [x, *module.parameters()]
    ours = torch.autograd.grad((got * weight).sum(), inputs, retain_graph=True, materialize_grads=True)
    theirs = torch.autograd.grad((expected * weight).sum(), inputs, materialize_grads=True)
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other, torch.float64)


def test_a_fresh_convolution_adds_nothing() -> None:
    spec = ModelSpec(d_model=8, n_heads=1, ngram=NgramSpec(rows=11, heads=2)).ngram
    module = Engram(8, spec, table_sizes(spec, 1, VOCAB)[0])
    assert not module.conv.any()


def test_gate_has_a_finite_slope_at_zero() -> None:
    a = torch.tensor([0.0, 1e-12, -1e-12], requires_grad=True)
    gate(a, "signed_sqrt").sum().backward()
    assert torch.isfinite(a.grad).all()


def test_convolution_does_not_reach_another_document() -> None:
    x = torch.ones(1, 6, 1)
    document = torch.tensor([[0, 0, 0, 1, 1, 1]])
    assert causal_conv(x, torch.ones(3, 1), 1, document).flatten().tolist() == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize("kind", ["ngram_embedding", "over_encoding"])
def test_input_embedding_equals_its_equation(kind: str) -> None:
    h = 8
    spec = ModelSpec(d_model=h, n_heads=1, ngram=NgramSpec(kind=kind, rows=13, heads=2)).ngram
    sizes = table_sizes(spec, 1, VOCAB)[0]
    module = filled(NgramEmbedding(h, spec, sizes), 1)
    tokens = torch.tensor(random_tokens(5, (2, 5)))
    addresses = rolling_addresses(history(tokens, START, 3), VOCAB, sizes)
    embedded = torch.randn(2, 5, h, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    starts = [0, *torch.tensor([s for heads in sizes for s in heads]).cumsum(0).tolist()]
    expected = embedded.clone()
    for a, matrix in enumerate(module.project.weight.split(spec.head_width, dim=1)):
        expected = expected + module.table.rows[starts[a] + addresses[..., a]] @ matrix.T
    assert_close(module(embedded, addresses), expected * math.sqrt(h) / (4 + 1))


def test_per_layer_embedding_equals_its_equation() -> None:
    h, d = 8, 4
    spec = ModelSpec(d_model=h, n_heads=1, ngram=NgramSpec(kind="per_layer_embedding", d_embedding=d)).ngram
    module = filled(PerLayerEmbedding(h, spec, table_sizes(spec, 4, VOCAB)[2]), 1)
    generator = torch.Generator().manual_seed(2)
    x, e = torch.randn(2, 2, 5, h, dtype=torch.float64, generator=generator)
    tokens = torch.tensor(random_tokens(5, (2, 5)))
    context = rms(e @ module.context.weight.T / math.sqrt(h), module.context_norm.weight)
    p = (context + math.sqrt(d) * module.table.rows[tokens]) / math.sqrt(2)
    inner = torch.nn.functional.gelu(x @ module.gate.weight.T) * p
    assert_close(module(x, e, tokens), rms(inner @ module.out.weight.T, module.out_norm.weight))


@pytest.mark.parametrize(
    ("ngram", "message"),
    [
        ({"kind": "ngram_embedding", "gate": "linear"}, "not an option of kind"),
        ({"kind": "ngram_embedding", "heads": 3}, "not divisible"),
        ({"heads": 7}, "not divisible"),
        ({"blocks": (9,)}, "must list distinct blocks"),
        ({"max_order": 1}, "at least 2"),
        ({"kind": "per_layer_embedding", "rows": 9}, "not an option of kind"),
    ],
)
def test_what_no_model_can_have_is_refused(ngram: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModelSpec(d_model=64, ngram=NgramSpec(**ngram))
