import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from pml_supcon.corruptions import CORRUPTIONS, Corruption
from pml_supcon.metrics import fit_linear_probe
from pml_supcon.metrics.corruption import corruption_metrics, mean_corruption_error, probe_scores
from pml_supcon.testers import CorruptionTester

SPLITS = [("test", ["train"])]


def pictures(rows, seed):
    """Return grey stripes whose direction is the class, uint8 (rows, 1, 16, 16), and the classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=rows)
    waves = np.sin(np.arange(16) * rng.uniform(0.6, 1.2, size=(rows, 1)) + rng.uniform(0, 6, size=(rows, 1)))
    images = np.where(labels[:, None, None] == 0, waves[:, None, :], waves[:, :, None])
    images = np.broadcast_to(images, (rows, 16, 16)) * 60 + 128 + rng.normal(scale=60, size=(rows, 16, 16))
    return torch.from_numpy(images.clip(0, 255).astype(np.uint8))[:, None], torch.from_numpy(labels)


class Trunk(torch.nn.Module):
    """An encoder of the direction of stripes: the mean absolute difference along each axis."""

    def forward(self, images):
        return torch.stack([images.diff(dim=axis).abs().mean((1, 2, 3)) for axis in (2, 3)], dim=1)


def scale(image):
    return image.float() / 255


def corruption_tester(**options):
    return CorruptionTester(scale, dataloader_num_workers=0, data_device="cpu", **options)


def test_the_tester_agrees_with_the_steps_taken_by_hand():
    (train, learnt), (test, wanted) = pictures(300, 1), pictures(200, 2)
    data = {"train": TensorDataset(train, learnt), "test": TensorDataset(test, wanted)}
    names, levels = ("impulse_noise", "contrast"), (5, 2)
    one = corruption_tester(corruptions=names, severities=levels, seed=3)
    found = one.test(data, 4, Trunk(), splits_to_eval=SPLITS)["test"]

    probe = fit_linear_probe(Trunk()(scale(train)), learnt)
    cells = {}
    for name in names:
        for level in levels:
            changed = Corruption(name, level, seed=3)(test, range(len(test)))
            cells[name, level] = probe_scores(probe, Trunk()(scale(changed)), wanted)
    expected = {**probe_scores(probe, Trunk()(scale(test)), wanted), **corruption_metrics(cells)}
    assert found.pop("epoch") == 4
    assert found == pytest.approx({f"{name}_level0": value for name, value in expected.items()}, abs=1e-6)
    assert set(one.accuracy_calculator.get_curr_metrics()) == set(expected)
    assert found["accuracy_level0"] > found["accuracy_severity_5_level0"]
    assert one._embed is None
    with pytest.raises(ValueError, match="on a split it is not fitted on"):
        one.test(data, 1, Trunk())
    with pytest.raises(TypeError, match="`transform` to be callable, but got 3"):
        CorruptionTester(3)


def test_all_corruptions_with_a_baseline():
    (train, learnt), (test, wanted) = pictures(300, 1), pictures(30, 2)
    data = {"train": TensorDataset(train, learnt), "test": TensorDataset(test, wanted)}
    baseline = {name: np.random.default_rng(len(name)).uniform(0.3, 1, 5).tolist() for name in CORRUPTIONS}
    found = corruption_tester(baseline=baseline).test(data, 1, Trunk(), splits_to_eval=SPLITS)["test"]
    errors = {name: [1 - found[f"accuracy_{name}_{level}_level0"] for level in range(1, 6)] for name in CORRUPTIONS}
    assert found["mean_corruption_error_level0"] == pytest.approx(mean_corruption_error(errors, baseline))


def test_levels_of_labels_and_an_unknown_label(caplog):
    (train, learnt), (test, wanted) = pictures(200, 1), pictures(100, 2)
    levels = torch.stack([learnt, 1 - learnt], dim=1)
    others = torch.stack([wanted, torch.where(wanted == 1, 0, 7)], dim=1)
    data = {"train": TensorDataset(train, levels), "test": TensorDataset(test, others)}
    one = corruption_tester(corruptions=["contrast"], severities=[1], label_hierarchy_level="all")
    found = one.test(data, 1, Trunk(), splits_to_eval=SPLITS)["test"]
    assert f"{int((wanted == 0).sum())} of 100 test rows" in caplog.text
    assert found["accuracy_level1"] < 0.7 < found["accuracy_level0"]
    assert 0.3 < found["accuracy_contrast_1_level1"] < 0.7 < found["accuracy_contrast_1_level0"]
    average = (found["ece_contrast_1_level0"] + found["ece_contrast_1_level1"]) / 2
    assert found["AVERAGE_ece_contrast_1"] == pytest.approx(average)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"corruptions": []}, "`corruptions` to hold at least one"),
        ({"severities": [1, 1]}, r"none twice, but got \(1, 1\)"),
        ({"baseline": {}, "severities": [1]}, r"since `baseline` is given, .* at severities \(1,\)"),
        ({"baseline": {}}, "but got none for gaussian_noise"),
    ],
)
def test_wrong_options(options, text):
    with pytest.raises(ValueError, match=text):
        corruption_tester(**options)
