"""Checks of the queries and the references of a search."""

import numpy as np

from pml_supcon._arrays import Array, Floats, as_embeddings, check_same_width, count_zero_rows, row_blocks


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


def starts_with(references: Floats, queries: Floats) -> bool:
    """Return True if the first references are the queries, up to rounding, as PML requires.

    Embeddings may have been computed twice, in batches of different sizes.
    """
    first = references[: len(queries)]
    return len(first) == len(queries) and all(
        np.allclose(queries[part], first[part]) for part in row_blocks(len(queries))
    )
