"""A step in parts: micro-batches, recomputed blocks, losses in parts, no waiting, divergence found later."""

import dataclasses
import math
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from umscale.data.corpus import open_corpus
from umscale.errors import UserError
from umscale.layers import loss
from umscale.layers.loss import linear_cross_entropy
from umscale.model.decoder import Decoder
from umscale.spec import DataSpec, FfnSpec, MemorySpec, ModelSpec, RunSpec, TrainSpec
from umscale.training import optimiser
from umscale.training.run import Diverged, Run

CPU = torch.device("cpu")
MEMORY = MemorySpec(
    n_keys=12, top_m=6, d_key=8, d_pre_value=12, d_value=12, balance_loss=1e-2, tucker_penalty=1e-2
)
SMALL = {"n_keys": 8, "top_m": 4, "d_key": 8}
MODELS: dict[str, tuple[FfnSpec, MemorySpec | None]] = {
    "dense": (FfnSpec(d_ffn=24), None),
    "moe": (FfnSpec(kind="moe", d_ffn=16, n_experts=6, top_k=2, balance_loss=0.1, z_loss=1e-2), None),
    "ultramem_v2": (FfnSpec(d_ffn=24), MEMORY),
    "ultramem": (FfnSpec(d_ffn=24), MemorySpec(kind="ultramem", d_value=12, **SMALL)),
    "pkm": (FfnSpec(d_ffn=24), MemorySpec(kind="pkm", d_value=12, **SMALL)),
    "memory_plus": (FfnSpec(d_ffn=24), MemorySpec(kind="memory_plus", d_value=12, **SMALL)),
    "peer": (FfnSpec(d_ffn=24), MemorySpec(kind="peer", heads=2, **SMALL)),
}  # fmt: skip


def run_spec(name: str, **train) -> RunSpec:
    corpus = open_corpus("kjv")
    ffn, memory = MODELS[name]
    return RunSpec(
        model=ModelSpec(
            d_model=24, n_layers=2, n_heads=2, vocab_size=corpus.vocab_size, ffn=ffn, memory=memory
        ),
        data=DataSpec(corpus="kjv", hash=corpus.hash, seq_len=16, validation_tokens=800),
        train=TrainSpec(
            **{
                "budgets": (20_000,), "batch_size": 12, "warmup_tokens": 256, "lr": 5e-3, "value_lr": 5e-3,
                "rate_scaling": "none", "grad_clip": 0.5, "precision": "float32", "checkpoint_seconds": 1e9,
            }
            | train
        ),
    )  # fmt: skip


def trained(spec: RunSpec, folder, steps: int = 3) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights after a few steps."""
    run = Run(spec, open_corpus("kjv"), folder, CPU)
    losses = [run.train_step() for _ in range(steps)]
    return losses, {name: p.detach() for name, p in run.model.named_parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_micro_batches_are_the_whole_batch_to_rounding(name: str, tmp_path) -> None:
    """Also of auxiliary losses, whose balance is that of the whole batch."""
    whole_losses, whole = trained(run_spec(name), tmp_path)
    losses, weights = trained(run_spec(name, micro_batch_size=4, activation_checkpointing=True), tmp_path)
    assert losses == pytest.approx(whole_losses, rel=1e-6)
    for key, weight in whole.items():
        torch.testing.assert_close(weights[key], weight, rtol=1e-5, atol=1e-5 * float(weight.abs().max()))


@pytest.mark.parametrize("name", MODELS)
def test_recomputed_blocks_give_the_same_bits(name: str, tmp_path) -> None:
    plain, recomputed = (
        trained(run_spec(name, activation_checkpointing=on), tmp_path) for on in (False, True)
    )
    assert plain[0] == recomputed[0]
    for key, weight in plain[1].items():
        assert torch.equal(recomputed[1][key], weight), key


def test_recomputing_blocks_keeps_little(tmp_path) -> None:
    """What a forward pass saves for the backward pass, in bytes, with and without."""
    kept = []
    for on in (False, True):
        run = Run(run_spec("ultramem_v2", activation_checkpointing=on), open_corpus("kjv"), tmp_path, CPU)
        window = torch.from_numpy(run.stream.batch(0))
        sizes: dict[int, int] = {}

        def pack(t: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        parameters = {p.untyped_storage().data_ptr() for p in run.model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss_now = run.model(window[:, :-1])
        del loss_now
        kept.append(sum(n for pointer, n in sizes.items() if pointer not in parameters))
    assert kept[1] < kept[0] / 3


def test_what_fits_memory_is_no_part_of_a_runs_identity() -> None:
    spec = run_spec("dense")
    assert run_spec("dense", micro_batch_size=4, activation_checkpointing=True).run_id == spec.run_id
    with pytest.raises(UserError, match=r"12 is not divisible by train.micro_batch_size = 5"):
        run_spec("dense", micro_batch_size=5)


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let dense gradients of tables be whole ones."""
    plain = Decoder.configure_tables
    monkeypatch.setattr(
        Decoder, "configure_tables", lambda self, train, compact, by_rows: plain(self, train, False, by_rows)
    )


