"""The forward and backward passes as operators, which ``torch.compile`` does not look into.

An operator takes flat tensors and numbers only: the caller takes a layout apart, ``passes_of`` and
``weighted_passes_of`` put it together.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from pml_supcon.functional.supcon.classes import Cap
from pml_supcon.functional.supcon.custom_ops import define_operator
from pml_supcon.functional.supcon.execution import map_in_threads
from pml_supcon.functional.supcon.tiled.bilinear import Bilinear
from pml_supcon.functional.supcon.tiled.layout import Layout, Tile
from pml_supcon.functional.supcon.tiled.passes import TilePasses, upstream_scale
from pml_supcon.functional.supcon.tiled.statistics import AnchorSums, Formula, Statistics
from pml_supcon.functional.supcon.tiled.weighted_layout import WeightedLayout
from pml_supcon.functional.supcon.tiled.weighted_passes import WeightedPasses
from pml_supcon.functional.supcon.tiled.weighted_statistics import WeightedStatistics
from pml_supcon.targets import Target, target_of

#: The passes, the class of their statistics, the formula of the losses, and the part that needs no tiles.
Parts = tuple[Any, type[AnchorSums], Formula, Bilinear | None]


def forward(parts_of: Callable[..., Parts], *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses ``(A,)``, their validity ``(A,)`` and the table of the statistics of the anchors."""
    passes, kind, formula, bilinear = parts_of(*arguments)
    layout, device = passes.layout, arguments[0].device
    tiles = list(layout.tiles())
    # 1. log of the sum over N(i) of exp(s_in), (A,), over all tiles; each thread returns a partial sum
    log_neg = reduce(torch.logaddexp, map_in_threads(passes.log_negatives, tiles, device))
    # 2. sums over P(i), over the boxes of tiles that can hold positives; off the diagonal a box serves both sides
    start = kind.of(log_neg, formula)
    boxes = [(box, layout.symmetric and tile[0] != tile[1]) for tile, tile_boxes in tiles for box in tile_boxes]
    statistics = kind.merged(map_in_threads(partial(passes.positives, start), boxes, device))
    if bilinear is not None:
        bilinear.add_to(statistics)
    # 3. equation 2 or 3 from the sums
    losses, valid = statistics.losses()
    return losses, valid, statistics.table


