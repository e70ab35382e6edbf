"""What a run is: frozen, validated, hashable specifications, and their TOML form.

A ``RunSpec`` determines a training run completely: two machines given the same spec (and the same software
and numerics) train the same model on the same tokens. Its ``run_id`` addresses everything stored about it.

Sizes are in parameters, budgets in tokens, learning rates per optimiser step.
"""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from umscale import parts
from umscale.errors import UserError, nearest
from umscale.files import read_bounded
from umscale.parts import NO_OPTIONS, MemoryPart, OptimizerPart, Options, Part, Scalar
from umscale.trees import check_tree, parse_object, parse_toml

SPEC_VERSION = 3
"""Raised whenever a default changes meaning: run ids leave out fields at their default (see ``run_id``)."""
_RATE_1 = 4e-3
"""Default of both learning rates in version 1, which knew no scaling of them."""
BEFORE_3: Mapping[str, Mapping[str, Any]] = {
    "train": {"table_weight_decay": "coupled", "score_energy": "nominal"},
    "data": {"validation_documents": 0},
}
"""Fields that came with version 3, by table, and the value that means what earlier versions did."""

T = TypeVar("T")
LONGEST_TOML = 16 << 20
"""Bytes of a study file."""
MOST = 2**31
"""Of any dimension: beyond it, what follows from several no longer fits a number."""

