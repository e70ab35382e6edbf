"""AdamW in groups: everything dense, the value tables with a schedule of their own, and token-addressed tables."""

from collections.abc import Callable, Collection, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from umscale.layers.split import is_split, own_part
from umscale.layers.tables import ValueTables
from umscale.model.scaling import learning_rates
from umscale.spec import RunSpec, TrainSpec
from umscale.training.own_optimizer import Together, make_own, taken
from umscale_kernels import table_adamw


def make_optimizer(
    model: nn.Module,
    train: TrainSpec,
    table_decay: float | None = None,
    rates: tuple[float, float] | None = None,
) -> torch.optim.Optimizer:
    """Return AdamW with a group of everything dense, of value tables and of token-addressed tables, those there are.

    The first two decay, as in the paper's recipe; the last follows the dense schedule times ``ngram_lr_factor``. What
    ``train.optimizer`` takes of everything dense has a group after these, see ``umscale.training.own_optimizer``.

    Args:
        table_decay: AdamW's coefficient for the tables (``umscale.model.scaling.table_decay``); None is
            ``train.weight_decay``.
        rates: peak rates of ``train.optimizer`` and of everything dense, ``umscale.model.scaling.optimizer_rates``;
            None takes both as ``train`` has them.
    """
    tables = {p for name, p in model.named_parameters() if name.startswith("tables.") or is_token_table(name)}
    own = taken(model, train.optimizer, tables)
    adamw = _make_adamw(model, train, table_decay, {*own})
    if not own:
        return adamw
    peak = train.optimizer.peak
    own_rate, dense_rate = rates or (peak[0] if peak else train.lr, train.lr)
    return Together(adamw, make_own(own, train.optimizer, own_rate), own_rate / dense_rate)


def _make_adamw(
    model: nn.Module, train: TrainSpec, table_decay: float | None, without: Collection[nn.Parameter]
) -> torch.optim.Optimizer:
    """Return AdamW of all parameters but those of ``without``.

    It is torch's fused AdamW unless ``train`` asks for more of the tables or their dense gradients arrive as rows, see
    ``TableAdamW``.
    """
    table_decay = train.weight_decay if table_decay is None else table_decay
    tables = [p for name, p in model.named_parameters() if name.startswith("tables.")]
    ngram = [p for name, p in model.named_parameters() if is_token_table(name)]
    apart = {*tables, *ngram}
    dense = [p for p in model.parameters() if p not in apart and p not in without]
    groups: list[dict[str, Any]] = [{"params": dense, "schedule": "dense", "factor": 1.0}]
    if tables:
        groups.append({"params": tables, "weight_decay": table_decay, "schedule": "tables", "factor": 1.0})
    if ngram:
        groups.append(
            {
                "params": ngram,
                "weight_decay": train.ngram_weight_decay,
                "schedule": "dense",
                "factor": train.ngram_lr_factor,
            }
        )
    betas = (train.beta1, train.beta2)
    dense_rows = train.table_gradient != "rows"
    on_host = train.table_device == "cpu" and ngram  # whose gradients are rows
    plain = dense_rows and not on_host and (train.table_second_moment, train.table_copy) == ("full", "none")
    pool = getattr(model, "tables", None)
    compact = isinstance(pool, ValueTables) and (
        pool.compact_gradients or getattr(model, "row_gradients", False)
    )
    if apart and (compact or not plain):
        return TableAdamW(
            groups,
            lr=train.lr,
            betas=betas,
            eps=train.eps,
            weight_decay=train.weight_decay,
            lazy=train.table_gradient == "rows",
            decay_unread=train.table_weight_decay != "coupled",
            row_second_moment=train.table_second_moment == "row",
            copies=pool.copies() if isinstance(pool, ValueTables) else {},
        )
    return torch.optim.AdamW(
        groups,
        lr=train.lr,
        betas=betas,
        eps=train.eps,
        weight_decay=train.weight_decay,
        fused=True,
    )


ROW_GRADIENT_BYTES = 2 * 2**30
"""Of the dense gradients of a process's tables, in fp32: above it they are held as rows, see ``gradient_by_rows``."""


def is_token_table(name: str) -> bool:
    """Whether the parameter of that name is a token-addressed table."""
    return name.startswith("ngram.") and name.endswith(".table.rows")


