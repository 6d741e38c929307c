"""The kernels as one operator, which ``torch.compile`` does not look into."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pml_supcon.functional.supcon import triton as backend
from pml_supcon.functional.supcon.custom_ops import define_operator
from pml_supcon.functional.supcon.problem import AnchorLosses, Problem
from pml_supcon.functional.supcon.triton.launch import Launches, Side

#: `exp(s)`, its sums and their inverses stay well inside float32 without a shift up to this `|s|`.
KERNEL_EXPONENT = 40.0


def solve(problem: Problem) -> AnchorLosses:
    """Return per-anchor losses of a problem with labels; nothing waits for the device."""
    losses, valid, _ = triton_losses(*arguments_of(problem))
    return AnchorLosses(losses, valid)


def arguments_of(problem: Problem) -> tuple[Any, ...]:
    """Return the arguments of ``triton_losses`` for a problem with labels."""
    cap = problem.cap
    return (
        problem.anchors,
        None if problem.symmetric else problem.rows,
        *sort_labels(problem),
        None if cap is None else cap.row_rank.int(),
        None if cap is None else cap.anchor_limit.int(),
        problem.first_anchor,
        backend.products_dtype(problem),
        problem.temperature,
        problem.summation,
        problem.denominator,
        not problem.bound <= KERNEL_EXPONENT,
    )


class Part(NamedTuple):
    """A slice of the anchors of a symmetric problem: their losses, and then the complete gradient of these rows.

    ``Part.of(problem, anchors)`` sorts it once; ``tensors`` and ``options`` are the arguments of ``build_launches``.
    """

    tensors: tuple[Any, ...]  # each a tensor or None
    options: tuple[Any, ...]

    @staticmethod
    def of(problem: Problem, anchors: slice) -> "Part":
        """Return the part of a symmetric problem whose anchors are a slice of the rows."""
        arguments = list(arguments_of(problem.part(anchors)))
        if problem.cap is not None:  # limits of all anchors: both ends of a pair are anchors in the gradient
            arguments[LIMIT] = problem.cap.anchor_limit.int()[anchors.start :]
        return Part(tuple(arguments[:NUM_TENSORS]), tuple(arguments[NUM_TENSORS:]))

    def losses(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses ``(n,)``, validity ``(n,)`` and statistics ``(4, n)`` of the part's anchors, in their order."""
        launches = build_launches(*self.tensors, *self.options)
        losses, valid, by_label = launches.losses()
        statistics = torch.empty_like(by_label).index_copy_(1, launches.anchors.ids.long(), by_label)
        return losses, valid, statistics

    def gradient(self, statistics: Tensor, upstream: Tensor) -> Tensor:
        """Return the gradient ``(n, D)`` of the part's rows, as anchors and as contrasted rows, from one kernel.

        ``statistics`` ``(4, N)`` and ``upstream`` ``(N,)`` are of all anchors, in the order of the rows.
        """
        launches = build_launches(*self.tensors, *self.options)
        sides = launches.anchors, launches.rows
        orders = [side.ids + launches.first for side in sides]
        given = [(statistics.index_select(1, order), upstream.index_select(0, order)) for order in orders]
        return launches.gradient_of_pairs(*sides, *given)


def sort_labels(problem: Problem) -> tuple[Tensor | None, ...]:
    """Return ``ids``, ``start`` and ``stop`` of both sides (see ``Side``); None for rows that are the anchors."""
    assert problem.anchor_labels is not None  # for the type checker: no pairs, so labels
    assert problem.row_labels is not None
    anchor_labels, anchor_ids = torch.sort(problem.anchor_labels.long(), stable=True)
    row_labels, row_ids = anchor_labels, None
    if not problem.symmetric:
        row_labels, row_ids = torch.sort(problem.row_labels.long(), stable=True)
        row_ids -= problem.first_anchor or 0  # an anchor and its own row have the same id
    # for each anchor the range of contrasted rows with its label; below, for each row the range of anchors
    start, stop = (
        torch.searchsorted(row_labels, anchor_labels, right=right, out_int32=True) for right in (False, True)
    )
    if row_ids is None:
        return anchor_ids.int(), start, stop, None, None, None
    row_start, row_stop = (
        torch.searchsorted(anchor_labels, row_labels, right=right, out_int32=True) for right in (False, True)
    )
    return anchor_ids.int(), start, stop, row_ids.int(), row_start, row_stop


