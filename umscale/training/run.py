"""One run: a trunk at constant learning rate, and a decaying branch at each token budget.

Notable:
- Each branch point gives two records, ``stable`` (before the decay) and ``annealed`` (after it), each with the
  raw weights and with their running average.
- A killed run continues from its last checkpoint and reaches bitwise the same losses on a CPU: data order is
  a function of the step, and every random draw comes from a stream named in the spec. At most
  ``checkpoint_seconds`` of training are repeated; a checkpoint that is damaged or lost costs what it held.
- A diverged run ends with that status and keeps the records it made.
- A run may be told to stop after a budget's branch: it is then paused, and goes on later as if it never had been.
- Steps are handed to the device without waiting for it: losses are fetched together, at a log point. There a run is
  found to have diverged, at the step at which it did.
"""

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from umscale.accounting import cost
from umscale.data.batches import TrainStream, ValidationSet, validation_windows
from umscale.data.canonical import canonical_ids
from umscale.data.corpus import Corpus, corpus_tokenizer
from umscale.data.prefetch import Prefetch
from umscale.data.probes_mixture import ProbeMixture, check_corpus
from umscale.data.probes_score import score
from umscale.data.synthetic_corpus import validation_floor
from umscale.files import LocalFiles
from umscale.layers.token_memory import Vocabulary
from umscale.machine import peak_flops, peak_memory_bytes
from umscale.model.decoder import Decoder
from umscale.model.scaling import optimizer_rates, table_decay
from umscale.spec import RunSpec
from umscale.store.leases import ClaimLost
from umscale.training.checkpoint import Workspace
from umscale.training.evaluate import Evaluation, evaluate, evaluate_targets, start_counting, stop_counting
from umscale.training.gradients import GradientMean
from umscale.training.host_tables import HostTables
from umscale.training.kept import keep_record, keep_trunk
from umscale.training.microbatch import forward_backward
from umscale.training.optimiser import (
    Schedule,
    WeightAverage,
    clip_gradients,
    gradient_by_rows,
    make_optimizer,
    set_rates,
    skip_unless_finite,
)
from umscale.training.own_evaluation import Measured, measure
from umscale.training.process_group import ALONE, PeerLost, World, is_loss
from umscale.training.shards import connect, sharded_parameters, table_part
from umscale_kernels import kernels_in_use

Row = dict[str, Any]

log = logging.getLogger(__name__)

CURVE_POINTS = 200
LOG_SECONDS = 1.0
"""At least so often losses are fetched from the device, for a display and to notice a divergence."""
EVALUATED_BYTES = 2**30
"""Of logits in fp32, on one process."""
DIVERGED_AFTER_STEPS = 50
USAGE_BATCHES = (1, 16, 64, 256)


