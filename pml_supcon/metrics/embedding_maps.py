"""Embeddings on a plane: PCA and t-SNE of scikit-learn, UMAP of umap-learn."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from pml_supcon._arrays import Array, Floats, Labels, as_embeddings
from pml_supcon._checks import check_int, shown
from pml_supcon._extras import require_umap

MapMethod = Literal["pca", "tsne", "umap"]

MAX_ROWS = 2000
LARGEST = 1e15  # t-SNE sums squares in float32, and ends the process where they overflow
MIN_ROWS = 4  # t-SNE and UMAP need neighbourhoods


class EmbeddingMap(NamedTuple):
    """Points on a plane.

    Attributes:
        rows: ``(n,)`` int64, the rows that are on the map, in ascending order.
        coordinates: ``{method: (n, 2) float64}``.
    """

    rows: Labels
    coordinates: dict[str, Floats]


def embedding_map(
    features: Array, *, methods: Sequence[str] = ("pca", "tsne"), max_rows: int = MAX_ROWS, seed: int
) -> EmbeddingMap:
    """Project rows to two dimensions, once by each method.

    PCA keeps distances as well as a plane can; t-SNE (van der Maaten & Hinton, JMLR 2008) and UMAP (McInnes et al.,
    arXiv:1802.03426) keep neighbourhoods: the size of a group and the distance between two groups mean nothing there.
    Rows are not normalised here. Rows that are all identical (a collapsed encoder) are at (0, 0) under every method.

    Args:
        features: ``(N, D)`` floats.
        methods: Some of ``"pca"``, ``"tsne"`` and ``"umap"``, each once.
        max_rows: The number of rows on the map, at most; from more rows, this number is drawn at random.
        seed: Seed of the draw, of t-SNE and of UMAP.

    Returns:
        The rows on the map and their coordinates by each method.

    Raises:
        TypeError: If features are not floating point, or ``max_rows`` or ``seed`` is not an integer.
        ValueError: If a shape or a method is wrong, features are not finite or above `LARGEST`, or t-SNE or UMAP has
            fewer than `MIN_ROWS` rows.
        ImportError: If UMAP is a method and umap-learn is not installed.

    Examples:
        >>> found = embedding_map(np.eye(4), methods=["pca"], max_rows=3, seed=0)
        >>> found.rows, found.coordinates["pca"].shape
        (array([1, 2, 3]), (3, 2))
    """
    check_int("max_rows", max_rows, low=1)
    check_int("seed", seed, low=0, high=2**32 - 1)  # the range of scikit-learn
    listed = isinstance(methods, Sequence) and not isinstance(methods, str)
    if (
        not listed
        or not methods
        or not all(isinstance(name, str) for name in methods)
        or len(set(methods)) < len(methods)
        or set(methods) - set(METHODS)
    ):
        raise ValueError(
            f"Expected argument `methods` to be some of {list(METHODS)}, each once, but got {shown(methods)}"
        )
    if "umap" in methods:
        require_umap()  # fail before the other methods take their time
    matrix = as_embeddings(features, "features")
    largest = float(np.abs(matrix).max())
    if largest > LARGEST:
        raise ValueError(f"Expected argument `features` to have values of at most {LARGEST:g}, but got {largest:g}")
    rows = np.arange(len(matrix))
    if len(rows) > max_rows:
        rows = np.sort(np.random.default_rng(seed).choice(len(rows), size=max_rows, replace=False))
    chosen = matrix[rows]
    for name in methods:
        if name != "pca" and len(chosen) < MIN_ROWS:
            raise ValueError(
                f"Expected argument `features` to have at least {MIN_ROWS} rows for {name!r}, but got {len(chosen)}"
            )
    if (chosen == chosen[0]).all():
        return EmbeddingMap(rows, {name: np.zeros((len(rows), 2)) for name in methods})
    return EmbeddingMap(rows, {name: METHODS[name](chosen, int(seed)).astype(np.float64) for name in methods})


def _pca(rows: Floats, seed: int) -> Floats:
    flat = PCA(n_components=min(2, *rows.shape), random_state=seed).fit_transform(rows)
    return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))  # a single column has no second direction


def _tsne(rows: Floats, seed: int) -> Floats:
    init = "pca" if rows.shape[1] > 1 else "random"
    perplexity = min(30.0, (len(rows) - 1) / 3)
    return np.asarray(TSNE(perplexity=perplexity, init=init, random_state=seed).fit_transform(rows))


def _umap(rows: Floats, seed: int) -> Floats:
    # The spectral initialisation fails on few rows. With a seed UMAP uses one thread anyway: n_jobs=1 avoids a warning.
    init = "spectral" if len(rows) > 15 else "random"
    neighbours = min(15, len(rows) - 1)
    method = require_umap().UMAP(n_neighbors=neighbours, init=init, random_state=seed, n_jobs=1)
    return np.asarray(method.fit_transform(rows))


METHODS: dict[str, Callable[[Floats, int], Floats]] = dict(zip(get_args(MapMethod), (_pca, _tsne, _umap), strict=True))
