"""Building blocks of the kernels: rows, products, masks and sums.

"x" are the ``BLOCK_M`` rows that a program owns, "y" the rows that it loads in tiles of ``BLOCK_N``. Both are sorted by
label, so that the y rows with the label of x row ``i`` are ``start[i]`` to ``stop[i]``. Pointers that a call does not
need are None, which costs nothing in the compiled kernel.
"""

import triton
import triton.language as tl

from pml_supcon.functional.supcon import triton as backend

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

#: Triton's interpreter multiplies the bits of bfloat16 matrices as integers, so there they are widened first.
INTERPRETED = tl.constexpr(backend.INTERPRETED)


@triton.jit
def load_rows(
    ptr: tl.tensor, index: tl.tensor, number: int, offset: int, WIDTH: tl.constexpr, BLOCK: tl.constexpr
) -> tl.tensor:
    """Load ``BLOCK`` columns, from ``offset`` on, of the rows ``index``; zeros beyond the last row and column."""
    # columns (BLOCK,); the column mask is needed only if the width is not a multiple of the block
    d = offset + tl.arange(0, BLOCK)
    mask = (index < number)[:, None]
    if WIDTH % BLOCK != 0:
        mask = mask & (d < WIDTH)[None, :]
    # int64 offsets: rows times width can exceed 2^31
    return tl.load(ptr + index.to(tl.int64)[:, None] * WIDTH + d[None, :], mask=mask, other=0.0)


@triton.jit
def product(a: tl.tensor, b: tl.tensor, total: tl.tensor, PRECISION: tl.constexpr) -> tl.tensor:
    """Return ``total + a @ b``, accumulated in float32."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def dot_products(
    x: tl.tensor,
    x_ptr: tl.tensor,
    rows: tl.tensor,
    num_x: int,
    y_ptr: tl.tensor,
    columns: tl.tensor,
    num_y: int,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return a tile of ``x y^T``, ``(BLOCK_M, BLOCK_N)``, and the first ``BLOCK_K`` columns of y.

    ``x`` holds the first ``BLOCK_K`` columns of x; if these are all, x stays on the chip for all tiles.
    """
    # the first BLOCK_K columns, then the remaining ones block by block: x y^T = sum over blocks of x_k y_k^T
    y = load_rows(y_ptr, columns, num_y, 0, WIDTH, BLOCK_K)
    products = product(x, tl.trans(y), tl.zeros((rows.shape[0], columns.shape[0]), tl.float32), PRECISION)
    for offset in range(BLOCK_K, WIDTH, BLOCK_K):
        part = load_rows(x_ptr, rows, num_x, offset, WIDTH, BLOCK_K)
        other = load_rows(y_ptr, columns, num_y, offset, WIDTH, BLOCK_K)
        products = product(part, tl.trans(other), products, PRECISION)
    return products, y


@triton.jit
def class_tiles(
    start_ptr: tl.tensor, stop_ptr: tl.tensor, num_x: int, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Return the range ``[first, last)`` of the tiles of y that can share a label with this program's rows."""
    # rows are sorted, so the first row has the lowest start and the last row the highest stop
    top = tl.program_id(0) * BLOCK_M
    bottom = tl.minimum(top + BLOCK_M, num_x) - 1
    return tl.load(start_ptr + top) // BLOCK_N, tl.cdiv(tl.load(stop_ptr + bottom), BLOCK_N)


@triton.jit
def tile_outside(t: int, first: int, last: int) -> tl.tensor:
    """Return the ``t``-th tile outside the range of ``class_tiles``."""
    return tl.where(t < first, t, t + last - first)


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
def under_cap(
    rank_ptr: tl.tensor, limit_ptr: tl.tensor, ids: tl.tensor, inside: tl.tensor, other_rank: tl.tensor
) -> tl.tensor:
    """Return the mask of ranks that the cap keeps for anchors ``ids``, which broadcast against ``other_rank``."""
    # keep ranks below the anchor's limit, and its own rank
    rank = tl.load(rank_ptr + ids, mask=inside, other=0)
    limit = tl.load(limit_ptr + ids, mask=inside, other=0)
    return (other_rank < limit) | (other_rank == rank)


@triton.jit
def add_exponentials(
    x: tl.tensor, shift: tl.tensor, total: tl.tensor, SHIFTED: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Add the sum of ``2^x`` over columns to ``2^shift * total``; without ``SHIFTED`` the shift stays 0."""
    if SHIFTED:
        # online logsumexp: move to the new maximum and rescale the sum so far
        highest = tl.maximum(shift, tl.max(x, 1))
        finite = tl.where(highest == float("-inf"), 0.0, highest)
        total = total * tl.exp2(shift - finite) + tl.sum(tl.exp2(x - finite[:, None]), 1)
        shift = highest
    else:
        total += tl.sum(tl.exp2(x), 1)
    return shift, total


@triton.jit
def log_sum(shift: tl.tensor, total: tl.tensor) -> tl.tensor:
    """Return the natural logarithm of the sum of ``add_exponentials``; minus infinity for an empty sum."""
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