class Interrupted(Exception):
    """The run was asked to stop and its checkpoint is written; or another worker has it, or another process is gone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a run is, for a live display."""

    phase: str
    steps_done: int
    """Of ``total_steps``, which include all branches up to where it is told to stop."""
    total_steps: int
    tokens: int
    """Position in the budget."""
    loss: float
    tokens_per_second: float


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What a run produced so far."""

    status: str = "running"
    reason: str = ""
    records: list[Row] = field(default_factory=list)
    """One row per (budget, stage), see ``umscale.store.store.RUN_SCHEMA``."""
    documents: list[Row] = field(default_factory=list)
    """One row per (budget, stage, validation document)."""
    curve: list[Row] = field(default_factory=list)
    """Training loss along the trunk and the branches."""
    probes: list[Row] = field(default_factory=list)
    """One row per (budget, stage, task)."""
    evaluations: list[Row] = field(default_factory=list)
    """One row per (budget, stage, evaluation, metric)."""
    kernels: list[str] = field(default_factory=list)
    """What computed it, in order: a run that was continued on another machine may have several."""


class Diverged(Exception):
    """The loss became NaN or stayed above chance; the message says which."""


class Run:
    """State of one training run.

    Args:
        spec: the run; its precision must be resolved and its vocabulary set.
        corpus: the prepared corpus the spec names.
        workspace: where checkpoints live, perhaps a folder; removed by the caller when the run is over.
        device: where to train.
        world: processes that train the run together, each with a ``Run`` and the workspace of the first. All get the
            same results, up to times, and only the first's need be stored.
    """

    def __init__(
        self,
        spec: RunSpec,
        corpus: Corpus,
        workspace: Path | Workspace,
        device: torch.device,
        world: World = ALONE,
    ) -> None:
        self.spec, self.device, self.world = spec, device, world
        workspace = Workspace(files=LocalFiles(workspace)) if isinstance(workspace, Path) else workspace
        self.workspace = workspace.joined(world)
        self.schedule = Schedule(spec)
        self.corpus = corpus
        check_corpus(spec.data, corpus)
        self.vocabulary = None
        if spec.model.ngram is not None:
            self.vocabulary = Vocabulary(
                corpus.eot, torch.from_numpy(canonical_ids(corpus_tokenizer(corpus)))
            )
        self.separator = corpus.eot if spec.data.document_mask else None
        self.mixture = ProbeMixture(spec.data, spec.seed) if spec.data.probes else None
        self.probes = self.mixture.held_out() if self.mixture is not None else None
        self.stream = TrainStream(corpus, spec.data.seq_len, spec.train.batch_size, spec.seed, self.mixture)
        self.read = functools.partial(self.stream.batch, part=world.rank, n_parts=world.size)
        self.batches = Prefetch(self.read, device)
        self.validation: ValidationSet = validation_windows(
            corpus, spec.data.seq_len, spec.data.validation_tokens, spec.data.validation_documents
        )
        known = corpus.manifest.generated is not None
        self.floor_nats = validation_floor(corpus, self.validation.targets) if known else None
        self.curve_every = max(1, spec.total_steps // CURVE_POINTS)
        self.n_budgets = len(spec.train.budgets)
        """Of the first, those to train now."""
        self._begin()

    def _begin(self) -> None:
        """Set up the state of a run that has not begun."""
        self._build()
        self.outcome = Outcome(kernels=[kernels_in_use(self.device.type)])
        self.step = 0
        self.branch: int | None = None
        self.steps_done = 0
        self.train_seconds = 0.0
        self.eval_seconds = 0.0
        self.input_seconds = 0.0
        self.checkpoint_seconds = 0.0
        self.above_chance = 0
        self.pending: list[float] = []
        self.on_device: list[tuple[Tensor, Tensor]] = []
        """Loss on this process and gradient norm of the steps since the last log point."""
        self.checkpointed = self.logged = time.monotonic()

    def _build(self) -> None:
        part = table_part(self.world)
        model = Decoder(self.spec.model, self.spec.seed, self.spec.data.seq_len, part, self.vocabulary)
        if self.world.size > 1:
            connect(model, self.world)
        on_host = model.ngram is not None and self.spec.train.table_device == "cpu"
        if model.ngram is not None and on_host:
            model.ngram.keep_on_host()
        self.model = model.to(self.device)
        self.host_tables = (
            HostTables(model.ngram, self.read, self.device) if model.ngram is not None and on_host else None
        )
        if self.world.shard_dense:
            from umscale.training.fsdp import shard_dense

            shard_dense(self.model, self.world)
        self.shards = sharded_parameters(self.model, self.world)
        self.model.separator = self.separator
        # Between processes, rows would have to be matched up: there they are only where dense gradients are too large.
        self.model.configure_tables(
            self.spec.train,
            compact=self.world.size == 1 and self.device.type == "cpu" and not self.spec.train.compile,
            by_rows=gradient_by_rows(self.spec, self.world.size, self.world.shard_tables),
        )
        self.model.recompute_blocks(self.spec.train.activation_checkpointing)
        self.trained = self.model
        """What a training step calls; evaluation, whose batches have other sizes, takes the model as it is."""
        if self.spec.train.compile and self.world.shard_dense:
            self.model.compile_blocks()
        elif self.spec.train.compile:
            self.trained = torch.compile(self.model, fullgraph=True)  # type: ignore[assignment]
        self.optimizer = make_optimizer(
            self.model, self.spec.train, table_decay(self.spec), optimizer_rates(self.spec)
        )
        self.average = WeightAverage(self.model, self.spec.train.ema_width)
        self.gradients = GradientMean(self.model, self.world)

    # -- one step -----------------------------------------------------------------------------------------

    def precision(self) -> AbstractContextManager[object]:
        """Matrix products in the spec's precision; weights, norms, scores and losses stay fp32."""
        if self.spec.train.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def train_step(self) -> float:
        """Do one optimiser step, wait for it and return its loss in nats per token, the mean over all processes.

        Raises:
            Diverged: as ``settle`` does.
        """
        self.launch_step()
        return self.settle()[-1]

    def launch_step(self) -> None:
        """Do one optimiser step without waiting for the device; ``settle`` returns its loss."""
        set_rates(self.optimizer, self.schedule.rates(self.step, self.branch))
        began = time.perf_counter()
        window = self.batches(self.step)  # [B / processes, S + 1]
        self.input_seconds += time.perf_counter() - began
        self.optimizer.zero_grad(set_to_none=True)
        if self.host_tables is not None:
            self.host_tables.fetch(self.step)
        micro_batch_size = self.spec.train.micro_batch_size
        loss = forward_backward(
            self.trained, window, micro_batch_size, self.precision, before_last=self.gradients.begin
        )
        if self.host_tables is not None:
            self.host_tables.return_gradients()
        self.gradients.finish()
        norm = clip_gradients(self.model.parameters(), self.spec.train.grad_clip, self.shards, self.world.sum)
        skip_unless_finite(self.optimizer, norm)
        self.optimizer.step()
        if self.host_tables is not None:
            self.host_tables.fetch(self.step + 1)
        self.model.refresh(tables=False)
        if (self.step + 1) % (1 if self._short_branch else WeightAverage.EVERY) == 0:
            self.average.update(self.model, self.step + 1)
        self.on_device.append((loss, norm))
        self.step += 1
        self.steps_done += 1

    def settle(self) -> list[float]:
        """Wait for the steps launched since the last call and return their losses, in nats per token.

        Raises:
            Diverged: at one of them; with its number.
        """
        if not self.on_device:
            return []
        numbers = torch.stack([torch.stack(pair).double() for pair in self.on_device]).cpu()  # [steps, 2]
        self.on_device.clear()
        self.logged = time.monotonic()
        losses = self.world.sum(numbers[:, 0].contiguous()) / self.world.size
        found: list[float] = losses.tolist()
        first = self.step - len(found)
        for step, (loss, norm) in enumerate(zip(found, numbers[:, 1].tolist(), strict=True), first):
            if not math.isfinite(loss) or not math.isfinite(norm):
                raise Diverged(f"loss {loss}, gradient norm {norm} at step {step}")
            self._watch(loss, step)
        return found

    def _watch(self, loss: float, step: int) -> None:
        chance = math.log(self.spec.model.vocab_size)
        warm = step > self.schedule.warmup
        self.above_chance = self.above_chance + 1 if warm and loss > chance else 0
        if self.above_chance >= DIVERGED_AFTER_STEPS:
            raise Diverged(
                f"loss {loss:.3f} above chance ({chance:.3f} nats) for {self.above_chance} steps up to step {step}"
            )

    # -- the whole run ------------------------------------------------------------------------------------

    def execute(
        self,
        on_record: Callable[[Outcome], None],
        on_progress: Callable[[Progress], None] = lambda progress: None,
        should_stop: Callable[[], bool] = lambda: False,
        until: int | None = None,
    ) -> Outcome:
        """Train to the end; ``on_record`` is called after each record and at the end.

        ``should_stop`` must answer alike on all processes of a world. With ``until``, the run is paused after the last
        budget of at most so many tokens, with a checkpoint of its trunk there.

        Raises:
            Interrupted: ``should_stop`` returned true (the checkpoint is written and a later call continues), or
                another worker has taken the run over, or one of several processes is gone.
        """
        self.n_budgets = self.spec.budgets_until(until)
        try:
            try:
                while not self._execute(on_record, on_progress, should_stop):
                    self._begin()
                self._end()
            except Diverged as error:
                self.outcome.status, self.outcome.reason = "diverged", str(error)
            self.workspace.flush()
            on_record(self.outcome)
        except (ClaimLost, PeerLost) as error:
            raise Interrupted(str(error)) from error
        except RuntimeError as error:
            if self.world.shard_dense and is_loss(error):
                raise Interrupted(" ".join(str(error).split())) from error
            raise
        return self.outcome

    def _execute(
        self,
        on_record: Callable[[Outcome], None],
        on_progress: Callable[[Progress], None],
        should_stop: Callable[[], bool],
    ) -> bool:
        """Train from where the checkpoints are to the end; false if they proved unusable on the way."""
        resume_branch = self._restore()
        for index, start in enumerate(self.schedule.branches[: self.n_budgets]):
            if index < self._finished_budgets():
                continue
            more = index + 1 < len(self.schedule.branches)
            if resume_branch != index:
                self._advance(start, on_progress, should_stop)
                self._record(index, "stable")
                on_record(self.outcome)
                if more or self.spec.keeps_trunk:
                    self._save("trunk")
                self.branch = index
            self._advance(self.schedule.ends[index], on_progress, should_stop)
            self._record(index, "annealed")
            on_record(self.outcome)
            if more and not self._return_to_trunk(start):
                log.warning(
                    "run %s lost its trunk while it was on a branch; it starts over", self.spec.run_id
                )
                return False
        self._keep_trunk()
        return True

    def _keep_trunk(self) -> None:
        """Leave the trunk, as it was where the last branch began, for runs of larger budgets, if that is asked for."""
        start = self.schedule.branches[-1]
        if not self.spec.keeps_trunk or self._finished_budgets() < len(self.schedule.branches):
            return  # or paused, with its own checkpoint of the trunk
        if self._phase != "trunk" and not self._return_to_trunk(start):
            log.warning("run %s lost its trunk while it was on a branch; none is kept", self.spec.run_id)
            return
        keep_trunk(self.workspace, start)

    def _end(self) -> None:
        """Note that all is done that was asked for."""
        done, budgets = self._finished_budgets(), self.spec.train.budgets
        self.outcome.status = "finished" if done == len(budgets) else "paused"
        if done < len(budgets):
            self.outcome.reason = f"until {budgets[done - 1]:,} of {budgets[-1]:,} tokens"

    def _advance(
        self, end: int, on_progress: Callable[[Progress], None], should_stop: Callable[[], bool]
    ) -> None:
        """Train up to step ``end`` of the current phase."""
        while self.step < end:
            if should_stop():
                self._log(on_progress)
                self._save(self._phase)
                self.workspace.flush()
                raise Interrupted
            self.workspace.beat()
            began = time.perf_counter()
            self.launch_step()
            self.train_seconds += time.perf_counter() - began
            now = time.monotonic()
            save = now - self.checkpointed > self.spec.train.checkpoint_seconds
            due = self.world.largest(2 if save else int(now - self.logged > LOG_SECONDS))
            if due or self.step == end or len(self.pending) + len(self.on_device) >= self.curve_every:
                self._log(on_progress)
            if due:
                self.workspace.advance()
            if due == 2 and self.step < end:
                self._save(self._phase)

    @property
    def _short_branch(self) -> bool:
        """Whether the run is on a branch that may end before the weights are averaged as usual."""
        index = self.branch
        return (
            index is not None
            and self.schedule.ends[index] - self.schedule.branches[index] < WeightAverage.EVERY
        )

    @property
    def _phase(self) -> str:
        return "trunk" if self.branch is None else f"branch-{self.branch}"

    @property
    def _tokens_per_second(self) -> float:
        return self.steps_done * self.spec.tokens_per_step / max(self.train_seconds, 1e-9)

    def _log(self, on_progress: Callable[[Progress], None]) -> None:
        """Wait for the device, and note and report the losses since the last log point."""
        began = time.perf_counter()
        losses = self.settle()
        self.train_seconds += time.perf_counter() - began
        self.pending += losses
        if len(self.pending) >= self.curve_every:
            lr, value_lr = self.schedule.rates(self.step - 1, self.branch)
            self.outcome.curve.append(
                {
                    "phase": self._phase,
                    "tokens": self.step * self.spec.tokens_per_step,
                    "loss": sum(self.pending) / len(self.pending),
                    "lr": lr,
                    "value_lr": value_lr,
                    "train_seconds": self.train_seconds,
                }
            )
            self.pending.clear()
        for ago, loss in zip(reversed(range(len(losses))), losses, strict=True):
            on_progress(
                Progress(
                    phase=self._phase,
                    steps_done=self.steps_done - ago,
                    total_steps=self.spec.steps_of(self.n_budgets),
                    tokens=(self.step - ago) * self.spec.tokens_per_step,
                    loss=loss,
                    tokens_per_second=self._tokens_per_second,
                )
            )

    # -- records ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        self.average.swap(self.model)
        self.model.refresh()
        try:
            yield
        finally:
            self.average.swap(self.model)
            self.model.refresh()

    @property
    def _evaluated_at_once(self) -> int:
        """Windows that all processes together take through the model; their logits are what counts."""
        batch, micro, size = self.spec.train.batch_size, self.spec.train.micro_batch_size, self.world.size
        logits = 4 * self.spec.data.seq_len * self.spec.model.vocab_size
        return min(batch, size * (micro or batch), size * max(1, EVALUATED_BYTES // logits))

    def _evaluate(self) -> Evaluation:
        batch = self._evaluated_at_once
        return evaluate(self.model, self.validation, batch, self.precision(), self.workspace.beat, self.world)

    def _score_probes(self) -> list[Row]:
        """Return how the raw weights do on the probes; nothing without any."""
        if self.mixture is None or self.probes is None:
            return []
        batch, windows = self._evaluated_at_once, self.probes.windows
        nats, right = evaluate_targets(
            self.model, windows, batch, self.precision(), self.workspace.beat, self.world
        )
        n_params = cost(self.spec.model, self.spec.data.seq_len).total_params
        return score(self.probes, nats, right, self.mixture, self.step * self.spec.train.batch_size, n_params)

    def _measure_own(self) -> list[Row]:
        """Return what evaluations of users' packages say of the raw weights; nothing without any."""
        if not self.spec.data.evaluations:
            return []
        return measure(
            Measured(
                model=self.model,
                spec=self.spec,
                corpus=self.corpus,
                validation=self.validation,
                tokens=self.step * self.spec.tokens_per_step,
                precision=self.precision,
            )
        )

    def _record(self, index: int, stage: str) -> None:
        """Evaluate raw and averaged weights and append the record of (budget, stage)."""
        began = time.perf_counter()
        start_counting(self.model)
        raw = self._evaluate()
        usage = stop_counting(self.model, USAGE_BATCHES, self.world)
        probes, evaluations = self._score_probes(), self._measure_own()
        with self._averaged():
            averaged = self._evaluate()
        self.eval_seconds += time.perf_counter() - began
        budget = self.spec.train.budgets[index]
        key = {"budget": budget, "stage": stage}
        kept = [r for r in self.outcome.records if (r["budget"], r["stage"]) != (budget, stage)]
        self.outcome.records = [
            *kept,
            {
                **key,
                "tokens": self.step * self.spec.tokens_per_step,
                "step": self.step,
                "loss": raw.loss,
                "loss_ema": averaged.loss,
                "bits_per_byte": raw.bits_per_byte,
                "bits_per_byte_ema": averaged.bits_per_byte,
                "loss_by_position": raw.by_position,
                "floor_nats": self.floor_nats,
                "value_use": usage.distinct if usage else None,
                "value_entropy": usage.entropy if usage else None,
                **{f"access_bytes_b{b}": usage.access_bytes[b] if usage else None for b in USAGE_BATCHES},
                "train_seconds": self.train_seconds,
                "eval_seconds": self.eval_seconds,
                "tokens_per_second": self._tokens_per_second,
                "peak_memory_bytes": self.world.largest(peak_memory_bytes(self.device)),
                "input_seconds": self.input_seconds,
                "step_seconds": self.train_seconds - self.input_seconds,
                "checkpoint_seconds": self.checkpoint_seconds,
                **self._utilisation(),
            },
        ]
        documents = [d for d in self.outcome.documents if (d["budget"], d["stage"]) != (budget, stage)]
        for i, name in enumerate(self.validation.ids):
            documents.append(
                {
                    **key,
                    "document": name,
                    "n_tokens": int(self.validation.n_tokens[i]),
                    "n_bytes": int(self.validation.n_bytes[i]),
                    "nats": float(raw.nats[i]),
                    "nats_ema": float(averaged.nats[i]),
                }
            )
        self.outcome.documents = documents
        kept = [p for p in self.outcome.probes if (p["budget"], p["stage"]) != (budget, stage)]
        self.outcome.probes = [*kept, *({**key, **row} for row in probes)]
        kept = [e for e in self.outcome.evaluations if (e["budget"], e["stage"]) != (budget, stage)]
        self.outcome.evaluations = [*kept, *({**key, **row} for row in evaluations)]
        if self.spec.keeps(budget, stage):
            keep_record(
                self.workspace, self.spec, self.corpus, self.model, self.average, self.outcome.records[-1]
            )

    def _utilisation(self) -> Row:
        """Return which share of what the processes' devices can do the model's own arithmetic is."""
        rate, source = peak_flops(self.device, self.spec.train.precision, torch.get_num_threads())
        flops = 3 * cost(self.spec.model, self.spec.data.seq_len).flops_per_token
        share = flops * self._tokens_per_second / (self.world.size * rate)
        return {
            "mfu": share,
            "peak_flops": self.world.size * rate,
            "mfu_convention": f"3 x forward FLOPs a token, mean causal context, nothing recomputed; of {source}",
        }

    def _finished_budgets(self) -> int:
        """Budgets whose annealed record exists."""
        return sum(record["stage"] == "annealed" for record in self.outcome.records)

    # -- checkpoints --------------------------------------------------------------------------------------

    def _save(self, phase: str) -> None:
        state = {
            "run_id": self.spec.run_id,
            "step": self.step,
            "branch": self.branch,
            "steps_done": self.steps_done,
            "train_seconds": self.train_seconds,
            "eval_seconds": self.eval_seconds,
            "input_seconds": self.input_seconds,
            "checkpoint_seconds": self.checkpoint_seconds,
            "above_chance": self.above_chance,
            "pending": self.pending,
            "records": self.outcome.records,
            "documents": self.outcome.documents,
            "curve": self.outcome.curve,
            "probes": self.outcome.probes,
            "evaluations": self.outcome.evaluations,
            "kernels": self.outcome.kernels,
        }
        began = time.perf_counter()
        gpu = self.device.type == "cuda"  # on a CPU the copy would cost what writing does
        self.workspace.save(phase, self.model, self.optimizer, self.average, state, in_background=gpu)
        self.checkpoint_seconds += time.perf_counter() - began
        self.checkpointed = time.monotonic()

    def _load(self, phase: str) -> dict[str, Any] | None:
        state = self.workspace.load(phase, self.model, self.optimizer, self.average)
        if self.host_tables is not None:
            self.host_tables.forget()
        if state is None or state.get("run_id") != self.spec.run_id:
            return None
        self.step, self.branch = state["step"], state["branch"]
        self.above_chance = state["above_chance"]
        return state

    def _restore(self) -> int | None:
        """Continue from the newest usable checkpoint; return the branch it is on, if any."""
        for phase in [*(f"branch-{i}" for i in reversed(range(len(self.schedule.ends)))), "trunk"]:
            if not self.workspace.exists(phase):
                continue
            state = self._load(phase)
            if state is None:  # damaged, perhaps half applied: start from what is intact
                self._begin()
                continue
            self.steps_done = state["steps_done"]
            self.train_seconds, self.eval_seconds = state["train_seconds"], state["eval_seconds"]
            self.input_seconds = state.get("input_seconds", 0.0)  # a checkpoint of version 0.2 has neither
            self.checkpoint_seconds = state.get("checkpoint_seconds", 0.0)
            self.pending = state["pending"]
            self.outcome.records = state["records"]
            self.outcome.documents = state["documents"]
            self.outcome.curve = state["curve"]
            self.outcome.probes = state.get("probes", [])  # a checkpoint of version 0.2 has none
            self.outcome.evaluations = state.get("evaluations", [])
            self.outcome.kernels = [*state.get("kernels", []), *self.outcome.kernels]
            return self.branch
        return None

    def _return_to_trunk(self, start: int) -> bool:
        """Take weights back to the branch point at step ``start``, keeping what was measured since.

        False when the checkpoint made there is damaged, gone, or another's: a worker that lost this run and did
        not know yet may have written one of an earlier step.
        """
        finished = self._phase
        if self._load("trunk") is None or self.branch is not None or self.step != start:
            return False
        self.pending.clear()
        self._save("trunk")
        self.workspace.delete(finished)
        return True
