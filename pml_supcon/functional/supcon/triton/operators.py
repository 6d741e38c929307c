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
    losses, valid, _ = triton_losses(*arguments_of(problem, *sides_of(problem)))
    return AnchorLosses(losses, valid)


def solve_mean(problem: Problem) -> Tensor:
    """Return the mean loss of the valid anchors of a problem with labels; nothing waits for the device."""
    return triton_mean(*arguments_of(problem, *sides_of(problem)))[0]


def sides_of(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return anchors and rows as they are given: the kernels widen and normalise them."""
    anchors, start = problem.embeddings, problem.start
    rows = anchors if problem.references is None else problem.references
    return anchors if start is None else anchors[start : start + problem.num_anchors], rows


def arguments_of(problem: Problem, anchors: Tensor, rows: Tensor) -> tuple[Any, ...]:
    """Return the arguments of ``triton_losses`` for a problem with labels; anchors and rows need no preparation."""
    assert problem.anchor_labels is not None  # for the type checker: no pairs, so labels
    assert problem.row_labels is not None
    cap, symmetric = problem.cap, problem.symmetric
    anchor_labels, anchor_order = torch.sort(problem.anchor_labels, stable=True)
    row_labels, row_order = (None, None) if symmetric else torch.sort(problem.row_labels, stable=True)
    return (
        anchors,
        None if symmetric else rows,
        anchor_labels,
        anchor_order,
        row_labels,
        row_order,
        None if cap is None else cap.row_rank,
        None if cap is None else cap.anchor_limit,
        problem.first_anchor,
        backend.products_dtype(problem),
        problem.normalize,
        problem.temperature,
        problem.summation,
        problem.denominator,
        not problem.bound <= KERNEL_EXPONENT,
    )


class Part(NamedTuple):
    """A slice of the anchors of a symmetric problem: their losses, and then the complete gradient of these rows.

    ``Part.of(problem, rows, anchors)`` sorts it once. ``tensors`` and ``options`` are the arguments of
    ``build_launches``.
    """

    tensors: tuple[Any, ...]  # each a tensor or None
    options: tuple[Any, ...]

    @staticmethod
    def of(problem: Problem, rows: Tensor, anchors: slice) -> "Part":
        """Return the part of a symmetric problem whose anchors are a slice of its rows ``(N, D)``."""
        arguments = list(arguments_of(problem.part(anchors), rows[anchors], rows))
        if problem.cap is not None:  # limits of all anchors: both ends of a pair are anchors in the gradient
            arguments[LIMIT] = problem.cap.anchor_limit
        return Part(tuple(arguments[:NUM_TENSORS]), tuple(arguments[NUM_TENSORS:]))

    def losses(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses ``(n,)``, validity ``(n,)`` and statistics ``(4, n)`` of the part's anchors, in their order."""
        launches = build_launches(*self.tensors, *self.options)
        losses, valid, by_label = launches.losses()
        return losses, valid, torch.empty_like(by_label).index_copy_(1, launches.anchors.order, by_label)

    def gradient(self, statistics: Tensor, upstream: Tensor) -> Tensor:
        """Return the gradient ``(n, D)`` of the part's rows, as anchors and as contrasted rows, from one pass.

        ``statistics`` ``(4, N)`` and ``upstream`` ``(N,)`` are of all anchors, in the order of the rows.
        """
        launches = build_launches(*self.tensors, *self.options)
        return launches.gradient_of_own_rows(statistics, upstream.contiguous())


#: The arguments of ``build_launches``, which both passes take; the first ``NUM_TENSORS`` are tensors or None.
ARGUMENTS = """
    Tensor anchors, Tensor? rows, Tensor anchor_labels, Tensor anchor_order, Tensor? row_labels, Tensor? row_order,
    Tensor? rank, Tensor? limit, int? first_anchor, ScalarType dtype, bool normalize, float temperature,
    str summation, str denominator, bool shifted
"""
NUM_TENSORS = 8
LIMIT = 7  # the place of ``limit``


def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses ``(A,)``, their validity ``(A,)``, and the statistics ``(4, A)`` of the sorted anchors."""
    return build_launches(*arguments).losses()


def forward_mean(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean loss ``()`` of the valid anchors, their number ``()``, and the statistics as ``forward``."""
    return build_launches(*arguments).mean()


def gradient(
    upstream: Tensor, statistics: Tensor, for_anchors: bool, for_rows: bool, *arguments: Any
) -> tuple[Tensor, Tensor]:
    """Return the gradients of anchors ``(A, D)`` and of rows ``(M, D)``, each empty if it is not requested.

    ``upstream`` is ``(A,)``, in the caller's order and 0 for invalid anchors, or ``()``, of each valid anchor.
    """
    return build_launches(*arguments).gradients(statistics, upstream.contiguous(), for_anchors, for_rows)


def build_launches(
    anchors: Tensor,
    rows: Tensor | None,
    anchor_labels: Tensor,
    anchor_order: Tensor,
    row_labels: Tensor | None,
    row_order: Tensor | None,
    rank: Tensor | None,
    limit: Tensor | None,
    first_anchor: int | None,
    dtype: torch.dtype,
    normalize: bool,
    temperature: float,
    summation: str,
    denominator: str,
    shifted: bool,
) -> Launches:
    """Return the launches from the flat arguments of the operator.

    Anchors ``(A, D)`` and rows ``(M, D)`` are in the caller's order, labels are sorted, and the orders ``(A,)`` and
    ``(M,)`` sort them; ``rows`` and all ``row_*`` are None if the anchors are the rows. ``first_anchor`` comes from the
    ``Problem``, ``dtype`` is the dtype of the products, and ``shifted`` is true if ``exp(s)`` could overflow. ``limit``
    has the limits of the anchors ``(A,)``, or of all rows ``(M,)``.
    """
    anchor_side = Side(anchors, anchor_order, anchor_labels, 0)
    row_side = anchor_side
    if rows is not None and row_labels is not None and row_order is not None:
        row_side = Side(rows, row_order, row_labels, first_anchor or 0)
    options = {"SUMMATION": summation, "DENOMINATOR": denominator, "EXCLUDE_SELF": first_anchor is not None}
    return Launches(anchor_side, row_side, rank, limit, dtype, temperature, normalize, shifted, options)


#: ``forward`` with the derivative ``gradient``.
triton_losses = define_operator(
    "triton", forward, gradient, arguments=ARGUMENTS, num_tensors=NUM_TENSORS, num_statistics=4
)
#: The same for the mean over valid anchors.
triton_mean = define_operator(
    "triton", forward_mean, gradient, arguments=ARGUMENTS, num_tensors=NUM_TENSORS, num_statistics=4, mean=True
)
