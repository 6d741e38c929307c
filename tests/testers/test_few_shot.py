import numpy as np
import pytest
import torch
from helpers.labelled_points import data_sets, of_any_length

from pml_supcon.metrics.few_shot import few_shot_metrics
from pml_supcon.testers import FewShotTester


def test_tester_reports_the_metrics():
    (train, learnt), (test, wanted) = of_any_length(10, seed=1), of_any_length(20, seed=2)
    data = data_sets(train=(train, learnt), test=(test, wanted))
    options = {"shots": [1, 5], "draws": 5, "seed": 3, "classifier": "logistic", "inverse_l2": 100.0}
    tester = FewShotTester(**options, dataloader_num_workers=0, data_device="cpu", normalize_embeddings=False)
    found = tester.test(data, 1, torch.nn.Identity(), splits_to_eval=[("test", ["train"])])["test"]
    results = few_shot_metrics(train.astype(np.float32), learnt, test.astype(np.float32), wanted, **options)
    expected = {
        f"accuracy_{result['shots']}_shot{end}_level0": result[name]
        for result in results
        for end, name in (("", "accuracy"), ("_low", "low"), ("_high", "high"))
    }
    assert found == {"epoch": 1} | expected
    with pytest.raises(ValueError, match="on a split it is not fitted on"):
        tester.test(data, 1, torch.nn.Identity())
    with pytest.raises(ValueError, match="`draws` to be at least 2"):
        FewShotTester(draws=1)