def _in_a_kernel() -> bool:
    """Whether one of our operators is at work: here those in C++, which look at operands that are on the host."""
    frame = sys._getframe(1)
    while frame is not None:
        if "umscale_kernels" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


class Transfers(TorchDispatchMode):
    """Counts what makes the host wait for a device: scalars read, tensors copied to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        to_host = name == "_to_copy" and str((kwargs or {}).get("device", "")) == "cpu"
        if (name == "_local_scalar_dense" or to_host) and not _in_a_kernel():
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MODELS)
def test_twenty_steps_do_not_wait_for_the_device(
    name: str, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the optimiser and the gradients that a GPU has: those of a CPU look at rows, which are on the host."""
    as_on_a_gpu(monkeypatch)
    run = Run(run_spec(name), open_corpus("kjv"), tmp_path, CPU)
    counted: list[str] = []
    for method in ("cpu", "numpy", "tolist", "item"):
        monkeypatch.setattr(torch.Tensor, method, _counted(method, counted, getattr(torch.Tensor, method)))
    with Transfers() as transfers:
        for _ in range(20):
            run.launch_step()
    assert transfers.seen == []
    assert counted == []
    with Transfers() as transfers:
        assert len(run.settle()) == 20
    assert transfers.seen or counted, "the counters count"


def _counted(name: str, found: list[str], plain):
    def method(self, *args, **kwargs):
        if not _in_a_kernel():
            found.append(name)
        return plain(self, *args, **kwargs)

    return method


@pytest.mark.parametrize("name", MODELS)
def test_a_divergence_is_found_at_the_next_log_point_with_its_step(name: str, tmp_path) -> None:
    run = Run(run_spec(name), open_corpus("kjv"), tmp_path, CPU)
    for _ in range(3):
        run.launch_step()
    kept = {key: p.detach().clone() for key, p in run.model.named_parameters()}
    with torch.no_grad():
        run.model.final_norm.weight.fill_(math.nan)
    for _ in range(4):
        run.launch_step()
    with pytest.raises(Diverged, match=r"loss nan, gradient norm nan at step 3$"):
        run.settle()
    kept.pop("final_norm.weight")
    for key, p in run.model.named_parameters():
        if key in kept and not key.startswith("tables."):
            assert torch.equal(p, kept[key]), f"no step was made from it: {key}"


@pytest.mark.parametrize("table_gradient", ["dense", "rows"])
def test_broken_tables_break_nothing_else(table_gradient: str, tmp_path) -> None:
    spec = run_spec("ultramem_v2", table_gradient=table_gradient, table_copy="bfloat16")
    run = Run(spec, open_corpus("kjv"), tmp_path, CPU)
    run.launch_step()
    with torch.no_grad():
        run.model.tables.values.fill_(math.nan)
    run.model.refresh()
    for _ in range(3):
        run.launch_step()
    with pytest.raises(Diverged, match=r"at step 1$"):
        run.settle()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("part", [1, 7, 50])
