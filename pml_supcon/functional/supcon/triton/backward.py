"""The backward kernels: the gradient of one side's rows; they compute the tiles of similarities again."""

import triton
import triton.language as tl

from pml_supcon.functional.supcon.triton.prepare import inverse_norm, load_given, weight_scale
from pml_supcon.functional.supcon.triton.primitives import (
    LN_2,
    class_region,
    dot_products,
    first_column,
    load_parts,
    product_of_parts,
    tiles_of_split,
)
from pml_supcon.functional.supcon.triton.weights import class_weights, load_anchors, negative_weights


@triton.jit(do_not_specialize=["num_x", "num_y", "first_id", "first_limit", "tuning_key"])
def gradient_kernel(
    partial_ptr: tl.tensor,  # (splits, num_x, WIDTH) sorted, float32
    x_ptr: tl.tensor,  # (num_x, PARTS * WIDTH) rows that get a gradient
    y_ptr: tl.tensor,  # (num_y, PARTS * WIDTH) rows that they are paired with
    x_ids_ptr: tl.tensor,  # (num_x,) places in the caller's order
    y_ids_ptr: tl.tensor,  # (num_y,)
    start_ptr: tl.tensor,  # (num_x,)
    stop_ptr: tl.tensor,  # (num_x,)
    x_statistics_ptr: tl.tensor,  # (4, num_x) as in `losses_kernel`; like `x_weights` None if x has no anchors
    x_weights_ptr: tl.tensor,  # (2, num_x) as in `prepare_kernel`
    y_statistics_ptr: tl.tensor,  # (4, num_y); like `y_weights` None if y has no anchors
    y_weights_ptr: tl.tensor,  # (2, num_y)
    rank_ptr: tl.tensor,  # by row, of contrasted rows; `rank` and `limit` are None without a cap
    limit_ptr: tl.tensor,  # by id, of anchors
    num_x: int,
    num_y: int,
    first_id: int,  # the row of id 0
    first_limit: int,  # the place in `limit` of id 0
    exponent: float,  # factor from products to similarities in base 2; 1 with FOLDED
    tuning_key: int,  # not read: Triton tunes again if it changes
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    SUMMATION: tl.constexpr,
    DENOMINATOR: tl.constexpr,
    FOLDED: tl.constexpr,
    SHIFTED: tl.constexpr,
    EXCLUDE_SELF: tl.constexpr,
    CLASSES: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Store, or with ``ADD`` add, ``BLOCK_D`` columns of ``W y`` over the tiles of a region (as `negatives_kernel`).

    W is the gradient of the pairs for both of their ends, ``W_ij = [x_i is an anchor] u_i d l_i / d s_ij + [y_j is an
    anchor] u_j d l_j / d s_ji``, with ``u`` the upstream gradient.
    """
    # this program's rows of x, (BLOCK_M,), its tiles, and its columns of the gradient, from `offset` on
    top = tl.program_id(0) * BLOCK_M
    rows = top + tl.arange(0, BLOCK_M)
    offset = tl.program_id(2) * BLOCK_D
    x, x_low = load_parts(x_ptr, top, num_x, 0, WIDTH, PARTS, BLOCK_M, BLOCK_K, True)
    place = (tl.program_id(1).to(tl.int64) * num_x + rows)[:, None] * WIDTH + (offset + tl.arange(0, BLOCK_D))[None, :]
    gradient = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    if ADD:
        gradient = tl.load(partial_ptr + place, mask=(rows < num_x)[:, None], other=0.0)
    if CLASSES:
        x_ids = tl.load(x_ids_ptr + rows, mask=rows < num_x, other=0)
    else:
        x_upstream, x_weight = load_anchors(x_weights_ptr, rows, num_x, SHIFTED, True)
    first, last, full = class_region(start_ptr, stop_ptr, top, num_x, num_y, GROUP)
    begin, end = tiles_of_split(first, last, full, num_y, BLOCK_N, CLASSES)
    for tile in range(begin, end):
        # x y^T, (BLOCK_M, BLOCK_N), then W of the tile
        at = first_column(tile, first, last, full, BLOCK_N, CLASSES)
        columns = at + tl.arange(0, BLOCK_N)
        s, y, y_low = dot_products(
            x, x_low, x_ptr, top, num_x, y_ptr, at, num_y, COLUMNS, WIDTH, PARTS, BLOCK_K, BLOCK_M, BLOCK_N, CLASSES
        )
        if CLASSES:
            weights = class_weights(
                s * (exponent * LN_2), start_ptr, stop_ptr, rows, columns, x_ids, y_ids_ptr, x_statistics_ptr,
                x_weights_ptr, y_statistics_ptr, y_weights_ptr, rank_ptr, limit_ptr, num_x, num_y,
                first_id, first_limit, SUMMATION, DENOMINATOR, EXCLUDE_SELF,
            )  # fmt: skip
        else:
            # every pair is a negative; base 2: exp(s) = 2^(s log2(e))
            y_upstream, y_weight = load_anchors(y_weights_ptr, columns, num_y, SHIFTED, False)
            if not FOLDED:
                s *= exponent
            weights = negative_weights(
                s, x_upstream, x_weight, y_upstream, y_weight,
                x_weights_ptr is not None, y_weights_ptr is not None, SHIFTED,
            )  # fmt: skip
        # gradient += W y, (BLOCK_M, BLOCK_N) by (BLOCK_N, BLOCK_D); y is reused if the product above loaded all of it
        if BLOCK_K < WIDTH or BLOCK_D < WIDTH:
            y, y_low = load_parts(y_ptr, at, num_y, offset, WIDTH, PARTS, BLOCK_N, BLOCK_D, CLASSES)
        high = weights.to(y.dtype)
        low = high
        if PARTS == 2:
            low = (weights - high.to(tl.float32)).to(y.dtype)
        gradient = product_of_parts(high, low, y, y_low, gradient, PARTS)
    tl.store(partial_ptr + place, gradient, mask=(rows < num_x)[:, None])


@triton.jit(do_not_specialize=["number", "splits"])
def finish_kernel(
    gradient_ptr: tl.tensor,  # (number, COLUMNS) in the caller's order
    partial_ptr: tl.tensor,  # (splits, number, WIDTH) sorted
    rows_ptr: tl.tensor,  # (number, COLUMNS) in the caller's order
    order_ptr: tl.tensor,  # (number,) int64, places in the caller's order by label
    largest_ptr: tl.tensor,  # an upstream gradient of the largest absolute value
    row_stride: int,
    column_stride: int,
    number: int,
    splits: int,
    factor: float,  # from W y of the stored rows to the gradient of normalised rows
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Store the gradient of the caller's rows: the sum of all splits in a fixed order, through the normalisation."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < number
    order = tl.load(order_ptr + rows, mask=inside, other=0)
    scale = factor / weight_scale(largest_ptr)
    # 1. with z = x / |x| and the gradient g of z, the gradient of x is (g - z (z . g)) / |x|: z . g, (BLOCK_M,)
    along = tl.zeros((BLOCK_M,), tl.float32)
    inverse = tl.zeros((BLOCK_M,), tl.float32)
    if NORMALIZE:
        inverse = inverse_norm(rows_ptr, order, inside, row_stride, column_stride, COLUMNS, BLOCK_M, BLOCK_N)
        for offset in range(0, COLUMNS, BLOCK_N):
            d = offset + tl.arange(0, BLOCK_N)
            g = load_partial(partial_ptr, rows, number, splits, d, COLUMNS, WIDTH) * scale
            x = load_given(rows_ptr, order, inside, d, row_stride, column_stride, COLUMNS)
            along += tl.sum(g * (x * inverse[:, None]), 1)
    # 2. write (BLOCK_M, COLUMNS), in blocks of columns
    for offset in range(0, COLUMNS, BLOCK_N):
        d = offset + tl.arange(0, BLOCK_N)
        g = load_partial(partial_ptr, rows, number, splits, d, COLUMNS, WIDTH) * scale
        if NORMALIZE:
            x = load_given(rows_ptr, order, inside, d, row_stride, column_stride, COLUMNS)
            g = (g - x * inverse[:, None] * along[:, None]) * inverse[:, None]
        at = gradient_ptr + order[:, None] * COLUMNS + d[None, :]
        tl.store(at, g, mask=inside[:, None] & (d < COLUMNS)[None, :])


@triton.jit
def load_partial(
    partial_ptr: tl.tensor,
    rows: tl.tensor,
    number: int,
    splits: int,
    d: tl.tensor,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """Return the sum over splits of the columns ``d`` of sorted rows."""
    mask = (rows < number)[:, None] & (d < COLUMNS)[None, :]
    at = partial_ptr + rows.to(tl.int64)[:, None] * WIDTH + d[None, :]
    total = tl.load(at, mask=mask, other=0.0)
    for split in range(1, splits):
        total += tl.load(at + tl.cast(split, tl.int64) * number * WIDTH, mask=mask, other=0.0)
    return total
