"""The PML tester of few-shot accuracy."""

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from pml_supcon.metrics.few_shot import few_shot_metrics
from pml_supcon.testers import FewShotTester


def clustered(rows, *, seed, classes=4, width=5, spread=1.0):
    """Overlapping classes in rows of very different lengths, `rows` of each."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), rows))
    centres = np.random.default_rng(99).normal(size=(classes, width))
    points = centres[labels] + spread * rng.normal(size=(len(labels), width))
    return points * rng.uniform(0.1, 10, size=(len(labels), 1)), labels * 7 + 3


def test_tester_reports_the_metrics():
    (train, learnt), (test, wanted) = clustered(10, seed=1), clustered(20, seed=2)
    data = {
        name: TensorDataset(torch.from_numpy(rows).float(), torch.from_numpy(labels))
        for name, rows, labels in (("train", train, learnt), ("test", test, wanted))
    }
    options = {"shots": [1, 2], "draws": 5, "seed": 3}
    tester = FewShotTester(**options, dataloader_num_workers=0, data_device="cpu", normalize_embeddings=False)
    found = tester.test(data, 1, torch.nn.Identity(), splits_to_eval=[("test", ["train"])])["test"]
    one, two = few_shot_metrics(train.astype(np.float32), learnt, test.astype(np.float32), wanted, **options)
    expected = {
        f"accuracy_{k}_shot{end}_level0": result[name]
        for k, result in ((1, one), (2, two))
        for end, name in (("", "accuracy"), ("_low", "low"), ("_high", "high"))
    }
    assert found == {"epoch": 1} | expected
    with pytest.raises(ValueError, match="on a split it is not fitted on"):
        tester.test(data, 1, torch.nn.Identity())
    with pytest.raises(ValueError, match="`draws` to be at least 2"):
        FewShotTester(draws=1)