def test_a_loss_in_parts_is_the_whole_loss(
    autocast: bool, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = torch.randn(5, 9, 16), torch.randn(31, 16) / 4
    targets = torch.randint(0, 31, (5, 9))
    found = []
    for size in (loss.PART_BYTES, 4 * 31 * part):
        monkeypatch.setattr(loss, "PART_BYTES", size)
        x, weight = (t.clone().requires_grad_() for t in inputs)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = linear_cross_entropy(x, weight, targets)
        (3 * value).backward()
        found.append((value.detach(), x.grad, weight.grad))
    for whole, ours in zip(*found, strict=True):
        tolerance = 2e-2 if autocast else 1e-6
        torch.testing.assert_close(ours, whole, rtol=0, atol=tolerance * float(whole.abs().max()))


def test_a_loss_in_parts_holds_no_whole_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, vocab, part = 512, 300, 64
    monkeypatch.setattr(loss, "PART_BYTES", 4 * vocab * part)

    class Largest(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and vocab in out.shape and 8 not in out.shape:
                self.found = max(self.found, out.numel())
            return out

    x, weight = torch.randn(tokens, 8, requires_grad=True), torch.randn(vocab, 8, requires_grad=True)
    with Largest() as largest:
        linear_cross_entropy(x, weight, torch.randint(0, vocab, (tokens,))).backward()
    assert largest.found == vocab * part


@pytest.mark.parametrize("name", ["ultramem_v2", "memory_plus", "peer"])
@pytest.mark.parametrize("options", [{}, {"table_copy": "bfloat16"}, {"table_second_moment": "row"}])
def test_gradients_too_large_to_be_dense_are_rows_and_the_steps_are_the_same(
    name: str, options: dict[str, str], tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu(monkeypatch)
    exact = "table_copy" not in options  # which makes results fp32

    def steps(limit: int) -> tuple[list[float], dict[str, torch.Tensor], bool]:
        monkeypatch.setattr(optimiser, "ROW_GRADIENT_BYTES", limit)
        spec = run_spec(name, batch_size=1, budgets=(2_000,), warmup_tokens=0, **options)
        memory = dataclasses.replace(spec.model.memory, n_keys=24, top_m=2)
        spec = dataclasses.replace(spec, model=dataclasses.replace(spec.model, memory=memory))
        torch.set_default_dtype(
            torch.float64 if exact else torch.float32
        )  # Adam makes much of what rounding leaves of a gradient near 0
        try:
            run = Run(spec, open_corpus("kjv"), tmp_path, CPU)
            losses = [run.train_step() for _ in range(6)]
        finally:
            torch.set_default_dtype(torch.float32)
        weights = {key: p.detach() for key, p in run.model.named_parameters()}
        return losses, weights, run.model.tables.values.grad.is_sparse

    dense, rows = steps(2**40), steps(0)
    assert (dense[2], rows[2]) == (False, True)
    assert rows[0] == pytest.approx(dense[0], rel=1e-12 if exact else 1e-6)
    for key, weight in dense[1].items():
        torch.testing.assert_close(
            rows[1][key], weight, rtol=0, atol=(1e-10 if exact else 1e-3) * float(weight.abs().max())
        )


@pytest.mark.parametrize("name", ["dense", "ultramem_v2"])
def test_a_compiled_run_trains_as_an_eager_one(name, tmp_path, monkeypatch):
    """By the graph that is captured; what inductor makes of it is PyTorch's to test."""
    compile_with = torch.compile
    asked = []

    def graph_alone(model, **options):
        asked.append(options)
        return compile_with(model, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", graph_alone)
    torch._dynamo.reset()
    eager, weights = trained(run_spec(name), tmp_path / "eager")
    compiled, others = trained(run_spec(name, compile=True), tmp_path / "compiled")
    assert asked == [{"fullgraph": True}]
    assert compiled == pytest.approx(eager, rel=1e-5)
    assert all(torch.allclose(others[key], weight, atol=1e-4) for key, weight in weights.items())


def test_documents_of_a_window_are_kept_apart(tmp_path):
    corpus = open_corpus("kjv")
    spec = run_spec("ultramem_v2")
    apart = dataclasses.replace(spec, data=dataclasses.replace(spec.data, document_mask=True))
    assert apart.run_id != spec.run_id
    models = [Run(one, corpus, tmp_path / one.run_id, CPU).model.eval() for one in (spec, apart)]
    tokens = torch.randint(corpus.eot, (2, 16), generator=torch.Generator().manual_seed(0))
    tokens[:, 7] = corpus.eot
    other = tokens.clone()
    other[:, :7] = (other[:, :7] + 1) % corpus.eot
    for model, same in zip(models, (False, True), strict=True):
        with torch.no_grad():
            found, changed = model(tokens)[:, 7:], model(other)[:, 7:]
        assert torch.equal(found, changed) == same
