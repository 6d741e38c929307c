import math

import numpy as np
import pytest
import torch
from helpers.labelled_points import overlapping
from torch.utils.data import TensorDataset

from pml_supcon.metrics.hard_mining import hard_mining_curve
from pml_supcon.testers import HardMiningTester


def make_tester(**options):
    return HardMiningTester(dataloader_num_workers=0, data_device=torch.device("cpu"), **options)


@pytest.mark.parametrize("loss", ["supcon_in", "triplet"])  # the margin belongs to "triplet", the temperature to others
def test_tester_reports_the_summary_of_each_split(loss):
    points, labels = overlapping(40, seed=4, classes=5, width=6, spread=0.6)
    levels = np.stack([labels, labels // 2], axis=1)
    data = {"val": TensorDataset(torch.from_numpy(points).float(), torch.from_numpy(levels))}
    model = torch.nn.Linear(6, 4)
    options = {"loss": loss, "temperature": 0.3, "margin": 0.2, "batches": 2, "seed": 3}
    tester = make_tester(pair_batch_size=25, label_hierarchy_level="all", **options)
    found = tester.test(data, 7, model)["val"]
    with torch.no_grad():
        rows = torch.nn.functional.normalize(model(data["val"].tensors[0]))
    for level in (0, 1):
        summary = hard_mining_curve(rows, levels[:, level], bins=1, batch_size=25, **options)["summary"]
        for kind in ("positive", "negative"):
            values = summary[f"{kind}s"]
            assert found[f"{kind}_hardness_level{level}"] == pytest.approx(values["mean_hardness"])
            assert found[f"{kind}_gradient_hardness_level{level}"] == pytest.approx(values["gradient_hardness"])
    assert len(found) == 1 + 3 * 4


def test_tester_reports_nan_without_a_gradient():
    data = TensorDataset(torch.eye(4)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1]))
    found = make_tester(loss="triplet").test({"val": data}, 1, torch.nn.Identity())["val"]
    assert math.isnan(found["positive_gradient_hardness_level0"])


def test_tester_rejects_references_and_bad_options():
    data = {name: TensorDataset(torch.eye(4), torch.tensor([0, 0, 1, 1])) for name in ("train", "val")}
    with pytest.raises(ValueError, match=r"itself as the only reference, but got query 'val' with references \['trai"):
        make_tester().test(data, 1, torch.nn.Identity(), splits_to_eval=[("val", ["train"])])
    make_tester().test(data, 1, torch.nn.Identity(), splits_to_eval=[("val", ["val"])])
    with pytest.raises(ValueError, match="`loss` to be one of"):
        make_tester(loss="x")
    with pytest.raises(TypeError, match="`pair_batch_size` to be an integer"):
        make_tester(pair_batch_size=1.5)
