"""Linear probes that predict, from features, which change was applied to an image."""

from collections.abc import Sequence

import numpy as np

from pml_supcon._arrays import Array, Floats, as_embeddings, as_labels, as_numpy, check_same_width
from pml_supcon._checks import check_number, check_type
from pml_supcon.metrics.linear_probe import linear_probe_metrics
from pml_supcon.metrics.logistic import INVERSE_L2, MAX_ITER, ProbeKeywords


def transformation_probe_metrics(
    train: Sequence[Array],
    test: Sequence[Array],
    *,
    inverse_l2: float = INVERSE_L2,
    max_iter: int = MAX_ITER,
    standardize: bool = True,
) -> dict[str, float]:
    """Fit a linear probe that predicts the change of an image from its features, and score it on other images.

    Args:
        train: Features ``(N, D)`` of the same N images under each of V changes, at least two. A change may leave the
            images as they are.
        test: Features ``(M, D)`` of M other images, under the same changes in the same order. All variants of an image
            must be on one side.
        inverse_l2: Inverse of the L2 penalty, above 0; not "auto", which would hold out rows and so divide the variants
            of an image.
        max_iter: Iterations of L-BFGS, at least 1.
        standardize: Give each feature mean 0 and variance 1 first, by the statistics of the training rows.

    Returns:
        ``accuracy``, in [0, 1], the share of the V * M test rows whose change is predicted, and ``chance``, 1 / V.

    Raises:
        TypeError: If an argument is not a sequence, or features are not floating point.
        ValueError: If the number of variants is below two or differs between ``train`` and ``test``, variants of a
            side differ in rows, widths differ, or features are not finite.

    Warns:
        ConvergenceWarning: If L-BFGS stopped before the optimum.

    Source:
        Chen et al., *A Simple Framework for Contrastive Learning of Visual Representations* (ICML 2020), table 3.

    Examples:
        >>> plain, changed = np.array([[0.0], [0.1]]), np.array([[1.0], [1.1]])
        >>> transformation_probe_metrics([plain, changed], [plain - 0.1, changed + 0.1])
        {'accuracy': 1.0, 'chance': 0.5}
    """
    check_number("inverse_l2", inverse_l2, above=0, finite=False)
    learnt, wanted = _stack(train, "train"), _stack(test, "test")
    if len(train) != len(test):
        raise ValueError(
            "Expected arguments `train` and `test` to have the same number of variants, but got "
            f"{len(train)} and {len(test)}"
        )
    check_same_width(learnt, "train", wanted, "test")
    variants = np.arange(len(train))
    splits = learnt, variants.repeat(len(train[0])), wanted, variants.repeat(len(test[0]))
    options = ProbeKeywords(inverse_l2=inverse_l2, max_iter=max_iter, standardize=standardize)
    return {"accuracy": linear_probe_metrics(*splits, **options)["top1"], "chance": 1 / len(train)}


def majority_share(labels: Array) -> float:
    """Compute the accuracy of always predicting the most frequent label: the chance level of a probe.

    Args:
        labels: ``(N,)`` integers.

    Returns:
        In (0, 1]; 1 / C for C labels of the same number.

    Raises:
        TypeError: If labels are not integers.
        ValueError: If they are not ``(N,)``, or there are none.

    Examples:
        >>> majority_share(np.array([4, 4, 4, 7]))
        0.75
    """
    values = as_numpy(labels, "labels")
    if values.ndim != 1 or not values.size:
        raise ValueError(f"Expected argument `labels` to hold labels (N,), but got shape {values.shape}")
    counts = np.unique(as_labels(values, "labels", len(values)), return_counts=True)[1]
    return float(counts.max() / counts.sum())


def _stack(variants: Sequence[Array], name: str) -> Floats:
    check_type(name, variants, Sequence, "a sequence of variants")
    if len(variants) < 2:
        raise ValueError(f"Expected argument `{name}` to hold at least 2 variants, but got {len(variants)}")
    parts = [as_embeddings(variant, f"{name}[{place}]") for place, variant in enumerate(variants)]
    for place, part in enumerate(parts):
        if part.shape != parts[0].shape:
            raise ValueError(
                f"Expected argument `{name}` to hold variants of the same images, but got shapes {parts[0].shape} and "
                f"{part.shape} (the first and number {place})"
            )
    return np.concatenate(parts)
