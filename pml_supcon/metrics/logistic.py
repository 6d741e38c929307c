"""The logistic regression under the probes, on arrays that were checked."""

import logging
import warnings
from typing import Any, Literal, TypeAlias

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from pml_supcon._arrays import (
    Array,
    Floats,
    Labels,
    as_embeddings,
    as_labels,
    check_count,
    check_positive,
    check_same_width,
)

logger = logging.getLogger(__name__)

InverseL2: TypeAlias = float | Literal["auto"]

INVERSE_L2 = 1.0
MAX_ITER = 1000
UNSEEN = np.iinfo(np.int64).max  # the rank of a label that training lacks


def check_fit(inverse_l2: InverseL2, max_iter: int) -> None:
    """Raise unless these are options of a fit."""
    if isinstance(inverse_l2, str):
        if inverse_l2 != "auto":
            raise ValueError(f'Expected argument `inverse_l2` to be a number or "auto", but got {inverse_l2!r}.')
    else:
        check_positive(inverse_l2, "inverse_l2")
    check_count(max_iter, "max_iter")


def as_splits(
    train_features: Array, train_labels: Array, test_features: Array, test_labels: Array
) -> tuple[Floats, Labels, Floats, Labels]:
    """Check the rows to fit and the rows to score, of one width; return them on the CPU."""
    train = as_embeddings(train_features, "train_features")
    test = as_embeddings(test_features, "test_features")
    check_same_width(train, "train_features", test, "test_features")
    learnt = as_labels(train_labels, "train_labels", len(train))
    return train, learnt, test, as_labels(test_labels, "test_labels", len(test))


def fit(
    features: Floats, labels: Labels, inverse_l2: float, max_iter: int, standardize: bool, *, stacklevel: int = 3
) -> Pipeline:
    """See `fit_linear_probe`; a warning points ``stacklevel`` frames up."""
    if (labels == labels[0]).all():
        raise ValueError(f"Expected a probe to be fitted on at least two labels, but got only {labels[0]}.")
    scaler = [("standardize", StandardScaler())] if standardize else []
    probe = Pipeline([*scaler, ("classify", LogisticRegression(C=inverse_l2, max_iter=max_iter))])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        probe.fit(features, labels)
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            scale = "" if standardize else ", set standardize=True"
            warnings.warn(
                f"The linear probe did not converge within max_iter={max_iter}: its accuracy is that of an "
                f"unfinished fit. Raise max_iter{scale} or lower inverse_l2={inverse_l2}. "
                f"scikit-learn said: {warning.message}",
                ConvergenceWarning,
                stacklevel=stacklevel,
            )
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return probe


def logits_of(probe: Any, features: Floats) -> Floats:
    """See `probe_logits`."""
    scores: Floats = probe.decision_function(features)
    if scores.ndim == 1:  # two labels: scikit-learn gives their log-odds
        scores = np.stack([-scores / 2, scores / 2], axis=1)
    return scores


def rank_of_label(probe: Any, features: Floats, labels: Labels) -> Labels:
    """How many labels the probe puts before the right one, ``(N,)``; `UNSEEN` where it never saw that one."""
    scores = logits_of(probe, features)
    columns = np.searchsorted(probe.classes_, labels).clip(max=scores.shape[1] - 1)
    right = np.take_along_axis(scores, columns[:, None], axis=1)
    ahead = (scores > right) | ((scores == right) & (np.arange(scores.shape[1]) < columns[:, None]))
    return np.where(probe.classes_[columns] == labels, ahead.sum(axis=1), UNSEEN)


def tell_unseen(labels: Labels, known: Labels, said: str = "they count as errors") -> None:
    """Log how many rows have a label that is not among the ``known``."""
    unseen = labels[~np.isin(labels, known)]
    if len(unseen):
        logger.warning(
            "%d of %d test rows have a label that no training row has (%d labels): %s.",
            len(unseen),
            len(labels),
            len(np.unique(unseen)),
            said,
        )
