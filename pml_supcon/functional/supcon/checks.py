"""Checks of the tensors of ``supcon_loss``; each error names the expected and the given value."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pml_supcon._checks import check_type
from pml_supcon._layouts import flatten_views
from pml_supcon._tensors import FLOATS, check_dense, to_device, widen_integers
from pml_supcon.functional.supcon.options import SupConOptions, check_cap
from pml_supcon.targets import NO_WEIGHT, Target, check_target_labels

LABEL_DTYPES = (
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)
SHORT_LISTS = 2**14  # row numbers of a miner, up to which a copy takes less time than one more operation


def check_embeddings(name: str, embeddings: Tensor, dims: tuple[int, ...] = (2, 3)) -> None:
    """Raise unless the embeddings are a dense floating-point tensor, ``(N, D)`` or, if ``dims`` allows it, 3-D."""
    check_dense(name, embeddings, values=False)
    if embeddings.ndim not in dims:
        shapes = " or ".join({2: "(N, D)", 3: "(B, V, D)"}[d] for d in dims)
        raise ValueError(f"Expected argument `{name}` to have shape {shapes}, but got {tuple(embeddings.shape)}")
    if embeddings.dtype not in FLOATS:
        if not embeddings.is_floating_point():
            raise TypeError(f"Expected argument `{name}` to be floating point, but got {embeddings.dtype}")
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        raise TypeError(f"Expected argument `{name}` to be one of {names}, but got {embeddings.dtype}")
    if 0 in embeddings.shape[1:]:
        raise ValueError(
            f"Expected argument `{name}` to have at least one column and view, but got shape {tuple(embeddings.shape)}"
        )


def check_labels(name: str, labels: Tensor, number: int, device: torch.device, target: Target | None = None) -> Tensor:
    """Return labels on the device of the embeddings, or raise unless they are ``number`` integers or fit the target.

    Labels on the meta device have no values: they go with embeddings on it only.
    """
    if target is None:
        _check_classes(name, labels, number)
    else:
        check_target_labels(name, labels, number, target)
    if labels.device == device:
        return labels
    check_dense(name, labels)
    return to_device(labels, device)


def _check_classes(name: str, labels: Tensor, number: int) -> None:
    """Raise unless the labels are ``number`` integers."""
    check_dense(name, labels, values=False)
    if labels.dtype not in LABEL_DTYPES:
        hint = (
            "`targets.SoftLabels` or `Kernel` takes floating point"
            if labels.is_floating_point()
            else "`targets.LabelSets` takes bool (N, C)"
        )
        raise TypeError(
            f"Expected argument `{name}` to hold integers, but got {labels.dtype}; a loss with the target {hint}"
        )
    if labels.ndim == 2 and len(labels) == number:
        raise ValueError(
            f"Expected argument `{name}` to have shape ({number},), one label for each embedding, but got "
            f"{tuple(labels.shape)}; a loss with the target `targets.LabelSets`, `SoftLabels` or `Hierarchy` takes rows"
        )
    if labels.shape != (number,):
        raise ValueError(
            f"Expected argument `{name}` to have shape ({number},), one label for each embedding, "
            f"but got {tuple(labels.shape)}"
        )


def int64_labels(labels: Tensor | None, ref_labels: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return labels of any integer dtypes as int64; equal labels stay equal, different ones stay different.

    uint64 labels from 2^63 on become negative, and could then equal a negative label: both together raise an error. The
    check synchronises with the device, only for uint64 labels beside labels of a signed dtype.
    """
    dtypes = {ids.dtype for ids in (labels, ref_labels) if ids is not None}
    wide = [None if ids is None else ids.long() for ids in (labels, ref_labels)]
    if (
        torch.uint64 in dtypes
        and any(dtype.is_signed for dtype in dtypes)
        and all(bool((ids < 0).any()) for ids in wide if ids is not None)
    ):
        raise ValueError(
            "Expected `labels` and `ref_labels` that stay different as int64, but got uint64 labels from 2^63 on "
            "beside negative ones"
        )
    return wide[0], wide[1]


def check_views_agree(labels: Tensor, num_views: int | None) -> None:
    """Raise if labels on the CPU differ between the views of a sample; elsewhere the check would synchronise."""
    if num_views is None or labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    views = labels.reshape(num_views, -1)
    if not torch.equal(views, views[:1].expand_as(views)):
        raise ValueError(
            f"Expected `labels` to repeat the labels of the first view for each of the {num_views} views "
            "(view-major rows: torch.cat of the views), but they differ between views"
        )


def check_fits(embeddings: Tensor, name: str, rows: Tensor) -> None:
    """Raise unless the rows ``(M, D)`` have the width, dtype and device of the embeddings."""
    check_embeddings(name, rows, dims=(2,))
    for quantity, expected, given in (
        ("width", embeddings.shape[-1], rows.shape[1]),
        ("dtype", embeddings.dtype, rows.dtype),
        ("device", embeddings.device, rows.device),
    ):
        if expected != given:
            raise ValueError(f"Expected `{name}` to have the {quantity} of the embeddings, {expected}, but got {given}")


