"""Checks of the queries and the references of a search."""

import numpy as np

from pml_supcon._arrays import Array, Floats, Labels, as_embeddings, check_same_width, count_zero_rows, row_blocks


def as_ranked(query: Array, reference: Array) -> tuple[Floats, Floats]:
    """Check the rows of a search, ``(N, D)`` and ``(M, D)``; return them in their own dtypes.

    Values must be finite in float32. Queries or references that are all zero, and references that are all identical,
    raise an error: their ranking would depend on row order.
    """
    rows = []
    for value, name in ((query, "query"), (reference, "reference")):
        given = as_embeddings(value, name)
        held = given if given.dtype == np.float32 else as_embeddings(given, name, dtype=np.float32)
        if count_zero_rows(held) == len(held):
            raise ValueError(f"Expected argument `{name}` to have a row that is not zero, but all {len(held)} are")
        rows.append(given)
    queries, references = rows
    check_same_width(queries, "query", references, "reference")
    if len(references) > 1 and all((references[part] == references[0]).all() for part in row_blocks(len(references))):
        raise ValueError(
            f"Expected argument `reference` to have rows that differ, but all {len(references)} are identical"
        )
    return queries, references


def check_starts_with(references: Floats, queries: Floats, *, labels: tuple[Labels, Labels] | None = None) -> None:
    """Raise unless the first references are the queries, with equal ``labels`` (of references, of queries) if given.

    Embeddings may differ by rounding: they may have been computed twice, in batches of different sizes.
    """
    first = references[: len(queries)]
    same = len(first) == len(queries) and all(np.allclose(queries[i], first[i]) for i in row_blocks(len(queries)))
    if not same or (labels is not None and not np.array_equal(labels[0][: len(queries)], labels[1])):
        raise ValueError(
            "Expected argument `reference` to start with the queries"
            f"{'' if labels is None else ', and `reference_labels` with their labels'}, since `ref_includes_query` is "
            f"set, but got others ({len(queries)} queries, {len(references)} references)"
        )
