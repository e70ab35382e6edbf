"""C++ kernels as operations that both eager PyTorch and `torch.compile` can run."""

from collections.abc import Callable
from typing import Any

import torch

Outputs = torch.Tensor | tuple[torch.Tensor, ...]


def operation(name: str, fake: Callable[..., Outputs]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: run the function itself, or under `torch.compile` the custom operator `umscale::name` made of it.

    A custom operator costs tens of microseconds a call, as much as a small kernel takes, and only the compiler needs
    one. `fake` returns empty outputs of the right shapes and dtypes. Gradients are the caller's business
    (`torch.autograd.Function`).
    """

    def decorate(run: Callable[..., Any]) -> Callable[..., Any]:
        op = torch.library.custom_op(f"umscale::{name}", run, mutates_args=())
        op.register_fake(fake)

        def call(*arguments: Any) -> Any:
            return op(*arguments) if torch.compiler.is_compiling() else run(*arguments)

        return call

    return decorate
