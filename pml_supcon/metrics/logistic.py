"""The logistic regression under the probes; its functions take checked arrays."""

import logging
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from pml_supcon._arrays import Array, Floats, Labels, as_embeddings, as_labels, check_same_width
from pml_supcon._checks import LARGEST, check_bool, check_int, check_number, shown

logger = logging.getLogger(__name__)

InverseL2: TypeAlias = float | Literal["auto"]

INVERSE_L2 = 1.0
MAX_ITER = 1000


class ProbeKeywords(TypedDict, total=False):
    """The options of `fit_linear_probe`, which describes them, as keywords."""

    inverse_l2: InverseL2
    max_iter: int
    standardize: bool
    seed: int


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """The checked `ProbeKeywords`."""

    inverse_l2: InverseL2 = INVERSE_L2
    max_iter: int = MAX_ITER
    standardize: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise unless every option has its type and range."""
        if not isinstance(self.inverse_l2, str):
            check_number("inverse_l2", self.inverse_l2, above=0, finite=False)
        elif self.inverse_l2 != "auto":
            raise ValueError(f'Expected argument `inverse_l2` to be a number or "auto", but got {self.inverse_l2!r}')
        check_int("max_iter", self.max_iter, low=1)
        check_int("seed", self.seed, low=0)
        check_bool("standardize", self.standardize)


def as_splits(
    train_features: Array, train_labels: Array, test_features: Array, test_labels: Array
) -> tuple[Floats, Labels, Floats, Labels]:
    """Check the rows to fit and the rows to score, of one width; return them on the CPU."""
    train, test = as_feature_splits(train_features, test_features)
    learnt = as_labels(train_labels, "train_labels", len(train))
    return train, learnt, test, as_labels(test_labels, "test_labels", len(test))


def as_feature_splits(train_features: Array, test_features: Array) -> tuple[Floats, Floats]:
    """Check the features to fit and the features to score, of one width; return them on the CPU."""
    train = as_embeddings(train_features, "train_features")
    test = as_embeddings(test_features, "test_features")
    check_same_width(train, "train_features", test, "test_features")
    return train, test


def check_squares(values: Floats, name: str = "features") -> None:
    """Raise unless the squares of a column of ``(N, D)`` values have a finite sum, which scikit-learn needs."""
    largest = float(np.abs(values).max())
    if largest > math.sqrt(LARGEST / len(values)):  # infinite deviations would make all features 0
        raise ValueError(f"Expected `{name}` whose squares have a finite sum, but got values of up to {largest:g}")


def fit(features: Floats, labels: Labels, options: ProbeOptions, weights: Floats | None = None) -> Pipeline:
    """Fit the probe of `fit_linear_probe`, with a number as ``inverse_l2``.

    ``weights`` ``(N,)``, above 0, are the weights of the rows in the objective and in the standardisation; default: 1.
    """
    if (labels == labels[0]).all():
        raise ValueError(f"Expected a probe to be fitted on at least two labels, but got only {labels[0]}")
    check_squares(features)
    scaler = [("standardize", StandardScaler())] if options.standardize else []
    classifier = LogisticRegression(C=float(options.inverse_l2), max_iter=options.max_iter)
    probe = Pipeline([*scaler, ("classify", classifier)])
    row_weights = {} if weights is None else {f"{step}__sample_weight": weights for step, _ in probe.steps}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with finite_features():
            probe.fit(features, labels, **row_weights)
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            scale = "" if options.standardize else ", set standardize=True"
            warnings.warn(
                f"The linear probe did not converge within max_iter={options.max_iter}, so that its accuracy is not "
                f"final. Raise max_iter{scale} or lower inverse_l2={options.inverse_l2}. "
                f"scikit-learn's warning: {warning.message}",
                ConvergenceWarning,
                stacklevel=_callers_level(),
            )
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return probe


def _callers_level() -> int:
    """Return the ``stacklevel`` of the first frame outside this package, for a warning of the calling function."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("pml_supcon."):
        frame, level = frame.f_back, level + 1
    return level


@contextmanager
def finite_features() -> Iterator[None]:
    """Name the argument where scikit-learn finds infinity after standardising or multiplying very large features."""
    try:
        yield
    except ValueError as error:
        if "infinity" not in str(error) and "NaN" not in str(error):
            raise
        found = str(error).splitlines()[0]
        raise ValueError(f"Expected `features` whose squares are finite, but scikit-learn found: {found}") from error


def check_probe(probe: Any, features: Floats, method: str) -> None:
    """Raise unless the probe is a fitted classifier with this method, for rows of this width."""
    if isinstance(probe, type) or not hasattr(probe, method) or not hasattr(probe, "classes_"):
        raise TypeError(f"Expected argument `probe` to be a fitted classifier with `{method}`, but got {shown(probe)}")
    width = getattr(probe, "n_features_in_", features.shape[1])
    if features.shape[1] != width:
        raise ValueError(
            f"Expected argument `features` to have the {width} columns of the fitted rows, but "
            f"got shape {features.shape}"
        )


def logits_of(probe: Any, features: Floats) -> Floats:
    """Return the logits ``(N, C)`` of rows, with two columns for two labels; see `probe_logits`."""
    with finite_features():
        scores: Floats = probe.decision_function(features)
    if scores.ndim == 1:  # two labels: scikit-learn returns their log-odds
        scores = np.stack([-scores / 2, scores / 2], axis=1)
    return scores


def top_accuracies(probe: Any, features: Floats, labels: Labels) -> tuple[float, float]:
    """Return the shares of rows whose label ranks first, and among the first five.

    scikit-learn's ``top_k_accuracy_score`` resolves ties the other way and rejects labels that training lacks.
    """
    scores = logits_of(probe, features)
    columns = np.searchsorted(probe.classes_, labels).clip(max=scores.shape[1] - 1)
    right = np.take_along_axis(scores, columns[:, None], axis=1)
    # The rank of the right label, (N,), from 0: higher scores, and smaller labels with the same score, are ahead of it.
    ahead = (scores > right) | ((scores == right) & (np.arange(scores.shape[1]) < columns[:, None]))
    rank = np.where(probe.classes_[columns] == labels, ahead.sum(axis=1), np.inf)  # infinite where training lacks it
    return float((rank < 1).mean()), float((rank < 5).mean())


def log_unseen_labels(labels: Labels, known: Labels, consequence: str = "they count as errors") -> None:
    """Log a warning with the number of rows whose label is not one of ``known``, the labels of training."""
    unseen = labels[~np.isin(labels, known)]
    if len(unseen):
        logger.warning(
            "%d of %d test rows have a label that no training row has (%d labels): %s.",
            len(unseen),
            len(labels),
            len(np.unique(unseen)),
            consequence,
        )
