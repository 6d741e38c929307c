"""Calibration of a linear probe before and after temperature scaling, and the PML tester that reports it."""

from typing import NamedTuple

import numpy as np
from sklearn.pipeline import Pipeline

from pml_supcon._arrays import Array, Floats, Labels, as_embeddings, as_labels, check_count, check_seed, check_share
from pml_supcon.metrics.calibration import BINS, calibration_metrics
from pml_supcon.metrics.logistic import (
    INVERSE_L2,
    MAX_ITER,
    InverseL2,
    as_splits,
    check_fit,
    fit,
    logits_of,
    tell_unseen,
)
from pml_supcon.metrics.probe_selection import resolve
from pml_supcon.metrics.strata import hold_out
from pml_supcon.metrics.temperature import fit_temperature

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
    """Fit a linear probe on a part of the rows, and its temperature on the others, which it never sees.

    The encoder must not have seen these rows either: it knows the images that it was trained on, of which nearly all
    come out right also where the probe never saw them, and the temperature comes out too small. For such an encoder
    pass features of images that it was not trained on.

    Args:
        features: ``(N, D)`` floats.
        labels: ``(N,)`` integers of at least two values.
        held_out: Share of the rows that the temperature is fitted to, between 0 and 1, about the same of every label. A
            label with one row stays with the probe.
        inverse_l2: As for `fit_linear_probe`; "auto" chooses within the rows of the probe.
        max_iter: As for `fit_linear_probe`.
        standardize: As for `fit_linear_probe`.
        seed: Of the rows that are held out.

    Returns:
        The probe, whose `probe_logits` are to be divided by the temperature (see `fit_temperature`).

    Raises:
        TypeError: If features are not floating point, labels not integers, or an option has the wrong type.
        ValueError: If a shape or an option is wrong, a feature is not finite, there is one label only, or no row can be
            held out.

    Warns:
        ConvergenceWarning: As `fit_linear_probe`.

    Examples:
        >>> import torch
        >>> labels = torch.arange(40) % 2
        >>> features = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)) + 0.5 * labels[:, None]
        >>> fit_calibrated_probe(features, labels, held_out=0.5).temperature > 1  # it was too sure of itself
        True
    """
    check_share(held_out, "held_out")
    check_fit(inverse_l2, max_iter)
    check_seed(seed)
    rows = as_embeddings(features, "features")
    return _fit(rows, as_labels(labels, "labels", len(rows)), held_out, inverse_l2, max_iter, standardize, seed)


def calibrated_probe_metrics(
    train_features: Array,
    train_labels: Array,
    test_features: Array,
    test_labels: Array,
    *,
    held_out: float = HELD_OUT,
    bins: int = BINS,
    inverse_l2: InverseL2 = INVERSE_L2,
    max_iter: int = MAX_ITER,
    standardize: bool = True,
    seed: int = 0,
) -> dict[str, float]:
    """Fit a linear probe and its temperature on the training rows (`fit_calibrated_probe`); score the test rows.

    The encoder must have seen neither, or the temperature comes out too small: see there.

    Args:
        train_features: ``(N, D)`` floats.
        train_labels: ``(N,)`` integers of at least two values.
        test_features: ``(M, D)`` floats of rows that are not among the training rows.
        test_labels: ``(M,)`` integers. A label that training lacks has no probability, and a likelihood of 0: its rows
            are left out of all figures, and a warning is logged with their number.
        held_out: As for `fit_calibrated_probe`.
        bins: As for `expected_calibration_error`.
        inverse_l2: As for `fit_calibrated_probe`.
        max_iter: As for `fit_linear_probe`.
        standardize: As for `fit_linear_probe`.
        seed: As for `fit_calibrated_probe`.

    Returns:
        ``ece``, ``classwise_ece``, ``nll`` and ``brier`` of the test rows (see `calibration_metrics`), the
        ``temperature``, and the first four again after it, as ``scaled_ece`` and so on.

    Raises:
        TypeError: If features are not floating point, labels not integers, or an option has the wrong type.
        ValueError: If a shape, a width or an option is wrong, a feature is not finite, there is one label only, no row
            can be held out, or no test row has a label of training.

    Warns:
        ConvergenceWarning: As `fit_linear_probe`.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> labels = np.arange(400) % 2
        >>> features = rng.normal(size=(400, 40)) + 0.2 * labels[:, None]
        >>> parts = features[:200], labels[:200], features[200:], labels[200:]
        >>> found = calibrated_probe_metrics(*parts, held_out=0.5, inverse_l2=1e3)
        >>> found["temperature"] > 1, found["scaled_ece"] < found["ece"], found["scaled_nll"] < found["nll"]
        (True, True, True)
    """
    _check_options(held_out, bins, inverse_l2, max_iter, seed)
    train, learnt, test, wanted = as_splits(train_features, train_labels, test_features, test_labels)
    known = np.isin(wanted, learnt)
    if not known.any():
        raise ValueError("Expected argument `test_labels` to have a label of `train_labels`, but got none.")
    tell_unseen(wanted, np.unique(learnt), "they are left out, for they have no probability")
    probe, temperature = _fit(train, learnt, held_out, inverse_l2, max_iter, standardize, seed)
    logits, columns = logits_of(probe, test[known]), np.searchsorted(probe.classes_, wanted[known])
    before = calibration_metrics(logits, columns, bins=bins)
    after = calibration_metrics(logits, columns, temperature=temperature, bins=bins)
    return before | {"temperature": temperature} | {f"scaled_{name}": value for name, value in after.items()}


def _fit(
    features: Floats,
    labels: Labels,
    held_out: float,
    inverse_l2: InverseL2,
    max_iter: int,
    standardize: bool,
    seed: int,
) -> CalibratedProbe:
    fitted, held = hold_out(labels, held_out, seed)
    rows, learnt = features[fitted], labels[fitted]
    chosen = resolve(inverse_l2, rows, learnt, seed, max_iter, standardize)
    probe = fit(rows, learnt, chosen, max_iter, standardize, stacklevel=4)
    columns = np.searchsorted(probe.classes_, labels[held])
    return CalibratedProbe(probe, fit_temperature(logits_of(probe, features[held]), columns))


def _check_options(held_out: float, bins: int, inverse_l2: InverseL2, max_iter: int, seed: int) -> None:
    check_share(held_out, "held_out")
    check_count(bins, "bins")
    check_fit(inverse_l2, max_iter)
    check_seed(seed)
