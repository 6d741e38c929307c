"""The forward kernels: sums over negatives and positives, then the losses and the statistics of the gradient."""

import triton
import triton.language as tl

from pml_supcon.functional.supcon.triton.primitives import (
    LN_2,
    LOG2_E,
    add_compensated,
    add_exponentials,
    class_masks,
    class_region,
    dot_products,
    first_column,
    load_parts,
    log_add,
    log_sigmoid,
    log_sum,
    merged,
    rank_of,
    summed,
    tiles_of_split,
    under_cap,
)


@triton.jit(do_not_specialize=["num_x", "num_y", "slot", "tuning_key"])
def negatives_kernel(
    sums_ptr: tl.tensor,  # (slots, 2, num_x): shift and total, the sum is 2^shift * total
    x_ptr: tl.tensor,  # (num_x, PARTS * WIDTH) anchors
    y_ptr: tl.tensor,  # (num_y, PARTS * WIDTH) contrasted rows
    start_ptr: tl.tensor,  # (num_x,)
    stop_ptr: tl.tensor,  # (num_x,)
    num_x: int,
    num_y: int,
    slot: int,  # of the first split
    exponent: float,  # factor from products to similarities in base 2; 1 with FOLDED
    tuning_key: int,  # not read: Triton tunes again if it changes
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    FOLDED: tl.constexpr,
    SHIFTED: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Store sums of ``exp(s)`` over the negatives of each anchor in a region: the class region, or all other tiles."""
    # this program's anchors, (BLOCK_M,), and its tiles; the running sum is 2^shift * total
    top = tl.program_id(0) * BLOCK_M
    rows = top + tl.arange(0, BLOCK_M)
    x, x_low = load_parts(x_ptr, top, num_x, 0, WIDTH, PARTS, BLOCK_M, BLOCK_K, True)
    total = tl.zeros((BLOCK_M,), tl.float32)
    lost = tl.zeros((BLOCK_M,), tl.float32)
    shift = tl.zeros((BLOCK_M,), tl.float32)
    if SHIFTED:
        shift += float("-inf")
    if CLASSES:
        start = tl.load(start_ptr + rows, mask=rows < num_x, other=0)[:, None]
        stop = tl.load(stop_ptr + rows, mask=rows < num_x, other=0)[:, None]
    first, last, full = class_region(start_ptr, stop_ptr, top, num_x, num_y, GROUP)
    begin, end = tiles_of_split(first, last, full, num_y, BLOCK_N, CLASSES)
    for tile in range(begin, end):
        # s log2(e), (BLOCK_M, BLOCK_N); in the class region minus infinity for the anchor's class and beyond the last y
        at = first_column(tile, first, last, full, BLOCK_N, CLASSES)
        s, _, _ = dot_products(
            x, x_low, x_ptr, top, num_x, y_ptr, at, num_y, COLUMNS, WIDTH, PARTS, BLOCK_K, BLOCK_M, BLOCK_N, CLASSES
        )
        if not FOLDED:
            s *= exponent
        if CLASSES:
            column = (at + tl.arange(0, BLOCK_N))[None, :]
            s = tl.where((column < start) | ((column >= stop) & (column < num_y)), s, float("-inf"))
        shift, total, lost = add_exponentials(s, shift, total, lost, SHIFTED)
    out = sums_ptr + tl.cast(slot + tl.program_id(1), tl.int64) * 2 * num_x + rows
    tl.store(out, shift, mask=rows < num_x)
    tl.store(out + num_x, total, mask=rows < num_x)


@triton.jit(do_not_specialize=["num_x", "num_y", "first_id", "first_limit", "slots", "slot"])
def positives_kernel(
    positives_ptr: tl.tensor,  # (splits, STRIDE, num_x): number, sum of t, shift and total of t, of the share
    sums_ptr: tl.tensor,  # (slots, 2, num_x) of `negatives_kernel`; this stores the slots of the class region
    x_ptr: tl.tensor,  # (num_x, PARTS * WIDTH) anchors
    y_ptr: tl.tensor,  # (num_y, PARTS * WIDTH) contrasted rows
    x_ids_ptr: tl.tensor,  # (num_x,) places in the caller's order
    y_ids_ptr: tl.tensor,  # (num_y,)
    start_ptr: tl.tensor,  # (num_x,)
    stop_ptr: tl.tensor,  # (num_x,)
    rank_ptr: tl.tensor,  # by row; `rank` and `limit` are None without a cap
    limit_ptr: tl.tensor,  # (num_x,) by id
    num_x: int,
    num_y: int,
    first_id: int,  # the row of id 0
    first_limit: int,  # the place in `limit` of id 0
    slots: int,
    slot: int,  # of the first split of the class region
    exponent: float,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    SHIFTED: tl.constexpr,
    SUMMATION: tl.constexpr,
    DENOMINATOR: tl.constexpr,
    EXCLUDE_SELF: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Store sums over the positives P of each anchor, from the class region.

    They are the number of positives, the sum of t, the sum of ``exp(t)``, and for "one_positive" the sum of the share.
    There ``t = s``, or for "one_positive" ``t = log q`` with ``q = exp(s) / (exp(s) + exp(log_neg))``, and the share is
    ``1 - q`` ("out") or ``q (1 - q)`` ("in"). Except for "one_positive", which needs ``log_neg`` first, the sums of
    ``exp(s)`` over the negatives of the class region are stored too.
    """
    # this program's anchors, (BLOCK_M,), and their running sums over P: number, linear, 2^shift * total, and the share,
    # or over the negatives
    top = tl.program_id(0) * BLOCK_M
    rows = top + tl.arange(0, BLOCK_M)
    inside = rows < num_x
    x, x_low = load_parts(x_ptr, top, num_x, 0, WIDTH, PARTS, BLOCK_M, BLOCK_K, True)
    x_ids = tl.load(x_ids_ptr + rows, mask=inside, other=0)
    number = tl.zeros((BLOCK_M,), tl.float32)
    linear = tl.zeros((BLOCK_M,), tl.float32)
    linear_lost = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    lost = tl.zeros((BLOCK_M,), tl.float32)
    other_total = tl.zeros((BLOCK_M,), tl.float32)
    other_lost = tl.zeros((BLOCK_M,), tl.float32)
    shift = tl.zeros((BLOCK_M,), tl.float32)
    if SHIFTED or DENOMINATOR == "one_positive":
        shift += float("-inf")
    other_shift = shift
    if DENOMINATOR == "one_positive":
        neg_shift, neg_total = merged(sums_ptr, rows, num_x, slots, 2)
        log_neg = log_sum(neg_shift, neg_total)
    first, last, full = class_region(start_ptr, stop_ptr, top, num_x, num_y, GROUP)
    begin, end = tiles_of_split(first, last, full, num_y, BLOCK_N, True)
    for tile in range(begin, end):
        # t = s_ip, (BLOCK_M, BLOCK_N), and the mask of P: same label, another row, within the cap
        at = first_column(tile, first, last, full, BLOCK_N, True)
        columns = at + tl.arange(0, BLOCK_N)
        s, _, _ = dot_products(
            x, x_low, x_ptr, top, num_x, y_ptr, at, num_y, COLUMNS, WIDTH, PARTS, BLOCK_K, BLOCK_M, BLOCK_N, True
        )
        t = s * (exponent * LN_2)
        same, kept, y_ids = class_masks(
            start_ptr, stop_ptr, rows, columns, x_ids, y_ids_ptr, num_x, num_y, EXCLUDE_SELF
        )
        if rank_ptr is not None:
            y_rank = rank_of(rank_ptr, y_ids, first_id, columns < num_y)
            kept = kept & under_cap(
                rank_ptr, limit_ptr, x_ids[:, None], first_id, first_limit, inside[:, None], y_rank[None, :]
            )
        if DENOMINATOR == "one_positive":
            # t = log q = log sigmoid(s - log_neg); the share is 1 - q for "out", q (1 - q) for "in"
            margin = t - log_neg[:, None]
            t = log_sigmoid(margin)
            share = log_sigmoid(-margin) if SUMMATION == "out" else log_sigmoid(-margin) + t
            share = tl.where(kept, share * LOG2_E, float("-inf"))
            other_shift, other_total, other_lost = add_exponentials(share, other_shift, other_total, other_lost, True)
        else:
            negative = tl.where(same | (columns >= num_y)[None, :], float("-inf"), s * exponent)
            other_shift, other_total, other_lost = add_exponentials(
                negative, other_shift, other_total, other_lost, SHIFTED
            )
        # |P|, sum over P of t, and log sum over P of exp(t), the last in base 2
        number += tl.sum(kept.to(tl.float32), 1)
        linear, linear_lost = add_compensated(tl.sum(tl.where(kept, t, 0.0), 1), linear, linear_lost)
        exponents = tl.where(kept, t * LOG2_E, float("-inf"))
        shift, total, lost = add_exponentials(exponents, shift, total, lost, SHIFTED or DENOMINATOR == "one_positive")
    out = positives_ptr + tl.program_id(1).to(tl.int64) * STRIDE * num_x + rows
    tl.store(out, number, mask=inside)
    tl.store(out + num_x, linear, mask=inside)
    tl.store(out + 2 * num_x, shift, mask=inside)
    tl.store(out + 3 * num_x, total, mask=inside)
    out += 4 * num_x
    if DENOMINATOR != "one_positive":
        out = sums_ptr + tl.cast(slot + tl.program_id(1), tl.int64) * 2 * num_x + rows
    tl.store(out, other_shift, mask=inside)
    tl.store(out + num_x, other_total, mask=inside)


@triton.jit(do_not_specialize=["num_x", "slots", "splits"])
def losses_kernel(
    losses_ptr: tl.tensor,  # (num_x,) by id
    valid_ptr: tl.tensor,  # (num_x,) by id
    statistics_ptr: tl.tensor,  # (4, num_x) sorted: log_neg, push, log_pos, and the number of positives or infinity
    sums_ptr: tl.tensor,  # (slots, 2, num_x) of `negatives_kernel`
    positives_ptr: tl.tensor,  # (splits, STRIDE, num_x) of `positives_kernel`
    x_ids_ptr: tl.tensor,  # (num_x,)
    num_x: int,
    slots: int,
    splits: int,
    SUMMATION: tl.constexpr,
    DENOMINATOR: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> None:
    """Store the losses of anchors from their sums, which are merged in a fixed order.

    The statistics of an anchor are ``log_neg = log sum exp(s)`` over its negatives (minus infinity without), ``log_pos
    = log sum_P exp(t)``, the number of positives (infinity if the anchor is invalid), and ``push``, which defines the
    gradient of a negative, ``d l / d s_n = exp(s_n - push)``. For "one_positive" the gradients of all negatives sum to
    the mean over P of ``1 - q`` ("out"), or to ``sum q (1 - q) / sum q`` over P ("in"); ``log_share`` is the logarithm
    of ``sum (1 - q)``, or of ``sum q (1 - q)``.
    """
    # 1. merge the splits, (BLOCK_M,)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < num_x
    neg_shift, neg_total = merged(sums_ptr, rows, num_x, slots, 2)
    number = summed(positives_ptr, rows, num_x, splits, STRIDE)
    linear = summed(positives_ptr + num_x, rows, num_x, splits, STRIDE)
    shift, total = merged(positives_ptr + 2 * num_x, rows, num_x, splits, STRIDE)
    log_neg, log_pos = log_sum(neg_shift, neg_total), log_sum(shift, total)
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
        share_shift, share_total = merged(positives_ptr + 4 * num_x, rows, num_x, splits, STRIDE)
        push += (tl.log(number) if SUMMATION == "out" else log_pos) - log_sum(share_shift, share_total)
        push = tl.where(valid & (log_neg != float("-inf")), push, float("inf"))  # infinity minus infinity is NaN
    push = tl.where(push == float("-inf"), float("inf"), push)  # without negatives exp(s - push) is 0
    # 3. losses by id, in the caller's order; statistics in sorted order
    x_ids = tl.load(x_ids_ptr + rows, mask=inside, other=0)
    tl.store(losses_ptr + x_ids, tl.where(valid, loss, 0.0), mask=inside)
    tl.store(valid_ptr + x_ids, valid, mask=inside)
    tl.store(statistics_ptr + rows, log_neg, mask=inside)
    tl.store(statistics_ptr + num_x + rows, push, mask=inside)
    tl.store(statistics_ptr + num_x * 2 + rows, log_pos, mask=inside)
    tl.store(statistics_ptr + num_x * 3 + rows, tl.where(valid, number, float("inf")), mask=inside)


@triton.jit(do_not_specialize=["num_x"])
def mean_kernel(
    mean_ptr: tl.tensor,  # ()
    number_ptr: tl.tensor,  # (), float32
    losses_ptr: tl.tensor,  # (num_x,) of `losses_kernel`: 0 of invalid anchors
    valid_ptr: tl.tensor,  # (num_x,)
    num_x: int,
    BLOCK_M: tl.constexpr,
) -> None:
    """Store the mean loss of the valid anchors, 0 without any, and their number, at least 1; one program."""
    # sums by lane, (BLOCK_M,), in a fixed order, then over the lanes
    total = tl.zeros((BLOCK_M,), tl.float32)
    number = tl.zeros((BLOCK_M,), tl.float32)
    for top in range(0, num_x, BLOCK_M):
        rows = top + tl.arange(0, BLOCK_M)
        total += tl.load(losses_ptr + rows, mask=rows < num_x, other=0.0)
        number += tl.load(valid_ptr + rows, mask=rows < num_x, other=0).to(tl.float32)
    count = tl.maximum(tl.sum(number, 0), 1.0)
    tl.store(number_ptr, count)
    tl.store(mean_ptr, tl.div_rn(tl.sum(total, 0), count))
