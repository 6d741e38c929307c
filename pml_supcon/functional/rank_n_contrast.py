"""Rank-N-Contrast for regression (Zha et al., NeurIPS 2023), in ``O(N^2 log N)`` time and linear memory."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from pml_supcon._checks import check_callable, check_temperature, check_type
from pml_supcon._layouts import view_major_rows
from pml_supcon._tensors import FLOATS, check_dense, to_device
from pml_supcon.distributed import collectives
from pml_supcon.functional.supcon import checks
from pml_supcon.functional.supcon.execution import full_precision
from pml_supcon.functional.supcon.problem import AnchorLosses

#: Pairs that are computed at once, about 75 bytes each.
CHUNK_PAIRS = 2**20

Similarity = Callable[[Tensor, Tensor], Tensor]


def rank_n_contrast_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    temperature: float = 2.0,
    similarity: Similarity | None = None,
    group: ProcessGroup | None = None,
) -> AnchorLosses:
    r"""Return the Rank-N-Contrast loss of every anchor.

    With ``s_ij = -|z_i - z_j| / tau`` on the rows as they are, not normalised, and ``d_ij = |y_i - y_j|``:

        l_i = -1/(N - 1) * sum_{j != i} [ s_ij - log sum_{k != i, d_ik >= d_ij} exp(s_ik) ]

    Each row ``j`` is in turn the positive of anchor ``i``; it is contrasted with the rows whose labels are at least as
    far from ``y_i``, itself and ties included. Only the order of the label distances of an anchor matters.

    Args:
        embeddings: ``(N, D)`` floating point, or ``(B, V, D)``, which is read as ``N = V * B`` view-major rows. Half
            precision is computed in float32.
        labels: ``(N,)`` or ``(N, K)`` numbers, ``(B,)`` or ``(B, K)`` for ``(B, V, D)`` embeddings: integers or
            floating point, finite, on any device. The distance of K numbers is the sum of their absolute differences
            (the authors' code), so bring the columns to comparable units. Distances are exact for integers, and
            computed in float64 for floating point.
        ref_emb: ``(M, D)`` contrasted rows instead of the batch; none of them counts as the anchor itself.
        ref_labels: ``(M,)`` or ``(M, K)``, the labels of ``ref_emb``.
        temperature: ``tau > 0``.
        similarity: a function of ``(A, D)`` and ``(M, D)`` rows that returns ``(A, M)`` similarities. It replaces
            ``-|z_i - z_j|``, and is divided by the temperature. Gradients reach the rows only.
        group: processes that all call the function with the same batch, and divide its anchors; the gradient of a
            process is its part of the gradient of the sum of the results of all processes.

    Returns:
        ``AnchorLosses(losses, valid)``, two ``(N,)`` tensors, losses > 0. ``.mean()`` is the batch loss. A row without
        another one to contrast has the loss 0 and is not valid.

    Raises:
        TypeError: If embeddings are not floating point, or labels are not numbers.
        ValueError: If shapes, devices or dtypes do not fit; if labels on the CPU are not finite, or integers reach 2^61
            in size. On other devices, where the check would wait for the device, all losses are then NaN.

    Note:
        Anchors are computed in chunks, which the backward pass computes again: no intermediate of all pairs is kept.
        The loss is differentiable once. Coincident rows have a gradient of 0 for each other.

    Source:
        Zha et al., *Rank-N-Contrast: Learning Continuous Representations for Regression* (NeurIPS 2023), equation 1
        and 2. The authors' loop over positives takes ``O(N^3)``.

    Examples:
        >>> import torch
        >>> from pml_supcon.functional import rank_n_contrast_loss
        >>> angles = torch.tensor([0.0, 0.3, 1.2, 2.5, 0.1, 0.5, 1.0, 2.2], dtype=torch.float64)
        >>> z = torch.stack([angles.cos(), angles.sin()], dim=1)
        >>> ages = torch.tensor([0, 1, 2.5, 4]).repeat(2)
        >>> print(f"{rank_n_contrast_loss(z, ages).mean():.9f}")
        1.278667834
    """
    check_temperature("temperature", temperature)
    check_type("group", group, (ProcessGroup, type(None)), "a ProcessGroup or None")
    if similarity is not None:
        check_callable("similarity", similarity)
    rows, numbers = view_major_numbers(embeddings, labels)
    given = [numbers]
    if (ref_emb is None) != (ref_labels is None):
        alone = "ref_labels" if ref_emb is None else "ref_emb"
        raise ValueError(f"Expected `ref_emb` and `ref_labels` together, but got `{alone}` alone")
    others, ref_numbers = rows, numbers
    if ref_emb is not None and ref_labels is not None:
        checks.check_fits(rows, "ref_emb", ref_emb)
        check_dense("ref_emb", ref_emb)
        others, ref_numbers = ref_emb, checked_numbers("ref_labels", ref_labels, len(ref_emb))
        given.append(ref_numbers)
        if ref_numbers.shape[1] != numbers.shape[1]:
            raise ValueError(
                f"Expected `ref_labels` to have {numbers.shape[1]} numbers for each row like `labels`, "
                f"but got {ref_numbers.shape[1]}"
            )
    # numbers (N, K) and (M, K) in one dtype on the device of the rows; where values were not checked, 0 in place of
    # unusable ones, since NaN has no rank
    usable = [(magnitudes(x) < limit(x)).all() for x in given if not values_known(x)]
    numbers, ref_numbers = (x if x.device == rows.device else to_device(x, rows.device) for x in (numbers, ref_numbers))
    if numbers.dtype != ref_numbers.dtype:
        numbers, ref_numbers = numbers.double(), ref_numbers.double()
    for good in usable:
        numbers, ref_numbers = (torch.where(good.to(rows.device), x, 0) for x in (numbers, ref_numbers))

    dtype = torch.promote_types(rows.dtype, torch.float32)
    rows, others = (x.to(dtype) for x in (rows, others))
    own_among_others = ref_emb is None
    number = len(rows)
    partners = len(others) - own_among_others
    if partners < 1:
        return AnchorLosses(rows[:, :0].sum(dim=1), torch.zeros(number, dtype=torch.bool, device=rows.device))

    def losses_of(part: slice) -> Tensor:
        first = part.start if own_among_others else None
        losses: Tensor = _Losses.apply(
            rows[part], others, numbers[part], ref_numbers, first, float(temperature), similarity or euclidean
        )
        return losses

    if group is None:
        losses = losses_of(slice(0, number))
    else:  # process r computes anchors [first, first + sizes[r])
        processes, rank = collectives.group_size(group), torch.distributed.get_rank(group)
        sizes = [number // processes + (r < number % processes) for r in range(processes)]
        first = sum(sizes[:rank])
        losses = collectives.gather_rows(losses_of(slice(first, first + sizes[rank])), sizes, group)
    for good in usable:
        losses = torch.where(good.to(rows.device), losses, torch.nan)
    return AnchorLosses(losses, torch.ones(number, dtype=torch.bool, device=rows.device))


def euclidean(anchors: Tensor, rows: Tensor) -> Tensor:
    """Return ``-|z_i - z_j|``, ``(A, M)``, from differences: products of rows would lose the digits of near rows."""
    return -torch.cdist(anchors, rows, compute_mode="donot_use_mm_for_euclid_dist")


class _Losses(torch.autograd.Function):
    """The losses of anchors ``(A, D)`` against rows ``(M, D)``; the backward pass computes each chunk again."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        rows: Tensor,
        anchor_labels: Tensor,
        row_labels: Tensor,
        first_anchor: int | None,
        temperature: float,
        similarity: Similarity,
    ) -> Tensor:
        ctx.save_for_backward(anchors, rows, anchor_labels, row_labels)
        ctx.options = first_anchor, temperature, similarity
        losses = anchors.new_empty(len(anchors))
        with full_precision(anchors.device):
            for part in chunks(len(anchors), len(rows)):
                s = checked_similarities(similarity, anchors[part], rows) / temperature
                ranks = _Ranks(anchor_labels[part], row_labels, first_anchor, part.start)
                s = ranks.ordered(s)
                # l_i = mean_j [ log sum_{k: d_ik >= d_ij} exp(s_ik) - s_ij ], (c,)
                losses[part] = (ranks.log_sums(s) - s).mean(dim=1)
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        of_anchors, of_rows = _Gradient.apply(upstream, *ctx.saved_tensors, *ctx.options)
        return of_anchors, of_rows, None, None, None, None, None


