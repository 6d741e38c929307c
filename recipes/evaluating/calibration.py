"""The section "calibration": whether a linear probe is right as often as it says, before and after a temperature."""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from pml_supcon.recipes.evaluating.telling import tell_missing_classes, telling_warnings
from pml_supcon.testers.calibrated_probe import fit_calibrated_probe
from pml_supcon.testers.calibration import calibration_metrics, reliability_diagram
from pml_supcon.testers.linear_probe import probe_logits
from pml_supcon.testers.temperature import BOUNDS

if TYPE_CHECKING:
    from pml_supcon.recipes.evaluating.subject import Subject


def calibration(subject: "Subject") -> dict[str, Any] | None:
    """Fit a linear probe on a part of train and its temperature on the rest; score the test images.

    The penalty is that of `settings.inverse_l2`, else chosen within the probe's part. Test images of a class that train
    lacks have no probability, and are left out.

    Args:
        subject: what is evaluated.

    Returns:
        The section; None on other processes than the main one.
    """
    settings = subject.settings
    train, test = subject.features("train"), subject.features("test")
    if not subject.is_main:
        return None
    learnt, wanted = subject.labels("train"), subject.labels("test")
    tell_missing_classes(subject, learnt, wanted, "calibration leaves them out")
    penalty: float | Literal["auto"] = settings.inverse_l2 if settings.inverse_l2 is not None else "auto"
    with telling_warnings(subject, "Calibration"):
        probe, temperature = fit_calibrated_probe(train, learnt, inverse_l2=penalty, seed=settings.seed)
    if temperature in BOUNDS:
        subject.tell(
            f"The temperature is {temperature:g}, the end of its range: held-out training images "
            + ("are all right, and cannot bound it." if temperature == min(BOUNDS) else "say nothing for the probe.")
        )
    known = torch.isin(wanted, learnt)
    logits = probe_logits(probe, test[known]).astype(np.float64)
    columns = np.searchsorted(probe.classes_, wanted[known].numpy())
    scaled = {"before": logits, "after": logits / temperature}
    return {
        "bins": settings.bins,
        "temperature": temperature,
        **{name: calibration_metrics(rows, columns, bins=settings.bins) for name, rows in scaled.items()},
        "reliability": {
            name: reliability_diagram(torch.from_numpy(rows).softmax(dim=1), columns, bins=settings.bins)
            for name, rows in scaled.items()
        },
    }
