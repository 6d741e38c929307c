r"""The loss in linear memory: tiles of pairs, each of which serves its rows and its columns.

With ``x_ij = s_ij / ln 2``, so that ``exp(s_ij) = 2^x_ij``, and ``y_ij`` the same of the past rows,

    l_i = ln 2 (log2 sum_{j != i} 2^x_ij - sum_{j != i} p_ij(past) x_ij)

so the forward pass keeps five sums for each row: the largest ``x`` and ``y``, the sums of ``2^(x - largest x)`` and of
``2^(y - largest y)``, and the sum of ``2^(y - largest y) x``. No exponent is above 0 for any temperature. The backward
pass computes the tiles again.
"""

import math
from collections.abc import Sequence
from functools import partial, reduce

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp, get_rank

from pml_supcon.distributed import collectives
from pml_supcon.functional.supcon.custom_ops import define_operator
from pml_supcon.functional.supcon.execution import map_in_threads
from pml_supcon.functional.supcon.tiled.layout import Tile, edge_of, tiles_over
from pml_supcon.functional.supcon.tiled.passes import exponents, matrix_in


def losses_of(rows: Tensor, past: Tensor, group: ProcessGroup | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses ``(N,)``, their validity ``(N,)``, and the log2 of the sums of ``2^x`` and of ``2^y``, ``(2, N)``.

    The products of rows ``(N, D)``, and of past rows ``(N, D')``, are the exponents. The processes of a group divide
    the tiles.
    """
    parts = torch.stack(map_in_threads(partial(sums_over, rows, past), tiles_of(rows, group), rows.device))
    # add up the sums of threads, then of processes, over their largest exponents, (2, N)
    largest = parts[:, :2].amax(dim=0)
    if group is not None:
        largest = collectives.all_reduce(largest, group, ReduceOp.MAX)
    scale = (parts[:, :2] - largest).exp2()
    sums = (parts[:, 2:] * torch.cat([scale, scale[:, 1:]], dim=1)).sum(dim=0)
    if group is not None:
        sums = collectives.all_reduce(sums, group)
    # l_i = ln 2 (log2 sum 2^x - sum of p(past) x), 0 for a row without another one
    log_sums = largest + sums[:2].log2()
    losses = (log_sums[0] - sums[2] / sums[1]) * math.log(2)
    valid = torch.full_like(losses, len(losses) > 1, dtype=torch.bool)
    return torch.where(valid, losses, 0), valid, log_sums


def sums_over(rows: Tensor, past: Tensor, tiles: Sequence[Tile]) -> Tensor:
    """Return the largest ``x`` and ``y`` of each row over these tiles, and the three sums over them, ``(5, N)``."""
    table = rows.new_zeros(5, len(rows))
    table[:2] = torch.finfo(rows.dtype).min
    buffers = buffers_for(rows, 3)
    for a, r in tiles:
        # x and y of the tile, (len(a), len(r))
        x, y = (exponents_of(z, (a, r), buffer) for z, buffer in zip((rows, past), buffers, strict=False))
        e = matrix_in(buffers[2], *x.shape)
        # sum over the columns for the rows of the tile; x_ij = x_ji, so off the diagonal also over its rows
        for part, dim in ((a, 1), (r, 0))[: 1 + (a != r)]:
            largest, past_largest, total, past_total, product = table[:, part]
            rescale_to(largest, x.amax(dim=dim), [total])
            total += torch.sub(x, largest.unsqueeze(dim), out=e).exp2_().sum(dim=dim)
            rescale_to(past_largest, y.amax(dim=dim), [past_total, product])
            past_total += torch.sub(y, past_largest.unsqueeze(dim), out=e).exp2_().sum(dim=dim)
            product += e.mul_(x).sum(dim=dim)
    return table


def rescale_to(largest: Tensor, found: Tensor, sums: Sequence[Tensor]) -> None:
    """Raise the largest exponents ``(n,)`` to the ones of one more tile, and rescale sums over them, all in place."""
    before = largest.clone()
    torch.maximum(before, found, out=largest)
    for total in sums:
        total.mul_((before - largest).exp2_())


def gradient(
    upstream: Tensor,
    log_sums: Tensor,
    for_rows: bool,
    for_past: bool,
    rows: Tensor,
    past: Tensor,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Return the gradient of rows ``(N, D)``, and an empty one for the past rows, which get none.

    With the upstream gradient ``u``, ``(N,)``, of all processes, ``dL/dz = W z`` with

        W_ij = u_i (p_ij(present) - p_ij(past)) + u_j (p_ji(present) - p_ji(past))
    """
    if group is not None:
        upstream = collectives.all_reduce(upstream.clone(), group)

    # each thread adds up the products W z of its tiles in a buffer of its own
    def products_over(tiles: Sequence[Tile]) -> Tensor:
        total = torch.zeros_like(rows)
        buffers = buffers_for(rows, 4)
        for a, r in tiles:
            # 1. x and y of the tile again, (len(a), len(r)); 2^(x - log2 sum 2^x) = p, 0 for a row with itself
            x, y = (exponents_of(z, (a, r), buffer) for z, buffer in zip((rows, past), buffers, strict=False))
            w, q = (matrix_in(buffer, *x.shape) for buffer in buffers[2:])
            log_sum, past_log_sum = log_sums
            # 2. u_i (p_ij - p*_ij), with the sums of the rows of the tile
            torch.sub(x, log_sum[a, None], out=w).exp2_()
            w.sub_(torch.sub(y, past_log_sum[a, None], out=q).exp2_()).mul_(upstream[a, None])
            # 3. plus u_j (p_ji - p*_ji), with the sums of its columns
            x.sub_(log_sum[r]).exp2_().sub_(y.sub_(past_log_sum[r]).exp2_())
            w.addcmul_(x, upstream[r])
            # 4. W z for the rows, W^T z for the columns; on the diagonal both are the same
            total[a].addmm_(w, rows[r])
            if a != r:
                total[r].addmm_(w.T, rows[a])
        return total

    parts = map_in_threads(products_over, tiles_of(rows, group), rows.device)
    return reduce(Tensor.add_, parts[1:], parts[0]), rows.new_empty(0)


def tiles_of(rows: Tensor, group: ProcessGroup | None) -> list[Tile]:
    """Return the tiles on and above the diagonal, with a group the share of this process."""
    whole = slice(0, len(rows))
    tiles = list(tiles_over(whole, whole, edge_of(rows), upper=True))
    return tiles if group is None else tiles[get_rank(group) :: collectives.group_size(group)]


def buffers_for(rows: Tensor, number: int) -> list[Tensor]:
    """Return memory for some tiles, used for all tiles of a pass."""
    return [rows.new_empty(min(len(rows), edge_of(rows)) ** 2) for _ in range(number)]


def exponents_of(rows: Tensor, tile: Tile, buffer: Tensor) -> Tensor:
    """Return ``x`` of a tile in a buffer; the lowest number for a row with itself, whose ``2^x`` is 0.

    It is finite: where a tile has no other pair of a row, its ``2^(x - x)`` is 1. Rescaling by a later tile multiplies
    it by 0; a row without any pair is not valid.
    """
    a, r = tile
    x = exponents(rows[a], rows[r], buffer)
    return x.fill_diagonal_(torch.finfo(x.dtype).min) if a == r else x


#: The losses of rows ``(N, D)`` and past rows ``(N, D')``; in eager mode also with a group.
tiled_losses = define_operator(
    "tiled",
    losses_of,
    gradient,
    arguments="Tensor rows, Tensor past",
    num_tensors=2,
    num_statistics=2,
    kind="relation_",
)
