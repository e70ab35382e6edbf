"""AdamW in two groups: everything dense, and the value tables with a schedule of their own."""

import torch
from torch import Tensor, nn

from umscale.spec import RunSpec, TrainSpec


def make_optimizer(model: nn.Module, train: TrainSpec) -> torch.optim.AdamW:
    """Return AdamW with group 0 dense and group 1 value tables; both decay (as in the paper's recipe)."""
    tables = [p for name, p in model.named_parameters() if name.startswith("tables.")]
    dense = [p for name, p in model.named_parameters() if not name.startswith("tables.")]
    return torch.optim.AdamW(
        [{"params": dense}] + ([{"params": tables}] if tables else []),
        lr=train.lr,
        betas=(train.beta1, train.beta2),
        eps=train.eps,
        weight_decay=train.weight_decay,
        fused=True,
    )


class Schedule:
    """Learning rates and milestones in steps: warm-up, stable trunk, and one decaying branch per budget."""

    def __init__(self, spec: RunSpec) -> None:
        train, per_step = spec.train, spec.tokens_per_step
        self.train = train
        self.warmup = round(train.warmup_tokens / per_step)
        self.ends = [max(2, round(budget / per_step)) for budget in train.budgets]
        """Last step (exclusive) of each budget's branch."""
        self.branches = [min(max(1, round(end * (1 - train.decay_fraction))), end - 1) for end in self.ends]
        """First step of each budget's decay; the trunk runs to the last of them."""

    @property
    def total_steps(self) -> int:
        """Steps of the trunk and of all its branches."""
        decays = sum(end - start for start, end in zip(self.branches, self.ends, strict=True))
        return self.branches[-1] + decays

    def rates(self, step: int, branch: int | None) -> tuple[float, float]:
        """Return (dense, value) learning rates of ``step``, on the trunk or on a budget's branch."""
        train = self.train
        factor = min(1.0, (step + 1) / (self.warmup + 1))
        if branch is not None:
            start, end = self.branches[branch], self.ends[branch]
            factor *= (end - step) / (end - start + 1)
        final = train.value_lr if train.value_lr_final is None else train.value_lr_final
        progress = min(1.0, step / (train.value_lr_fraction * self.ends[-1]))
        value = train.value_lr + (final - train.value_lr) * progress
        return train.lr * factor, value * factor


def set_rates(optimizer: torch.optim.Optimizer, rates: tuple[float, float]) -> None:
    """Set the learning rates of the dense group and (when present) the value tables."""
    for group, rate in zip(optimizer.param_groups, rates, strict=False):
        group["lr"] = rate


class WeightAverage:
    """A power-function average of the weights: its profile keeps a fixed width relative to training length.

    Update t uses decay ``(1 - 1/t)^(gamma + 1)``, so that no time constant has to be tuned to a budget
    (arXiv 2312.02696, section 3.1); ``width`` is the profile's standard deviation relative to t.
    """

    EVERY = 4
    """Steps between updates: the average moves slowly, so most updates would be wasted memory traffic."""

    def __init__(self, model: nn.Module, width: float) -> None:
        self.gamma = _gamma(width)
        self.updates = 0
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's current weights into the average."""
        self.updates += 1
        weight = 1 - (1 - 1 / self.updates) ** (self.gamma + 1)
        parameters = dict(model.named_parameters())
        average = list(self.average.values())
        torch._foreach_lerp_(average, [parameters[name] for name in self.average], weight)

    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights and the average, in place; a second call undoes the first."""
        for name, parameter in model.named_parameters():
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