class _Gradient(torch.autograd.Function):
    """The gradients of anchors and rows: an operation of its own, so that a second derivative raises."""

    @staticmethod
    def forward(
        ctx: Any,
        upstream: Tensor,
        anchors: Tensor,
        rows: Tensor,
        anchor_labels: Tensor,
        row_labels: Tensor,
        first_anchor: int | None,
        temperature: float,
        similarity: Similarity,
    ) -> tuple[Tensor, Tensor]:
        of_anchors, of_rows = torch.zeros_like(anchors), torch.zeros_like(rows)
        rows = rows.detach().requires_grad_()
        with full_precision(anchors.device):
            for part in chunks(len(anchors), len(rows)):
                chosen = anchors[part].detach().requires_grad_()
                with torch.enable_grad():
                    graph = similarity(chosen, rows) / temperature
                ranks = _Ranks(anchor_labels[part], row_labels, first_anchor, part.start)
                s = ranks.ordered(graph.detach())
                # dl_i / ds_ik = ( sum_{j: d_ij <= d_ik} exp(s_ik) / sum_{m: d_im >= d_ij} exp(s_im) - 1 ) / n, (c, n):
                # prefix sums over j of 1 / the suffix sums, as logarithms, up to the last j that ties with k
                shares = ranks.up_to_ties((-ranks.log_sums(s)).logcumsumexp(dim=1)).add_(s).exp_()
                slopes = ranks.in_place(shares.sub_(1).mul_(upstream[part, None] / shares.shape[1]), graph)
                gradients = torch.autograd.grad(graph, (chosen, rows), slopes)
                of_anchors[part] = gradients[0]
                of_rows += gradients[1]
        return of_anchors, of_rows

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError("`rank_n_contrast_loss` is differentiable once")


