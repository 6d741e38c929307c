"""What is to be computed: the arguments of `supcon_loss`, checked once for every backend."""

import difflib
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SUMMATIONS = ("out", "in")
DENOMINATORS = ("all", "one_positive", "negatives")
CONTRAST_MODES = ("all", "one")


class AnchorLosses(NamedTuple):
    """The loss of every anchor, `(A,)`, and whether the anchor has one, `(A,)` bool; the others hold 0."""

    losses: Tensor
    valid: Tensor

    def mean(self) -> Tensor:
        """The batch loss: the mean over valid anchors; 0 with a graph where there is none."""
        return self.losses.sum() / self.valid.sum().clamp(min=1)


class Cap(NamedTuple):
    """A cap on the positives as ranks: of a class, anchor `i` keeps the rows `j` that `keeps` says.

    `rank` counts the samples of a class in batch order. With `k` samples to keep, anchor `i` keeps those of rank below
    `limit_i = k + [rank_i < k]`, and its own sample's other views.
    """

    anchor_rank: Tensor
    anchor_limit: Tensor
    row_rank: Tensor

    def keeps(self, anchors: slice | Tensor, rows: slice | Tensor) -> Tensor:
        """Which of the rows each of the anchors keeps, `(len(anchors), len(rows))` bool, given that labels agree."""
        rank = self.row_rank[rows]
        return (rank < self.anchor_limit[anchors, None]) | (rank == self.anchor_rank[anchors, None])


@dataclass(frozen=True)
class Problem:
    """Checked input of a backend.

    Attributes:
        anchors: `(A, D)`, float32 or float64, normalised where that was asked for.
        rows: `(M, D)` contrasted rows; `rows is anchors` where every row is an anchor.
        anchor_labels: `(A,)`, None with `pairs`.
        row_labels: `(M,)`, None with `pairs`.
        anchors_are_rows: anchor `i` is row `i`, and so not contrasted with it.
        cap: ranks that cap the positives, or None.
        pairs: the pairs `(a1, p, a2, n)` given in place of labels, or None.
        similarity: in place of the dot product, or None.
        bound: an upper bound of `|s_ij|` where one is known without looking at the data, else infinity.
    """

    anchors: Tensor
    rows: Tensor
    anchor_labels: Tensor | None
    row_labels: Tensor | None
    anchors_are_rows: bool
    cap: Cap | None
    pairs: tuple[Tensor, Tensor, Tensor, Tensor] | None
    similarity: Callable[[Tensor, Tensor], Tensor] | None
    temperature: float
    summation: str
    denominator: str
    bound: float


