"""Calibration of a linear probe before and after temperature scaling."""

from typing import NamedTuple, Unpack

import numpy as np
from sklearn.pipeline import Pipeline

from pml_supcon._arrays import Array, Floats, Labels, as_embeddings, as_labels
from pml_supcon._checks import check_fraction, check_int
from pml_supcon._strata import hold_out
from pml_supcon.metrics.calibration import BINS, calibration_metrics
from pml_supcon.metrics.logistic import (
    INVERSE_L2,
    MAX_ITER,
    InverseL2,
    ProbeKeywords,
    ProbeOptions,
    as_splits,
    log_unseen_labels,
    logits_of,
)
from pml_supcon.metrics.probe_selection import fit_with_chosen_penalty
from pml_supcon.metrics.temperature import fit_temperature

#: More than the tenth of `choose_inverse_l2`: the temperature is continuous, and its error affects every score.
HELD_OUT = 0.2
METRICS = ("ece", "classwise_ece", "nll", "brier")


class CalibratedProbe(NamedTuple):
    """A linear ``probe``, and the ``temperature`` of its logits."""

    probe: Pipeline
    temperature: float


def fit_calibrated_probe(
    features: Array,
    labels: Array,
    *,
    held_out: float = HELD_OUT,
    inverse_l2: InverseL2 = INVERSE_L2,
    max_iter: int = MAX_ITER,
    standardize: bool = True,
    seed: int = 0,
) -> CalibratedProbe:
    """Fit a linear probe on a part of the rows, and its temperature on the other rows.

    Pass features of images that the encoder was not trained on. Nearly all of its training images are classified
    right, even images that the probe was not fitted on, and the temperature is then too small.

    Args:
        features: ``(N, D)`` floats.
        labels: ``(N,)`` integers of at least two values.
        held_out: Share of the rows that the temperature is fitted to, between 0 and 1, about the same of every label. A
            label with one row stays with the probe.
        inverse_l2: Inverse of the probe's L2 penalty, above 0, or "auto": `choose_inverse_l2` on the rows of the probe.
        max_iter: Iterations of L-BFGS, at least 1.
        standardize: Give each feature mean 0 and variance 1 first, by the statistics of the rows of the probe.
        seed: Seed of the held-out rows.

    Returns:
        The probe, and the temperature that divides its `probe_logits` (see `fit_temperature`).

    Raises:
        TypeError: If features are not floating point, labels not integers, or an option has the wrong type.
        ValueError: If a shape or an option is wrong, a feature is not finite, there is one label only, or no row can be
            held out.

    Warns:
        ConvergenceWarning: If L-BFGS stopped before the optimum.

    Examples:
        >>> import torch
        >>> labels = torch.arange(40) % 2
        >>> features = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)) + 0.5 * labels[:, None]
        >>> fit_calibrated_probe(features, labels, held_out=0.5).temperature > 1  # it was overconfident
        True
    """
    options = ProbeOptions(inverse_l2=inverse_l2, max_iter=max_iter, standardize=standardize, seed=seed)
    check_fraction("held_out", held_out)
    rows = as_embeddings(features, "features")
    return _fit(rows, as_labels(labels, "labels", len(rows)), held_out, options)


def calibrated_probe_metrics(
    train_features: Array,
    train_labels: Array,
    test_features: Array,
    test_labels: Array,
    *,
    held_out: float = HELD_OUT,
    bins: int = BINS,
    **options: Unpack[ProbeKeywords],
) -> dict[str, float]:
    """Fit a linear probe and its temperature on the training rows (`fit_calibrated_probe`); score the test rows.

    The encoder must not have been trained on the images of either set; `fit_calibrated_probe` gives the reason.

    Args:
        train_features: ``(N, D)`` floats.
        train_labels: ``(N,)`` integers of at least two values.
        test_features: ``(M, D)`` floats of rows that are not among the training rows.
        test_labels: ``(M,)`` integers. A label that training lacks has no probability: its rows are left out of all
            scores, and a warning is logged with their number.
        held_out: Share of the training rows that the temperature is fitted to, between 0 and 1.
        bins: Number of bins of confidence, at least 1.
        **options: ``inverse_l2``, ``max_iter``, ``standardize`` and ``seed`` of `fit_calibrated_probe`.

    Returns:
        ``ece``, ``classwise_ece``, ``nll`` and ``brier`` of the test rows (see `calibration_metrics`), the
        ``temperature``, and the first four again after it, as ``scaled_ece`` and so on.

    Raises:
        TypeError: If features are not floating point, labels not integers, or an option has the wrong type.
        ValueError: If a shape, a width or an option is wrong, a feature is not finite, there is one label only, no row
            can be held out, or no test row has a label of training.

    Warns:
        ConvergenceWarning: If L-BFGS stopped before the optimum.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> labels = np.arange(400) % 2
        >>> features = rng.normal(size=(400, 40)) + 0.2 * labels[:, None]
        >>> parts = features[:200], labels[:200], features[200:], labels[200:]
        >>> found = calibrated_probe_metrics(*parts, held_out=0.5, inverse_l2=1e3)
        >>> found["temperature"] > 1, found["scaled_ece"] < found["ece"], found["scaled_nll"] < found["nll"]
        (True, True, True)
    """
    checked = ProbeOptions(**options)
    check_fraction("held_out", held_out)
    check_int("bins", bins, low=1)
    train, learnt, test, wanted = as_splits(train_features, train_labels, test_features, test_labels)
    known = np.isin(wanted, learnt)
    if not known.any():
        raise ValueError("Expected argument `test_labels` to have a label of `train_labels`, but got none")
    log_unseen_labels(
        wanted, np.unique(learnt), "they are left out because the probe has no probability for their class"
    )
    probe, temperature = _fit(train, learnt, held_out, checked)
    logits, columns = logits_of(probe, test[known]), np.searchsorted(probe.classes_, wanted[known])
    before = calibration_metrics(logits, columns, bins=bins)
    after = calibration_metrics(logits, columns, temperature=temperature, bins=bins)
    return before | {"temperature": temperature} | {f"scaled_{name}": value for name, value in after.items()}


def _fit(features: Floats, labels: Labels, held_out: float, options: ProbeOptions) -> CalibratedProbe:
    fitted, held = hold_out(labels, held_out, options.seed)
    probe = fit_with_chosen_penalty(features[fitted], labels[fitted], options)
    columns = np.searchsorted(probe.classes_, labels[held])
    return CalibratedProbe(probe, fit_temperature(logits_of(probe, features[held]), columns))
