"""The section "calibration": whether a linear probe is right as often as it says, before and after a temperature."""

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from pml_supcon.evaluation.context import EvaluationContext
from pml_supcon.evaluation.notes import note_missing_classes, warnings_as_notes
from pml_supcon.metrics import calibration_metrics, fit_linear_probe, fit_temperature, probe_logits, reliability_diagram

Logits = npt.NDArray[np.float64]
LEAST = 4  # test images, so that each half has two


def calibration(context: EvaluationContext) -> dict[str, Any] | None:
    """Fit a linear probe on train, score its probabilities on test, with temperatures from the other half of test.

    They are not fitted on held-out training images: the encoder knows these, nearly all are right, and the temperature
    would be far too small. Each test image is scaled by a temperature that was fitted without it. The penalty is
    `settings.inverse_l2`, else chosen on held-out training images. Test images of a class that train lacks have no
    probability, and are left out.

    Args:
        context: what is evaluated.

    Returns:
        The section, `temperature` the geometric mean of the two; None on other processes than the main one.
    """
    settings = context.settings
    train, test = context.features("train"), context.features("test")
    if not context.is_main:
        return None
    learnt, wanted = context.labels("train"), context.labels("test")
    note_missing_classes(context, learnt, wanted, "calibration leaves them out")
    penalty: float | Literal["auto"] = settings.inverse_l2 if settings.inverse_l2 is not None else "auto"
    with warnings_as_notes(context, "Calibration"):
        probe = fit_linear_probe(train, learnt, inverse_l2=penalty, seed=settings.seed)
    known = torch.isin(wanted, learnt)
    logits = probe_logits(probe, test[known]).astype(np.float64)
    columns = np.searchsorted(probe.classes_, wanted[known].numpy())
    temperatures = crossed_temperatures(logits, columns, seed=settings.seed)
    if len(logits) < LEAST:
        context.note(f"The temperature is 1: {len(logits)} test images are too few to fit one.")
    scaled = {"before": logits, "after": logits / temperatures[:, None]}
    return {
        "bins": settings.bins,
        "temperature": math.exp(float(np.log(temperatures).mean())),
        **{name: calibration_metrics(rows, columns, bins=settings.bins) for name, rows in scaled.items()},
        "reliability": {
            name: reliability_diagram(torch.from_numpy(rows).softmax(dim=1), columns, bins=settings.bins)
            for name, rows in scaled.items()
        },
    }


def crossed_temperatures(logits: Logits, columns: npt.NDArray[np.int64], *, seed: int) -> Logits:
    """The temperature of each row `(N,)`, fitted on the half that it is not in; 1 for fewer than `LEAST` rows."""
    temperatures = np.ones(len(logits))
    if len(logits) < LEAST:
        return temperatures
    first, second = np.array_split(np.random.default_rng(seed).permutation(len(logits)), 2)
    temperatures[first] = fit_temperature(logits[second], columns[second])
    temperatures[second] = fit_temperature(logits[first], columns[first])
    return temperatures
