"""Linear-probe accuracy of frozen features."""

from typing import Unpack

from sklearn.pipeline import Pipeline

from pml_supcon._arrays import Array, Floats, as_embeddings, as_labels
from pml_supcon.metrics.logistic import (
    INVERSE_L2,
    MAX_ITER,
    InverseL2,
    ProbeKeywords,
    ProbeOptions,
    as_splits,
    check_probe,
    log_unseen_labels,
    logits_of,
    top_accuracies,
)
from pml_supcon.metrics.probe_selection import fit_with_chosen_penalty


def fit_linear_probe(
    features: Array,
    labels: Array,
    *,
    inverse_l2: InverseL2 = INVERSE_L2,
    max_iter: int = MAX_ITER,
    standardize: bool = True,
    seed: int = 0,
) -> Pipeline:
    r"""Fit multinomial logistic regression with L-BFGS on frozen features.

    The objective is the sum over rows of the cross entropy plus :math:`\frac{1}{2\lambda} \lVert W \rVert^2`, with
    :math:`\lambda` = ``inverse_l2`` (scikit-learn's ``C``).

    Args:
        features: ``(N, D)`` floats, each row computed once.
        labels: ``(N,)`` integers of at least two values.
        inverse_l2: Inverse of the L2 penalty, above 0; a larger value fits closer. With "auto", `choose_inverse_l2`
            chooses it on a tenth of these rows; then all rows are fitted.
        max_iter: Iterations of L-BFGS, at least 1.
        standardize: Give each feature mean 0 and variance 1 first, by the statistics of these rows.
        seed: Seed of the rows that "auto" holds out.

    Returns:
        The fitted pipeline; its ``predict`` applies the same standardisation to new rows.

    Raises:
        TypeError: If features are not floating point, or labels or ``max_iter`` not integers.
        ValueError: If a shape or an option is wrong, a feature is not finite, there is one label only, or no row can be
            held out for "auto".

    Warns:
        ConvergenceWarning: If L-BFGS stopped before the optimum, with what to change.

    Examples:
        >>> import torch
        >>> probe = fit_linear_probe(torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]), torch.tensor([3, 3, 7, 7]))
        >>> probe.predict([[-5.0], [5.0]]).tolist()
        [3, 7]
    """
    options = ProbeOptions(inverse_l2=inverse_l2, max_iter=max_iter, standardize=standardize, seed=seed)
    rows = as_embeddings(features, "features")
    return fit_with_chosen_penalty(rows, as_labels(labels, "labels", len(rows)), options)


def probe_logits(probe: Pipeline, features: Array) -> Floats:
    """Compute the logits of rows by a probe of `fit_linear_probe`.

    Args:
        probe: The fitted pipeline.
        features: ``(N, D)`` floats, with the D of the fitted rows.

    Returns:
        ``(N, C)`` floats, in the order of ``probe.classes_``; their softmax is the probe's ``predict_proba``. With two
        labels, scikit-learn returns one column of log-odds z; here the columns are -z / 2 and z / 2.

    Raises:
        TypeError: If features are not floating point.
        ValueError: If the shape is wrong or a feature is not finite.

    Examples:
        >>> import torch
        >>> probe = fit_linear_probe(torch.tensor([[-1.0], [1.0]]), torch.tensor([3, 7]))
        >>> logits = torch.from_numpy(probe_logits(probe, torch.tensor([[1.0]])))
        >>> bool(logits.softmax(dim=1).isclose(torch.tensor(probe.predict_proba([[1.0]])).float()).all())
        True
    """
    return logits_of(probe, _as_rows(probe, features))


def score_linear_probe(probe: Pipeline, features: Array, labels: Array) -> dict[str, float]:
    """Compute the accuracy of a probe of `fit_linear_probe` on rows that it was not fitted on.

    Args:
        probe: The fitted pipeline.
        features: ``(M, D)`` floats, with the D of the fitted rows.
        labels: ``(M,)`` integers. A label that training lacks cannot be predicted: its rows count as errors, and a
            warning is logged with their number.

    Returns:
        ``top1`` and ``top5``, in [0, 1]: the share of rows whose label scores highest, or among the five highest. Among
        equal scores the smaller label ranks first. With five training labels or fewer, ``top5`` is the share of rows
        whose label was trained on.

    Raises:
        TypeError: If features are not floating point, or labels not integers.
        ValueError: If a shape is wrong or a feature is not finite.

    Examples:
        >>> import torch
        >>> probe = fit_linear_probe(torch.tensor([[-1.0], [1.0]]), torch.tensor([3, 7]))
        >>> score_linear_probe(probe, torch.tensor([[-2.0], [2.0]]), torch.tensor([3, 3]))
        {'top1': 0.5, 'top5': 1.0}
    """
    rows = _as_rows(probe, features)
    wanted = as_labels(labels, "labels", len(rows))
    log_unseen_labels(wanted, probe.classes_)
    top1, top5 = top_accuracies(probe, rows, wanted)
    return {"top1": top1, "top5": top5}


def linear_probe_metrics(
    train_features: Array,
    train_labels: Array,
    test_features: Array,
    test_labels: Array,
    **options: Unpack[ProbeKeywords],
) -> dict[str, float]:
    """Fit a linear probe (see `fit_linear_probe`) on the training rows and score it on the test rows.

    Args:
        train_features: ``(N, D)`` floats.
        train_labels: ``(N,)`` integers of at least two values.
        test_features: ``(M, D)`` floats of rows that are not among the training rows.
        test_labels: ``(M,)`` integers, as ``labels`` of `score_linear_probe`.
        **options: ``inverse_l2``, ``max_iter``, ``standardize`` and ``seed`` of `fit_linear_probe`. Test rows are
            standardised by the statistics of the training rows.

    Returns:
        ``top1`` and ``top5`` of `score_linear_probe`.

    Raises:
        TypeError: If `fit_linear_probe` rejects the type of an argument of either set.
        ValueError: If `fit_linear_probe` rejects an argument of either set, or their widths differ.

    Warns:
        ConvergenceWarning: If L-BFGS stopped before the optimum.

    Examples:
        >>> import torch
        >>> train = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
        >>> test = torch.tensor([[-3.0], [-0.5], [0.5], [3.0]])
        >>> linear_probe_metrics(train, torch.tensor([3, 3, 7, 7]), test, torch.tensor([3, 7, 7, 7]))
        {'top1': 0.75, 'top5': 1.0}
    """
    checked = ProbeOptions(**options)
    train, learnt, test, wanted = as_splits(train_features, train_labels, test_features, test_labels)
    return score_linear_probe(fit_with_chosen_penalty(train, learnt, checked), test, wanted)


def _as_rows(probe: Pipeline, features: Array) -> Floats:
    rows = as_embeddings(features, "features")
    check_probe(probe, rows, "decision_function")
    return rows
