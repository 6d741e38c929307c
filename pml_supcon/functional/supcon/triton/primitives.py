"""Building blocks of the kernels: tiles of rows, products, ranges of tiles, masks and sums.

"x" are the ``BLOCK_M`` rows that a program owns, "y" the rows that it loads in tiles of ``BLOCK_N``. Both are sorted by
label, so that the y rows with the label of x row ``i`` are ``start[i]`` to ``stop[i]``. Pointers that a call does not
need are None, which costs nothing in the compiled kernel.

Pairs are divided into two regions, each with kernels of its own. Rows of x are in groups of ``GROUP``. The class region
of a group has the whole groups of y that can hold its labels, and the last, incomplete group of y. All other tiles
are complete and hold negatives only, so that their kernels need no masks.

A stored row has ``PARTS`` parts of ``WIDTH`` columns: one in the dtype of the products, or a float16 and the float16 of
what it leaves out, whose products have the accuracy of float32.
"""

import triton
import triton.language as tl

from pml_supcon.functional.supcon import triton as backend

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

#: Triton's interpreter multiplies the bits of bfloat16 matrices as integers, so there they are widened first.
INTERPRETED = tl.constexpr(backend.INTERPRETED)


@triton.jit
def load_tile(
    ptr: tl.tensor,
    at: int,
    number: int,
    offset: int,
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """Load ``(ROWS, COLUMNS)`` from row ``at`` and column ``offset`` on; with ``MASKED`` zeros beyond the last row."""
    # int64 offset of the first row: rows times columns can exceed 2^31
    row = tl.arange(0, ROWS)
    first = ptr + tl.cast(at, tl.int64) * STRIDE + offset
    place = first + (row[:, None] * STRIDE + tl.arange(0, COLUMNS)[None, :])
    return tl.load(place, mask=(at + row < number)[:, None], other=0.0) if MASKED else tl.load(place)


@triton.jit
def product(a: tl.tensor, b: tl.tensor, total: tl.tensor) -> tl.tensor:
    """Return ``total + a @ b``, accumulated in float32; float32 factors are not rounded."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def product_of_parts(
    a: tl.tensor, a_low: tl.tensor, b: tl.tensor, b_low: tl.tensor, total: tl.tensor, PARTS: tl.constexpr
) -> tl.tensor:
    """Return ``total + (a + a_low) @ (b + b_low)`` without the product of the low parts; without low parts ``a @ b``.

    The low parts are below ``2^-11`` of the high ones, so that their own product is below a rounding of float32.
    """
    if PARTS == 2:
        total = product(a_low, b, total)
        total = product(a, b_low, total)
    return product(a, b, total)


@triton.jit
def load_parts(
    ptr: tl.tensor,
    at: int,
    number: int,
    offset: int,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    MASKED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Load the same columns of both parts of rows; of rows with one part this part twice."""
    high = load_tile(ptr, at, number, offset, PARTS * WIDTH, ROWS, COLUMNS, MASKED)
    low = high
    if PARTS == 2:
        low = load_tile(ptr, at, number, WIDTH + offset, PARTS * WIDTH, ROWS, COLUMNS, MASKED)
    return high, low


@triton.jit
def dot_products(
    x: tl.tensor,
    x_low: tl.tensor,
    x_ptr: tl.tensor,
    top: int,
    num_x: int,
    y_ptr: tl.tensor,
    at: int,
    num_y: int,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return a tile of ``x y^T``, ``(BLOCK_M, BLOCK_N)``, and the parts of the first ``BLOCK_K`` columns of y.

    ``x`` and ``x_low`` hold the first ``BLOCK_K`` columns of x; if these are all, x stays on the chip for all tiles.
    """
    # the first BLOCK_K columns, then the remaining ones block by block: x y^T = sum over blocks of x_k y_k^T
    y, y_low = load_parts(y_ptr, at, num_y, 0, WIDTH, PARTS, BLOCK_N, BLOCK_K, MASKED)
    products = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    products = product_of_parts(x, x_low, tl.trans(y), tl.trans(y_low), products, PARTS)
    for offset in range(BLOCK_K, COLUMNS, BLOCK_K):
        a, a_low = load_parts(x_ptr, top, num_x, offset, WIDTH, PARTS, BLOCK_M, BLOCK_K, True)
        b, b_low = load_parts(y_ptr, at, num_y, offset, WIDTH, PARTS, BLOCK_N, BLOCK_K, MASKED)
        products = product_of_parts(a, a_low, tl.trans(b), tl.trans(b_low), products, PARTS)
    return products, y, y_low


@triton.jit
def class_region(
    start_ptr: tl.tensor, stop_ptr: tl.tensor, top: int, num_x: int, num_y: int, GROUP: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return ``first``, ``last``, ``full``: the class region is the rows of y in [first, last) and from ``full`` on."""
    # rows are sorted, so the first row of the group has the lowest start and the last row the highest stop
    group = top // GROUP * GROUP
    bottom = tl.minimum(group + GROUP, num_x) - 1
    full = num_y // GROUP * GROUP
    first = tl.minimum(tl.load(start_ptr + group) // GROUP * GROUP, full)
    last = tl.minimum(tl.cdiv(tl.load(stop_ptr + bottom), GROUP) * GROUP, full)
    return first, last, full


@triton.jit
def tiles_of_split(
    first: int, last: int, full: int, num_y: int, BLOCK_N: tl.constexpr, CLASSES: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Return the range of the tiles that this program computes: its share of a region, by the program's second axis."""
    if CLASSES:
        count = (last - first) // BLOCK_N + tl.cdiv(num_y - full, BLOCK_N)
    else:
        count = (full - (last - first)) // BLOCK_N
    size = tl.cdiv(count, tl.num_programs(1))
    begin = tl.minimum(tl.program_id(1) * size, count)
    return begin, tl.minimum(begin + size, count)


@triton.jit
def first_column(
    tile: int, first: int, last: int, full: int, BLOCK_N: tl.constexpr, CLASSES: tl.constexpr
) -> tl.tensor:
    """Return the first row of y of a region's tile."""
    if CLASSES:
        at = first + tile * BLOCK_N
        at = tl.where(at < last, at, at - last + full)
    else:
        at = tile * BLOCK_N
        at = tl.where(at < first, at, at + last - first)
    return at


@triton.jit
def class_masks(
    start_ptr: tl.tensor,
    stop_ptr: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    x_ids: tl.tensor,
    y_ids_ptr: tl.tensor,
    num_x: int,
    num_y: int,
    EXCLUDE_SELF: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the mask of equal labels, the mask of these that are two different rows, and the ids of y."""
    # (BLOCK_M, BLOCK_N): y is in the class of x if start <= column < stop; an empty range beyond the last row
    start = tl.load(start_ptr + rows, mask=rows < num_x, other=0)[:, None]
    stop = tl.load(stop_ptr + rows, mask=rows < num_x, other=0)[:, None]
    same = (columns[None, :] >= start) & (columns[None, :] < stop)
    y_ids = tl.load(y_ids_ptr + columns, mask=columns < num_y, other=-1)
    # an anchor is not its own positive
    mates = same
    if EXCLUDE_SELF:
        mates = same & (x_ids[:, None] != y_ids[None, :])
    return same, mates, y_ids


@triton.jit
def rank_of(rank_ptr: tl.tensor, ids: tl.tensor, first: int, inside: tl.tensor) -> tl.tensor:
    """Return the ranks, by row, of ids, which count from row ``first``."""
    return tl.load(rank_ptr + (ids + first), mask=inside, other=0)


@triton.jit
def under_cap(
    rank_ptr: tl.tensor,
    limit_ptr: tl.tensor,
    ids: tl.tensor,
    first_id: int,
    first_limit: int,
    inside: tl.tensor,
    other_rank: tl.tensor,
) -> tl.tensor:
    """Return the mask of ranks that the cap keeps for anchors ``ids``, which broadcast against ``other_rank``."""
    # keep ranks below the anchor's limit, and its own rank
    limit = tl.load(limit_ptr + (ids + first_limit), mask=inside, other=0)
    return (other_rank < limit) | (other_rank == rank_of(rank_ptr, ids, first_id, inside))


@triton.jit
def add_compensated(part: tl.tensor, total: tl.tensor, lost: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Add to a sum, and to ``lost`` what its rounding leaves out (Kahan): the error does not grow with the terms."""
    part -= lost
    new = total + part
    return new, (new - total) - part


@triton.jit
def add_exponentials(
    x: tl.tensor, shift: tl.tensor, total: tl.tensor, lost: tl.tensor, SHIFTED: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Add the sum of ``2^x`` over columns to ``2^shift * total``; without ``SHIFTED`` the shift stays as it is, 0."""
    if SHIFTED:
        # online logsumexp: move to the new maximum and rescale the sum so far
        highest = tl.maximum(shift, tl.max(x, 1))
        finite = tl.where(highest == float("-inf"), 0.0, highest)
        rescale = tl.exp2(shift - finite)
        total, lost = add_compensated(tl.sum(tl.exp2(x - finite[:, None]), 1), total * rescale, lost * rescale)
        shift = highest
    else:
        total, lost = add_compensated(tl.sum(tl.exp2(x), 1), total, lost)
    return shift, total, lost


@triton.jit
def merged(
    ptr: tl.tensor, rows: tl.tensor, number: int, splits: int, STRIDE: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Return shift and total of the sum of all splits; ``ptr`` ``(splits, STRIDE, number)`` has both, one by one."""
    shift = tl.zeros_like(rows).to(tl.float32) + float("-inf")
    total = tl.zeros_like(rows).to(tl.float32)
    for split in range(0, splits):
        at = ptr + tl.cast(split, tl.int64) * STRIDE * number + rows
        other = tl.load(at, mask=rows < number, other=float("-inf"))
        highest = tl.maximum(shift, other)
        finite = tl.where(highest == float("-inf"), 0.0, highest)
        total *= tl.exp2(shift - finite)
        total += tl.load(at + number, mask=rows < number, other=0.0) * tl.exp2(other - finite)
        shift = highest
    return shift, total


@triton.jit
def summed(ptr: tl.tensor, rows: tl.tensor, number: int, splits: int, STRIDE: tl.constexpr) -> tl.tensor:
    """Return the sum of the values of all splits; ``ptr`` is ``(splits, STRIDE, number)``."""
    total = tl.zeros_like(rows).to(tl.float32)
    for split in range(0, splits):
        total += tl.load(ptr + tl.cast(split, tl.int64) * STRIDE * number + rows, mask=rows < number, other=0.0)
    return total


@triton.jit
def log_sum(shift: tl.tensor, total: tl.tensor) -> tl.tensor:
    """Return the natural logarithm of ``2^shift * total``; minus infinity for an empty sum."""
    return (shift + tl.log2(total)) * LN_2


@triton.jit
def log_add(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """Return ``log(exp(a) + exp(b))``, also of minus infinities."""
    # m + log(exp(a - m) + exp(b - m)) with m = max(a, b); m = 0 if both are minus infinity
    high = tl.maximum(a, b)
    finite = tl.where(high == float("-inf"), 0.0, high)
    return finite + tl.log(tl.exp(a - finite) + tl.exp(b - finite))


@triton.jit
def log_sigmoid(x: tl.tensor) -> tl.tensor:
    """Return ``-log(1 + exp(-x))`` without overflow."""
    return tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))