class TableAdamW(torch.optim.Optimizer):
    """Torch's fused AdamW for group 0, ``umscale_kernels.table_adamw`` for the others, whose parameters are tables.

    With ``lazy``, a table whose gradient is row-sparse is updated on those rows only (the moments of the others stand
    still); without, such a gradient stands for the dense one. With ``decay_unread`` a lazy table still decays as a
    whole: every ``DECAY_EVERY`` steps by what those steps add up to, because a pass over a large table would cost as
    much as the update of its rows; else the rows read decay alone. ``row_second_moment`` keeps one second moment per
    table row instead of one per parameter.
    """

    DECAY_EVERY = 4

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        lazy: bool,
        decay_unread: bool,
        row_second_moment: bool,
        copies: dict[nn.Parameter, Tensor],
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, defaults)
        self.lazy, self.decay_unread = lazy, decay_unread
        self.row_second_moment = row_second_moment
        self.copies = copies

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; closures are not supported."""
        dense, *tables = self.param_groups
        self._step_dense(dense)
        for group in tables:
            self._step_tables(group)

    def _step_dense(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        states = [self._state(p, row_second_moment=False) for p in parameters]
        m, v, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        beta1, beta2 = group["betas"]
        adamw(
            parameters, [p.grad for p in parameters], m, v, [], steps, fused=True, amsgrad=False, maximize=False,
            lr=group["lr"], beta1=beta1, beta2=beta2, eps=group["eps"], weight_decay=group["weight_decay"],
            found_inf=getattr(self, "found_inf", None),
        )  # fmt: skip

    def _step_tables(self, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self._state(p, self.row_second_moment)
            step = state["step"] = state["step"].cpu() + 1  # kept on the host, which reads it
            apart = self.lazy and self.decay_unread and p.grad.is_sparse
            if apart:
                self._decay_whole(p, state, int(step), group["lr"] * group["weight_decay"])
            table_adamw(
                p,
                distinct_rows(p.grad) if p.grad.is_sparse else p.grad,
                state["exp_avg"],
                state["exp_avg_sq"],
                int(step),
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                eps=group["eps"],
                weight_decay=0.0 if apart else group["weight_decay"],
                shadow=self.copies.get(p),
                lazy=self.lazy,
            )

    def _decay_whole(self, p: Tensor, state: dict[str, Tensor], step: int, share: float) -> None:
        """Count ``share`` into what ``p`` still has to lose, and take that off when it is due."""
        if "kept" not in state:  # of an entry, by the decay since it was last applied
            # In float64: in float32 1 - share is 1 where the share is below 6e-8, and nothing would ever decay.
            state["kept"] = torch.ones((), dtype=torch.float64)
        state["kept"] = state["kept"].cpu() * (1 - share)
        if step % self.DECAY_EVERY:
            return
        p.mul_(float(state["kept"]))
        state["kept"] = torch.ones((), dtype=torch.float64)
        if (copy := self.copies.get(p)) is not None:  # type: ignore[call-overload]
            copy.copy_(p)

    def _state(self, p: Tensor, row_second_moment: bool) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        if not state:
            state["step"] = torch.zeros((), device=p.device)
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = p.new_zeros(p.shape[0]) if row_second_moment else torch.zeros_like(p)
        return state


def gradient_by_rows(run: RunSpec, n_processes: int, shard_tables: bool) -> bool:
    """Return whether gradients of tables are held as the rows read: by choice, or as the dense ones are too large.

    They are when a process's exceed ``ROW_GRADIENT_BYTES`` and a batch reads less than half of the rows. The steps are
    those of dense gradients either way, up to rounding, unless ``table_gradient`` is ``rows``.
    """
    memory, layers = run.model.memory, len(run.model.memory_layers)
    if memory is None or run.train.table_gradient == "rows":
        return memory is not None
    n_rows = memory.n_tables(layers) * memory.n_values
    split = n_processes if shard_tables else 1
    read = run.tokens_per_step // n_processes * split * memory.heads * memory.top_m * layers
    return 4 * n_rows * memory.row_width // split > ROW_GRADIENT_BYTES and 2 * read < n_rows


def skip_unless_finite(optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
    """Let the next step of ``optimizer`` change no dense parameter if ``norm``, on its device, is not finite.

    The host learns of it later; until then nothing is computed from broken weights (a singular value decomposition
    would fail). It is how ``torch.amp.GradScaler`` tells fused optimisers.
    """
    optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]


def distinct_rows(grad: Tensor) -> Tensor:
    """Return the row-sparse ``grad`` coalesced: duplicate rows summed, ascending.

    Autograd loses that mark on the way to ``.grad``, and ``coalesce`` would sort and copy what is in order already.
    Waits for the device, as coalescing does: the number of rows is known there.
    """
    if grad.is_coalesced():
        return grad
    rows = grad._indices()[0]
    if not bool((rows[1:] > rows[:-1]).all()):
        return grad.coalesce()
    return torch.sparse_coo_tensor(
        grad._indices(), grad._values(), grad.shape, is_coalesced=True, check_invariants=False
    )


def clip_gradients(
    parameters: Iterable[nn.Parameter],
    max_norm: float,
    shards: Collection[nn.Parameter] = (),
    sum_over_shards: Callable[[Tensor], Tensor] = lambda square: square,
) -> Tensor:
    """Scale all gradients so that their common norm is at most ``max_norm``; return the norm before.

    ``shards`` are those of ``parameters`` of which this process holds a part, as do tensors that are split;
    ``sum_over_shards`` adds up a scalar over the processes that hold the others.

    Row-sparse gradients count as the dense ones they stand for, and are coalesced in passing. Equals
    ``torch.nn.utils.clip_grad_norm_``, which takes over when all are dense.
    """
    parameters = list(parameters)
    for p in parameters:
        if p.grad is not None and p.grad.is_sparse:
            p.grad = distinct_rows(p.grad)
    grads = [p.grad for p in parameters if p.grad is not None]
    shards = [*shards, *cast("list[nn.Parameter]", [p for p in parameters if is_split(p)])]
    if not shards and not any(grad.is_sparse for grad in grads):
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    values = _values(parameters)
    if shards:
        split = set(shards)
        mine = torch.nn.utils.get_total_norm(_values(shards))
        whole = torch.nn.utils.get_total_norm(_values(p for p in parameters if p not in split))
        norm = (whole.square() + sum_over_shards(mine.square())).sqrt()
    else:
        norm = torch.nn.utils.get_total_norm(values)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for device in {value.device for value in values}:  # tables may be in host memory
        torch._foreach_mul_([value for value in values if value.device == device], factor.to(device))
    return norm


def _values(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Return the gradients that there are, of row-sparse ones the rows."""
    grads = [p.grad for p in parameters if p.grad is not None]
    return [grad.values() if grad.is_sparse else own_part(grad) for grad in grads]