def gradient(
    parts_of: Callable[..., Parts],
    upstream: Tensor,
    table: Tensor,
    for_anchors: bool,
    for_rows: bool,
    anchors: Tensor,
    rows: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of anchors ``(A, D)`` and rows ``(M, D)``: ``dL/dz = W z``, tile by tile.

    ``W_ij`` is ``u_i d l_i / d s_ij``, and with symmetry plus ``u_j d l_j / d s_ji``, with ``u`` the upstream gradient
    ``(A,)``, which is 0 for invalid anchors. A gradient that is not requested is empty; the gradient of rows is also
    empty if they are the anchors.
    """
    passes, kind, formula, bilinear = parts_of(anchors, rows, *rest)
    statistics = kind(table, formula)
    # divide by the largest upstream gradient, lest tiny ones underflow in the product with exp(-log_neg)
    scale = upstream_scale(upstream)
    upstream = upstream / scale

    # each thread adds up the products W z of its tiles in buffers of its own
    def gradients(tiles: Sequence[tuple[Tile, list[Tile]]]) -> list[Tensor | None]:
        grad_anchors = anchors.new_zeros(anchors.shape) if for_anchors else None
        grad_rows = rows.new_zeros(rows.shape) if rows is not None and for_rows else None
        both = grad_anchors if rows is None else grad_rows
        passes.gradients(tiles, statistics, upstream, grad_anchors, both)
        return [grad_anchors, grad_rows]

    # add the threads' buffers and undo the scale
    parts = map_in_threads(gradients, list(passes.layout.tiles()), anchors.device)
    of_anchors, of_rows = (
        None if first is None else reduce(Tensor.add_, others, first) for first, *others in zip(*parts, strict=True)
    )
    if bilinear is not None:
        bilinear.subtract_gradients(upstream, of_anchors, of_anchors if rows is None else of_rows)
    of_anchors, of_rows = (anchors.new_empty(0) if part is None else part.mul_(scale) for part in (of_anchors, of_rows))
    return of_anchors, of_rows


def passes_of(
    anchors: Tensor,
    rows: Tensor | None,
    anchor_labels: Tensor,
    row_labels: Tensor,
    anchor_ids: Tensor | None,
    row_ids: Tensor | None,
    anchor_rank: Tensor | None,
    anchor_limit: Tensor | None,
    row_rank: Tensor | None,
    row_sizes: Tensor | None,
    summation: str,
    denominator: str,
    margin: float,
    class_balanced: bool,
    counts: bool,
    shifted: bool,
) -> Parts:
    """Return the passes, the class of the statistics and the formula, from the flat arguments of the operator.

    ``anchors`` ``(A, D)`` and ``rows`` ``(M, D)`` are sorted by label and divided by the root of the temperature; rows
    are None if the anchors are the rows. The tensors after them are the fields of ``Layout`` and ``Cap``. ``shifted``
    is true if ``exp(s)`` could overflow.
    """
    cap = None
    if anchor_rank is not None and anchor_limit is not None and row_rank is not None:
        cap = Cap(anchor_rank, anchor_limit, row_rank)
    layout = Layout(anchor_labels, row_labels, anchor_ids, row_ids, cap, row_sizes, symmetric=rows is None)
    passes = TilePasses(anchors, anchors if rows is None else rows, layout, anchors.dtype, shifted)
    return passes, Statistics, Formula(summation, denominator, margin, class_balanced, counts), None


def weighted_passes_of(
    anchors: Tensor,
    rows: Tensor | None,
    anchor_labels: Tensor,
    row_labels: Tensor,
    first_anchor: int | None,
    target: Target | int,
    summation: str,
    denominator: str,
    margin: float,
    class_balanced: bool,
    counts: bool,
    shifted: bool,
) -> Parts:
    """Return the same for the weights of a target, which under the compiler is given by its handle.

    ``anchors``, ``rows`` and ``shifted`` are as in ``passes_of``, without the order; labels are as the target prepared
    them, and anchor ``i`` is not contrasted with row ``first_anchor + i``.
    """
    target = target if isinstance(target, Target) else target_of(target)
    own_rows = () if first_anchor is None else ((slice(0, len(anchors)), first_anchor),)
    layout = WeightedLayout(anchor_labels, row_labels, own_rows, target, symmetric=rows is None)
    formula = Formula(summation, denominator, margin, class_balanced, counts)
    both = anchors, anchors if rows is None else rows
    bilinear = None if shifted else Bilinear.of(layout, formula, *both)
    passes = WeightedPasses(*both, layout, anchors.dtype, shifted, denominator, weighted=bilinear is None)
    return passes, WeightedStatistics, formula, bilinear


#: The losses of class labels, with their derivative.
tiled_losses = define_operator(
    "tiled",
    partial(forward, passes_of),
    partial(gradient, passes_of),
    arguments="""
        Tensor anchors, Tensor? rows, Tensor anchor_labels, Tensor row_labels, Tensor? anchor_ids, Tensor? row_ids,
        Tensor? anchor_rank, Tensor? anchor_limit, Tensor? row_rank, Tensor? row_sizes, str summation, str denominator,
        float margin, bool class_balanced, bool counts, bool shifted
    """,
    num_tensors=10,
    num_statistics=5,
)

#: The losses of a target.
weighted_losses = define_operator(
    "tiled",
    partial(forward, weighted_passes_of),
    partial(gradient, weighted_passes_of),
    arguments="""
        Tensor anchors, Tensor? rows, Tensor anchor_labels, Tensor row_labels, int? first_anchor, int target,
        str summation, str denominator, float margin, bool class_balanced, bool counts, bool shifted
    """,
    num_tensors=4,
    num_statistics=6,
    kind="weighted_",
)
