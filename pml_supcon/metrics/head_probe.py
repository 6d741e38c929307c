"""How well a linear probe tells from features in what way an image was changed."""

from collections.abc import Sequence

import numpy as np

from pml_supcon._arrays import Array, Floats, as_embeddings, as_labels, check_positive, check_same_width
from pml_supcon.metrics.linear_probe import linear_probe_metrics
from pml_supcon.metrics.logistic import INVERSE_L2, MAX_ITER


def transformation_probe_metrics(
    train: Sequence[Array],
    test: Sequence[Array],
    *,
    inverse_l2: float = INVERSE_L2,
    max_iter: int = MAX_ITER,
    standardize: bool = True,
) -> dict[str, float]:
    """Fit a linear probe that tells how an image was changed from its features, and score it on other images.

    Args:
        train: Features ``(N, D)`` of the same N images under each of V changes (which may leave them as they are), at
            least two.
        test: The same for M other images, in the same order of changes, ``(M, D)`` each. All variants of an image are
            on one side.
        inverse_l2: As for `fit_linear_probe`, a number, as are the next two. ("auto" would hold rows out, and variants
            of an image would be on both sides.)
        max_iter: See there.
        standardize: See there; test rows take the statistics of the training rows.

    Returns:
        ``accuracy``, in [0, 1], the share of the V * M test rows whose change is told, and ``chance``, 1 / V.

    Raises:
        TypeError: If an argument is no sequence, or features are not floating point.
        ValueError: If the number of variants is below two or differs between ``train`` and ``test``, variants of a
            side differ in rows, widths differ, or features are not finite.

    Warns:
        ConvergenceWarning: As `fit_linear_probe`.

    Source:
        Chen et al., *A Simple Framework for Contrastive Learning of Visual Representations* (ICML 2020), table 3.

    Examples:
        >>> plain, changed = np.array([[0.0], [0.1]]), np.array([[1.0], [1.1]])
        >>> transformation_probe_metrics([plain, changed], [plain - 0.1, changed + 0.1])
        {'accuracy': 1.0, 'chance': 0.5}
    """
    check_positive(inverse_l2, "inverse_l2")
    learnt, wanted = _stack(train, "train"), _stack(test, "test")
    if len(train) != len(test):
        raise ValueError(
            "Expected arguments `train` and `test` to have the same number of variants, but got "
            f"{len(train)} and {len(test)}."
        )
    check_same_width(learnt, "train", wanted, "test")
    variants = np.arange(len(train))
    found = linear_probe_metrics(
        learnt,
        variants.repeat(len(train[0])),
        wanted,
        variants.repeat(len(test[0])),
        inverse_l2=inverse_l2,
        max_iter=max_iter,
        standardize=standardize,
    )
    return {"accuracy": found["top1"], "chance": 1 / len(train)}


def majority_share(labels: Array) -> float:
    """Compute the accuracy of always naming the commonest label: what a probe of features that tell nothing has.

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
    if len(labels) == 0:
        raise ValueError("Expected argument `labels` to hold labels, but got none.")
    counts = np.unique(as_labels(labels, "labels", len(labels)), return_counts=True)[1]
    return float(counts.max() / counts.sum())


def _stack(variants: Sequence[Array], name: str) -> Floats:
    if not isinstance(variants, Sequence):
        raise TypeError(f"Expected argument `{name}` to be a sequence of variants, but got {type(variants).__name__}.")
    if len(variants) < 2:
        raise ValueError(f"Expected argument `{name}` to hold at least 2 variants, but got {len(variants)}.")
    parts = [as_embeddings(variant, f"{name}[{place}]") for place, variant in enumerate(variants)]
    for place, part in enumerate(parts):
        if part.shape != parts[0].shape:
            raise ValueError(
                f"Expected argument `{name}` to hold variants of the same images, but got shapes {parts[0].shape} and "
                f"{part.shape} (the first and number {place})."
            )
    return np.concatenate(parts)