#: The arguments of ``build_launches``, which both passes take; the first ``NUM_TENSORS`` are tensors or None.
ARGUMENTS = """
    Tensor anchors, Tensor? rows, Tensor anchor_ids, Tensor anchor_start, Tensor anchor_stop, Tensor? row_ids,
    Tensor? row_start, Tensor? row_stop, Tensor? rank, Tensor? limit, int? first_anchor, ScalarType dtype,
    float temperature, str summation, str denominator, bool shifted
"""
NUM_TENSORS = 10
LIMIT = 9  # the place of ``limit``


def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses ``(A,)``, their validity ``(A,)``, and the statistics ``(4, A)`` of the sorted anchors."""
    return build_launches(*arguments).losses()


def gradient(
    upstream: Tensor, statistics: Tensor, for_anchors: bool, for_rows: bool, *arguments: Any
) -> tuple[Tensor, Tensor]:
    """Return the gradients of anchors ``(A, D)`` and of rows ``(M, D)``, each empty if it is not requested.

    ``upstream`` ``(A,)``, in the caller's order, is 0 for invalid anchors.
    """
    launches = build_launches(*arguments)
    a, r = launches.anchors, launches.rows
    # sort the upstream gradient as the anchors; each side gets a gradient from its pairs with the other
    upstream = upstream.index_select(0, a.ids)
    return (
        launches.gradient(a, r, statistics, upstream) if for_anchors else upstream.new_empty(0),
        launches.gradient(r, a, statistics, upstream) if for_rows else upstream.new_empty(0),
    )


def build_launches(
    anchors: Tensor,
    rows: Tensor | None,
    anchor_ids: Tensor,
    anchor_start: Tensor,
    anchor_stop: Tensor,
    row_ids: Tensor | None,
    row_start: Tensor | None,
    row_stop: Tensor | None,
    rank: Tensor | None,
    limit: Tensor | None,
    first_anchor: int | None,
    dtype: torch.dtype,
    temperature: float,
    summation: str,
    denominator: str,
    shifted: bool,
) -> Launches:
    """Return the launches, with both sides sorted by label, from the flat arguments of the operator.

    Anchors ``(A, D)`` and rows ``(M, D)`` are float32 in the caller's order; ``rows`` and all ``row_*`` are None if the
    anchors are the rows. ``first_anchor`` comes from the ``Problem``, ``dtype`` is the dtype of the products, and
    ``shifted`` is true if ``exp(s)`` could overflow. ``Side`` and ``Launches`` describe the other arguments.
    """
    # rows by label, in the dtype of the products; ids count from the first anchor, so shift them back to gather
    anchor_side = Side(anchors.to(dtype).index_select(0, anchor_ids), anchor_ids, anchor_start, anchor_stop)
    row_side = anchor_side
    if rows is not None and row_ids is not None and row_start is not None and row_stop is not None:
        order = row_ids + (first_anchor or 0)
        row_side = Side(rows.to(dtype).index_select(0, order), row_ids, row_start, row_stop)
    options = {
        "SUMMATION": summation,
        "DENOMINATOR": denominator,
        "SHIFTED": shifted,
        "EXCLUDE_SELF": first_anchor is not None,
    }
    return Launches(anchor_side, row_side, rank, limit, first_anchor or 0, temperature, options)


#: ``forward`` with the derivative ``gradient``.
triton_losses = define_operator(
    "triton", forward, gradient, arguments=ARGUMENTS, num_tensors=NUM_TENSORS, num_statistics=4
)