def build_problem(
    embeddings: Tensor,
    labels: Tensor | None,
    *,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    indices_tuple: Sequence[Tensor] | None,
    num_views: int | None,
    temperature: float,
    summation: str,
    denominator: str,
    contrast_mode: str,
    positives_cap: int | None,
    normalize: bool,
    similarity: Callable[[Tensor, Tensor], Tensor] | None,
) -> Problem:
    """Check the arguments of `supcon_loss` (see there) and state them as one `Problem`."""
    check_options(
        temperature=temperature, summation=summation, denominator=denominator, contrast_mode=contrast_mode
    )
    check_embeddings("embeddings", embeddings)
    embeddings, labels, num_views = flatten_views(embeddings, labels, num_views)
    num_rows = embeddings.shape[0]
    pairs = check_pairs(indices_tuple, embeddings.device)
    if labels is not None:
        check_labels("labels", labels, num_rows, embeddings.device)
        check_views_agree(labels, num_views)
    elif pairs is None:
        labels = own_classes(num_rows, num_views, embeddings.device, has_references=ref_emb is not None)
    check_references(embeddings, labels, ref_emb, ref_labels, pairs)
    check_views_known(contrast_mode, positives_cap, num_views)
    check_cap(positives_cap, num_views, has_references=ref_emb is not None, has_pairs=pairs is not None)
    if pairs is not None and contrast_mode == "one":
        raise ValueError(
            "Expected `contrast_mode` to be 'all' with `indices_tuple`, which names the anchors itself, but got 'one'"
        )

    def prepare(rows: Tensor) -> Tensor:
        rows = rows.to(torch.float32) if rows.dtype in (torch.float16, torch.bfloat16) else rows
        return F.normalize(rows, dim=1) if normalize and similarity is None else rows

    rows = prepare(embeddings)
    num_anchors = num_rows
    if contrast_mode == "one":
        assert num_views is not None  # for the type checker: `check_views_known` has refused None
        num_anchors = num_rows // num_views
    anchors = rows if num_anchors == num_rows else rows[:num_anchors]
    anchor_labels = None if labels is None else labels[:num_anchors]
    cap = None
    if positives_cap is not None and labels is not None and num_views is not None:
        cap = rank_cap(labels, num_views, positives_cap // num_views, num_anchors)
    return Problem(
        anchors=anchors,
        rows=rows if ref_emb is None else prepare(ref_emb),
        anchor_labels=anchor_labels if pairs is None else None,
        row_labels=None if pairs is not None else labels if ref_emb is None else ref_labels,
        anchors_are_rows=ref_emb is None,
        cap=cap,
        pairs=pairs,
        similarity=similarity,
        temperature=temperature,
        summation=summation,
        denominator=denominator,
        bound=1 / temperature if normalize and similarity is None else math.inf,
    )


def flatten_views(
    embeddings: Tensor, labels: Tensor | None, num_views: int | None
) -> tuple[Tensor, Tensor | None, int | None]:
    """`(B, V, D)` embeddings and `(B,)` labels as view-major rows `(V * B, D)` and labels `(V * B,)`."""
    if num_views is not None and (not is_int(num_views) or num_views < 1):
        raise ValueError(f"Expected argument `num_views` to be a positive integer or None, but got {num_views!r}")
    if embeddings.ndim == 2:
        if num_views is not None and embeddings.shape[0] % num_views:
            raise ValueError(
                f"Expected the rows of `embeddings` to be num_views={num_views} views of every sample, but "
                f"{embeddings.shape[0]} is not a multiple of {num_views}"
            )
        return embeddings, labels, num_views
    samples, views, _ = embeddings.shape
    if num_views is not None and num_views != views:
        raise ValueError(
            f"Expected `embeddings` (B, V, D) with V = num_views = {num_views}, but got {tuple(embeddings.shape)}"
        )
    if labels is not None:
        check_labels("labels", labels, samples, embeddings.device)
        labels = labels.repeat(views)
    return embeddings.transpose(0, 1).flatten(0, 1), labels, views


def own_classes(num_rows: int, num_views: int | None, device: torch.device, *, has_references: bool) -> Tensor:
    """Labels for label-free use: every sample is its own class."""
    if num_views is None or has_references:
        raise ValueError(
            "Expected `labels` or `indices_tuple`: only rows contrasted with themselves whose views are known "
            "((B, V, D) embeddings, or `num_views`) need neither"
        )
    return torch.arange(num_rows // num_views, device=device).repeat(num_views)


def rank_cap(labels: Tensor, num_views: int, keep: int, num_anchors: int) -> Cap:
    """The ranks that say which `keep` other samples of its class each anchor keeps."""
    samples = labels[: labels.shape[0] // num_views]
    order = torch.argsort(samples, stable=True)
    ordered = samples[order]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=labels.device) - torch.searchsorted(ordered, ordered)
    rank = rank.repeat(num_views)
    limit = keep + (rank < keep).long()
    return Cap(anchor_rank=rank[:num_anchors], anchor_limit=limit[:num_anchors], row_rank=rank)


def is_int(value: object) -> bool:
    """Whether the value is an integer and no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices, naming the nearest."""
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Expected argument `{name}` to be one of {list(choices)}, but got {value!r}{hint}")


def check_options(*, temperature: float, summation: str, denominator: str, contrast_mode: str) -> None:
    """Refuse options that no data can make valid."""
    number = isinstance(temperature, numbers.Real) and not isinstance(temperature, bool)
    if not number or not math.isfinite(temperature) or temperature <= 0:
        raise ValueError(f"Expected argument `temperature` to be a finite number > 0, but got {temperature!r}")
    check_choice("summation", summation, SUMMATIONS)
    check_choice("denominator", denominator, DENOMINATORS)
    check_choice("contrast_mode", contrast_mode, CONTRAST_MODES)


def check_embeddings(name: str, embeddings: Tensor, dims: tuple[int, ...] = (2, 3)) -> None:
    """Refuse what is no floating-point tensor `(N, D)` or, where allowed, `(B, V, D)`."""
    if not isinstance(embeddings, Tensor):
        raise TypeError(f"Expected argument `{name}` to be a torch.Tensor, but got {type(embeddings).__name__}")
    if embeddings.ndim not in dims:
        shapes = " or ".join({2: "(N, D)", 3: "(B, V, D)"}[d] for d in dims)
        raise ValueError(f"Expected argument `{name}` to have shape {shapes}, but got {tuple(embeddings.shape)}")
    if not embeddings.is_floating_point():
        raise TypeError(f"Expected argument `{name}` to be floating point, but got {embeddings.dtype}")
    if embeddings.shape[-1] == 0 or (embeddings.ndim == 3 and embeddings.shape[1] == 0):
        raise ValueError(f"Expected argument `{name}` to have at least one column and view, "
                         f"but got shape {tuple(embeddings.shape)}")  # fmt: skip


def check_labels(name: str, labels: Tensor, number: int, device: torch.device) -> None:
    """Refuse labels that are not `number` integers on the device of the embeddings."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"Expected argument `{name}` to be a torch.Tensor, but got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"Expected argument `{name}` to hold integers, but got {labels.dtype}")
    if labels.shape != (number,):
        raise ValueError(
            f"Expected argument `{name}` to have shape ({number},), one label for each embedding, "
            f"but got {tuple(labels.shape)}"
        )
    if labels.device != device:
        raise ValueError(
            f"Expected argument `{name}` to be on the device of the embeddings, {device}, but got {labels.device}"
        )


def check_views_agree(labels: Tensor, num_views: int | None) -> None:
    """Refuse labels that differ between the views of a sample, where looking costs no synchronisation."""
    if num_views is None or labels.device.type != "cpu":
        return
    views = labels.view(num_views, -1)
    if not torch.equal(views, views[:1].expand_as(views)):
        raise ValueError(
            f"Expected `labels` to repeat the labels of the first view for each of the {num_views} views "
            "(view-major rows: torch.cat of the views), but they differ between views"
        )


def check_references(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    pairs: tuple[Tensor, ...] | None,
) -> None:
    """Refuse contrasted rows that do not fit the anchors."""
    if ref_emb is None:
        if ref_labels is not None:
            raise ValueError("Expected `ref_emb` together with `ref_labels`, but got `ref_labels` alone")
        return
    check_embeddings("ref_emb", ref_emb, dims=(2,))
    for what, expected, came in (
        ("width", embeddings.shape[1], ref_emb.shape[1]),
        ("dtype", embeddings.dtype, ref_emb.dtype),
        ("device", embeddings.device, ref_emb.device),
    ):
        if expected != came:
            raise ValueError(f"Expected `ref_emb` to have the {what} of the embeddings, {expected}, but got {came}")
    if ref_labels is not None:
        check_labels("ref_labels", ref_labels, ref_emb.shape[0], ref_emb.device)
    elif pairs is None:
        raise ValueError("Expected `ref_labels` together with `ref_emb`, but got `ref_emb` alone")


def check_pairs(
    indices_tuple: Sequence[Tensor] | None, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Pairs `(a1, p, a2, n)` from what a miner gives, or None."""
    if indices_tuple is None:
        return None
    if len(indices_tuple) not in (3, 4):
        raise ValueError(
            f"Expected `indices_tuple` to hold 3 (triplets) or 4 (pairs) index tensors, but got {len(indices_tuple)}"
        )
    for indices in indices_tuple:
        empty = isinstance(indices, Tensor) and indices.numel() == 0  # some miners give an empty float tensor
        if not isinstance(indices, Tensor) or indices.ndim != 1 or (indices.dtype != torch.int64 and not empty):
            came = f"{tuple(indices.shape)} {indices.dtype}" if isinstance(indices, Tensor) else type(indices)
            raise TypeError(f"Expected `indices_tuple` to hold one-dimensional int64 tensors, but got {came}")
    indices_tuple = [indices.to(device, torch.int64) for indices in indices_tuple]
    if len(indices_tuple) == 3:
        anchors, positives, negatives = indices_tuple
        indices_tuple = [anchors, positives, anchors, negatives]
    a1, p, a2, n = indices_tuple
    if len(a1) != len(p) or len(a2) != len(n):
        raise ValueError(
            f"Expected as many anchors as partners in `indices_tuple`, but got {len(a1)} and {len(p)} for positives, "
            f"{len(a2)} and {len(n)} for negatives"
        )
    return a1, p, a2, n


def check_views_known(contrast_mode: str, positives_cap: int | None, num_views: int | None) -> None:
    """Refuse options that speak of samples where the rows' samples are unknown."""
    if num_views is not None:
        return
    for name, used in (("contrast_mode='one'", contrast_mode == "one"), ("positives_cap", positives_cap is not None)):
        if used:
            raise ValueError(
                f"Expected (B, V, D) embeddings or `num_views` with `{name}`: (N, D) embeddings alone do not tell "
                "which rows show the same sample"
            )


def check_cap(positives_cap: int | None, num_views: int | None, *, has_references: bool, has_pairs: bool) -> None:
    """Refuse a cap that is no multiple of the views, or has nothing to count in."""
    if positives_cap is None or num_views is None:
        return
    if not is_int(positives_cap) or positives_cap < 0 or positives_cap % num_views:
        raise ValueError(
            f"Expected argument `positives_cap` to be None or a multiple >= 0 of the number of views, {num_views}, "
            f"but got {positives_cap!r}"
        )
    if has_references or has_pairs:
        other = "ref_emb" if has_references else "indices_tuple"
        raise ValueError(
            f"Expected no `{other}` with `positives_cap`, which counts in the batch order of rows contrasted with "
            "themselves"
        )
