"""Embeddings on a plane, by methods that are kept elsewhere: PCA and t-SNE of scikit-learn, UMAP of umap-learn."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from pml_supcon.metrics._inputs import Array, Floats, as_embeddings, as_labels, check_count

MOST = 2000
UMAP_COMMAND = "pip install umap-learn"
SMALLEST_NEIGHBOURHOOD = 4  # rows without which t-SNE and UMAP have no neighbourhoods to keep


def embedding_map(
    features: Array, labels: Array, *, methods: Sequence[str] = ("pca", "tsne"), most: int = MOST, seed: int
) -> dict[str, Any]:
    """Place some of the rows on a plane, once by each method.

    PCA keeps distances as well as a plane can; t-SNE (van der Maaten & Hinton, JMLR 2008) and UMAP (McInnes et al.,
    arXiv:1802.03426) keep neighbourhoods, and neither the size of a group nor the distance between two means anything
    there. Rows are taken as they come: normalise them where cosine is what counts. Rows that are all the same (an
    encoder that has collapsed) lie at one place under every method.

    Args:
        features: `(N, D)` floats.
        labels: `(N,)` integers.
        methods: of `pca`, `tsne` and `umap`, each once.
        most: rows at most; of more, so many are drawn at random.
        seed: of that draw, of t-SNE and of UMAP.

    Returns:
        `methods`: `{method: [[x, y], ...]}`; `indices`: the rows that were taken, rising; `labels`: theirs.

    Raises:
        TypeError: features are not floating point, or labels, `most` or `seed` not integers.
        ValueError: a shape or a method is wrong, features are not finite, or t-SNE or UMAP are asked for with fewer
            than 4 rows.
        ImportError: UMAP is asked for and umap-learn is not installed.

    Examples:
        >>> found = embedding_map(np.eye(4), np.array([0, 0, 1, 1]), methods=["pca"], most=3, seed=0)
        >>> found["indices"], found["labels"], np.shape(found["methods"]["pca"])
        ([1, 2, 3], [0, 1, 1], (3, 2))
    """
    check_count(most, "most")
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool):
        raise TypeError(f"Expected argument `seed` to be an integer, but got {seed!r}.")
    placers = _placers(methods)
    rows = as_embeddings(features, "features")
    classes = as_labels(labels, "labels", len(rows))
    chosen = np.arange(len(rows))
    if len(rows) > most:
        chosen = np.sort(np.random.default_rng(seed).choice(len(rows), size=most, replace=False))
    taken = rows[chosen]
    return {
        "methods": {name: _place(place, name, taken, int(seed)).round(4).tolist() for name, place in placers.items()},
        "indices": chosen.tolist(),
        "labels": classes[chosen].tolist(),
    }


def _placers(methods: Sequence[str]) -> dict[str, Callable[[Floats, int], Floats]]:
    known = {"pca": _pca, "tsne": _tsne, "umap": _umap}
    if isinstance(methods, str) or not methods or len(set(methods)) < len(methods) or not set(methods) <= set(known):
        raise ValueError(f"Expected argument `methods` to be some of {list(known)}, each once, but got {methods!r}.")
    if "umap" in methods:
        require_umap()  # before the others take their time
    return {name: known[name] for name in methods}


def _place(place: Callable[[Floats, int], Floats], name: str, rows: Floats, seed: int) -> Floats:
    """Coordinates `(N, 2)`, float64."""
    if name != "pca" and len(rows) < SMALLEST_NEIGHBOURHOOD:
        raise ValueError(
            f"Expected argument `features` to have at least {SMALLEST_NEIGHBOURHOOD} rows for {name!r}, "
            f"but got {len(rows)}."
        )
    if (rows == rows[0]).all():
        return np.zeros((len(rows), 2))
    return place(rows, seed).astype(np.float64)


def _pca(rows: Floats, seed: int) -> Floats:
    flat = PCA(n_components=min(2, *rows.shape), random_state=seed).fit_transform(rows)
    return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))  # one column has no second direction


def _tsne(rows: Floats, seed: int) -> Floats:
    init = "pca" if rows.shape[1] > 1 else "random"
    perplexity = min(30.0, (len(rows) - 1) / 3)
    flat: Floats = TSNE(perplexity=perplexity, init=init, random_state=seed).fit_transform(rows)
    return flat


def _umap(rows: Floats, seed: int) -> Floats:
    # The spectral start fails on a handful of rows; one thread is what a seed means there anyway.
    init = "spectral" if len(rows) > 15 else "random"
    neighbours = min(15, len(rows) - 1)
    method = require_umap().UMAP(n_neighbors=neighbours, init=init, random_state=seed, n_jobs=1)
    flat: Floats = method.fit_transform(rows)
    return flat


def require_umap() -> Any:
    """Import UMAP, or raise ImportError with the command that installs it."""
    try:
        return import_module("umap")
    except ImportError as error:
        raise ImportError(
            f"The map by UMAP needs umap-learn, which could not be imported ({error}). Install it with {UMAP_COMMAND}."
        ) from error
