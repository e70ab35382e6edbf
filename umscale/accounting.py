"""Parameters, FLOPs and memory access of a model: pure functions of its specification.

Conventions
    Parameters are counted with and without the token embedding (and untied head); the paper's tables leave it
    out of totals, but add the tied one to active parameters at the 227M scale.
    The sparse part of a model is its value tables and its routed experts; routers and shared experts are dense.
    One multiply-accumulate (MAC) is 2 FLOPs; figures are per token, forward. Training costs three times that.
    Causal attention scores count the mean context of ``(seq_len + 1) / 2`` positions.
    MCP, the memory computational proportion, is memory MACs / (memory + FFN MACs): this reproduces 17.0% for
    UltraMemV2-227M (arXiv 2508.18756, Table 10). The memory-to-FFN ratio is MCP / (1 - MCP). Memory addressed by
    tokens has a part of its own and is in neither: its FLOPs are projections, not retrieval.
    Bytes of token-addressed rows are known before the forward pass (``prefetchable_bytes``); all other sparse bytes
    are random at run time.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from umscale.ngram_tables import table_params, table_sizes
from umscale.spec import ADDITIVE_KINDS, FfnSpec, MemorySpec, ModelSpec

ACCESS_BATCHES = (1, 16, 64, 256, 1024, 4096)
"""Tokens decoded together for which memory access is tabulated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Macs:
    """Multiply-accumulates per token of one forward pass, by part, over all layers."""

    attention: float
    """The four projections."""
    attention_scores: float
    """Query-key and attention-value products over the mean causal context."""
    ffn: float
    """Dense FFNs, or the experts a token activates."""
    router: float
    memory_projections: float
    """Query, pre-value, gate and value projections of the memory layers."""
    memory_keys: float
    """Query-key matching and the selection of the memory layers."""
    memory_values: float
    """Dot products with pre-values and the weighted sum of values."""
    ngram: float
    """Projections and convolutions of token-addressed memory; its look-ups are additions of nothing."""
    head: float

    @property
    def memory(self) -> float:
        return self.memory_projections + self.memory_keys + self.memory_values

    @property
    def total(self) -> float:
        return (
            self.attention
            + self.attention_scores
            + self.ffn
            + self.router
            + self.memory
            + self.ngram
            + self.head
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a model costs; sizes in parameters, work in FLOPs per token (forward)."""

    total_params: int
    """Without embeddings."""
    total_params_with_embedding: int
    active_params: int
    """Read by one token; without embeddings."""
    active_params_with_embedding: int
    embedding_params: int
    sparse_params: int
    """N_s: all rows of all value tables (a shared table counts once), all routed experts, all token-addressed rows."""
    active_sparse_params: int
    """A_s: rows that one token reads and experts that it activates."""
    ngram_params: int
    """Of ``sparse_params``, those addressed by tokens."""
    density: float
    """rho = A_s / N_s; NaN for a dense model."""
    visible_density: float
    """heads top_m over the values a memory layer can address; NaN without memory layers."""
    activated_values: int
    """heads x top_m, per memory layer."""
    macs: Macs
    flops_per_token: float
    mcp: float
    memory_to_ffn: float

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, with FLOPs by part."""
        out = asdict(self)
        out["flops_by_part"] = {part: 2 * macs for part, macs in out.pop("macs").items()}
        return out


def memory_dense_params(d_model: int, memory: MemorySpec) -> int:
    """Parameters of one memory layer outside its tables: queries, keys, norms, cores, projections."""
    return _retrieval_params(d_model, memory) + _projection_params(d_model, memory)


def _retrieval_params(d_model: int, memory: MemorySpec) -> int:
    """Parameters that find rows; of a kind from a package, as its own part counts them."""
    if (own := memory.own) is not None:
        return own.params(d_model, memory)
    return _query_params(d_model, memory) + _key_params(memory)


def _query_params(d_model: int, memory: MemorySpec) -> int:
    return d_model * memory.query_width


def _key_params(memory: MemorySpec) -> int:
    """Keys, norm gains and Tucker cores; sharing tables and expanding keys make more keys."""
    keys = 2 * memory.heads * memory.tucker_rank * memory.keys_per_side * memory.d_key
    norms = memory.d_key if memory.kind in ("pkm", "peer") else 2 * memory.d_key
    cores = 0 if memory.kind in ADDITIVE_KINDS else memory.n_cores * memory.heads * memory.tucker_rank**2
    return keys + norms + cores


def _projection_params(d_model: int, memory: MemorySpec) -> int:
    if memory.kind == "peer":
        return 0
    gate = memory.d_value if memory.kind == "memory_plus" else 0
    return d_model * (memory.d_pre_value + gate + memory.value_expansion * memory.d_value)


def expert_params(d_model: int, ffn: FfnSpec) -> int:
    """Parameters of one SwiGLU expert (or of a dense FFN)."""
    return 3 * d_model * ffn.d_ffn


def memory_macs(d_model: int, memory: MemorySpec) -> tuple[float, float, float]:
    """MACs per token of one memory layer: (projections, keys and selection, values)."""
    r, heads, m, keys = memory.tucker_rank, memory.heads, memory.top_m, memory.keys_per_side
    if (own := memory.own) is not None:
        found, finding = own.macs(d_model, memory)
        wide = float(found + _projection_params(d_model, memory))
        return wide, float(finding), float(heads * m * memory.row_width)
    projections = _query_params(d_model, memory) + _projection_params(d_model, memory)
    matching = 2 * heads * r * keys * memory.d_key
    selection = 0
    if memory.kind not in ADDITIVE_KINDS:  # preselection, grid, kept scores by core
        selection = 2 * heads * r * keys
        selection += heads * (m * r**2 + memory.candidates**2 * r) + heads * m * memory.n_cores * r**2
    return float(projections), float(matching + selection), float(heads * m * memory.row_width)


def ngram_dense_params(model: ModelSpec) -> int:
    """Parameters of all token-addressed modules outside their tables: projections, norms, convolutions."""
    ngram, h = model.ngram, model.d_model
    if ngram is None:
        return 0
    if ngram.at_input:
        return ngram.read_width * h
    if ngram.kind == "per_layer_embedding":
        return model.n_layers * (3 * h * ngram.head_width + ngram.head_width + h)
    gated, taps = ngram.gate != "none", ngram.conv_kernel
    one = (2 if gated else 1) * ngram.read_width * h + (2 * h if gated else 0) + (taps + 1) * h * (taps > 0)
    return model.ngram_modules * one


def ngram_macs(model: ModelSpec) -> float:
    """MACs per token of all token-addressed modules: their matrices, and the taps of the convolutions."""
    ngram, h = model.ngram, model.d_model
    if ngram is None:
        return 0.0
    if ngram.at_input:
        return float(ngram.read_width * h)
    if ngram.kind == "per_layer_embedding":
        return float(model.n_layers * 3 * h * ngram.head_width)
    products = (2 if ngram.gate != "none" else 1) * ngram.read_width * h
    return float(model.ngram_modules * (products + ngram.conv_kernel * h))


def cost(model: ModelSpec, seq_len: int = 2048) -> Cost:
    """Return the cost of ``model``; ``seq_len`` matters to the attention scores alone."""
    h, layers, vocab, ffn = model.d_model, model.n_layers, model.vocab_size, model.ffn
    n_memory = len(model.memory_layers)
    dense = layers * (4 * h * h + 4 * h) + h
    sparse = active_sparse = activated = 0
    router, expert = 0, expert_params(h, ffn)
    if ffn.kind == "moe":
        router = h * ffn.n_experts
        dense += layers * (router + ffn.n_shared_experts * expert)
        sparse += layers * ffn.n_experts * expert
        active_sparse += layers * ffn.top_k * expert
    else:
        dense += layers * expert
    macs = {"memory_projections": 0.0, "memory_keys": 0.0, "memory_values": 0.0}
    visible = float("nan")
    if model.memory is not None:
        memory = model.memory
        dense += n_memory * memory_dense_params(h, memory)
        activated = memory.heads * memory.top_m
        visible = activated / memory.visible_values
        sparse += memory.n_tables(n_memory) * memory.n_values * memory.row_width
        active_sparse += n_memory * activated * memory.row_width
        macs = {part: n_memory * value for part, value in zip(macs, memory_macs(h, memory), strict=True)}
    n_rows = table_params(model)
    if model.ngram is not None:
        dense += ngram_dense_params(model)
        sparse += n_rows
        active_sparse += model.ngram_modules * model.ngram.read_width
    parts = Macs(
        attention=layers * 4.0 * h * h,
        attention_scores=layers * 2.0 * h * (seq_len + 1) / 2,
        ffn=layers * 3.0 * h * ffn.active_width,
        router=float(layers * router),
        ngram=ngram_macs(model),
        head=float(h * vocab),
        **macs,
    )
    embedding = vocab * h * (1 if model.tie_embeddings else 2)
    mcp = parts.memory / (parts.memory + parts.ffn)
    return Cost(
        total_params=dense + sparse,
        total_params_with_embedding=dense + sparse + embedding,
        active_params=dense + active_sparse,
        active_params_with_embedding=dense + active_sparse + embedding,
        embedding_params=embedding,
        sparse_params=sparse,
        active_sparse_params=active_sparse,
        ngram_params=n_rows,
        density=active_sparse / sparse if sparse else float("nan"),
        visible_density=visible,
        activated_values=activated,
        macs=parts,
        flops_per_token=2 * parts.total,
        mcp=mcp,
        memory_to_ffn=mcp / (1 - mcp) if mcp < 1 else float("inf"),
    )


def gathered_params(model: ModelSpec) -> int:
    """Parameters of table rows that one token gathers, over all memories; experts are not gathered."""
    ngram = 0 if model.ngram is None else model.ngram_modules * model.ngram.read_width
    if model.memory is None:
        return ngram
    return ngram + len(model.memory_layers) * model.memory.heads * model.memory.top_m * model.memory.row_width


def distinct_rows(n_rows: int, draws: float) -> float:
    """Expected distinct rows among ``draws`` uniform draws from ``n_rows``: N (1 - (1 - 1/N)^draws)."""
    if n_rows == 1:
        return 1.0 if draws else 0.0
    return -n_rows * math.expm1(draws * math.log1p(-1 / n_rows))


def distinct_experts(n_experts: int, top_k: int, batch: int) -> float:
    """Expected distinct experts of ``batch`` tokens that choose ``top_k`` each: E (1 - (1 - k/E)^B)."""
    return n_experts * (1 - (1 - top_k / n_experts) ** batch)


def memory_access_bytes(model: ModelSpec, batch: int, bytes_per_param: float = 2.0) -> float:
    """Weight bytes read by one decoding step of ``batch`` tokens in FFN and memory layers, uniform use of rows.

    Attention, embedding and head are left out: they are the same for every architecture compared. Real use of
    rows is skewed, so this is an upper bound; a run's record holds the figure measured from its own usage.
    """
    h, ffn = model.d_model, model.ffn
    experts: float = ffn.n_shared_experts + 1
    if ffn.kind == "moe":
        experts = ffn.n_shared_experts + distinct_experts(ffn.n_experts, ffn.top_k, batch)
    params = model.n_layers * experts * expert_params(h, ffn)
    if ffn.kind == "moe":
        params += model.n_layers * h * ffn.n_experts
    if model.memory is not None:
        memory = model.memory
        rows = distinct_rows(memory.visible_values, batch * memory.heads * memory.top_m)
        keys = 2 * memory.heads * memory.tucker_rank * memory.keys_per_side * memory.d_key
        finding = _query_params(h, memory) + keys if memory.own is None else memory.own.params(h, memory)
        dense = finding + _projection_params(h, memory)
        params += len(model.memory_layers) * (rows * memory.row_width + dense)
    params += ngram_dense_params(model)
    return params * bytes_per_param + prefetchable_bytes(model, batch, bytes_per_param)


def prefetchable_bytes(model: ModelSpec, batch: int, bytes_per_param: float = 2.0) -> float:
    """Bytes of token-addressed rows that one decoding step of ``batch`` tokens reads, n-grams hashed uniformly.

    Their addresses follow from the tokens, so that they can lie in host memory and be fetched ahead.
    """
    ngram = model.ngram
    if ngram is None:
        return 0.0
    sizes = table_sizes(ngram, model.ngram_modules, model.vocab_size)
    rows = sum(distinct_rows(size, batch) for module in sizes for heads in module for size in heads)
    return rows * ngram.head_width * bytes_per_param
