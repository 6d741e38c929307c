"""The weights ``W`` of the backward kernel: the gradient of the pairs of a tile, for both of their ends."""

import triton
import triton.language as tl

from pml_supcon.functional.supcon.triton.primitives import class_masks, log_sigmoid, rank_of, under_cap


@triton.jit
def load_anchors(
    weights_ptr: tl.tensor, index: tl.tensor, number: int, SHIFTED: tl.constexpr, MASKED: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Return both rows of ``prepare_kernel``'s weights of anchors; beyond the last, or if none are anchors, u is 0."""
    upstream = tl.zeros_like(index).to(tl.float32)
    weight = upstream
    if weights_ptr is not None:
        inside = index < number if MASKED else None
        other = 0.0 if MASKED else None
        weight = tl.load(weights_ptr + number + index, mask=inside, other=other)
        if SHIFTED:
            upstream = tl.load(weights_ptr + index, mask=inside, other=other)
    return upstream, weight


@triton.jit
def negative_weights(
    s: tl.tensor,
    x_upstream: tl.tensor,
    x_weight: tl.tensor,
    y_upstream: tl.tensor,
    y_weight: tl.tensor,
    X_ANCHORS: tl.constexpr,
    Y_ANCHORS: tl.constexpr,
    SHIFTED: tl.constexpr,
) -> tl.tensor:
    """Return W of a tile of negatives, ``u exp(s - push)`` for both ends; ``s`` and pushes are in base 2.

    Without ``SHIFTED`` both ends share an exponential, ``exp(s) (u_i exp(-push_i) + u_j exp(-push_j))``.
    """
    if not SHIFTED:
        if X_ANCHORS and Y_ANCHORS:
            weights = tl.exp2(s) * (x_weight[:, None] + y_weight[None, :])
        elif X_ANCHORS:
            weights = tl.exp2(s) * x_weight[:, None]
        else:
            weights = tl.exp2(s) * y_weight[None, :]
    else:
        weights = tl.zeros_like(s)
        if X_ANCHORS:
            weights += x_upstream[:, None] * tl.exp2(s - x_weight[:, None])
        if Y_ANCHORS:
            weights += y_upstream[None, :] * tl.exp2(s - y_weight[None, :])
    return weights


@triton.jit
def anchor_gradient(
    s: tl.tensor,
    same: tl.tensor,
    kept: tl.tensor,
    statistics_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    index: tl.tensor,
    number: int,
    SUMMATION: tl.constexpr,
    DENOMINATOR: tl.constexpr,
) -> tl.tensor:
    """Return ``u d l / d s`` of the pairs of a tile, for the anchors ``index``, which broadcasts against the tile."""
    # statistics of these anchors; beyond the last an upstream gradient of 0
    inside = index < number
    at = statistics_ptr + index
    upstream = tl.load(weights_ptr + index, mask=inside, other=0.0)
    log_neg = tl.load(at, mask=inside, other=0.0)
    push = tl.load(at + number, mask=inside, other=float("inf"))
    log_pos = tl.load(at + number * 2, mask=inside, other=0.0)
    positives = tl.load(at + number * 3, mask=inside, other=1.0)
    # minus the gradient of a positive. one_positive: (1 - q) / |P| (out), q (1 - q) / sum of q (in);
    # else X_ip = 1 / |P| (out) or the softmax over P (in), less P_ip = exp(s - push) for "all"
    if DENOMINATOR == "one_positive":
        margin = s - log_neg
        if SUMMATION == "out":
            pull = tl.sigmoid(-margin) / positives
        else:
            pull = tl.exp(log_sigmoid(margin) - log_pos) * tl.sigmoid(-margin)
    else:
        pull = tl.exp(s - log_pos) if SUMMATION == "in" else 1.0 / positives
        if DENOMINATOR == "all":
            pull -= tl.exp(s - push)
    # positives, pairs of equal labels that are none (0), negatives
    return upstream * tl.where(kept, -pull, tl.where(same, 0.0, tl.exp(s - push)))


@triton.jit
def class_weights(
    s: tl.tensor,
    start_ptr: tl.tensor,
    stop_ptr: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    x_ids: tl.tensor,
    y_ids_ptr: tl.tensor,
    x_statistics_ptr: tl.tensor,
    x_weights_ptr: tl.tensor,
    y_statistics_ptr: tl.tensor,
    y_weights_ptr: tl.tensor,
    rank_ptr: tl.tensor,
    limit_ptr: tl.tensor,
    num_x: int,
    num_y: int,
    first_id: int,
    first_limit: int,
    SUMMATION: tl.constexpr,
    DENOMINATOR: tl.constexpr,
    EXCLUDE_SELF: tl.constexpr,
) -> tl.tensor:
    """Return W of a tile that can hold equal labels, ``(BLOCK_M, BLOCK_N)``."""
    # masks of equal labels and of positives; columns beyond the last get weight 0
    same, mates, y_ids = class_masks(start_ptr, stop_ptr, rows, columns, x_ids, y_ids_ptr, num_x, num_y, EXCLUDE_SELF)
    row, column = rows[:, None], columns[None, :]
    s = tl.where(column < num_y, s, float("-inf"))
    # the cap depends on the anchor, so each end has its own mask of positives
    x_kept, y_kept = mates, mates
    if rank_ptr is not None:
        x_rank = rank_of(rank_ptr, x_ids, first_id, rows < num_x)[:, None]
        y_rank = rank_of(rank_ptr, y_ids, first_id, columns < num_y)[None, :]
        if x_statistics_ptr is not None:
            x_kept = mates & under_cap(rank_ptr, limit_ptr, x_ids[:, None], first_id, first_limit, row < num_x, y_rank)
        if y_statistics_ptr is not None:
            y_kept = mates & under_cap(
                rank_ptr, limit_ptr, y_ids[None, :], first_id, first_limit, column < num_y, x_rank
            )
    # W_ij = [x_i an anchor] u_i d l_i / d s_ij + [y_j an anchor] u_j d l_j / d s_ji
    weights = tl.zeros_like(s)
    if x_statistics_ptr is not None:
        weights += anchor_gradient(
            s, same, x_kept, x_statistics_ptr, x_weights_ptr, row, num_x, SUMMATION, DENOMINATOR
        )  # fmt: skip
    if y_statistics_ptr is not None:
        weights += anchor_gradient(
            s, same, y_kept, y_statistics_ptr, y_weights_ptr, column, num_y, SUMMATION, DENOMINATOR
        )  # fmt: skip
    return weights
