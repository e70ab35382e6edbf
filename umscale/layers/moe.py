"""Mixture of SwiGLU experts (arXiv 2101.03961, 2409.02060): softmax router, top_k, dropless.

p_t = softmax(Wr x_t)        y_t = sum over the chosen e of p_te out_e(silu(gate_e(x_t)) * up_e(x_t)) + shared(x_t)
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from umscale.layers.ffn import SwiGlu
from umscale.layers.precision import full_precision
from umscale.spec import FfnSpec
from umscale_kernels import expert_ffn


class Moe(nn.Module):
    """``[..., h] -> [..., h]``; every token passes its ``top_k`` routed experts and the shared ones.

    Parameters: ``router.weight [E, h]``; ``gate_up [E, 2 d_ffn, h]``, gate above up, and ``out [E, h, d_ffn]``, each
    expert's matrices as ``nn.Linear`` stores them; ``shared``, the shared experts as one SwiGLU of their joint width.

    ``usage`` may be set to an int64 tensor ``[E]``, which then counts the assignments, and ``replica_mean`` to the
    mean of a statistic over processes that share a batch. After a forward pass in training
    ``auxiliary`` holds the weighted auxiliary losses if there are any, else None.
    """

    def __init__(self, d_model: int, ffn: FfnSpec) -> None:
        super().__init__()
        self.spec = ffn
        self.router = nn.Linear(d_model, ffn.n_experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(ffn.n_experts, 2 * ffn.d_ffn, d_model))
        self.out = nn.Parameter(torch.empty(ffn.n_experts, d_model, ffn.d_ffn))
        self.shared = SwiGlu(d_model, ffn.n_shared_experts * ffn.d_ffn) if ffn.n_shared_experts else None
        self.usage: Tensor | None = None
        self.replica_mean: Callable[[Tensor], Tensor] = lambda share: share
        self.auxiliary: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])  # [T, h]
        with torch.autocast(x.device.type, enabled=False):  # routing is discrete: keep it in full precision
            logits = self.router(flat.to(self.router.weight.dtype))  # [T, E]
            probabilities = full_precision(logits).softmax(-1)
            experts = _largest(probabilities, self.spec.top_k)  # [T, k]
            gates = probabilities.gather(1, experts)
            if self.spec.normalize_gates:
                gates = gates / gates.sum(-1, keepdim=True)
            self._account(logits, probabilities, experts)
        y = expert_ffn(flat, gates, experts, self.gate_up, self.out)
        if self.shared is not None:
            y = y + self.shared(flat)
        return y.view(x.shape)

    def _account(self, logits: Tensor, probabilities: Tensor, experts: Tensor) -> None:
        """Update ``usage`` and ``auxiliary``."""
        spec = self.spec
        balancing = self.training and spec.balance_loss > 0
        losses = []
        if balancing or self.usage is not None:
            flat = experts.reshape(-1)
            counts = flat.new_zeros(spec.n_experts).scatter_add_(0, flat, torch.ones_like(flat))
            if self.usage is not None:
                self.usage += counts
            if balancing:
                losses.append(
                    spec.balance_loss
                    * load_balance(self.replica_mean(counts.to(probabilities.dtype)), probabilities)
                )
        if self.training and spec.z_loss > 0:
            losses.append(spec.z_loss * router_z(logits))
        self.auxiliary = torch.stack(losses).sum() if losses else None


def load_balance(counts: Tensor, probabilities: Tensor) -> Tensor:
    """``E sum_e f_e P_e``, 1 when experts are used evenly: Switch Transformer (arXiv 2101.03961) eq. 4.

    ``f_e`` is expert e's share of all assignments, ``counts [E]`` over their sum ``T top_k``, and ``P_e`` the mean of
    ``probabilities [T, E]``. Switch has top_k = 1; for more this is the normalisation of MegaBlocks and OLMoE (arXiv
    2409.02060). Mixtral's code divides by ``T`` alone, so that its loss is top_k times larger.
    """
    share = counts.to(probabilities.dtype) / counts.sum()
    return counts.shape[0] * torch.dot(share, probabilities.mean(0))


def router_z(logits: Tensor) -> Tensor:
    """Mean over tokens of ``(log sum_e exp(logits_te))²``, of ``logits [T, E]``: ST-MoE (arXiv 2202.08906) eq. 5."""
    return logits.logsumexp(-1).square().mean()


def _largest(probabilities: Tensor, top_k: int) -> Tensor:
    """Experts of the ``top_k`` largest ``probabilities [T, E]``, descending, equal ones by index: int64 ``[T, top_k]``.

    ``torch.topk`` leaves open which of two equal values it takes. Here probability and index form one integer, as
    non-negative floats order like their bits; for the few rounds of a router that is also twice as fast on a CPU.
    """
    n_experts = probabilities.shape[1]
    bits = probabilities.detach().float().view(torch.int32).long()
    left = bits * n_experts + torch.arange(n_experts - 1, -1, -1, device=bits.device)
    chosen = []
    for _ in range(top_k):
        expert = n_experts - 1 - left.amax(1, keepdim=True) % n_experts
        left.scatter_(1, expert, -1)
        chosen.append(expert)
    return torch.cat(chosen, 1)
