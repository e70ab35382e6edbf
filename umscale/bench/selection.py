"""Selection alone, on any device: exact top-m pairs from given scores, beside ``topk`` and the score product."""

from collections.abc import Sequence

import torch
from torch import Tensor

from umscale.bench.baselines import plain_select
from umscale.bench.measured import Part, Row, Target
from umscale.bench.setting import Setting, ultramem_v2_layer
from umscale.bench.timing import TIME_COLUMNS, Clock, Step, interleaved, normal, passes, peak_bytes, rows
from umscale_kernels import select

_PRODUCT = "score matrix product"


def select_part(
    setting: Setting,
    backends: Sequence[str],
    rounds: int,
    clock: Clock,
    device: str,
    dtype: torch.dtype = torch.float32,
    target: str = "",
    title: str = "Selection",
) -> Part:
    """Time every backend of ``select`` on the layer's scores of random input.

    ``dtype`` is that of the score product's operands; the product is the ``[2r]`` batch of ``[T, k] @ [k, n]`` that
    makes the scores, forward. ``target`` names the backend whose forward time should not exceed it.
    """
    layer, memory = ultramem_v2_layer(setting, device)
    u, v, m, candidates = memory.u, memory.v, setting.top_m, memory.spec.candidates
    raw = memory.scores(layer.y).detach().requires_grad_()  # [1, 2, r, T, n]
    cores = memory.cores

    def plain() -> Tensor:
        return plain_select(raw[0], u[0], v[0], cores[0], m, candidates)[1]

    def ours(backend: str) -> dict[str, Step]:
        return passes(lambda: select(raw, u, v, cores, m, candidates, backend=backend).s, [raw, cores])

    q = normal((2 * memory.spec.tucker_rank, setting.tokens, setting.d_key), "q", device).to(dtype)
    keys = memory.keys[0].detach().transpose(-1, -2).to(dtype)
    reference = "plain PyTorch (topk)"
    variants: dict[str, dict[str, Step]] = {reference: passes(plain, [raw, cores])}
    variants |= {f"umscale {backend}": ours(backend) for backend in backends}
    timings = interleaved(variants | {_PRODUCT: {"forward": lambda: q @ keys}}, rounds, clock)
    product = timings.pop(_PRODUCT)["forward"]
    found = rows(timings, reference)
    columns = TIME_COLUMNS | {"forward_product_ratio": "fwd / score product"}
    if device == "cuda":
        columns |= {"train_peak_bytes": "peak memory", "peak_grid_ratio": "peak / [T, m, m]"}
    grid_bytes = 4 * setting.tokens * m * m
    for row in found:
        if device == "cuda":
            row.figures["train_peak_bytes"] = peak = peak_bytes(variants[row.name]["train"])
            row.figures["peak_grid_ratio"] = peak / grid_bytes
        row.figures["forward_product_ratio"] = row.figures["forward_seconds"] / product.seconds
        if row.name == f"umscale {target}":
            row.targets.append(Target(figure="forward_product_ratio", bound=1.0))
            # The gradient alone is as large as the scores: at small top_m it outweighs a grid.
            if device == "cuda" and grid_bytes > 2 * raw.nbytes:
                row.targets.append(Target(figure="peak_grid_ratio", bound=1.0))
    found.append(
        Row(name=_PRODUCT, figures={"forward_seconds": product.seconds, "forward_spread": product.spread})
    )
    return Part(
        name="select",
        title=title,
        shape=setting.shape("tokens", "n_keys", "top_m", "d_key"),
        columns=columns,
        rows=found,
        reference=reference,
    )
