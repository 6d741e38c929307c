"""Linear-probe accuracy of frozen features, and the PML tester that reports it."""

import logging
import warnings
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from ._inputs import (
    Array,
    Floats,
    Labels,
    as_embeddings,
    as_labels,
    check_count,
    check_positive,
    check_same_width,
)
from ._pml import FunctionCalculator

logger = logging.getLogger(__name__)

INVERSE_L2 = 1.0
MAX_ITER = 1000

UNSEEN = np.iinfo(np.int64).max  # the rank of a label that training lacks


def fit_linear_probe(
    features: Array,
    labels: Array,
    *,
    inverse_l2: float = INVERSE_L2,
    max_iter: int = MAX_ITER,
    standardize: bool = True,
) -> Pipeline:
    r"""Fit multinomial logistic regression with L-BFGS on frozen features.

    Minimises the sum over rows of the cross entropy plus :math:`\frac{1}{2\lambda} \lVert W \rVert^2`, with
    :math:`\lambda` = ``inverse_l2`` (scikit-learn's ``C``).

    Args:
        features: ``(N, D)`` floats, each row computed once.
        labels: ``(N,)`` integers of at least two values.
        inverse_l2: Inverse of the L2 penalty, above 0; larger fits closer.
        max_iter: Iterations of L-BFGS, at least 1.
        standardize: Give each feature mean 0 and variance 1 first, by the statistics of these rows.

    Returns:
        The fitted pipeline; its ``predict`` applies the same standardisation to new rows.

    Raises:
        TypeError: If features are not floating point, or labels or ``max_iter`` not integers.
        ValueError: If a shape or an option is wrong, a feature is not finite, or there is one label only.

    Warns:
        ConvergenceWarning: If L-BFGS stopped before the optimum, with what to change.

    Example:
        >>> probe = fit_linear_probe(torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]), torch.tensor([3, 3, 7, 7]))
        >>> probe.predict([[-5.0], [5.0]]).tolist()
        [3, 7]
    """
    _check_options(inverse_l2, max_iter)
    matrix = as_embeddings(features, "features")
    return _fit(matrix, as_labels(labels, "labels", len(matrix)), inverse_l2, max_iter, standardize)


def linear_probe_metrics(
    train_features: Array,
    train_labels: Array,
    test_features: Array,
    test_labels: Array,
    *,
    inverse_l2: float = INVERSE_L2,
    max_iter: int = MAX_ITER,
    standardize: bool = True,
) -> dict[str, float]:
    """Fit a linear probe (see `fit_linear_probe`) on the training rows and score it on the test rows.

    Args:
        train_features: ``(N, D)`` floats.
        train_labels: ``(N,)`` integers of at least two values.
        test_features: ``(M, D)`` floats of rows that are not among the training rows.
        test_labels: ``(M,)`` integers. A label that training lacks cannot be predicted: its rows count as
            errors, and a warning is logged with their number.
        inverse_l2: As for `fit_linear_probe`.
        max_iter: As for `fit_linear_probe`.
        standardize: As for `fit_linear_probe`; test rows take the statistics of the training rows.

    Returns:
        ``top1`` and ``top5``, in [0, 1]: the share of test rows whose label scores highest, or among the five
        highest. Of equal scores the smaller label goes first. With five training labels or fewer, ``top5`` is
        the share of rows whose label was trained on.

    Raises:
        TypeError: As `fit_linear_probe`, for either set.
        ValueError: As `fit_linear_probe`, for either set, or if their widths differ.

    Warns:
        ConvergenceWarning: As `fit_linear_probe`.

    Example:
        >>> train = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
        >>> test = torch.tensor([[-3.0], [-0.5], [0.5], [3.0]])
        >>> linear_probe_metrics(train, torch.tensor([3, 3, 7, 7]), test, torch.tensor([3, 7, 7, 7]))
        {'top1': 0.75, 'top5': 1.0}
    """
    _check_options(inverse_l2, max_iter)
    train = as_embeddings(train_features, "train_features")
    test = as_embeddings(test_features, "test_features")
    check_same_width(train, "train_features", test, "test_features")
    learnt = as_labels(train_labels, "train_labels", len(train))
    wanted = as_labels(test_labels, "test_labels", len(test))
    probe = _fit(train, learnt, inverse_l2, max_iter, standardize)

    rank = _rank_of_label(probe, test, wanted)
    unseen = wanted[rank == UNSEEN]
    if len(unseen):
        logger.warning(
            "%d of %d test rows have a label that no training row has (%d labels): they count as errors.",
            len(unseen),
            len(test),
            len(np.unique(unseen)),
        )
    return {"top1": float((rank < 1).mean()), "top5": float((rank < 5).mean())}


