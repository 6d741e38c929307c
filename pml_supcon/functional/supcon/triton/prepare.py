"""The kernel that prepares a side: it normalises rows, sorts them by label, and rounds them to the products' dtype."""

import triton
import triton.language as tl

from pml_supcon.functional.supcon.triton.primitives import LOG2_E

#: A row of this norm or less has no direction: it becomes 0, and so does its gradient (``problem.unit_rows``).
NO_DIRECTION = tl.constexpr(1e-12)

#: The largest weight of a pair in float16, whose range is small: the upstream gradient is scaled to it.
LARGEST_WEIGHT = tl.constexpr(2.0**14)


@triton.jit(do_not_specialize=["number", "num_other", "first", "steps"])
def prepare_kernel(
    sorted_ptr: tl.tensor,  # (number, PARTS * WIDTH) rows by label, `scale` times as long; zeros beyond COLUMNS
    ids_ptr: tl.tensor,  # (number,) int32, places in the caller's order, counted from row `first`
    start_ptr: tl.tensor,  # (number,) int32, with `stop`: the other side's rows from `start` to `stop` have the label
    stop_ptr: tl.tensor,  # (number,) int32
    rows_ptr: tl.tensor,  # (number, COLUMNS) in the caller's order
    order_ptr: tl.tensor,  # (number,) int64, places in the caller's order by label
    labels_ptr: tl.tensor,  # (number,) int64, sorted
    other_labels_ptr: tl.tensor,  # (num_other,) int64, sorted, of the other side
    upstream_ptr: tl.tensor,  # (number,) in the caller's order; like the following None without gradient or anchors
    largest_ptr: tl.tensor,  # an upstream gradient of the largest absolute value
    statistics_ptr: tl.tensor,  # (4, number) sorted, as in `losses_kernel`
    weights_ptr: tl.tensor,  # (2, number) sorted: the scaled upstream gradient u, and push or u exp(-push) in base 2
    row_stride: int,
    column_stride: int,
    upstream_stride: int,  # 1, or 0 if all valid anchors have the same upstream gradient
    number: int,
    num_other: int,
    first: int,
    steps: int,
    scale: float,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    SHIFTED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Store the sorted rows of a side, their ids and ranges; for a gradient also the weights of the anchors.

    One part: rows in the dtype of the products. Two: ``z = high + low``, both float16, up to ``2^-22 z``.
    """
    # this program's places by label, (BLOCK_M,)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < number
    order = tl.load(order_ptr + rows, mask=inside, other=0)
    # 1. ids, and the range of the other side's rows with the label, by bisection
    label = tl.load(labels_ptr + rows, mask=inside, other=0)
    tl.store(ids_ptr + rows, (order - first).to(tl.int32), mask=inside)
    tl.store(start_ptr + rows, bisect(other_labels_ptr, label, num_other, steps, False), mask=inside)
    tl.store(stop_ptr + rows, bisect(other_labels_ptr, label, num_other, steps, True), mask=inside)
    # 2. z = scale x / |x|, (BLOCK_M, COLUMNS), in blocks of columns
    factor = tl.zeros((BLOCK_M,), tl.float32) + scale
    if NORMALIZE:
        factor *= inverse_norm(
            rows_ptr, order, inside, row_stride, column_stride, COLUMNS, BLOCK_M, BLOCK_N
        )  # fmt: skip
    for offset in range(0, WIDTH, BLOCK_N):
        d = offset + tl.arange(0, BLOCK_N)
        z = load_given(rows_ptr, order, inside, d, row_stride, column_stride, COLUMNS) * factor[:, None]
        high = z.to(sorted_ptr.dtype.element_ty)
        at = sorted_ptr + rows.to(tl.int64)[:, None] * (PARTS * WIDTH) + d[None, :]
        stored = inside[:, None] & (d < WIDTH)[None, :]
        tl.store(at, high, mask=stored)
        if PARTS == 2:
            tl.store(at + WIDTH, (z - high.to(tl.float32)).to(sorted_ptr.dtype.element_ty), mask=stored)
    # 3. u, scaled so that float16 weights neither underflow nor overflow; u exp(-push), a weight that all of an
    # anchor's negatives share, or with SHIFTED push itself; an invalid anchor, which has no gradient, has u = 0
    if upstream_ptr is not None:
        upstream = tl.load(upstream_ptr + order * upstream_stride, mask=inside, other=0.0).to(tl.float32)
        positives = tl.load(statistics_ptr + number * 3 + rows, mask=inside, other=float("inf"))
        upstream = tl.where(positives == float("inf"), 0.0, upstream * weight_scale(largest_ptr))
        push = tl.load(statistics_ptr + number + rows, mask=inside, other=float("inf")) * LOG2_E
        tl.store(weights_ptr + rows, upstream, mask=inside)
        tl.store(weights_ptr + number + rows, push if SHIFTED else upstream * tl.exp2(-push), mask=inside)


@triton.jit
def bisect(labels_ptr: tl.tensor, label: tl.tensor, number: int, steps: int, RIGHT: tl.constexpr) -> tl.tensor:
    """Return how many of the sorted labels are below each label, with ``RIGHT`` also equal; in ``steps`` halvings."""
    low = tl.zeros_like(label).to(tl.int32)
    high = low + number
    for _ in range(0, steps):
        middle = low + (high - low) // 2
        value = tl.load(labels_ptr + middle, mask=low < high, other=0)
        before = (value <= label if RIGHT else value < label) & (low < high)
        high = tl.where(before, high, middle)
        low = tl.where(before, middle + 1, low)
    return low


@triton.jit
def load_given(
    rows_ptr: tl.tensor,
    order: tl.tensor,
    inside: tl.tensor,
    d: tl.tensor,
    row_stride: int,
    column_stride: int,
    COLUMNS: tl.constexpr,
) -> tl.tensor:
    """Load columns ``d`` of the caller's rows as float32; zeros beyond the last column."""
    at = rows_ptr + order[:, None] * row_stride + d.to(tl.int64)[None, :] * column_stride
    return tl.load(at, mask=inside[:, None] & (d < COLUMNS)[None, :], other=0.0).to(tl.float32)


@triton.jit
def inverse_norm(
    rows_ptr: tl.tensor,
    order: tl.tensor,
    inside: tl.tensor,
    row_stride: int,
    column_stride: int,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    """Return ``1 / |x|`` of the caller's rows, 0 of rows without a direction."""
    squares = tl.zeros((BLOCK_M,), tl.float32)
    for offset in range(0, COLUMNS, BLOCK_N):
        d = offset + tl.arange(0, BLOCK_N)
        x = load_given(rows_ptr, order, inside, d, row_stride, column_stride, COLUMNS)
        squares += tl.sum(x * x, 1)
    norm = tl.sqrt_rn(squares)
    return tl.where(norm <= NO_DIRECTION, 0.0, tl.div_rn(1.0, norm))


@triton.jit
def weight_scale(largest_ptr: tl.tensor) -> tl.tensor:
    """Return the factor of upstream gradients that makes the largest ``LARGEST_WEIGHT``."""
    return LARGEST_WEIGHT / tl.maximum(tl.abs(tl.load(largest_ptr).to(tl.float32)), 1e-30)