class Schedule:
    """Learning rates and milestones in steps: warm-up, stable trunk, and one decaying branch per budget."""

    def __init__(self, spec: RunSpec) -> None:
        train, per_step = spec.train, spec.tokens_per_step
        self.train = train
        self.lr, self.value_lr = learning_rates(spec)
        self.warmup = round(train.warmup_tokens / per_step)
        self.ends = spec.budget_steps
        """Last step (exclusive) of each budget's branch."""
        self.branches = spec.branch_steps
        """First step of each budget's decay; the trunk runs to the last of them."""

    def rates(self, step: int, branch: int | None) -> tuple[float, float]:
        """Return (dense, value) learning rates of ``step``, on the trunk or on a budget's branch."""
        train = self.train
        factor = min(1.0, (step + 1) / (self.warmup + 1))
        if branch is not None:
            start, end = self.branches[branch], self.ends[branch]
            factor *= (end - step) / (end - start + 1)
        if train.value_lr_final is not None:
            progress = min(1.0, step / (train.value_lr_fraction * self.ends[-1]))
            factors = 1 + (train.value_lr_final / train.value_lr - 1) * progress
            return self.lr * factor, self.value_lr * factors * factor
        return self.lr * factor, self.value_lr * factor


def set_rates(optimizer: torch.optim.Optimizer, rates: tuple[float, float]) -> None:
    """Set the learning rates of all groups from those of everything dense and of value tables."""
    by_schedule = dict(zip(("dense", "tables"), rates, strict=True))
    for group in optimizer.param_groups:
        group["lr"] = by_schedule[group["schedule"]] * group["factor"]


class WeightAverage:
    """A power-function average of the weights: its profile keeps a fixed width relative to training length.

    An update at step t, the first since step s, uses decay ``(s / t)^(gamma + 1)``, so that no time constant has to be
    tuned to a budget (arXiv 2312.02696, section 3.1); ``width`` is the profile's standard deviation relative to t.
    """

    EVERY = 4
    """Steps between updates: the average moves slowly, so most updates would be wasted memory traffic. A branch of
    fewer steps is averaged at each of them, or its record would hold the trunk's average."""

    def __init__(self, model: nn.Module, width: float) -> None:
        self.gamma = _gamma(width)
        self.steps = 0
        """Of the run, up to the last update."""
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take the model's weights after ``step`` steps into the average."""
        weight = 1 - (1 - (step - self.steps) / step) ** (self.gamma + 1)
        self.steps = step
        parameters = dict(model.named_parameters())
        average = [own_part(tensor) for tensor in self.average.values()]
        torch._foreach_lerp_(average, [own_part(parameters[name]) for name in self.average], weight)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights and the average, in place; a second call undoes the first."""
        for name, parameter in model.named_parameters():
            if is_split(parameter):  # FSDP gathers from the memory it knows
                weights, average = own_part(parameter), own_part(self.average[name])
                kept = weights.clone()
                weights.copy_(average)
                average.copy_(kept)
            else:
                parameter.data, self.average[name] = self.average[name], parameter.data


def _gamma(width: float) -> float:
    """Solve ``width = (gamma+1)^(1/2) / ((gamma+2) (gamma+3)^(1/2))`` for gamma by bisection."""
    low, high = 0.0, 1e5
    for _ in range(200):
        middle = (low + high) / 2
        value = (middle + 1) ** 0.5 / ((middle + 2) * (middle + 3) ** 0.5)
        low, high = (middle, high) if value > width else (low, middle)
    return low


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as named tensors: ``<parameter>/<state>``; empty before the first step."""
    out = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            out[f"{name}/{key}"] = value
    return out


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Restore what ``optimizer_tensors`` returned."""
    optimizer.state.clear()
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, state = key.rpartition("/")
        parameter = parameters[name]
        optimizer.state[parameter][state] = value.to(parameter.device)
