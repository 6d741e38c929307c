"""The one layout convention for views: ``(B, V, ...)`` by sample, or ``(V * B, ...)`` rows, view-major."""

from torch import Tensor

from pml_supcon._checks import check_int
from pml_supcon._tensors import check_dense


def flatten_views(x: Tensor) -> Tensor:
    """Return the rows of a batch of views in view-major order: all first views, then all second views, ...

    This is pytorch-metric-learning's order, ``torch.cat(x.unbind(1))``. The labels of the rows are
    ``labels.repeat(V)``. The rows are copied once, unless ``B`` or ``V`` is 1.

    Args:
        x: ``(B, V, ...)``, any dtype.

    Returns:
        ``(V * B, ...)``

    Raises:
        ValueError: If `x` has fewer than 2 dimensions.

    Examples:
        >>> import torch
        >>> flatten_views(torch.tensor([[0, 1], [10, 11]]))
        tensor([ 0, 10,  1, 11])
    """
    check_dense("x", x, values=False)
    if x.ndim < 2:
        raise ValueError(f"Expected argument `x` to have shape (B, V, ...), but got {tuple(x.shape)}")
    return x.transpose(0, 1).flatten(0, 1)


def split_views(rows: Tensor, num_views: int) -> Tensor:
    """Return the views of each sample: the inverse of ``flatten_views``, without a copy.

    Args:
        rows: ``(V * B, ...)``, view-major.
        num_views: ``V >= 1``.

    Returns:
        ``(B, V, ...)``, sharing the memory of ``rows``.

    Raises:
        TypeError: If ``num_views`` is not an integer.
        ValueError: If ``num_views`` is below 1 or does not divide the number of rows.

    Examples:
        >>> import torch
        >>> split_views(torch.tensor([0, 10, 1, 11]), num_views=2)
        tensor([[ 0,  1],
                [10, 11]])
    """
    check_int("num_views", num_views, low=1)
    check_dense("rows", rows, values=False)
    if rows.ndim < 1 or len(rows) % num_views:
        raise ValueError(
            f"Expected argument `rows` to have shape (V * B, ...) with V={num_views}, but got {tuple(rows.shape)}"
        )
    return rows.reshape(num_views, len(rows) // num_views, *rows.shape[1:]).transpose(0, 1)


def view_major_rows(
    embeddings: Tensor, labels: Tensor | None, num_views: int | None
) -> tuple[Tensor, Tensor | None, int | None]:
    """Return embeddings and labels as view-major rows ``(V * B, D)``, ``(V * B, ...)``, and V.

    Args:
        embeddings: ``(B, V, D)``, or ``(N, D)``, which is returned as it is.
        labels: ``(B, ...)`` or ``(N, ...)``, or None.
        num_views: V where known; ``(B, V, D)`` embeddings give it.

    Raises:
        ValueError: If ``num_views`` contradicts the shape of the embeddings.
    """
    if num_views is not None:
        check_int("num_views", num_views, low=1)
    if embeddings.ndim == 2:
        if num_views is not None and embeddings.shape[0] % num_views:
            raise ValueError(
                f"Expected the rows of `embeddings` to be num_views={num_views} views of every sample, but "
                f"{embeddings.shape[0]} is not a multiple of {num_views}"
            )
        return embeddings, labels, num_views
    views = embeddings.shape[1]
    if num_views is not None and num_views != views:
        raise ValueError(
            f"Expected `embeddings` (B, V, D) with V = num_views = {num_views}, but got {tuple(embeddings.shape)}"
        )
    return flatten_views(embeddings), None if labels is None else repeat_labels(labels, views), views


def repeat_labels(labels: Tensor, views: int) -> Tensor:
    """Return the labels ``(B, ...)`` of samples as labels of view-major rows, ``(V * B, ...)``."""
    return labels.repeat(views, *[1] * (labels.ndim - 1))