class _Ranks:
    """The order of the rows by label distance from each of ``c`` anchors; the anchor itself is left out.

    Attributes:
        order: ``(c, n)`` row numbers, the nearest label first.
        distances: ``(c, n)`` label distances in this order.
    """

    def __init__(self, anchor_labels: Tensor, row_labels: Tensor, first_anchor: int | None, start: int) -> None:
        # d_ik = sum over the K columns of |y_i - y_k|, (c, M)
        distances = anchor_labels.new_zeros(len(anchor_labels), len(row_labels))
        for own, others in zip(anchor_labels.T, row_labels.T, strict=True):
            distances += (own[:, None] - others).abs_()
        if first_anchor is not None:  # below every distance: the anchor itself comes first, and is dropped
            distances.diagonal(first_anchor + start).fill_(-1)
        dropped = first_anchor is not None
        ordered, order = distances.sort(dim=1)
        self.distances, self.order = ordered[:, dropped:].contiguous(), order[:, dropped:]

    def ordered(self, x: Tensor) -> Tensor:
        """Return values of rows ``(c, M)`` in this order, ``(c, n)``."""
        return x.gather(1, self.order)

    def in_place(self, x: Tensor, like: Tensor) -> Tensor:
        """Return ordered values ``(c, n)`` in the order of the rows ``(c, M)``; 0 for the anchor itself."""
        return torch.zeros_like(like).scatter_(1, self.order, x)

    def log_sums(self, s: Tensor) -> Tensor:
        """Return ``log sum_{k: d_ik >= d_ij} exp(s_ik)`` for each ``j`` in order, ``(c, n)``."""
        # suffix sums; ties share the sum from the first of them on
        suffix = s.flip(1).logcumsumexp(dim=1).flip(1)
        return suffix.gather(1, torch.searchsorted(self.distances, self.distances))

    def up_to_ties(self, x: Tensor) -> Tensor:
        """Return for each row in order the value of the last row that ties with it, ``(c, n)``."""
        return x.gather(1, torch.searchsorted(self.distances, self.distances, right=True).sub_(1))


