"""Other packages' memory layers beside ours of the same architecture, at matched shapes, where they are installed."""

import importlib
import importlib.util
from collections.abc import Callable

from torch import Tensor, nn

from umscale.bench.measured import Part
from umscale.bench.setting import Setting, build_layer
from umscale.bench.timing import TIME_COLUMNS, Clock, interleaved, passes, rows
from umscale.spec import MemorySpec

INSTALL = 'pip install "umscale[bench]"  (in a checkout: pip install ".[bench]")'


def peers_parts(setting: Setting, device: str, rounds: int, clock: Clock) -> list[Part]:
    """Time every peer that is installed; one that is not gets a note instead of rows. All in float32."""
    return [
        _part(
            setting, device, rounds, clock, "PEER-pytorch", "PEER_pytorch", _peer_pytorch, _peer, _PEER_NOTES
        ),
        _part(
            setting, device, rounds, clock, "ultra-mem", "ultra_mem", _ultra_mem, _tucker, _ULTRA_MEM_NOTES
        ),
    ]


_PEER_NOTES = ["one head, softmax over top_m, GELU, rows as wide as the model; ours also normalises queries"]
_ULTRA_MEM_NOTES = [
    "its lean options: one virtual value a row, no convolution, norm, gate or auxiliary loss; it keeps the top_m of "
    "every core by themselves (n_cores x top_m lookups of d_value / n_cores) and shares one query between both sides",
    "ours is UltraMemV2 without pre-values: top_m lookups of d_value, a query for every side and rank",
]


def _peer(setting: Setting) -> MemorySpec:
    return MemorySpec(kind="peer", n_keys=setting.n_keys, top_m=setting.top_m, d_key=setting.d_key)


def _tucker(setting: Setting) -> MemorySpec:
    return MemorySpec(
        n_keys=setting.n_keys,
        top_m=setting.top_m,
        d_key=setting.d_key,
        d_pre_value=0,
        d_value=setting.d_value,
    )


def _peer_pytorch(package: object, setting: Setting) -> nn.Module:
    make: Callable[..., nn.Module] = package.PEER  # type: ignore[attr-defined]
    return make(
        setting.d_model,
        heads=1,
        num_experts=setting.n_keys**2,
        num_experts_per_head=setting.top_m,
        product_key_topk=min(setting.top_m, setting.n_keys),
        dim_key=setting.d_key,
        non_competing_scores=False,
    )


def _ultra_mem(package: object, setting: Setting) -> nn.Module:
    make: Callable[..., nn.Module] = package.UltraMem  # type: ignore[attr-defined]
    cores = _tucker(setting).n_cores
    return make(
        setting.d_model,
        dim_values=setting.d_value // cores,
        num_memories=setting.n_keys**2,
        topk=min(setting.top_m, setting.n_keys),
        dim_queries_keys=setting.d_key,
        core_heads=cores,
        value_expansion=1,
        pre_query_causal_conv=False,
        prenorm=False,
        aux_loss_weight=0.0,
        mem_lr_scale=1.0,
    )


def _part(
    setting: Setting,
    device: str,
    rounds: int,
    clock: Clock,
    name: str,
    module_name: str,
    make: Callable[[object, Setting], nn.Module],
    ours: Callable[[Setting], MemorySpec],
    notes: list[str],
) -> Part:
    memory = ours(setting)
    shape = setting.shape("tokens", "d_model", "n_keys", "top_m", "d_key")
    if memory.kind != "peer":
        shape |= setting.shape("d_value")
    reference = f"umscale {memory.kind}"
    part = Part(
        name="peers",
        title=f"{name} beside the same architecture here",
        shape=shape,
        columns=TIME_COLUMNS,
        rows=[],
        reference=reference,
        notes=notes,
    )
    if importlib.util.find_spec(module_name) is None:
        part.notes = [f"{name} is not installed; {INSTALL}"]
        return part
    layer = build_layer(memory, setting.d_model, setting.tokens, device)
    peer = make(importlib.import_module(module_name), setting).to(device)
    y = layer.y.unsqueeze(0)  # [1, T, h]

    def forward() -> Tensor:
        out = peer(y)
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found

    variants = {
        reference: passes(layer.call(layer.memory), layer.inputs),
        name: passes(forward, [layer.y, *peer.parameters()]),
    }
    part.rows = rows(interleaved(variants, rounds, clock), reference)
    return part
