"""Linear-probe accuracy of frozen features, and the PML tester that reports it."""

from sklearn.pipeline import Pipeline

from pml_supcon._arrays import Array, Floats, Labels, as_embeddings, as_labels, check_seed
from pml_supcon.metrics.logistic import (
    INVERSE_L2,
    MAX_ITER,
    InverseL2,
    as_splits,
    check_fit,
    fit,
    logits_of,
    rank_of_label,
    tell_unseen,
)
from pml_supcon.metrics.probe_selection import resolve


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

    Minimises the sum over rows of the cross entropy plus :math:`\frac{1}{2\lambda} \lVert W \rVert^2`, with
    :math:`\lambda` = ``inverse_l2`` (scikit-learn's ``C``).

    Args:
        features: ``(N, D)`` floats, each row computed once.
        labels: ``(N,)`` integers of at least two values.
        inverse_l2: Inverse of the L2 penalty, above 0; larger fits closer. "auto" is what `choose_inverse_l2` chooses
            on a tenth of these rows; then all of them are fitted.
        max_iter: Iterations of L-BFGS, at least 1.
        standardize: Give each feature mean 0 and variance 1 first, by the statistics of these rows.
        seed: Of the rows that "auto" holds out.

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
    check_fit(inverse_l2, max_iter)
    check_seed(seed)
    rows = as_embeddings(features, "features")
    learnt = as_labels(labels, "labels", len(rows))
    return fit(rows, learnt, resolve(inverse_l2, rows, learnt, seed, max_iter, standardize), max_iter, standardize)


def probe_logits(probe: Pipeline, features: Array) -> Floats:
    """Score rows by a probe of `fit_linear_probe`.

    Args:
        probe: The fitted pipeline.
        features: ``(N, D)`` floats, D as it was fitted.

    Returns:
        ``(N, C)`` floats, in the order of ``probe.classes_``: their softmax is the probe's ``predict_proba``. With two
        labels, where scikit-learn gives one column of log-odds, these are halved between two.

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
    """Accuracy of a probe of `fit_linear_probe` on rows that it was not fitted on.

    Args:
        probe: The fitted pipeline.
        features: ``(M, D)`` floats, D as it was fitted.
        labels: ``(M,)`` integers, as ``test_labels`` of `linear_probe_metrics`.

    Returns:
        ``top1`` and ``top5``, as `linear_probe_metrics`.

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
    return _score(probe, rows, as_labels(labels, "labels", len(rows)))


def linear_probe_metrics(
    train_features: Array,
    train_labels: Array,
    test_features: Array,
    test_labels: Array,
    *,
    inverse_l2: InverseL2 = INVERSE_L2,
    max_iter: int = MAX_ITER,
    standardize: bool = True,
    seed: int = 0,
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
        seed: As for `fit_linear_probe`.

    Returns:
        ``top1`` and ``top5``, in [0, 1]: the share of test rows whose label scores highest, or among the five
        highest. Of equal scores the smaller label goes first. With five training labels or fewer, ``top5`` is
        the share of rows whose label was trained on.

    Raises:
        TypeError: As `fit_linear_probe`, for either set.
        ValueError: As `fit_linear_probe`, for either set, or if their widths differ.

    Warns:
        ConvergenceWarning: As `fit_linear_probe`.

    Examples:
        >>> import torch
        >>> train = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
        >>> test = torch.tensor([[-3.0], [-0.5], [0.5], [3.0]])
        >>> linear_probe_metrics(train, torch.tensor([3, 3, 7, 7]), test, torch.tensor([3, 7, 7, 7]))
        {'top1': 0.75, 'top5': 1.0}
    """
    check_fit(inverse_l2, max_iter)
    check_seed(seed)
    train, learnt, test, wanted = as_splits(train_features, train_labels, test_features, test_labels)
    chosen = resolve(inverse_l2, train, learnt, seed, max_iter, standardize)
    return _score(fit(train, learnt, chosen, max_iter, standardize), test, wanted)


def _score(probe: Pipeline, features: Floats, labels: Labels) -> dict[str, float]:
    tell_unseen(labels, probe.classes_)
    rank = rank_of_label(probe, features, labels)
    return {"top1": float((rank < 1).mean()), "top5": float((rank < 5).mean())}


def _as_rows(probe: Pipeline, features: Array) -> Floats:
    rows = as_embeddings(features, "features")
    if rows.shape[1] != probe.n_features_in_:
        raise ValueError(
            f"Expected argument `features` to be as wide as the probe was fitted, {probe.n_features_in_}, but got "
            f"shape {rows.shape}."
        )
    return rows
