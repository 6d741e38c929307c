"""Full precision under autocast, and similarities that stay inside the exponent's range."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pml_supcon.functional.supcon.problem import Problem

#: Up to this `|s|` the values `exp(s)` and their sums stay well inside float32 and float64 without a shift.
SAFE_EXPONENT = {torch.float32: 60.0, torch.float64: 500.0}


def needs_shift(problem: Problem) -> bool:
    """Return True if ``exp(s)`` could leave the range of the dtype, so that sums need logarithms; True if unknown."""
    return not problem.bound <= SAFE_EXPONENT[problem.rows.dtype]


def scale_by_sqrt_temperature(rows: Tensor, temperature: float) -> Tensor:
    """Return rows ``(N, D)`` divided by ``sqrt(tau)``: products of two of them are similarities ``s_ij``."""
    scaled: Tensor = rows * temperature**-0.5
    return scaled


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context with autocast off, if the device supports autocast."""
    return torch.autocast(device.type, enabled=False) if _supports_autocast(device.type) else nullcontext()


def _supports_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


# Dynamo of PyTorch 2.7 cannot trace the function: let it call the function and treat the result as a constant
torch.compiler.assume_constant_result(_supports_autocast)


def products(anchors: Tensor, rows: Tensor) -> Tensor:
    """Return ``anchors @ rows.T`` in full precision, differentiable any number of times."""
    if torch.compiler.is_compiling():  # the compiler derives the backward pass itself, and supports no `jvp`
        return anchors @ rows.T
    dots: Tensor = _Products.apply(anchors, rows)
    return dots


class _Products(torch.autograd.Function):
    """The product ``a @ b.T`` whose backward also ignores autocast; PyTorch's would use the state at backward time."""

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
        # of y = a b^T: dL/da = U b and dL/db = U^T a, both products again without autocast
        a, b = ctx.saved_tensors
        of_a = products(upstream, b.T) if ctx.needs_input_grad[0] else None
        return of_a, products(upstream.T, a.T) if ctx.needs_input_grad[1] else None

    @staticmethod
    def jvp(ctx: Any, tangent_a: Tensor | None, tangent_b: Tensor | None) -> Tensor:
        # dy = da b^T + a db^T
        a, b = ctx.saved_tensors
        terms = ((tangent_a, b), (a, tangent_b))
        parts = [products(x, y) for x, y in terms if x is not None and y is not None]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]
