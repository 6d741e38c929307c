"""The agreement of k-means clusters with classes."""

import numpy as np
import torch
from pytorch_metric_learning.utils.inference import FaissKMeans
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from pml_supcon._arrays import Array, as_embeddings, as_labels
from pml_supcon._extras import require_faiss
from pml_supcon.search.distances import well_conditioned

KMEANS_STEPS = 20  # the number of PML's `AccuracyCalculator`


def clustering_metrics(embeddings: Array, labels: Array) -> dict[str, float]:
    r"""Cluster embeddings by k-means with as many clusters as there are classes, and compare the two partitions.

    With :math:`I` the mutual information of clusters and classes and :math:`H` their entropies,
    :math:`NMI = 2 I / (H_{clusters} + H_{classes})`; AMI subtracts the mutual information expected by chance (Vinh et
    al., JMLR 2010). They equal PML's "NMI" and "AMI": PML's k-means (FAISS, 20 iterations from a fixed seed, on at most
    256 rows per cluster, drawn at random) and scikit-learn's formulas.

    Args:
        embeddings: ``(N, D)`` floats, converted to float32.
        labels: ``(N,)`` integers.

    Returns:
        ``nmi`` in [0, 1], and ``ami``, at most 1 and about 0 for a random partition. Both are 1 where all rows have the
        same label.

    Raises:
        ImportError: If FAISS is not installed.
        TypeError: If embeddings are not floating point or labels not integers.
        ValueError: If a shape is wrong or an embedding not finite.

    Examples:
        >>> points = np.repeat(np.eye(3), 50, axis=0) + 0.01 * np.random.default_rng(0).normal(size=(150, 3))
        >>> clustering_metrics(points, np.repeat([4, 5, 6], 50))
        {'nmi': 1.0, 'ami': 1.0}
    """
    require_faiss()
    rows = as_embeddings(embeddings, "embeddings", dtype=np.float32)
    # a common factor changes no cluster; FAISS ends the process where squared distances overflow
    rows = well_conditioned(rows, rows, names="`embeddings`")[0]
    classes = as_labels(labels, "labels", len(rows))
    # min_points_per_centroid=1 silences FAISS's warning on stderr about small clusters: their number is fixed here.
    kmeans = FaissKMeans(niter=KMEANS_STEPS, min_points_per_centroid=1)
    clusters = kmeans(torch.from_numpy(np.ascontiguousarray(rows)), len(np.unique(classes))).numpy()
    return {
        "nmi": float(normalized_mutual_info_score(classes, clusters)),
        "ami": float(adjusted_mutual_info_score(classes, clusters)),
    }
