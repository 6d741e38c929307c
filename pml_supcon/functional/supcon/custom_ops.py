"""The backward pass, shared by the custom ops of ``tiled`` and ``triton``."""

from typing import Any

import torch
from torch import Tensor


def register_backward(losses: Any, gradient: Any, *, num_tensors: int, num_statistics: int, backend: str) -> None:
    """Register fake tensors and the backward pass of a pair of custom ops.

    - ``losses(anchors, rows, *tensors, *options)`` returns the losses ``(A,)``, their validity ``(A,)`` and the
      statistics ``(num_statistics, A)`` of the anchors; ``rows`` is None if the anchors are the rows.
    - ``gradient(upstream, statistics, for_anchors, for_rows, anchors, rows, *tensors, *options)`` returns the gradients
      of anchors and rows, each empty if it is not requested.

    The first ``num_tensors`` arguments of ``losses`` are tensors or None. A second derivative raises a RuntimeError
    with the name of the backend.
    """

    # shapes and dtypes of the outputs, for `torch.compile`
    def fake_losses(anchors: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        number = anchors.shape[0]  # not `len`, which makes a symbolic size a number
        valid = anchors.new_empty(number, dtype=torch.bool)
        return anchors.new_empty(number), valid, anchors.new_empty(num_statistics, number)

    def fake_gradient(
        upstream: Tensor, statistics: Tensor, for_anchors: bool, for_rows: bool, anchors: Tensor, rows: Any, *_: Any
    ) -> tuple[Tensor, Tensor]:
        grad_rows = torch.empty_like(rows) if rows is not None and for_rows else anchors.new_empty(0)
        return torch.empty_like(anchors) if for_anchors else anchors.new_empty(0), grad_rows

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, valid, statistics = output
        ctx.mark_non_differentiable(valid, statistics)
        ctx.save_for_backward(valid, statistics, *inputs[:num_tensors])
        ctx.options = inputs[num_tensors:]

    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        # the same arguments as forward, in the same order, after the upstream gradient (A,) and the statistics
        valid, statistics, *tensors = ctx.saved_tensors
        for_anchors, for_rows = ctx.needs_input_grad[:2]
        upstream = torch.where(valid, upstream, 0)  # an invalid anchor has no loss, so no gradient
        grads = gradient(upstream, statistics, for_anchors, for_rows, *tensors, *ctx.options)
        # labels, ids, ranks and options have no gradient
        others = [None] * (len(tensors) + len(ctx.options) - 2)
        return grads[0] if for_anchors else None, grads[1] if for_rows else None, *others

    def refuse_second(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise RuntimeError(
            f"The {backend} backend is differentiable once; a second derivative needs backend='reference'"
        )

    losses.register_fake(fake_losses)
    gradient.register_fake(fake_gradient)
    losses.register_autograd(backward, setup_context=save)
    gradient.register_autograd(refuse_second)
