"""The shapes a benchmark runs at, and the memory layer at such a shape."""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from umscale.bench.timing import normal
from umscale.errors import UserError
from umscale.layers.memory import Memory
from umscale.layers.tucker import TuckerMemory
from umscale.model.decoder import Decoder
from umscale.rng import generator
from umscale.spec import FfnSpec, MemorySpec, ModelSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One memory layer and its input; the default is a proxy whose tables fit a processor's cache."""

    tokens: int = 2048
    d_model: int = 256
    n_keys: int = 128
    top_m: int = 32
    d_key: int = 128
    d_pre_value: int = 64
    d_value: int = 64
    table_rows: tuple[int, ...] = (16_384, 262_144, 1_048_576)
    """Sizes at which lookups and table updates are timed, beside the layer's own."""

    def __post_init__(self) -> None:
        for name in ("tokens", "d_pre_value"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.table_rows or min(self.table_rows) < 1:
            raise UserError(f"table_rows must list sizes of at least 1, not {list(self.table_rows)}")

    @property
    def memory(self) -> MemorySpec:
        """The UltraMemV2 layer of this shape."""
        return MemorySpec(
            n_keys=self.n_keys,
            top_m=self.top_m,
            d_key=self.d_key,
            d_pre_value=self.d_pre_value,
            d_value=self.d_value,
        )

    @property
    def is_default(self) -> bool:
        """Whether the layer has the default shape, for which targets are stated."""
        return dataclasses.replace(self, table_rows=Setting().table_rows) == Setting()

    def shape(self, *names: str) -> dict[str, int]:
        """The named sizes, for a report."""
        return {name: getattr(self, name) for name in names}


def lookup_operands(
    setting: Setting, n_rows: int, device: str, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], Tensor]:
    """``[p, s, pre_values, values]``, tables in ``dtype``, all taking gradients; uniformly random rows ``[T, m]``."""
    T, m = setting.tokens, setting.top_m
    inputs = [
        normal((T, setting.d_pre_value), "p", device),
        normal((T, m, setting.memory.n_cores), "s", device),
        normal((n_rows, setting.d_pre_value), "pre_values", device, dtype),
        normal((n_rows, setting.d_value), "values", device, dtype),
    ]
    return [x.requires_grad_() for x in inputs], random_rows(setting, n_rows, device)


def random_rows(setting: Setting, n_rows: int, device: str) -> Tensor:
    """Uniformly random rows ``[T, m]``, int64."""
    shape = (setting.tokens, setting.top_m)
    return torch.randint(n_rows, shape, generator=generator(0, "rows")).to(device)


LAYER_SHAPE = ("tokens", "d_model", "n_keys", "top_m", "d_key", "d_pre_value", "d_value")


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """An initialised memory layer with its fp32 tables and its input ``y [T, h]``; all of them require gradients."""

    memory: Memory
    pre_values: Tensor | None
    values: Tensor
    y: Tensor

    @property
    def tables(self) -> list[Tensor]:
        """Pre-values, if any, and values."""
        return [x for x in (self.pre_values, self.values) if x is not None]

    @property
    def inputs(self) -> list[Tensor]:
        """Everything a backward pass gives a gradient to."""
        return [self.y, *self.memory.parameters(), *self.tables]

    def on(self, backend: str) -> Memory:
        """The layer, sharing its parameters, on another backend."""
        memory = copy.copy(self.memory)
        memory.backend = backend
        return memory

    def call(self, function: Callable[..., Tensor], autocast: bool = False) -> Callable[[], Tensor]:
        """``function(y, pre_values, values)`` without arguments, under bf16 autocast if asked for."""

        def run() -> Tensor:
            with torch.autocast(self.y.device.type, torch.bfloat16, enabled=autocast):
                return function(self.y, self.pre_values, self.values)

        return run


def build_layer(memory: MemorySpec, d_model: int, tokens: int, device: str) -> Layer:
    """Return a layer initialised as in a model of one block."""
    spec = ModelSpec(
        d_model=d_model, n_layers=1, n_heads=1, vocab_size=1, ffn=FfnSpec(d_ffn=d_model), memory=memory
    )
    model = Decoder(spec, seed=0, max_seq_len=1).to(device)
    (module,), tables = model.memories, model.tables
    assert tables is not None
    y = normal((tokens, d_model), "input", device).requires_grad_()
    return Layer(memory=module, pre_values=tables.pre_values, values=tables.values, y=y)


def ultramem_v2_layer(setting: Setting, device: str) -> tuple[Layer, TuckerMemory]:
    """Return the UltraMemV2 layer of ``setting``, and its module once more under its own type."""
    layer = build_layer(setting.memory, setting.d_model, setting.tokens, device)
    assert isinstance(layer.memory, TuckerMemory)
    return layer, layer.memory
