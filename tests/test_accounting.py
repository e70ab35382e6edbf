"""Accounting against the paper's Table 10 and against the modules themselves."""

import math

import pytest

from umscale.accounting import cost, distinct_rows, memory_access_bytes
from umscale.model import Decoder
from umscale.presets import PRESETS, preset
from umscale.spec import FfnSpec, MemorySpec, ModelSpec


def test_table_10_ultramem_v2_227m():
    found = cost(preset("ultramem_v2-227m").model)
    assert found.total_params / 1e9 == pytest.approx(1.181, abs=5e-4)
    assert found.active_params / 1e6 == pytest.approx(185.7, abs=0.05)
    assert found.active_params_with_embedding / 1e6 == pytest.approx(224.4, abs=0.05)
    assert found.mcp == pytest.approx(0.170, abs=5e-4)
    assert found.density == pytest.approx(32 / 360**2)


def test_table_10_ultramem_v2_1b():
    found = cost(preset("ultramem_v2-1b").model)
    assert found.total_params / 1e9 == pytest.approx(6.694, abs=5e-4)
    assert found.active_params / 1e6 == pytest.approx(1079.7, abs=0.05)
    printed = cost(preset("ultramem_v2-1b-printed").model)
    assert printed.total_params / 1e9 == pytest.approx(6.215, abs=5e-4)
    assert printed.active_params / 1e6 == pytest.approx(1078.9, abs=0.05)
    assert printed.mcp == pytest.approx(0.154, abs=5e-4)
    assert PRESETS["ultramem_v2-1b"].note


@pytest.mark.parametrize(
    ("name", "megabytes"),
    [
        ("ultramem_v2-227m", [277, 284, 308, 398, 721, 1543]),
        ("ultramem_v2-1b-printed", [1621, 1691, 1914, 2756, 5471, 10326]),
    ],
)
def test_memory_access_table(name, megabytes):
    batches = (1, 16, 64, 256, 1024, 4096)
    found = [memory_access_bytes(preset(name).model, b) / 1e6 for b in batches]
    assert found == pytest.approx(megabytes, abs=1.0)


def test_distinct_rows_bounds():
    assert distinct_rows(129_600, 1) == pytest.approx(1)
    assert distinct_rows(65_536, 1e9) == pytest.approx(65_536)
    n, draws = 1000, 700
    assert distinct_rows(n, draws) == pytest.approx(n * (1 - (1 - 1 / n) ** draws))


@pytest.mark.parametrize(
    "memory",
    [
        None,
        MemorySpec(n_keys=12, top_m=5, d_key=6, d_pre_value=10, d_value=14),
        MemorySpec(n_keys=7, top_m=3, d_key=4, d_pre_value=0, d_value=6, n_cores=1, heads=2),
        MemorySpec(n_keys=8, top_m=4, d_key=4, d_pre_value=4, d_value=4, layers=(1,)),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_formulas_count_the_modules_own_parameters(memory, tied):
    spec = ModelSpec(
        d_model=24,
        n_layers=3,
        n_heads=2,
        vocab_size=50,
        ffn=FfnSpec(d_ffn=20),
        memory=memory,
        tie_embeddings=tied,
    )
    model = Decoder(spec, seed=0, max_seq_len=8)
    found = cost(spec)
    assert sum(p.numel() for p in model.parameters()) == found.total_params_with_embedding
    if memory is not None:
        assert sum(p.numel() for p in model.tables.parameters()) == found.sparse_params
        assert found.active_sparse_params == len(spec.memory_layers) * memory.heads * memory.top_m * (
            memory.d_pre_value + memory.d_value
        )
    else:
        assert math.isnan(found.density)
        assert found.mcp == 0