class LinearProbeTester(GlobalEmbeddingSpaceTester):
    """PML tester that reports `linear_probe_metrics`, under keys such as ``top1_level0``.

    It fits on the reference splits and scores on the query split: ``splits_to_eval=[("test", ["train"])]``.
    By default it probes the output of the trunk as it is, with the embedder (the projection head) off.

    Args:
        inverse_l2: As for `fit_linear_probe`.
        max_iter: As for `fit_linear_probe`.
        standardize: As for `fit_linear_probe`.
        use_trunk_output: Probe the output of the trunk rather than that of the embedder.
        normalize_embeddings: Give each row unit length first.
        **tester_kwargs: Other options of PML's ``BaseTester``, except ``accuracy_calculator``.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of range. From ``test``: if a query split is among its own reference
            splits, which is PML's default for ``splits_to_eval``; no embedding has been computed by then.

    Example:
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> splits = {
        ...     "train": torch.utils.data.TensorDataset(torch.eye(4), labels),
        ...     "test": torch.utils.data.TensorDataset(3 * torch.eye(4), labels),
        ... }
        >>> tester = LinearProbeTester(dataloader_num_workers=0, data_device="cpu")
        >>> trunk = torch.nn.Identity()
        >>> tester.test(splits, 1, trunk, splits_to_eval=[("test", ["train"])])["test"]["top1_level0"]
        1.0
    """

    def __init__(
        self,
        *,
        inverse_l2: float = INVERSE_L2,
        max_iter: int = MAX_ITER,
        standardize: bool = True,
        use_trunk_output: bool = True,
        normalize_embeddings: bool = False,
        **tester_kwargs: Any,
    ) -> None:
        _check_options(inverse_l2, max_iter)

        def compute(
            query: torch.Tensor,
            query_labels: torch.Tensor,
            reference: torch.Tensor,
            reference_labels: torch.Tensor,
            ref_includes_query: bool,  # refused before embeddings are computed
        ) -> dict[str, float]:
            return linear_probe_metrics(
                reference,
                reference_labels,
                query,
                query_labels,
                inverse_l2=inverse_l2,
                max_iter=max_iter,
                standardize=standardize,
            )

        super().__init__(
            accuracy_calculator=FunctionCalculator(["top1", "top5"], compute),
            use_trunk_output=use_trunk_output,
            normalize_embeddings=normalize_embeddings,
            **tester_kwargs,
        )

    def get_splits_to_compute_embeddings(
        self, dataset_dict: dict[str, Any], splits_to_eval: list[tuple[str, list[str]]] | None
    ) -> Any:
        """PML asks for the splits first of all; a probe scored on what it was fitted on is refused here."""
        default = [(name, [name]) for name in dataset_dict]
        for query, references in default if splits_to_eval is None else splits_to_eval:
            if query in references:
                raise ValueError(
                    "Expected argument `splits_to_eval` to score the probe on a split it is not fitted on, "
                    f"but got query {query!r} with references {references}"
                    f"{'' if splits_to_eval else ' (the default)'}. "
                    'Pass splits_to_eval=[("test", ["train"])], with the names of your splits.'
                )
        return super().get_splits_to_compute_embeddings(dataset_dict, splits_to_eval)


def _check_options(inverse_l2: float, max_iter: int) -> None:
    check_positive(inverse_l2, "inverse_l2")
    check_count(max_iter, "max_iter")


def _fit(features: Floats, labels: Labels, inverse_l2: float, max_iter: int, standardize: bool) -> Pipeline:
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
                stacklevel=3,
            )
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return probe


def _rank_of_label(probe: Pipeline, features: Floats, labels: Labels) -> Labels:
    """How many labels the probe puts before the right one, ``(N,)``; `UNSEEN` where it never saw that one."""
    scores = probe.decision_function(features)
    if scores.ndim == 1:  # two labels: scikit-learn gives the score of the second
        scores = np.stack([-scores, scores], axis=1)
    columns = np.searchsorted(probe.classes_, labels).clip(max=scores.shape[1] - 1)
    right = np.take_along_axis(scores, columns[:, None], axis=1)
    ahead = (scores > right) | ((scores == right) & (np.arange(scores.shape[1]) < columns[:, None]))
    return np.where(probe.classes_[columns] == labels, ahead.sum(axis=1), UNSEEN)