def chunks(anchors: int, rows: int) -> Iterator[slice]:
    """Yield slices of the anchors with at most ``CHUNK_PAIRS`` pairs, or one anchor, each."""
    size = max(1, CHUNK_PAIRS // rows)
    yield from (slice(start, min(start + size, anchors)) for start in range(0, anchors, size))


def checked_similarities(similarity: Similarity, anchors: Tensor, rows: Tensor) -> Tensor:
    """Return ``similarity(anchors, rows)``; raise unless it is one number for every pair."""
    s = similarity(anchors, rows)
    checks.check_similarities(s, (len(anchors), len(rows)))
    return s


def view_major_numbers(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Check embeddings and labels of ``rank_n_contrast_loss``; return rows ``(N, D)`` and numbers ``(N, K)``."""
    checks.check_embeddings("embeddings", embeddings)
    check_dense("embeddings", embeddings)
    rows, numbers, _ = view_major_rows(embeddings, checked_numbers("labels", labels, len(embeddings)), None)
    assert numbers is not None  # for the type checker
    return rows, numbers


def checked_numbers(name: str, labels: Tensor | None, number: int) -> Tensor:
    """Return labels as ``(N, K)``: int64, whose differences are exact, or float64; on their device.

    Raises:
        TypeError: If they are not integers or floating point.
        ValueError: If there are not ``number`` of them, or rows of them; if, on the CPU, one is not finite or so large
            that differences overflow.
    """
    if labels is None:
        raise ValueError(f"Expected argument `{name}` to hold the numbers of {number} embeddings, but got None")
    check_dense(name, labels)
    if labels.dtype not in (*checks.LABEL_DTYPES, *FLOATS):
        raise TypeError(f"Expected argument `{name}` to hold integers or floating point, but got {labels.dtype}")
    if labels.ndim not in (1, 2) or len(labels) != number or 0 in labels.shape[1:]:
        raise ValueError(
            f"Expected argument `{name}` to have shape ({number},) or ({number}, K), the numbers of each embedding, "
            f"but got {tuple(labels.shape)}"
        )
    numbers = labels.detach().to(torch.float64 if labels.is_floating_point() else torch.int64)
    numbers = numbers[:, None] if labels.ndim == 1 else numbers
    if values_known(numbers):
        bad = (~(magnitudes(numbers) < limit(numbers))).nonzero()
        if len(bad):
            row = int(bad[0])
            raise ValueError(
                f"Expected argument `{name}` to hold finite numbers below {limit(numbers):g} in size, "
                f"but got {numbers[row].tolist()} in row {row}"
            )
    return numbers


def values_known(numbers: Tensor) -> bool:
    """Return True if values can be read without waiting for a device, or breaking a graph of the compiler."""
    return numbers.device.type == "cpu" and not torch.compiler.is_compiling()


def magnitudes(numbers: Tensor) -> Tensor:
    """Return the sum of the absolute numbers of each row ``(N, K)``, in float64."""
    return numbers.double().abs().sum(dim=1)


def limit(numbers: Tensor) -> float:
    """Return the bound of ``magnitudes`` below which no difference of two rows leaves the dtype."""
    return torch.finfo(torch.float64).max / 4 if numbers.is_floating_point() else 2.0**61
