"""The section "calibration": the probabilities of a linear probe before and after temperature scaling."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pml_supcon.evaluation.context import EvaluationContext, note_missing_classes, warnings_as_notes
from pml_supcon.metrics import calibration_metrics, fit_linear_probe, fit_temperature, probe_logits, reliability_diagram
from pml_supcon.metrics.calibration import ReliabilityBin

Logits = npt.NDArray[np.float64]
MIN_IMAGES = 4  # test images, two in each half


@dataclass(frozen=True, kw_only=True)
class CalibrationSection:
    """The results of the section "calibration".

    Attributes:
        bins: The number of bins of confidence.
        temperature: The geometric mean of the temperatures of the two halves of test.
        before: The metrics of the probe's probabilities.
        after: The metrics after temperature scaling.
        reliability: The reliability diagrams ``before`` and ``after``.
    """

    bins: int
    temperature: float
    before: dict[str, float]
    after: dict[str, float]
    reliability: dict[str, list[ReliabilityBin]]


def calibration(context: EvaluationContext) -> CalibrationSection | None:
    """Fit a linear probe on train and score its probabilities on test, before and after temperature scaling.

    Each test image is scaled by a temperature that was fitted on the other half of test. Held-out training images would
    give one that is far too small, because the encoder was trained on them and nearly all are classified correctly. The
    probe's penalty is ``settings.inverse_l2``; by default it is chosen on held-out training images. Test images of a
    class that train lacks have no probability and are left out.

    Returns:
        The section; None on all processes but the main one.
    """
    settings = context.settings
    train, test = context.features("train"), context.features("test")
    if not context.is_main:
        return None
    train_labels, test_labels = context.labels("train"), context.labels("test")
    note_missing_classes(context, train_labels, test_labels, "calibration leaves them out")
    with warnings_as_notes(context, "Calibration"):
        probe = fit_linear_probe(train, train_labels, inverse_l2=settings.inverse_l2 or "auto", seed=settings.seed)
    # logits (N, C) of the test images whose class train has, and the column of each one's class
    known = torch.isin(test_labels, train_labels)
    logits = probe_logits(probe, test[known]).astype(np.float64)
    columns = np.searchsorted(probe.classes_, test_labels[known].numpy())
    # one temperature for each row, from the half of the rows that it is not in
    temperatures = crossed_temperatures(logits, columns, seed=settings.seed)
    if len(logits) < MIN_IMAGES:
        context.note(f"The temperature is 1: {len(logits)} test images are too few to fit one.")
    scaled = {"before": logits, "after": logits / temperatures[:, None]}
    metrics = {name: calibration_metrics(rows, columns, bins=settings.bins) for name, rows in scaled.items()}
    reliability = {
        name: reliability_diagram(torch.from_numpy(rows).softmax(dim=1), columns, bins=settings.bins)
        for name, rows in scaled.items()
    }
    temperature = math.exp(float(np.log(temperatures).mean()))
    return CalibrationSection(bins=settings.bins, temperature=temperature, **metrics, reliability=reliability)


def crossed_temperatures(logits: Logits, columns: npt.NDArray[np.int64], *, seed: int) -> Logits:
    """Return a temperature for each row ``(N,)``, fitted on the half without it; 1 for fewer than `MIN_IMAGES` rows."""
    temperatures = np.ones(len(logits))
    if len(logits) < MIN_IMAGES:
        return temperatures
    first, second = np.array_split(np.random.default_rng(seed).permutation(len(logits)), 2)
    temperatures[first] = fit_temperature(logits[second], columns[second])
    temperatures[second] = fit_temperature(logits[first], columns[first])
    return temperatures
