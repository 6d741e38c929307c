"""The forward kernels: sums over the negatives, then the losses and the statistics that the gradient needs."""

import triton
import triton.language as tl

from pml_supcon.functional.supcon.triton import blocks
from pml_supcon.functional.supcon.triton.blocks import tuned
from pml_supcon.functional.supcon.triton.primitives import (
    LOG2_E,
    add_exponentials,
    class_masks,
    class_tiles,
    dot_products,
    load_rows,
    log_add,
    log_sigmoid,
    log_sum,
    tile_outside,
    under_cap,
)


@tuned("BLOCK_K", blocks.NEGATIVES, blocks.NEGATIVES_FLOAT32)
@triton.jit(do_not_specialize=["num_x", "num_y"])
def negatives_kernel(
    statistics_ptr: tl.tensor,  # (4, num_x), of which this fills the first row
    x_ptr: tl.tensor,  # (num_x, WIDTH) anchors
    y_ptr: tl.tensor,  # (num_y, WIDTH) contrasted rows
    start_ptr: tl.tensor,  # (num_x,)
    stop_ptr: tl.tensor,  # (num_x,)
    num_x: int,
    num_y: int,
    inverse_temperature: float,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SHIFTED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Store ``log_neg = log sum exp(s)`` over the negatives of each anchor; minus infinity without negatives."""
    # this program's anchors, (BLOCK_M,); the running sum is 2^shift * total
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < num_x
    x = load_rows(x_ptr, rows, num_x, 0, WIDTH, BLOCK_K)
    scale = inverse_temperature * LOG2_E
    total = tl.zeros((BLOCK_M,), tl.float32)
    shift = total
    if SHIFTED:
        shift += float("-inf")
    first, last = class_tiles(start_ptr, stop_ptr, num_x, BLOCK_M, BLOCK_N)
    # 1. tiles without equal labels: every pair is a negative
    for t in range(0, tl.cdiv(num_y, BLOCK_N) - (last - first)):
        columns = tile_outside(t, first, last) * BLOCK_N + tl.arange(0, BLOCK_N)
        # s log2(e), (BLOCK_M, BLOCK_N), minus infinity beyond the last row of y
        s, _ = dot_products(x, x_ptr, rows, num_x, y_ptr, columns, num_y, WIDTH, BLOCK_K, PRECISION)
        s = tl.where((columns < num_y)[None, :], s * scale, float("-inf"))
        shift, total = add_exponentials(s, shift, total, SHIFTED)
    # 2. tiles that can hold equal labels: leave the anchor's class, columns start to stop, out of the sum
    start = tl.load(start_ptr + rows, mask=inside, other=0)[:, None]
    stop = tl.load(stop_ptr + rows, mask=inside, other=0)[:, None]
    for tile in range(first, last):
        columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        s, _ = dot_products(x, x_ptr, rows, num_x, y_ptr, columns, num_y, WIDTH, BLOCK_K, PRECISION)
        column = columns[None, :]
        negative = (column < start) | ((column >= stop) & (column < num_y))
        shift, total = add_exponentials(tl.where(negative, s * scale, float("-inf")), shift, total, SHIFTED)
    # 3. back to the natural logarithm
    tl.store(statistics_ptr + rows, log_sum(shift, total), mask=inside)


@tuned("BLOCK_K", blocks.POSITIVES, blocks.POSITIVES_FLOAT32)
@triton.jit(do_not_specialize=["num_x", "num_y"])
def positives_kernel(
    losses_ptr: tl.tensor,  # (num_x,) by id
    valid_ptr: tl.tensor,  # (num_x,) by id
    statistics_ptr: tl.tensor,  # (4, num_x): log_neg, which `negatives_kernel` has filled, push, log_pos and number
    x_ptr: tl.tensor,  # (num_x, WIDTH) anchors
    y_ptr: tl.tensor,  # (num_y, WIDTH) contrasted rows
    x_ids_ptr: tl.tensor,  # (num_x,) places in the caller's order
    y_ids_ptr: tl.tensor,  # (num_y,)
    start_ptr: tl.tensor,  # (num_x,)
    stop_ptr: tl.tensor,  # (num_x,)
    rank_ptr: tl.tensor,  # (num_y,) by id; `rank` and `limit` are None without a cap
    limit_ptr: tl.tensor,  # (num_x,) by id
    num_x: int,
    num_y: int,
    inverse_temperature: float,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SUMMATION: tl.constexpr,
    DENOMINATOR: tl.constexpr,
    EXCLUDE_SELF: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Store the losses of anchors x against rows y, from ``log_neg`` and sums over the positives P.

    The other statistics of an anchor are ``log_pos = log sum_P exp(t)``, the number of positives, and ``push``, which
    defines the gradient of a negative, ``d l / d s_n = exp(s_n - push)``. Here ``t = s``, or for "one_positive"
    ``t = log q`` with ``q = exp(s) / (exp(s) + exp(log_neg))``. There the gradients of all negatives sum to the
    mean over P of ``1 - q`` ("out"), or to ``sum q (1 - q) / sum q`` over P ("in"); ``log_share`` is the logarithm of
    ``sum (1 - q)``, or of ``sum q (1 - q)``.
    """
    # this program's anchors, (BLOCK_M,), and their running sums over P: number, linear, 2^shift * total, and the share
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < num_x
    x = load_rows(x_ptr, rows, num_x, 0, WIDTH, BLOCK_K)
    x_ids = tl.load(x_ids_ptr + rows, mask=inside, other=0)
    log_neg = tl.load(statistics_ptr + rows, mask=inside, other=0.0)
    number = tl.zeros((BLOCK_M,), tl.float32)
    linear = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    shift = total + float("-inf")
    share_total, share_shift = total, shift
    # 1. only tiles that can hold equal labels
    first, last = class_tiles(start_ptr, stop_ptr, num_x, BLOCK_M, BLOCK_N)
    for tile in range(first, last):
        columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        # t = s_ip, (BLOCK_M, BLOCK_N), and the mask of P: same label, another row, within the cap
        s, _ = dot_products(x, x_ptr, rows, num_x, y_ptr, columns, num_y, WIDTH, BLOCK_K, PRECISION)
        t = s * inverse_temperature
        _, kept, y_ids = class_masks(start_ptr, stop_ptr, rows, columns, x_ids, y_ids_ptr, num_x, num_y, EXCLUDE_SELF)
        if rank_ptr is not None:
            y_rank = tl.load(rank_ptr + y_ids, mask=columns < num_y, other=0)
            kept = kept & under_cap(rank_ptr, limit_ptr, x_ids[:, None], inside[:, None], y_rank[None, :])
        if DENOMINATOR == "one_positive":
            # t = log q = log sigmoid(s - log_neg); the share is 1 - q for "out", q (1 - q) for "in"
            margin = t - log_neg[:, None]
            t = log_sigmoid(margin)
            share = log_sigmoid(-margin) if SUMMATION == "out" else log_sigmoid(-margin) + t
            share = tl.where(kept, share * LOG2_E, float("-inf"))
            share_shift, share_total = add_exponentials(share, share_shift, share_total, True)
        # |P|, sum over P of t, and log sum over P of exp(t), the last in base 2
        number += tl.sum(kept.to(tl.float32), 1)
        linear += tl.sum(tl.where(kept, t, 0.0), 1)
        shift, total = add_exponentials(tl.where(kept, t * LOG2_E, float("-inf")), shift, total, True)

    log_pos, log_share = log_sum(shift, total), log_sum(share_shift, share_total)
    valid = number > 0
    number = tl.maximum(number, 1.0)
    # 2. equation 2, -1/|P| sum t + log D, or equation 3, log |P| - log sum exp(t) + log D; q has its own D inside t
    loss = -linear / number if SUMMATION == "out" else tl.log(number) - log_pos
    push = log_neg
    if DENOMINATOR == "all":
        push = log_add(log_neg, log_pos)
        loss += push
    elif DENOMINATOR == "negatives":
        valid = valid & (log_neg != float("-inf"))  # keep NaN, so that invalid input is visible in the loss
        loss += log_neg
    else:
        push += (tl.log(number) if SUMMATION == "out" else log_pos) - log_share
        push = tl.where(valid & (log_neg != float("-inf")), push, float("inf"))  # infinity minus infinity is NaN
    push = tl.where(push == float("-inf"), float("inf"), push)  # without negatives exp(s - push) is 0
    # 3. losses by id, in the caller's order; statistics in sorted order
    tl.store(losses_ptr + x_ids, tl.where(valid, loss, 0.0), mask=inside)
    tl.store(valid_ptr + x_ids, valid, mask=inside)
    tl.store(statistics_ptr + num_x + rows, push, mask=inside)
    tl.store(statistics_ptr + num_x * 2 + rows, log_pos, mask=inside)
    tl.store(statistics_ptr + num_x * 3 + rows, number, mask=inside)
