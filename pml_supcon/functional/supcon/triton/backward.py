"""The backward kernel: the gradient of one side's rows; it computes the tiles of similarities again."""

import triton
import triton.language as tl

from pml_supcon.functional.supcon.triton import blocks
from pml_supcon.functional.supcon.triton.blocks import tuned
from pml_supcon.functional.supcon.triton.primitives import (
    LOG2_E,
    class_tiles,
    dot_products,
    load_rows,
    product,
    tile_outside,
)
from pml_supcon.functional.supcon.triton.weights import class_weights, load_push, negative_weights


@tuned("BLOCK_D", blocks.GRADIENT, blocks.GRADIENT_FLOAT32)
@triton.jit(do_not_specialize=["num_x", "num_y"])
def gradient_kernel(
    gradient_ptr: tl.tensor,  # (num_x, WIDTH) by id, float32
    x_ptr: tl.tensor,  # (num_x, WIDTH) rows that get a gradient
    y_ptr: tl.tensor,  # (num_y, WIDTH) rows that they are paired with
    x_ids_ptr: tl.tensor,  # (num_x,) places in the caller's order
    y_ids_ptr: tl.tensor,  # (num_y,)
    start_ptr: tl.tensor,  # (num_x,)
    stop_ptr: tl.tensor,  # (num_x,)
    x_statistics_ptr: tl.tensor,  # (4, num_x) as in `positives_kernel`; like `x_upstream` None if x has no anchors
    x_upstream_ptr: tl.tensor,  # (num_x,)
    y_statistics_ptr: tl.tensor,  # (4, num_y); like `y_upstream` None if y has no anchors
    y_upstream_ptr: tl.tensor,  # (num_y,)
    rank_ptr: tl.tensor,  # by id, of contrasted rows; `rank` and `limit` are None without a cap
    limit_ptr: tl.tensor,  # by id, of anchors
    num_x: int,
    num_y: int,
    inverse_temperature: float,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SUMMATION: tl.constexpr,
    DENOMINATOR: tl.constexpr,
    SHIFTED: tl.constexpr,
    EXCLUDE_SELF: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Store ``BLOCK_D`` columns of ``W y / temperature``, with W the gradient of the pairs for both of their ends.

    ``W_ij = [x_i is an anchor] u_i d l_i / d s_ij + [y_j is an anchor] u_j d l_j / d s_ji``, with ``u`` the upstream
    gradient.
    """
    # this program's rows of x, (BLOCK_M,), and its columns of the gradient, from `offset` on
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < num_x
    offset = tl.program_id(1) * BLOCK_D
    x = load_rows(x_ptr, rows, num_x, 0, WIDTH, BLOCK_K)
    x_ids = tl.load(x_ids_ptr + rows, mask=inside, other=0)
    x_upstream, x_push = load_push(x_statistics_ptr, x_upstream_ptr, rows, num_x)
    gradient = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    first, last = class_tiles(start_ptr, stop_ptr, num_x, BLOCK_M, BLOCK_N)
    # 1. tiles without equal labels: every pair is a negative
    for t in range(0, tl.cdiv(num_y, BLOCK_N) - (last - first)):
        columns = tile_outside(t, first, last) * BLOCK_N + tl.arange(0, BLOCK_N)
        # x y^T, (BLOCK_M, BLOCK_N), then W of the tile in base 2: exp(s) = 2^(s log2(e))
        s, y = dot_products(x, x_ptr, rows, num_x, y_ptr, columns, num_y, WIDTH, BLOCK_K, PRECISION)
        y_upstream, y_push = load_push(y_statistics_ptr, y_upstream_ptr, columns, num_y)
        weights = negative_weights(
            s * (inverse_temperature * LOG2_E), columns < num_y, x_upstream, x_push, y_upstream, y_push,
            x_statistics_ptr is not None, y_statistics_ptr is not None, SHIFTED,
        )  # fmt: skip
        # gradient += W y, (BLOCK_M, BLOCK_N) by (BLOCK_N, BLOCK_D); y is reused if the product above loaded all of it
        if BLOCK_K < BLOCK_D or BLOCK_K < WIDTH:
            y = load_rows(y_ptr, columns, num_y, offset, WIDTH, BLOCK_D)
        gradient = product(weights.to(y.dtype), y, gradient, PRECISION)
    # 2. tiles that can hold equal labels: W with the masks of positives and negatives
    for tile in range(first, last):
        columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        s, y = dot_products(x, x_ptr, rows, num_x, y_ptr, columns, num_y, WIDTH, BLOCK_K, PRECISION)
        weights = class_weights(
            s * inverse_temperature, start_ptr, stop_ptr, rows, columns, x_ids, y_ids_ptr, x_statistics_ptr,
            x_upstream_ptr, y_statistics_ptr, y_upstream_ptr, rank_ptr, limit_ptr, num_x, num_y,
            SUMMATION, DENOMINATOR, EXCLUDE_SELF,
        )  # fmt: skip
        if BLOCK_K < BLOCK_D or BLOCK_K < WIDTH:
            y = load_rows(y_ptr, columns, num_y, offset, WIDTH, BLOCK_D)
        gradient = product(weights.to(y.dtype), y, gradient, PRECISION)

    # 3. write (BLOCK_M, BLOCK_D) in the caller's order; ds = d(x . y) / tau, hence the factor
    d = offset + tl.arange(0, BLOCK_D)
    at = gradient_ptr + x_ids.to(tl.int64)[:, None] * WIDTH + d[None, :]
    tl.store(at, gradient * inverse_temperature, mask=inside[:, None] & (d < WIDTH)[None, :])
