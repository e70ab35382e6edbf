"""Published model shapes, to check the accounting against and to cost new ones beside.

Source: UltraMemV2, arXiv 2508.18756, Tables 4 and 10. Where a table cannot be reproduced as printed, ``note``
says what was changed and why.
"""

from dataclasses import dataclass

from umscale.errors import UserError, nearest
from umscale.spec import FfnSpec, MemorySpec, ModelSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A published shape: the model, and where it comes from."""

    model: ModelSpec
    source: str
    note: str = ""


def _umv2(n_keys: int, top_m: int, d_key: int, d_pre_value: int, d_value: int) -> MemorySpec:
    return MemorySpec(n_keys=n_keys, top_m=top_m, d_key=d_key, d_pre_value=d_pre_value, d_value=d_value)


def _model(d_model: int, n_layers: int, d_ffn: int, memory: MemorySpec | None, tied: bool) -> ModelSpec:
    return ModelSpec(
        d_model=d_model,
        n_layers=n_layers,
        n_heads=d_model // 64 if d_model < 2048 else 16,
        vocab_size=50_304,
        ffn=FfnSpec(d_ffn=d_ffn),
        memory=memory,
        tie_embeddings=tied,
    )


PRESETS = {
    "ultramem_v2-227m": Preset(
        model=_model(768, 20, 2496, _umv2(360, 32, 192, 192, 192), tied=True),
        source="Table 10, UltraMemV2-227M/1.2B",
        note="active parameters are quoted with the tied embedding, totals without",
    ),
    "ultramem_v2-1b": Preset(
        model=_model(2048, 16, 6976, _umv2(552, 128, 512, 384, 768), tied=False),
        source="Table 10, UltraMemV2-1B/7B",
        note="the printed n = 528 gives 6.215B parameters, not 6.70B; n = 552 does (see ultramem_v2-1b-printed)",
    ),
    "ultramem_v2-1b-printed": Preset(
        model=_model(2048, 16, 6976, _umv2(528, 128, 512, 384, 768), tied=False),
        source="Table 10, UltraMemV2-1B/7B as printed",
        note="6.215B parameters where the table prints 6.70B",
    ),
    "dense-227m": Preset(
        model=_model(768, 20, 2496, None, tied=True),
        source="the backbone of UltraMemV2-227M without its memory layers",
    ),
}


def preset(name: str) -> Preset:
    """Return a preset by name; raises UserError with the nearest name when there is none."""
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}{nearest(name, PRESETS)}")
    return PRESETS[name]