def check_references(
    embeddings: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    *,
    need_labels: bool,
    target: Target | None = None,
) -> Tensor | None:
    """Return the labels of the contrasted rows on their device, or raise unless the rows fit the embeddings."""
    if ref_emb is None:
        if ref_labels is not None:
            raise ValueError("Expected `ref_emb` together with `ref_labels`, but got `ref_labels` alone")
        return None
    check_fits(embeddings, "ref_emb", ref_emb)
    if ref_labels is not None:
        return check_labels("ref_labels", ref_labels, ref_emb.shape[0], ref_emb.device, target)
    if need_labels:
        raise ValueError("Expected `ref_labels` together with `ref_emb`, but got `ref_emb` alone")
    return None


def check_columns_agree(labels: Tensor | None, ref_labels: Tensor | None) -> None:
    """Raise unless the labels of the contrasted rows have the columns of those of the batch."""
    if labels is not None and ref_labels is not None and labels.shape[1:] != ref_labels.shape[1:]:
        expected = ", ".join(map(str, (len(ref_labels), *labels.shape[1:])))
        raise ValueError(
            f"Expected `ref_labels` to have shape ({expected}), with the columns of `labels`, "
            f"but got {tuple(ref_labels.shape)}"
        )


def check_batch_in_references(labels: Tensor | None, ref_labels: Tensor | None, *, has_pairs: bool) -> None:
    """Raise unless the contrasted rows can start with the batch; their labels are compared on the CPU only."""
    if ref_labels is None or labels is None or has_pairs:
        raise ValueError(
            "Expected `ref_emb` with labels, and no `indices_tuple`, together with `ref_starts_with_batch`, but got "
            + ("`indices_tuple`, which names all pairs itself" if has_pairs else "no `ref_emb`")
        )
    number = len(labels)
    if len(ref_labels) < number:
        raise ValueError(
            f"Expected `ref_emb` to start with the {number} rows of the batch (`ref_starts_with_batch`), "
            f"but it has {len(ref_labels)} rows"
        )
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        differ = (widen_integers(labels) != widen_integers(ref_labels[:number])).nonzero()
        if len(differ):
            row = int(differ[0][0])
            raise ValueError(
                "Expected `ref_labels` to start with the labels of the batch (`ref_starts_with_batch`), but row "
                f"{row} has {ref_labels[row].tolist()} there and {labels[row].tolist()} in the batch"
            )


