"""The checks of `supcon_loss`'s arguments: each names what was expected and what came."""

import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

EMBEDDING_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def is_int(value: object) -> bool:
    """Whether the value is an integer and no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_embeddings(name: str, embeddings: Tensor, dims: tuple[int, ...] = (2, 3)) -> None:
    """Refuse what is no floating-point tensor `(N, D)` or, where allowed, `(B, V, D)`."""
    if not isinstance(embeddings, Tensor):
        raise TypeError(f"Expected argument `{name}` to be a torch.Tensor, but got {type(embeddings).__name__}")
    if embeddings.ndim not in dims:
        shapes = " or ".join({2: "(N, D)", 3: "(B, V, D)"}[d] for d in dims)
        raise ValueError(f"Expected argument `{name}` to have shape {shapes}, but got {tuple(embeddings.shape)}")
    if not embeddings.is_floating_point():
        raise TypeError(f"Expected argument `{name}` to be floating point, but got {embeddings.dtype}")
    if embeddings.dtype not in EMBEDDING_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in EMBEDDING_DTYPES)
        raise TypeError(f"Expected argument `{name}` to be one of {names}, but got {embeddings.dtype}")
    if embeddings.layout != torch.strided:
        raise TypeError(f"Expected argument `{name}` to be a dense tensor, but got one of layout {embeddings.layout}")
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


def int64_labels(labels: Tensor | None, ref_labels: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Labels of any integer dtypes as int64, in which equal ones stay equal, and others apart.

    uint64 ids from 2^63 on become negative, and could meet a label that is: both together are refused. Looking waits
    for the device, for uint64 beside a signed dtype alone.
    """
    wide = [None if ids is None else ids.to(torch.int64) for ids in (labels, ref_labels)]
    dtypes = [ids.dtype for ids in (labels, ref_labels) if ids is not None]
    if (
        torch.uint64 in dtypes
        and any(dtype.is_signed for dtype in dtypes)
        and all(bool((ids < 0).any()) for ids in wide if ids is not None)
    ):
        raise ValueError(
            "Expected `labels` and `ref_labels` that int64 can tell apart, but got uint64 ids from 2^63 on beside "
            "negative ones"
        )
    return wide[0], wide[1]


def check_views_agree(labels: Tensor, num_views: int | None) -> None:
    """Refuse labels that differ between the views of a sample, where looking costs no synchronisation."""
    if num_views is None or labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    views = labels.view(num_views, -1)
    if not torch.equal(views, views[:1].expand_as(views)):
        raise ValueError(
            f"Expected `labels` to repeat the labels of the first view for each of the {num_views} views "
            "(view-major rows: torch.cat of the views), but they differ between views"
        )


def check_fits(embeddings: Tensor, name: str, rows: Tensor) -> None:
    """Refuse rows `(M, D)` that cannot be compared with the embeddings."""
    check_embeddings(name, rows, dims=(2,))
    for what, expected, came in (
        ("width", embeddings.shape[-1], rows.shape[1]),
        ("dtype", embeddings.dtype, rows.dtype),
        ("device", embeddings.device, rows.device),
    ):
        if expected != came:
            raise ValueError(f"Expected `{name}` to have the {what} of the embeddings, {expected}, but got {came}")


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
    check_fits(embeddings, "ref_emb", ref_emb)
    if ref_labels is not None:
        check_labels("ref_labels", ref_labels, ref_emb.shape[0], ref_emb.device)
    elif pairs is None:
        raise ValueError("Expected `ref_labels` together with `ref_emb`, but got `ref_emb` alone")


def check_batch_in_references(
    labels: Tensor | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    pairs: tuple[Tensor, ...] | None,
    *,
    claimed: bool,
) -> None:
    """Refuse contrasted rows said to start with the batch that do not, as far as the host can see."""
    if not claimed:
        return
    if ref_emb is None or pairs is not None:
        raise ValueError(
            "Expected `ref_emb` with labels, and no `indices_tuple`, together with `ref_starts_with_batch`, but got "
            + ("no `ref_emb`" if ref_emb is None else "`indices_tuple`, which names all pairs itself")
        )
    assert labels is not None  # for the type checker: `check_references` and no pairs
    assert ref_labels is not None
    number = len(labels)
    if len(ref_labels) < number:
        raise ValueError(
            f"Expected `ref_emb` to start with the {number} rows of the batch (`ref_starts_with_batch`), "
            f"but it has {len(ref_labels)} rows"
        )
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        differ = (labels.long() != ref_labels[:number].long()).nonzero()
        if len(differ):
            row = int(differ[0])
            raise ValueError(
                "Expected `ref_labels` to start with the labels of the batch (`ref_starts_with_batch`), but row "
                f"{row} has {int(ref_labels[row])} there and {int(labels[row])} in the batch"
            )


def check_pairs(
    indices_tuple: Sequence[Tensor] | None, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Pairs `(a1, p, a2, n)` from what a miner gives, or None."""
    if indices_tuple is None:
        return None
    if not isinstance(indices_tuple, Sequence):
        raise TypeError(
            f"Expected argument `indices_tuple` to be a sequence of tensors, but got {type(indices_tuple).__name__}"
        )
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


def check_pairs_in_range(pairs: tuple[Tensor, Tensor, Tensor, Tensor] | None, num_anchors: int, num_rows: int) -> None:
    """Refuse pairs of rows that are not there; looking waits for the device, as the miner did."""
    if pairs is None:
        return
    for whose, indices, number in zip(
        ("anchors", "positives", "anchors", "negatives"), pairs, (num_anchors, num_rows) * 2, strict=True
    ):
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < number:
            raise IndexError(
                f"Expected the {whose} in `indices_tuple` to be row numbers in [0, {number}), "
                f"but got {int(indices.min())} to {int(indices.max())}"
            )


def check_views_known(contrast_mode: str, positives_cap: int | None, num_views: int | None) -> None:
    """Refuse options that speak of samples where the rows' samples are unknown."""
    if num_views is not None:
        return
    for name, used in (
        ("contrast_mode='one'", contrast_mode == "one"),
        ("positives_cap", positives_cap is not None),
    ):
        if used:
            raise ValueError(
                f"Expected (B, V, D) embeddings or `num_views` with `{name}`: (N, D) embeddings alone do not tell "
                "which rows show the same sample"
            )


def check_cap_countable(positives_cap: int | None, *, has_references: bool, has_pairs: bool) -> None:
    """Raise if a cap is given with `ref_emb` or `indices_tuple`, where it has no batch order to count in."""
    if positives_cap is not None and (has_references or has_pairs):
        other = "ref_emb" if has_references else "indices_tuple"
        raise ValueError(
            f"Expected no `{other}` with `positives_cap`, which counts in the batch order of rows contrasted with "
            "themselves"
        )


def check_similarities(s: Tensor, shape: tuple[int, int]) -> None:
    """Refuse what a similarity gave, if it is not one number for every pair."""
    if not isinstance(s, Tensor) or s.shape != shape:
        came = tuple(s.shape) if isinstance(s, Tensor) else type(s).__name__
        raise ValueError(f"Expected `similarity` to give a tensor (anchors, rows) = {shape}, but got {came}")
