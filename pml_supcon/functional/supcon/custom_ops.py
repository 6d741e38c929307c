"""The operators of ``tiled`` and ``triton``: an autograd function in eager mode, custom ops under ``torch.compile``.

A custom op is opaque to ``torch.compile`` and ``torch.export``, but its first call imports PyTorch's compiler: one
second and 150 MB. So eager mode calls the same code through an autograd function.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from pml_supcon._tensors import traced
from pml_supcon.functional.supcon.execution import full_precision
from pml_supcon.targets import Target

Losses = tuple[Tensor, Tensor, Tensor]  # losses, validity, statistics
Gradients = tuple[Tensor, Tensor]  # of anchors and of rows
Result = TypeVar("Result")


def define_operator(
    backend: str,
    losses: Callable[..., Losses],
    gradient: Callable[..., Gradients],
    *,
    arguments: str,
    num_tensors: int,
    num_statistics: int,
    kind: str = "",
    mean: bool = False,
) -> Callable[..., Losses]:
    """Return ``losses`` as a function with the derivative ``gradient``, in eager mode and under the compiler.

    - ``losses(anchors, rows, *tensors, *options)`` returns the losses ``(A,)``, their validity ``(A,)`` and the
      statistics ``(num_statistics, A)`` of the anchors; ``rows`` is None if the anchors are the rows.
    - ``gradient(upstream, statistics, for_anchors, for_rows, anchors, rows, *tensors, *options)`` returns the gradients
      of anchors and rows, contiguous, each empty if it is not requested.

    With ``mean`` the first two results of ``losses`` are ``()``: the mean over the valid anchors, and their number, at
    least 1. ``upstream`` is then ``()`` too, the upstream gradient of each valid anchor.

    Both run in full precision. ``arguments`` are the arguments of ``losses`` as a schema of PyTorch; the first
    ``num_tensors`` of them are tensors or None. Under the compiler a ``Target`` is given by its handle. The operators
    are named ``pml_supcon::{backend}_{kind}losses`` and ``pml_supcon::{backend}_{kind}gradient``, with ``mean``
    ``pml_supcon::{backend}_mean`` and ``pml_supcon::{backend}_mean_gradient``. A second derivative raises a
    RuntimeError with the name of the backend.
    """
    losses_name, gradient_name = (
        (f"{backend}_mean", f"{backend}_mean_gradient")
        if mean
        else (f"{backend}_{kind}losses", f"{backend}_{kind}gradient")
    )
    losses, gradient = in_full_precision(losses), in_full_precision(gradient)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Losses) -> None:
        _, valid, statistics = output  # with `mean` the number of valid anchors
        ctx.mark_non_differentiable(valid, statistics)
        ctx.save_for_backward(valid, statistics, *inputs[:num_tensors])
        ctx.options = inputs[num_tensors:]

    def backward(gradient: Callable[..., Gradients], ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # the same arguments as forward, in the same order, after the upstream gradient (A,) and the statistics
        valid, statistics, *tensors = ctx.saved_tensors
        for_anchors, for_rows = ctx.needs_input_grad[:2]
        # an invalid anchor has no loss, so no gradient; in the mean the valid ones share it
        upstream = upstream / valid if mean else torch.where(valid, upstream, 0)
        grads = gradient(upstream, statistics, for_anchors, for_rows, *tensors, *ctx.options)
        # labels, ids, ranks and options have no gradient
        others = [None] * (len(tensors) + len(ctx.options) - 2)
        return grads[0] if for_anchors else None, grads[1] if for_rows else None, *others

    def refuse_second(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            f"The {backend} backend is differentiable once; a second derivative needs backend='reference'"
        )

    # 1. Eager mode: two autograd functions, the second so that its own derivative raises.
    class LossesFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Losses:
            output = losses(*inputs)
            ctx.set_materialize_grads(False)  # no zeros for the outputs that have no gradient
            save(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, upstream: Tensor | None, *_: Tensor) -> Any:
            if upstream is None:
                return (None,) * len(ctx.needs_input_grad)
            return backward(GradientFunction.apply, ctx, upstream)

    class GradientFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, upstream: Tensor, *inputs: Any) -> Gradients:
            return gradient(upstream, *inputs)

        backward = staticmethod(refuse_second)

    # 2. Under the compiler: two custom ops, with the shapes and dtypes of their outputs.
    def fake_losses(anchors: Tensor, *_: Any) -> Losses:
        number = anchors.shape[0]  # not `len`, which makes a symbolic size a number
        dtype = torch.promote_types(anchors.dtype, torch.float32)
        statistics = anchors.new_empty(num_statistics, number, dtype=dtype)
        if mean:
            return statistics.new_empty(()), statistics.new_empty(()), statistics
        return statistics.new_empty(number), statistics.new_empty(number, dtype=torch.bool), statistics

    def fake_gradient(
        upstream: Tensor, statistics: Tensor, for_anchors: bool, for_rows: bool, anchors: Tensor, rows: Any, *_: Any
    ) -> Gradients:
        of_rows = rows.new_empty(rows.shape) if rows is not None and for_rows else anchors.new_empty(0)
        return anchors.new_empty(anchors.shape) if for_anchors else anchors.new_empty(0), of_rows

    losses_op = torch.library.custom_op(
        f"pml_supcon::{losses_name}", losses, mutates_args=(), schema=f"({arguments}) -> (Tensor, Tensor, Tensor)"
    )
    gradient_op = torch.library.custom_op(
        f"pml_supcon::{gradient_name}",
        gradient,
        mutates_args=(),
        schema=f"(Tensor upstream, Tensor statistics, bool for_anchors, bool for_rows,{arguments}) -> (Tensor, Tensor)",
    )
    losses_op.register_fake(fake_losses)
    gradient_op.register_fake(fake_gradient)
    losses_op.register_autograd(lambda ctx, upstream, *_: backward(gradient_op, ctx, upstream), setup_context=save)
    gradient_op.register_autograd(refuse_second)
    for device in ("cpu", "cuda"):  # autocast is off inside; float64 stays
        losses_op.register_autocast(device, torch.float32)
        gradient_op.register_autocast(device, torch.float32)

    def operator(anchors: Tensor, *others: Any) -> Losses:
        output: Losses
        if not traced(anchors):
            output = LossesFunction.apply(anchors, *others)
            return output
        output = losses_op(anchors, *(each.handle if isinstance(each, Target) else each for each in others))
        return output

    return operator


def in_full_precision(function: Callable[..., Result]) -> Callable[..., Result]:
    """Return a function of tensors that runs in ``full_precision`` on the device of the first."""

    def run(first: Tensor, *others: Any) -> Result:
        with full_precision(first.device):
            return function(first, *others)

    return run