def rows_of_mask(name: str, mask: Tensor, number: int, num_views: int | None, device: torch.device) -> Tensor:
    """Return a mask of samples ``(B,)``, views ``(B, V)`` or view-major rows ``(N,)`` as a mask of rows, ``(N,)``.

    It is on the device of the embeddings. ``number`` is N, ``num_views`` V if known.

    Raises:
        TypeError: If it is no bool tensor.
        ValueError: If it has another shape.
    """
    check_dense(name, mask, values=False)
    if mask.dtype != torch.bool:
        raise TypeError(f"Expected argument `{name}` to be a bool mask, but got {mask.dtype}")
    mask = to_device(mask, device)
    if mask.shape == (number,):
        return mask
    views = num_views or 1
    if mask.shape == (number // views,):
        return mask.repeat(views)
    if num_views is not None and mask.shape == (number // views, views):
        return flatten_views(mask)
    shapes = f"({number},), one entry for each row"
    if num_views is not None:
        shapes += f", or ({number // views},), one for each sample"
    raise ValueError(f"Expected argument `{name}` to have shape {shapes}, but got {tuple(mask.shape)}")


def check_pairs(
    indices_tuple: Sequence[Tensor], device: torch.device, num_anchors: int, num_rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the pairs ``(a1, p, a2, n)`` of a miner's pairs or triplets, or raise if they list no rows of the batch.

    They are on ``device``. The check of the row numbers waits for indices on a GPU, as the miner did.
    """
    check_type("indices_tuple", indices_tuple, Sequence, "a sequence of tensors")
    if len(indices_tuple) not in (3, 4):
        raise ValueError(
            f"Expected `indices_tuple` to hold 3 (triplets) or 4 (pairs) index tensors, but got {len(indices_tuple)}"
        )
    for indices in indices_tuple:
        empty = isinstance(indices, Tensor) and indices.numel() == 0  # some miners give an empty float tensor
        if not isinstance(indices, Tensor) or indices.ndim != 1 or (indices.dtype != torch.int64 and not empty):
            given = f"{tuple(indices.shape)} {indices.dtype}" if isinstance(indices, Tensor) else type(indices)
            raise TypeError(f"Expected `indices_tuple` to hold one-dimensional int64 tensors, but got {given}")
        check_dense("indices_tuple", indices)
    a1, p, *negatives = (x if x.dtype == torch.int64 else x.long() for x in indices_tuple)
    a2, n = negatives if len(negatives) == 2 else (a1, *negatives)  # triplets: one anchor for both
    if len(a1) != len(p) or len(a2) != len(n):
        raise ValueError(
            f"Expected as many anchors as partners in `indices_tuple`, but got {len(a1)} and {len(p)} for positives, "
            f"{len(a2)} and {len(n)} for negatives"
        )
    parts = [("anchors", a1, num_anchors), ("positives", p, num_rows), ("negatives", n, num_rows)]
    if a2 is not a1:
        parts.append(("anchors", a2, num_anchors))
    # short lists together, in fewer operations; the lists one by one name the wrong one, and know their own bounds
    if not fit_together([indices for _, indices, _ in parts], min(num_anchors, num_rows)):
        for name, indices, number in parts:
            check_range(name, indices, number)
    a1, p, a2, n = (x if x.device == device else to_device(x, device) for x in (a1, p, a2, n))
    return a1, p, a2, n


def fit_together(lists: list[Tensor], number: int) -> bool:
    """Return True if the row numbers of short lists are all in ``[0, number)``; False also for long lists."""
    size = sum(len(indices) for indices in lists)
    if size == 0 or size > SHORT_LISTS or any(indices.device != lists[0].device for indices in lists):
        return size == 0
    low, high = torch.cat(lists).aminmax()
    return int(low) >= 0 and int(high) < number


def check_range(name: str, indices: Tensor, number: int) -> None:
    """Raise unless row numbers of `indices_tuple` are in ``[0, number)``."""
    if len(indices):
        low, high = map(int, indices.aminmax())
        if low < 0 or high >= number:
            raise IndexError(
                f"Expected the {name} in `indices_tuple` to be row numbers in [0, {number}), but got {low} to {high}"
            )


def check_options_fit(options: SupConOptions, num_views: int | None, *, has_references: bool, has_pairs: bool) -> None:
    """Raise if an option needs views, a batch order or anchors that the tensors do not give."""
    cap, one = options.positives_cap is not None, options.contrast_mode == "one"
    if num_views is not None:
        check_cap(options.positives_cap, num_views)
    elif one or cap:
        option = "contrast_mode='one'" if one else "positives_cap"
        raise ValueError(
            f"Expected (B, V, D) embeddings or `num_views` with `{option}`: "
            "(N, D) embeddings do not say which rows show the same sample"
        )
    if cap and (has_references or has_pairs):
        raise ValueError(
            f"Expected no `{'ref_emb' if has_references else 'indices_tuple'}` with `positives_cap`, which counts in "
            "the batch order of rows contrasted with themselves"
        )
    if options.target is not None and has_pairs:
        raise ValueError(
            "Expected no `indices_tuple` with `target`: a miner's pairs replace the weights that the labels give"
        )
    if options.class_balanced and has_pairs:
        raise ValueError("Expected no `indices_tuple` with `class_balanced`: listed pairs have no classes to count")
    if options.ignore_label is not None and has_pairs:
        raise ValueError("Expected no `indices_tuple` with `ignore_label`: listed pairs replace the labels")
    if one and has_pairs:
        raise ValueError(
            "Expected `contrast_mode` to be 'all' with `indices_tuple`, which names the anchors itself, but got 'one'"
        )


def block_weights(target: Target, anchors: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weights that a target gives to a block of pairs, in a dtype and in memory of its own.

    A weight of ``NO_WEIGHT`` or less becomes 0: an anchor whose weights are all so small would divide by a sum whose
    inverse is infinite in float32.

    Raises:
        TypeError: If they are no tensor.
        ValueError: If they are not ``(len(anchors), len(rows))``, or on the CPU negative or not finite.
    """
    with torch.no_grad():
        weights = target.weights(anchors, rows)
    if not target.checks_weights:
        return F.threshold(weights.to(dtype), NO_WEIGHT, 0, inplace=True)
    name, shape = type(target).__name__, (len(anchors), len(rows))
    if not isinstance(weights, Tensor) or weights.shape != shape:
        given = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(f"Expected {name}.weights to return a tensor (anchors, rows) = {shape}, but got {given}")
    if weights.device.type == "cpu" and weights.numel() and not torch.compiler.is_compiling():
        low, high = weights.aminmax()
        if not (low >= 0 and high < torch.inf):
            raise ValueError(
                f"Expected {name}.weights to return finite weights >= 0, but got values from {low:g} to {high:g}"
            )
    return F.threshold(weights.to(dtype, copy=True), NO_WEIGHT, 0, inplace=True)


def check_similarities(s: Tensor, shape: tuple[int, int]) -> None:
    """Raise unless the result of a similarity function is one number for every pair."""
    if not isinstance(s, Tensor) or s.shape != shape:
        given = tuple(s.shape) if isinstance(s, Tensor) else type(s).__name__
        raise ValueError(f"Expected `similarity` to return a tensor (anchors, rows) = {shape}, but got {given}")
