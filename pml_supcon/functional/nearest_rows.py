"""The nearest of many rows for each query, in blocks of queries: linear memory."""

import torch
from torch import Tensor

from pml_supcon.functional.supcon.execution import full_precision

PAIRS = 2**22  # similarities in a block, 16 MiB in float32


@torch.no_grad()
def nearest_rows(
    queries: Tensor, rows: Tensor, query_labels: Tensor | None = None, row_labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the row with the largest dot product with each query, among the rows of its label if labels are given.

        nearest(i) = argmax_m x_i . y_m        over all m, or over the m with the label of i

    Args:
        queries: ``(N, D)`` floating point; unit rows make the dot product the cosine.
        rows: ``(M, D)``, M >= 1, on the device of the queries; they are converted to the dtype of the queries.
        query_labels: ``(N,)`` integers, or None.
        row_labels: ``(M,)``, together with ``query_labels``.

    Returns:
        Row numbers ``(N,)``, int64, of equally near rows the first; and a bool mask ``(N,)`` of the queries that have
        such a row: all without labels. The row number of the others has no meaning. A row with a NaN is the nearest.
    """
    index = torch.empty(len(queries), dtype=torch.int64, device=queries.device)
    found = torch.empty(len(queries), dtype=torch.bool, device=queries.device)
    size, rows = max(1, PAIRS // len(rows)), rows.to(queries.dtype)
    with full_precision(queries.device):
        for start in range(0, len(queries), size):
            block = slice(start, start + size)
            # s (n, M): the similarities of a block of n queries; minus infinity for rows of another label
            s = queries[block] @ rows.T
            if query_labels is not None and row_labels is not None:
                s.masked_fill_(query_labels[block, None] != row_labels, -torch.inf)
            largest, index[block] = s.max(dim=1)
            found[block] = largest != -torch.inf  # True for NaN
    return index, found
