"""Full precision under autocast: sums and products of the losses stay in the dtype of their rows."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast off, where the device knows of it."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def products(anchors: Tensor, rows: Tensor) -> Tensor:
    """`anchors @ rows.T`, differentiable any number of times, also where a backward pass runs under autocast."""
    if torch.compiler.is_compiling():  # the compiler makes the backward pass itself, and reads no `jvp`
        return anchors @ rows.T
    dots: Tensor = _Products.apply(anchors, rows)
    return dots


class _Products(torch.autograd.Function):
    """PyTorch's own product takes the mode of autocast in which its backward pass happens to run."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        with full_precision(a.device):
            return a @ b.T

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        of_a = products(upstream, b.T) if ctx.needs_input_grad[0] else None
        return of_a, products(upstream.T, a.T) if ctx.needs_input_grad[1] else None

    @staticmethod
    def jvp(ctx: Any, tangent_a: Tensor | None, tangent_b: Tensor | None) -> Tensor:
        a, b = ctx.saved_tensors
        parts = []
        if tangent_a is not None:
            parts.append(products(tangent_a, b))
        if tangent_b is not None:
            parts.append(products(a, tangent_b))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]