Init = Literal["paper", "matched", "official"]
Precision = Literal["auto", "float32", "bfloat16"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _dimension(value: int, name: str, least: int = 1) -> None:
    _require(value >= least, f"{name} must be at least {least}, not {value}")
    _require(value <= MOST, f"{name} must be at most {MOST}, not {value}")


def _part_options(
    part: Part, defaults: Mapping[str, Scalar], given: Mapping[str, Scalar], where: str
) -> Options:
    """Return the options given that differ from their defaults, each of its default's type."""
    found: dict[str, Scalar] = {}
    for name, value in given.items():
        if name not in defaults:
            raise UserError(f"unknown key '{where}.{name}' of {part.noun}{nearest(name, defaults)}")
        found[name] = _coerce(type(defaults[name]), value, f"{where}.{name}")
    return Options({name: value for name, value in found.items() if value != defaults[name]})


@contextlib.contextmanager
def _part_says(part: Part) -> Iterator[None]:
    """Pass on what a part's own check finds wrong as the user's to put right."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UserError(f"{part.noun}: {' '.join(str(error).split())}") from None


MemoryKind = Literal["ultramem_v2", "ultramem", "pkm", "memory_plus", "peer"]
ADDITIVE_KINDS = ("pkm", "memory_plus", "peer")
"""Kinds that score a (row, column) pair by the sum of two product-key scores, not by a Tucker form."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemorySpec:
    """A sparse memory layer beside the FFN of a block, by architecture.

    ============  =========================  ==========================================================
    kind          source                     pair score; value path
    ============  =========================  ==========================================================
    ultramem_v2   arXiv 2508.18756           Tucker, a query for every rank; pre-values, one projection
    ultramem      arXiv 2411.12364           Tucker, one query a side; virtual values, a projection each
    pkm           arXiv 1907.05242           sum, softmax over top_m; projection
    memory_plus   arXiv 2412.09764           sum, softmax; one table for all layers, SiLU gate, projection
    peer          arXiv 2407.04153           sum, softmax; GELU of pre-values, rows as wide as the model
    ============  =========================  ==========================================================

    What an architecture does not have is set to the only value it can take (``d_pre_value`` is 0 for ``pkm``,
    both row widths are ``d_model`` for ``peer``), and asking for it otherwise is an error.
    """

    kind: str = "ultramem_v2"
    """One of the above, or one that an installed package offers, see ``umscale.parts``."""
    n_keys: int = 128
    """Keys per side: ``n_keys`` row keys and as many column keys address ``n_keys**2`` values."""
    top_m: int = 32
    """Values activated per token and head; what the paper's prose calls activation density."""
    d_key: int = 32
    """Width of one side's key (the paper's Dk counts both sides)."""
    d_pre_value: int = 32
    """Width of a pre-value row (PEER-style gate of its value); 0 leaves pre-values out."""
    d_value: int = 32
    """Width of a value row, before the value projection."""
    heads: int = 1
    tucker_rank: int = 2
    shared_queries: bool = False
    """One query a side for all ranks, as in the released code (and always in UltraMem), not one for each (eq. 7)."""
    n_cores: int = 2
    """Tucker cores; core q scores the q-th slice of ``d_value / n_cores`` channels."""
    preselect_m: int | None = None
    """Row and column candidates kept before the grid; None: ``min(top_m, keys per side, preselect_cap)``."""
    preselect_cap: int = 128
    """Most candidates a side where ``preselect_m`` is None (the paper's), unless their square would fall short of
    ``top_m``; 0: no cap, which is what records of version 2 and before mean."""
    layers: tuple[int, ...] | None = None
    """Blocks that carry a memory layer; None means every block (the paper's choice)."""
    skip: int = 0
    """Blocks between the one whose FFN input the memory reads and the one after which it is added."""
    key_expansion: int = 1
    """Key sets per side; ``key_expansion**2`` virtual addresses share each value (paper section 3.3)."""
    value_expansion: int = 1
    """Value projections: 1, or ``key_expansion**2`` for one per virtual block (UltraMem)."""
    sharing: Literal["none", "ring", "no_ring", "block", "all"] = "none"
    """Which tables a layer addresses: its own, a window of ``share_layers`` of them (paper Table 7), or one for all."""
    share_layers: int = 1
    """Tables in a window; keys per side grow with its square root."""
    init: Init = "paper"
    """``paper``: calibrated scores and values by eq. 26 as printed, whose output is 1.81 times a SwiGLU's; ``matched``:
    the same with the FFN's output as it is measured; ``official``: the constants of the released code."""
    shuffle: bool = True
    """Scatter neighbouring (row, column) addresses over the table."""
    quadrants: Literal[1, 2] = 1
    """2 also searches the rows and columns of most negative score (an experiment; not in the paper)."""
    balance_loss: float = 0.0
    """Coefficient of the paper's eq. 19 (it uses 1e-3); 0 leaves it out."""
    tucker_penalty: float = 0.0
    """Coefficient of the penalty on all but the largest singular value of the cores; 0 leaves it out."""
    options: Options = NO_OPTIONS
    """Of a package's kind, those that differ from its defaults."""
    package: str = ""
    """Name and version of the package that offers the kind, filled in; empty for umscale's own."""

    def __post_init__(self) -> None:
        self._settle_own()
        additive = self.kind in ADDITIVE_KINDS
        if additive:
            for name in ("tucker_rank", "n_cores"):
                self._settle(name, 1, unset=2)
            for name, unset in (
                ("tucker_penalty", 0.0),
                ("balance_loss", 0.0),
                ("quadrants", 1),
                ("shared_queries", False),
            ):
                self._settle(name, unset, unset)
        if self.kind in ("ultramem", "pkm", "memory_plus"):
            self._settle("d_pre_value", 0, unset=32)
        if self.kind == "ultramem":
            self._settle("key_expansion", 2, unset=1)
            self._settle("value_expansion", 4, unset=1)
        if self.kind == "memory_plus":
            self._settle("sharing", "all", unset="none")
        for name in (
            "n_keys", "top_m", "d_key", "d_value", "heads", "tucker_rank", "n_cores", "key_expansion", "share_layers",
        ):  # fmt: skip
            _dimension(getattr(self, name), f"memory.{name}")
        _dimension(self.d_pre_value, "memory.d_pre_value", least=0)
        for name in ("skip", "preselect_cap", "balance_loss", "tucker_penalty"):
            _require(
                getattr(self, name) >= 0, f"memory.{name} must not be negative, not {getattr(self, name)}"
            )
        _require(
            (self.share_layers > 1) == (self.sharing in ("ring", "no_ring", "block")),
            f"memory.share_layers = {self.share_layers} does not go with sharing = {self.sharing!r}: ring, no_ring and "
            "block need 2 or more, none and all take 1",
        )
        _require(
            self.value_expansion in (1, self.key_expansion**2),
            f"memory.value_expansion = {self.value_expansion} must be 1 or key_expansion² = {self.key_expansion**2}",
        )
        _require(
            self.top_m <= self.keys_per_side**2,
            f"memory.top_m = {self.top_m} exceeds n_keys² = {self.keys_per_side**2} (n_keys = {self.n_keys}); "
            "lower top_m or raise n_keys",
        )
        _require(
            self.d_value % self.n_cores == 0,
            f"memory.d_value = {self.d_value} is not divisible by n_cores = {self.n_cores}",
        )
        if self.preselect_m is not None:
            _require(
                1 <= self.preselect_m <= self.keys_per_side and self.preselect_m**2 >= self.top_m,
                f"memory.preselect_m = {self.preselect_m} must be at most n_keys = {self.keys_per_side} and its square "
                f"at least top_m = {self.top_m}",
            )

    def _settle_own(self) -> None:
        """Fill in what a kind of a user's package has, and what it cannot have."""
        if self.kind in get_args(MemoryKind):
            _require(
                not self.options and not self.package,
                f"memory.options are those of kinds from packages, not of {self.kind!r}",
            )
            return
        if not self.package:  # otherwise a record, which must be readable where the package is not
            part = parts.find("memories", self.kind, known=get_args(MemoryKind))
            made: MemoryPart = part.load(MemoryPart)
            options = _part_options(part, made.options, self.options, "memory.options")
            object.__setattr__(self, "options", options)
            object.__setattr__(self, "package", part.package)
        for name in ("tucker_rank", "n_cores"):
            self._settle(name, 1, unset=2)
        for name, unset in (
            ("tucker_penalty", 0.0),
            ("quadrants", 1),
            ("shared_queries", False),
            ("key_expansion", 1),
            ("value_expansion", 1),
            ("preselect_m", None),
        ):
            self._settle(name, unset, unset)
        _require(
            self.init != "official",
            f"memory.init = 'official' is not an option of kind {self.kind!r}; take paper or matched",
        )

    @property
    def own(self) -> MemoryPart | None:
        """The part of a user's package that this kind is; None for umscale's own.

        Raises:
            UserError: the package is not installed here, or in another version.
        """
        if not self.package:
            return None
        made: MemoryPart = parts.require("memories", self.kind, self.package).load(MemoryPart)
        return made

    def _settle(self, name: str, value: Any, unset: Any) -> None:
        """Give a field the only value this kind allows; raise if it was set to something else."""
        given = getattr(self, name)
        _require(
            given in (unset, value),
            f"memory.{name} = {given} is not an option of kind {self.kind!r}; leave it out",
        )
        object.__setattr__(self, name, value)

    @property
    def n_values(self) -> int:
        """Values of one table."""
        return self.n_keys**2

    @property
    def side(self) -> int:
        """n': edge of the square of values that one key set addresses, ``floor(n_keys sqrt(share_layers))``."""
        return math.isqrt(self.n_keys**2 * self.share_layers)

    @property
    def visible_values(self) -> int:
        """Values that one layer can address."""
        return self.side**2

    @property
    def keys_per_side(self) -> int:
        """Keys that a query is matched with on each side: all key sets."""
        return self.side * self.key_expansion

    @property
    def candidates(self) -> int:
        """Row (and column) candidates that form the grid the final ``top_m`` are chosen from."""
        if self.preselect_m is not None:
            return self.preselect_m
        uncapped, least = min(self.top_m, self.keys_per_side), math.isqrt(self.top_m - 1) + 1
        return min(uncapped, max(self.preselect_cap, least)) if self.preselect_cap else uncapped

    @property
    def row_width(self) -> int:
        """Parameters of one row: its pre-value and its value."""
        return self.d_pre_value + self.d_value

    @property
    def query_width(self) -> int:
        """Outputs of the query projection of one layer, all sides, ranks and heads."""
        if self.kind in ADDITIVE_KINDS:
            return 2 * self.heads * self.d_key
        shared = self.shared_queries or self.kind == "ultramem"
        return 2 * self.d_key * (1 if shared else self.tucker_rank)

    def n_tables(self, n_memory_layers: int) -> int:
        """Tables in the pool of a model with that many memory layers."""
        return 1 if self.sharing == "all" else n_memory_layers


NgramKind = Literal["engram", "ngram_embedding", "over_encoding", "per_layer_embedding"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NgramSpec:
    """Memory addressed by the tokens themselves: no router, no keys, addresses known before the forward pass.

    ====================  ==================  ================================================================
    kind                  source              what it adds
    ====================  ==================  ================================================================
    engram                arXiv 2601.07372    in a few blocks, before attention: hashed n-grams, gated by x
    ngram_embedding       arXiv 2601.21204    at the input: hashed n-grams averaged with the embedding
    over_encoding         arXiv 2501.16975    at the input: the same by tables tiled by modulo
    per_layer_embedding   Gemma 3n            after every block's FFN: a row per token and block, gated by x
    ====================  ==================  ================================================================

    As in ``MemorySpec``, what a kind does not have is set to the only value it can take.
    """

    kind: NgramKind = "engram"
    rows: int = 4096
    """Rows asked for of every head's table; each gets the next prime (or size) not yet used."""
    max_order: int = 3
    """Longest n-gram; orders 2 to this one are read."""
    heads: int = 8
    """Hash heads an order; each has a table of its own."""
    d_embedding: int = 0
    """Width of what one order reads, all its heads together (Engram's d_e); of a token's row in one block for
    ``per_layer_embedding``. 0 means d_model; input embeddings take d_model / (max_order - 1), and nothing else."""
    blocks: tuple[int, ...] | None = None
    """Blocks that carry an Engram; None means the second block and the middle one, as its paper does."""
    gate: Literal["signed_sqrt", "linear", "none"] = "signed_sqrt"
    """Engram's gate: sigmoid(sign(a) sqrt|a|) as in its code, sigmoid(a) as in its paper, or no gate (an ablation)."""
    conv_kernel: int = 4
    """Taps of Engram's causal convolution, ``max_order`` tokens apart; 0 leaves it out."""
    canonical: bool = True
    """Hash canonical ids (text after case folding and the like) instead of token ids; Engram alone."""
    amplify: Literal["sqrt", "none"] = "sqrt"
    """Input embeddings: times sqrt(d_model), lest the sum be small beside the residual stream later on."""

    def __post_init__(self) -> None:
        for name, unset, kinds in (
            ("max_order", 3, ("engram", "ngram_embedding", "over_encoding")),
            ("heads", 8, ("engram", "ngram_embedding", "over_encoding")),
            ("rows", 4096, ("engram", "ngram_embedding", "over_encoding")),
            ("blocks", None, ("engram",)),
            ("gate", "signed_sqrt", ("engram",)),
            ("conv_kernel", 4, ("engram",)),
            ("canonical", True, ("engram",)),
            ("amplify", "sqrt", ("ngram_embedding", "over_encoding")),
        ):
            _require(
                self.kind in kinds or getattr(self, name) == unset,
                f"ngram.{name} = {getattr(self, name)} is not an option of kind {self.kind!r}; leave it out",
            )
        _dimension(self.rows, "ngram.rows", least=2)
        _dimension(self.heads, "ngram.heads")
        _dimension(self.max_order, "ngram.max_order", least=2)
        _dimension(self.d_embedding, "ngram.d_embedding", least=0)
        _dimension(self.conv_kernel, "ngram.conv_kernel", least=0)
        _require(self.max_order <= 8, f"ngram.max_order must be at most 8, not {self.max_order}")

    @property
    def at_input(self) -> bool:
        """Whether it changes the embedding, not blocks."""
        return self.kind in ("ngram_embedding", "over_encoding")

    @property
    def orders(self) -> tuple[int, ...]:
        """The lengths of n-gram that are read."""
        return (1,) if self.kind == "per_layer_embedding" else tuple(range(2, self.max_order + 1))

    @property
    def n_heads(self) -> int:
        """Tables of one module, over all orders."""
        return 1 if self.kind == "per_layer_embedding" else len(self.orders) * self.heads

    @property
    def head_width(self) -> int:
        """Channels of one row."""
        return self.d_embedding if self.kind == "per_layer_embedding" else self.d_embedding // self.heads

    @property
    def read_width(self) -> int:
        """Channels that one module reads for a token, all orders and heads."""
        return self.n_heads * self.head_width


@dataclass(frozen=True, kw_only=True, slots=True)
class FfnSpec:
    """The feed-forward layer of a block: dense SwiGLU, or a mixture of SwiGLU experts."""

    kind: Literal["swiglu", "moe"] = "swiglu"
    d_ffn: int = 256
    """Inner width (of the gate and of the up projection each); of one expert for ``moe``."""
    n_experts: int = 1
    """Routed experts; granularity is the inner width one would give a dense FFN over ``d_ffn``."""
    top_k: int = 1
    """Routed experts a token activates."""
    n_shared_experts: int = 0
    """Experts of the same width that every token passes."""
    normalize_gates: bool = False
    """Divide the gates of the chosen experts by their sum (Mixtral does, OLMoE does not)."""
    balance_loss: float = 0.01
    """Coefficient of the load-balancing loss (Switch Transformer, arXiv 2101.03961, eq. 4), summed over layers."""
    z_loss: float = 0.001
    """Coefficient of the router z-loss (ST-MoE, arXiv 2202.08906, eq. 5)."""

    def __post_init__(self) -> None:
        for name in ("d_ffn", "n_experts", "top_k"):
            _dimension(getattr(self, name), f"ffn.{name}")
        _dimension(self.n_shared_experts, "ffn.n_shared_experts", least=0)
        for name in ("balance_loss", "z_loss"):
            _require(getattr(self, name) >= 0, f"ffn.{name} must not be negative, not {getattr(self, name)}")
        _require(
            self.top_k <= self.n_experts,
            f"ffn.top_k = {self.top_k} exceeds n_experts = {self.n_experts}; lower top_k or raise n_experts",
        )
        if self.kind == "swiglu":
            _require(
                self.n_experts == 1 and self.n_shared_experts == 0,
                'ffn.n_experts needs kind = "moe" under [model.ffn]',
            )

    @property
    def active_width(self) -> int:
        """Inner width that one token passes, over all experts it activates."""
        return self.d_ffn * (self.top_k + self.n_shared_experts)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """A decoder-only transformer: pre-norm blocks with attention, FFN and (optionally) a memory layer."""

    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    vocab_size: int = 0
    """0 takes the corpus's vocabulary when a study is expanded."""
    ffn: FfnSpec = field(default_factory=FfnSpec)
    memory: MemorySpec | None = None
    """None is the dense model."""
    ngram: NgramSpec | None = None
    """Memory addressed by tokens; None is without. Goes with experts and with ``memory``."""
    tie_embeddings: bool = True
    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "n_heads"):
            _dimension(getattr(self, name), f"model.{name}")
        _dimension(self.vocab_size, "model.vocab_size", least=0)
        if self.d_model % self.n_heads:
            raise UserError(
                f"model.d_model = {self.d_model} is not divisible by n_heads = {self.n_heads}; "
                f"n_heads can be {_divisors(self.d_model)}"
            )
        _require(
            (self.d_model // self.n_heads) % 2 == 0,
            f"model.d_model / n_heads = {self.d_model // self.n_heads} must be even (rotary embedding)",
        )
        _require(self.rope_theta > 1, "model.rope_theta must exceed 1")
        if self.memory is not None:
            self._check_memory(self.memory)
        if self.ngram is not None:
            self._check_ngram(self.ngram)

    def _check_ngram(self, ngram: NgramSpec) -> None:
        """Give ``d_embedding`` its value and check what depends on the model's shape."""
        natural = self.d_model // (ngram.max_order - 1) if ngram.at_input else self.d_model
        if ngram.at_input:
            parts = (ngram.max_order - 1) * ngram.heads
            _require(
                self.d_model % parts == 0,
                f"model.d_model = {self.d_model} is not divisible by the {parts} tables of ngram (max_order - 1 times "
                "heads)",
            )
            _require(
                ngram.d_embedding in (0, natural),
                f"ngram.d_embedding = {ngram.d_embedding} is not an option of kind {ngram.kind!r}, whose tables add up "
                "to d_model; leave it out",
            )
        width = ngram.d_embedding or natural
        _require(
            ngram.kind == "per_layer_embedding" or width % ngram.heads == 0,
            f"ngram.d_embedding = {width} is not divisible by ngram.heads = {ngram.heads}",
        )
        blocks = ngram.blocks
        if ngram.kind == "engram":
            if blocks is None:  # the second block and the middle, of 30 blocks 1 and 15
                blocks = tuple(sorted({min(1, self.n_layers - 1), self.n_layers // 2}))
            last = self.n_layers - 1
            _require(
                len(set(blocks)) == len(blocks) > 0 and all(0 <= b <= last for b in blocks),
                f"ngram.blocks = {list(blocks)} must list distinct blocks from 0 to {last}",
            )
        object.__setattr__(self, "ngram", dataclasses.replace(ngram, d_embedding=width, blocks=blocks))

    @property
    def ngram_modules(self) -> int:
        """Modules that read token-addressed tables: blocks, or one at the input."""
        if self.ngram is None:
            return 0
        if self.ngram.kind == "engram":
            assert self.ngram.blocks is not None
            return len(self.ngram.blocks)
        return self.n_layers if self.ngram.kind == "per_layer_embedding" else 1

    def _check_memory(self, memory: MemorySpec) -> None:
        if memory.kind == "peer":
            for name in ("d_pre_value", "d_value"):
                _require(
                    getattr(memory, name) in (32, self.d_model),
                    f"memory.{name} = {getattr(memory, name)} is not an option of kind 'peer', whose rows are as wide "
                    f"as the model ({self.d_model}); leave it out",
                )
            rows = dataclasses.replace(memory, d_pre_value=self.d_model, d_value=self.d_model)
            object.__setattr__(self, "memory", rows)
        blocks = self.memory_layers
        last = self.n_layers - 1
        if memory.layers is not None:
            _require(
                len(set(blocks)) == len(blocks) > 0 and all(0 <= b <= last for b in blocks),
                f"memory.layers = {list(blocks)} must list distinct blocks from 0 to {last}",
            )
        _require(
            (deepest := last if memory.layers is None else max(blocks)) + memory.skip <= last,
            f"memory.skip = {memory.skip} puts the output of the memory that reads block {deepest} after the last "
            f"block ({last}); list earlier blocks in memory.layers",
        )
        _require(
            memory.share_layers <= len(blocks),
            f"memory.share_layers = {memory.share_layers} exceeds the {len(blocks)} memory layers",
        )
        _require(
            memory.sharing != "block" or len(blocks) % memory.share_layers == 0,
            f"memory.share_layers = {memory.share_layers} must divide the {len(blocks)} memory layers (block)",
        )

    @property
    def architecture(self) -> str:
        """Short name: ``dense``, a memory kind, ``moe-8of64`` (``moe-8of64+1`` with a shared expert), or a sum."""
        ffn, parts = self.ffn, []
        if ffn.kind == "moe":
            shared = f"+{ffn.n_shared_experts}" if ffn.n_shared_experts else ""
            parts.append(f"moe-{ffn.top_k}of{ffn.n_experts}{shared}")
        if self.memory is not None:
            parts.append(self.memory.kind)
        if self.ngram is not None:
            parts.append(self.ngram.kind)
        return " & ".join(parts) or "dense"

    @property
    def memory_layers(self) -> Sequence[int]:
        """Indices of the blocks that carry a memory layer; counted, not listed, where all do."""
        if self.memory is None:
            return ()
        return range(self.n_layers) if self.memory.layers is None else self.memory.layers


Probe = Literal["recall", "multi_round", "in_context", "needle", "key_value", "multi_hop", "facts"]
"""Generated tasks with known answers, see ``umscale.data.probes``."""
PROBE_LEAST_BYTES = 64
MOST_FACTS = 26**5


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSpec:
    """What a run reads."""

    corpus: str = "kjv"
    """Name of a prepared corpus (``umscale data list``) or a path to one."""
    hash: str = ""
    """Content hash of the corpus; filled in when a study is expanded."""
    seq_len: int = 256
    validation_tokens: int = 65_536
    """Held-out tokens at most, of documents in a fixed order."""
    validation_documents: int = 50
    """Held-out documents at least, where the split has them: no document counts with more than its first
    ``validation_tokens / validation_documents`` tokens. 0, as before version 3: whole documents, none longer than a
    quarter of ``validation_tokens``, however few that leaves."""
    document_mask: bool = False
    """Keep the documents of a window apart: no token attends to one before its document's start."""
    max_epochs: float = 1.0
    """A budget may read the training split this often; more is refused."""
    probes: tuple[Probe, ...] = ()
    """Tasks that every record is evaluated on; needs a corpus of bytes."""
    probe_fraction: float = 0.0
    """Share of the training sequences that are probes, the tasks in turn; the others are the text, in its order."""
    probe_facts: int = 4096
    """Facts of the task ``facts``, 16 bits each."""
    evaluations: tuple[str, ...] = ()
    """What else every record is measured by, from users' packages (``umscale.parts``); does not affect results."""

    def __post_init__(self) -> None:
        _require(len(set(self.evaluations)) == len(self.evaluations), "data.evaluations names one twice")
        object.__setattr__(self, "probes", tuple(sorted(self.probes, key=get_args(Probe).index)))
        _require(len(set(self.probes)) == len(self.probes), "data.probes names a task twice")
        _require(
            0 <= self.probe_fraction <= 1,
            f"data.probe_fraction must lie between 0 and 1, not {self.probe_fraction:g}",
        )
        _require(
            bool(self.probes) or not self.probe_fraction,
            f"data.probe_fraction = {self.probe_fraction:g} needs tasks: set data.probes",
        )
        _require(
            not self.probes or self.seq_len >= PROBE_LEAST_BYTES,
            f"data.seq_len = {self.seq_len} is too short for data.probes, which need {PROBE_LEAST_BYTES}",
        )
        _require(
            1 <= self.probe_facts <= MOST_FACTS,
            f"data.probe_facts must lie between 1 and {MOST_FACTS}, not {self.probe_facts}",
        )
        _dimension(self.seq_len, "data.seq_len", least=2)
        _require(self.validation_tokens >= 1, "data.validation_tokens must be at least 1")
        _require(
            0 <= self.validation_documents <= self.validation_tokens,
            f"data.validation_documents = {self.validation_documents} must lie between 0 and validation_tokens = "
            f"{self.validation_tokens}",
        )
        _require(self.max_epochs > 0, "data.max_epochs must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSpec:
    """What trains the hidden weights; value tables, and what the chosen optimiser does not take, stay with AdamW."""

    kind: str = "adamw"
    """``adamw``, ``muon``, or one that an installed package offers, see ``umscale.parts``."""
    options: Options = NO_OPTIONS
    """Of the optimiser, those that differ from its defaults."""
    package: str = ""
    """Name and version of the package that offers it, filled in; empty for umscale's own."""

    def __post_init__(self) -> None:
        if self.kind == "adamw":
            _require(
                not self.options and not self.package,
                "train.optimizer.options are those of other kinds; AdamW's are keys of [train] (lr, beta1, ...)",
            )
        elif not self.package:  # otherwise a record, which must be readable where the package is not
            part = parts.find("optimizers", self.kind, known=("adamw",))
            made: OptimizerPart = part.load(OptimizerPart)
            options = _part_options(part, made.options, self.options, "train.optimizer.options")
            with _part_says(part):
                made.check({**made.options, **options})
            object.__setattr__(self, "options", options)
            object.__setattr__(self, "package", part.package)

    @property
    def peak(self) -> tuple[float, float] | None:
        """Peak learning rate at the base shape and its exponent of width; None for AdamW, whose rate is ``train.lr``.

        Raises:
            UserError: the package is not installed here.
        """
        if self.kind == "adamw":
            return None
        made: OptimizerPart = parts.require("optimizers", self.kind, self.package).load(OptimizerPart)
        return float({**made.options, **self.options}["lr"]), made.width_exponent


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSpec:
    """Warm-up, stable, decay: one trunk at constant learning rate and a decaying branch per token budget."""

    budgets: tuple[int, ...] = (1_000_000,)
    """Token budgets, ascending; each is one branch of the same trunk."""
    batch_size: int = 16
    """Sequences per step."""
    lr: float = 6e-3
    """Peak learning rate of everything but value tables."""
    value_lr: float = 5e-2
    """Peak learning rate of the value tables (pre-values and values), a schedule of its own."""
    rate_scaling: Literal["shape", "none"] = "shape"
    """``shape``: both rates are those of a base shape, and every model gets them scaled to its own, see
    ``umscale.model.scaling``; ``none``: every model gets them as they are."""
    score_energy: Literal["measured", "nominal"] = "measured"
    """What ``rate_scaling`` takes the scores of a token to weigh: as freshly initialised ones measure, or, as before
    version 3, 1 a head for a softmax and ``top_m`` a head otherwise."""
    ngram_lr_factor: float = 5.0
    """Learning rate of token-addressed tables over that of everything dense (arXiv 2601.07372 uses 5)."""
    ngram_weight_decay: float = 0.0
    """AdamW's coefficient for token-addressed tables; the source has none."""
    value_lr_final: float | None = None
    """Reached linearly at ``value_lr_fraction`` of the largest budget (the paper's 4x -> 1x); None: constant."""
    value_lr_fraction: float = 1.0
    warmup_tokens: int = 50_000
    decay_fraction: float = 0.2
    """Share of each budget over which its branch decays to zero (linear)."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """Of the hidden weights; see ``OptimizerSpec``."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Of everything but value tables: a step takes off ``weight_decay`` times the learning rate (AdamW)."""
    table_weight_decay: float | Literal["coupled"] = 5e-3
    """Of value tables: the share of every entry that a step at peak ``value_lr`` takes off, whatever that rate is; it
    follows the tables' schedule through warm-up and decay. Rows that were not read shrink too (with row-sparse
    gradients, see ``table_gradient``, at every fourth step by four steps' worth). ``coupled``, as before version 3:
    ``weight_decay`` times ``value_lr``, so that it moves with a model's shape, and of row-sparse gradients only the
    rows read."""
    table_gradient: Literal["dense", "rows", "atomic"] = "dense"
    """``rows``: table gradients and updates touch only the rows read (lazy AdamW: the moments of the others stand
    still). Faster when tables are much larger than a batch's lookups; another algorithm otherwise.
    ``atomic``: dense, summed on a GPU as lookups come, which moves fewer bytes where hardly a row is read twice in a
    batch but gives other bits on every run; on a processor as ``dense``."""
    table_second_moment: Literal["full", "row"] = "full"
    """``row``: one AdamW second moment per table row, the mean of its squared gradient (less memory)."""
    table_copy: Literal["none", "bfloat16"] = "none"
    """``bfloat16``: lookups read a copy of the tables that the optimiser writes; half the bytes, rounded values."""
    table_device: Literal["device", "cpu"] = "device"
    """``cpu``: token-addressed tables, their moments and their average stay in host memory, and the rows of a batch
    travel to the device and back. Results are equal up to the order of summation."""
    grad_clip: float = 1.0
    ema_width: float = 0.1
    """Relative width of the weight average that is evaluated beside the raw weights (power-function profile)."""
    precision: Precision = "auto"
    """Of matrix products; ``auto`` measures both once per store and keeps the faster."""
    checkpoint_seconds: float = 60.0
    """At most this much work is repeated after a crash; does not affect results."""
    micro_batch_size: int | None = None
    """Sequences that a process takes through the model at once; the gradients of a step add up over such parts of its
    batch. None: all of them. Results are equal up to the order of summation, as between numbers of processes."""
    compile: bool = False
    """Train under ``torch.compile``, one graph a model: minutes at the start, so for runs that are long."""
    activation_checkpointing: bool = False
    """Keep only what enters a block and compute the rest again in the backward pass; does not affect results."""
    keep: Literal["none", "final", "all"] = "none"
    """Which weights stay in the store: of no record, of the last one, or of every one with the trunk, from which a run
    of the same spec with larger budgets goes on; does not affect results."""

    def __post_init__(self) -> None:
        budgets = self.budgets
        _require(
            len(budgets) > 0 and all(b > 0 for b in budgets) and list(budgets) == sorted(set(budgets)),
            f"train.budgets = {list(budgets)} must be positive and strictly ascending",
        )
        for name in (
            "batch_size",
            "lr",
            "value_lr",
            "value_lr_fraction",
            "ngram_lr_factor",
            "eps",
            "grad_clip",
        ):
            _require(getattr(self, name) > 0, f"train.{name} must be positive, not {getattr(self, name)}")
        final = self.value_lr_final
        _require(final is None or final > 0, f"train.value_lr_final must be positive, not {final}")
        _require(0 < self.decay_fraction < 1, "train.decay_fraction must lie strictly between 0 and 1")
        _require(
            0 <= self.beta1 < 1 and 0 <= self.beta2 < 1, "train.beta1 and train.beta2 must lie in [0, 1)"
        )
        _require(0.01 <= self.ema_width <= 0.28, "train.ema_width must lie between 0.01 and 0.28")
        for name in ("weight_decay", "ngram_weight_decay"):
            _require(getattr(self, name) >= 0, f"train.{name} must not be negative")
        _require(
            isinstance(self.table_weight_decay, str) or 0 <= self.table_weight_decay < 1,
            f"train.table_weight_decay = {self.table_weight_decay} must be at least 0 and below 1, or 'coupled'",
        )
        _require(
            0 <= self.warmup_tokens <= budgets[0] * (1 - self.decay_fraction),
            f"train.warmup_tokens = {self.warmup_tokens} must end before the smallest budget starts to decay "
            f"({int(budgets[0] * (1 - self.decay_fraction))} tokens)",
        )
        _require(self.checkpoint_seconds >= 0, "train.checkpoint_seconds must not be negative")
        _require(
            self.table_device == "device" or not self.compile,
            'train.table_device = "cpu" does without train.compile: rows are fetched outside the graph; drop one',
        )
        micro = self.micro_batch_size
        _require(
            micro is None or (micro > 0 and self.batch_size % micro == 0),
            f"train.batch_size = {self.batch_size} is not divisible by train.micro_batch_size = {micro}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """One run: model, data, training and the seed of everything random."""

    model: ModelSpec = field(default_factory=ModelSpec)
    data: DataSpec = field(default_factory=DataSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    seed: int = 0

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**63, f"seed must lie between 0 and 2^63 - 1, not {self.seed}")
        smallest = self.train.budgets[0]
        _require(
            smallest >= 5 * self.tokens_per_step,
            f"train.budgets: {smallest} tokens are fewer than 5 steps of {self.tokens_per_step} "
            "(batch_size x seq_len); raise the budget or lower train.batch_size",
        )
        steps = self.budget_steps
        for (a, b), (first, second) in zip(
            itertools.pairwise(self.train.budgets), itertools.pairwise(steps), strict=True
        ):
            _require(
                first < second,
                f"train.budgets: {a} and {b} tokens both round to {first} steps of {self.tokens_per_step} tokens; drop "
                "one, or lower train.batch_size",
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimiser step."""
        return self.train.batch_size * self.data.seq_len

    @property
    def budget_steps(self) -> list[int]:
        """Steps of each budget, to the nearest whole one."""
        return [round(budget / self.tokens_per_step) for budget in self.train.budgets]

    @property
    def branch_steps(self) -> list[int]:
        """First step of each budget's decay; the trunk runs to the last of them."""
        kept = 1 - self.train.decay_fraction
        return [min(max(1, round(end * kept)), end - 1) for end in self.budget_steps]

    @property
    def total_steps(self) -> int:
        """Steps of the trunk and of all its branches."""
        return self.steps_of(len(self.train.budgets))

    def steps_of(self, n_budgets: int) -> int:
        """Steps of the first ``n_budgets`` branches and of the trunk up to the last of them."""
        starts, ends = self.branch_steps[:n_budgets], self.budget_steps[:n_budgets]
        return starts[-1] + sum(end - start for start, end in zip(starts, ends, strict=True))

    def keeps(self, budget: int, stage: str) -> bool:
        """Whether the weights of a record are to be kept."""
        last = budget == self.train.budgets[-1] and stage == "annealed"
        return self.train.keep == "all" or (self.train.keep == "final" and last)

    @property
    def keeps_trunk(self) -> bool:
        """Whether the trunk is to be kept, for runs of larger budgets."""
        return self.train.keep == "all"

    def budgets_until(self, tokens: int | None) -> int:
        """How many of the budgets are at most ``tokens``; all of them for None."""
        return sum(tokens is None or budget <= tokens for budget in self.train.budgets)

    @property
    def spec_version(self) -> int:
        """The first version of the spec that could say this, which is the one that a record was most likely made by."""
        memory = self.model.memory
        old = all(
            getattr(getattr(self, table), name) == value
            for table, fields in BEFORE_3.items()
            for name, value in fields.items()
        )
        if not old or (memory is not None and memory.init == "matched"):
            return 3
        return 1 if self.train.rate_scaling == "none" else 2

    @property
    def run_id(self) -> str:
        """Content address: 16 hex digits of the SHA-256 of the canonical spec.

        Fields at their default are left out, so that an option added later (with a default that keeps old
        behaviour) leaves old ids as they are; a default that changes raises ``SPEC_VERSION``, and a spec that an
        earlier version could say keeps the id it had there. The fields whose defaults version 3 chose by measurement
        are always part of it. What does not affect the result is no part of the identity: how often a run is
        checkpointed, into what parts a step is cut to fit memory (rounding apart, like the number of processes), which
        weights are kept, by what else records are measured, and the name of a corpus whose content hash is known.
        """
        return _run_id(self)

    @property
    def trunk_id(self) -> str:
        """Content address of the trunk: equal for runs that differ in their budgets alone.

        Where the tables' learning rate falls towards the largest budget, that is part of it.
        """
        version, tree = _identity_tree(self)
        train = {k: v for k, v in tree.get("train", {}).items() if k != "budgets"}
        if self.train.value_lr_final is not None:
            train["budgets"] = self.train.budgets[-1]
        data = {
            k: v for k, v in tree.get("data", {}).items() if k != "max_epochs"
        }  # a limit on budgets, no more
        return _address([version, "trunk", tree | {"train": train, "data": data}])


def named_parts(run: RunSpec) -> tuple[tuple[parts.Group, str, str], ...]:
    """Return what ``run`` takes from users' packages: group, name, package with its version."""
    named: list[tuple[parts.Group, str, str]] = []
    memory, optimizer = run.model.memory, run.train.optimizer
    if memory is not None and memory.package:
        named.append(("memories", memory.kind, memory.package))
    if optimizer.package:
        named.append(("optimizers", optimizer.kind, optimizer.package))
    return tuple(named)


def require_parts(run: RunSpec) -> None:
    """Check that what ``run`` takes from users' packages is installed here, in the versions it names, and fits it.

    Raises:
        UserError: something does not; it says what to install.
    """
    for part in named_parts(run):
        parts.require(*part)
    for name in run.data.evaluations:
        parts.find("evaluations", name).load(parts.EvaluationPart)
    memory = run.model.memory
    if memory is not None and memory.own is not None:
        with _part_says(parts.require("memories", memory.kind, memory.package)):
            memory.own.check(run.model.d_model, memory)


_NOT_IDENTITY = (
    "checkpoint_seconds", "micro_batch_size", "activation_checkpointing", "table_device", "keep",
)  # fmt: skip
"""Fields of ``TrainSpec`` that say how a run is carried out, not what it finds."""


@functools.lru_cache(maxsize=1024)
def _identity(part: T) -> T:
    """Return data or training without what is no part of a run's identity."""
    if isinstance(part, TrainSpec):
        plain = TrainSpec()
        return dataclasses.replace(part, **{name: getattr(plain, name) for name in _NOT_IDENTITY})
    if isinstance(part, DataSpec):
        return dataclasses.replace(part, corpus="" if part.hash else part.corpus, evaluations=())
    return part


@functools.lru_cache(maxsize=1 << 17)  # all cells of the largest study
def _run_id(run: RunSpec) -> str:
    return _address(list(_identity_tree(run)))


def _address(content: list[Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _identity_tree(run: RunSpec) -> tuple[int, dict[str, Any]]:
    """Return the version of the spec that first could say ``run``, and what of it makes its identity."""
    train, data = _identity(run.train), _identity(run.data)
    version = run.spec_version
    tree = sparse_dict(run) | {"train": sparse_dict(train), "data": sparse_dict(data)}
    tree = {k: v for k, v in tree.items() if v != {}}
    for table, fields in BEFORE_3.items():
        known = {k: v for k, v in tree.get(table, {}).items() if k not in fields}
        if version == 3:
            known |= {name: getattr(getattr(run, table), name) for name in fields}
        tree = {k: v for k, v in tree.items() if k != table} | ({table: known} if known else {})
    if (memory := run.model.memory) is not None:
        chosen = {} if version < 3 and memory.init == "paper" else {"init": memory.init}
        tree["model"]["memory"] = {k: v for k, v in _hashed_memory(memory).items() if k != "init"} | chosen
    if version == 1:  # whose other defaults were these
        rates = {k: v for k, v in (("lr", train.lr), ("value_lr", train.value_lr)) if v != _RATE_1}
        old = tree.get("train", {})
        kept = {k: v for k, v in old.items() if k not in ("rate_scaling", "lr", "value_lr")} | rates
        tree = {k: v for k, v in tree.items() if k != "train"} | ({"train": kept} if kept else {})
    return version, tree


def _hashed_memory(memory: MemorySpec) -> dict[str, Any]:
    """``sparse_dict`` of ``memory`` as before there was a cap: candidates that it changes are those asked for."""
    if memory.package:  # which has no candidates
        return {name: value for name, value in sparse_dict(memory).items() if name != "preselect_cap"}
    uncapped = dataclasses.replace(memory, preselect_cap=0)
    capped = memory.candidates != uncapped.candidates
    hashed = dataclasses.replace(uncapped, preselect_m=memory.candidates) if capped else uncapped
    return {name: value for name, value in sparse_dict(hashed).items() if name != "preselect_cap"}


def _divisors(n: int) -> str:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return ", ".join(str(d) for d in sorted({*small, *(n // d for d in small)}) if (n // d) % 2 == 0)


# ---------------------------------------------------------------------------------------------------------
# Plain trees: to and from dictionaries


def to_dict(spec: Any) -> Any:
    """Return the spec as nested dictionaries of TOML values; ``None`` fields are left out."""
    if dataclasses.is_dataclass(spec):
        items = ((f.name, getattr(spec, f.name)) for f in dataclasses.fields(spec))
        return {name: to_dict(value) for name, value in items if value is not None}
    if isinstance(spec, Options):
        return dict(spec)
    return list(spec) if isinstance(spec, tuple) else spec


def sparse_dict(spec: Any) -> Any:
    """Like ``to_dict`` without the fields that are at their default."""
    if not dataclasses.is_dataclass(spec):
        return to_dict(spec)
    values = (
        (name, getattr(spec, name), default) for name, default in _defaults(typing.cast(Any, type(spec)))
    )
    return {name: sparse_dict(value) for name, value, default in values if value != default}


@functools.cache
def _defaults(cls: type) -> tuple[tuple[str, Any], ...]:
    """Return a spec's fields with their defaults."""
    return tuple(
        (f.name, f.default if f.default_factory is dataclasses.MISSING else f.default_factory())
        for f in dataclasses.fields(cls)
    )


def read_run(text: str) -> RunSpec:
    """Read a run's spec as records hold it: what it does not say has the meaning of its version.

    One of version 1 has no ``rate_scaling`` and means none; those up to 2 lack the fields of ``BEFORE_3`` and the cap
    of a memory's candidates.

    Raises:
        UserError: not a spec.
    """
    try:
        tree = with_old_meanings(parse_object(text))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"the specification of a run cannot be read: {error}") from None
    return from_dict(RunSpec, tree)


def with_old_meanings(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded spec or study, complete when it was written, with what has been added since as it was then."""
    out = dict(tree)
    for table, fields in (("train", {"rate_scaling": "none"}), *BEFORE_3.items()):
        known = out.get(table, {})
        out[table] = {**fields, **known} if isinstance(known, Mapping) else known
    model = out.get("model")
    if isinstance(model, Mapping) and isinstance(model.get("memory"), Mapping):
        out["model"] = {**model, "memory": {"preselect_cap": 0, **model["memory"]}}
    return out


def from_dict(cls: type[T], tree: Mapping[str, Any], where: str = "") -> T:
    """Build a spec dataclass from nested dictionaries.

    Raises:
        UserError: an unknown key (with the nearest known one), a value of the wrong type, an invalid spec.
    """
    if not isinstance(tree, Mapping):
        raise UserError(f"{where or cls.__name__}: expected a table, not {tree!r}")
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in tree.items():
        path = f"{where}.{key}" if where else key
        if key not in hints:
            raise UserError(f"unknown key {path!r}{nearest(key, hints)}")
        values[key] = _coerce(hints[key], value, path)
    return cls(**values)


def _coerce(hint: Any, value: Any, path: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        words = [word for arg in args if get_origin(arg) is Literal for word in get_args(arg)]
        if value in words:
            return value
        if type(None) in args and (value is None or (value == "none" and str not in args)):
            return None
        plain = next(a for a in args if a is not type(None) and get_origin(a) is not Literal)
        try:
            return _coerce(plain, value, path)
        except UserError as error:
            raise UserError(f"{error}{f', or {words[0]!r}' if words else ''}") from None
    if origin is Literal:
        if value not in args:
            raise UserError(f"{path} = {value!r} must be one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_coerce(args[0], item, f"{path}[{i}]") for i, item in enumerate(items))
    if hint is Options:
        if not isinstance(value, Mapping) or not all(isinstance(v, Scalar) for v in value.values()):
            raise UserError(f"{path} must be a table of numbers, texts, true and false")
        return value if isinstance(value, Options) else Options(value)
    if dataclasses.is_dataclass(hint):
        spec = typing.cast(type, hint)
        return value if isinstance(value, spec) else from_dict(spec, value, path)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and not isinstance(value, bool):
        whole = value.strip() if isinstance(value, str) else value
        digits = isinstance(whole, int) or (isinstance(whole, str) and _DIGITS.fullmatch(whole))
        if digits and abs(int(whole)) < 2**63:
            return int(whole)  # a float would round it
        number = quantity(value, path)
        if number != int(number):
            raise UserError(f"{path} = {value!r} must be a whole number")
        return int(number)
    if hint is float and not isinstance(value, bool):
        return quantity(value, path)
    if hint is str and isinstance(value, str):
        return value
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    raise UserError(f"{path} = {value!r} must be {names.get(hint, hint)}")


_DIGITS = re.compile(r"[+-]?\d{1,19}")
_SUFFIX = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
_QUANTITY = re.compile(r"([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([kmgbt]?)", re.IGNORECASE)


def quantity(value: Any, path: str = "value") -> float:
    """Read a number, or text such as ``"1.5M"``, ``"64k"``, ``"120B"`` (powers of ten); finite only."""
    number = value
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value.strip())
        if not match:
            raise UserError(f'{path} = {value!r} is not a number (write 1500000, 1.5e6 or "1.5M")')
        number = float(match[1].replace("_", "")) * _SUFFIX[match[2].lower()]
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise UserError(f"{path} = {value!r} is not a number")
    try:
        number = float(number)
    except OverflowError:
        number = float("inf")
    if not math.isfinite(number):
        raise UserError(f"{path} = {value!r} is not a finite number")
    return number


# ---------------------------------------------------------------------------------------------------------
# TOML and overrides


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        UserError: the file is missing, unreadable or not TOML.
    """
    try:
        return parse_toml(read_bounded(path, LONGEST_TOML).decode())
    except ValueError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def to_toml(tree: Mapping[str, Any]) -> str:
    """Return TOML text for nested dictionaries."""
    import tomli_w

    return tomli_w.dumps(tree)


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of ``tree`` with ``path.key=value`` overrides; values are TOML, or bare text.

    Raises:
        UserError: an override without ``=`` or a path through something that is not a table.
    """
    out = copy.deepcopy(tree)
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path.strip():
            raise UserError(f"--set {override!r}: write it as path.key=value, for instance train.lr=1e-3")
        try:
            value = parse_toml(f"x = {text}")["x"]
        except ValueError:
            value = text.strip()
        set_path(out, path.strip(), value)
        try:
            check_tree(out)
        except ValueError as error:
            raise UserError(f"--set {path.strip()}: {error}") from None
    return out


def set_path(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set ``tree[a][b][c] = value`` for the path ``a.b.c``, in place; missing tables are made."""
    *parents, leaf = path.split(".")
    node = tree
    for i, name in enumerate(parents):
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise UserError(f"{path!r}: {'.'.join(parents[: i + 1])!r} is not a table")
    node[leaf] = value
