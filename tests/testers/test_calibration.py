import numpy as np
import pytest
import torch
from helpers.labelled_points import data_sets, overlapping

from pml_supcon.metrics.calibrated_probe import calibrated_probe_metrics
from pml_supcon.testers import CalibrationTester


def test_tester_reports_the_metrics():
    (train, learnt), (test, wanted) = (
        overlapping(rows, seed=seed, classes=4, width=40, apart=0.3, first_label=10)
        for rows, seed in ((200, 1), (100, 5))
    )
    data = data_sets(train=(train, learnt), test=(test, wanted))
    options = {"held_out": 0.3, "bins": 7, "inverse_l2": 5.0, "seed": 3}
    tester = CalibrationTester(**options, dataloader_num_workers=0, data_device="cpu")
    found = tester.test(data, 1, torch.nn.Identity(), splits_to_eval=[("test", ["train"])])["test"]
    expected = calibrated_probe_metrics(train.astype(np.float32), learnt, test.astype(np.float32), wanted, **options)
    assert found == {"epoch": 1} | {f"{name}_level0": value for name, value in expected.items()}
    assert tester.accuracy_calculator.get_curr_metrics() == list(expected)
    with pytest.raises(ValueError, match="`splits_to_eval` to score the probe on a split it is not fitted on"):
        tester.test(data, 1, torch.nn.Identity())
    with pytest.raises(ValueError, match="`bins` to be at least 1"):
        CalibrationTester(bins=0)
