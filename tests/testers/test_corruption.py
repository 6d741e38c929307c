import numpy as np
import pytest
from helpers.summary_encoder import Summaries, labelled_images, to_float

from pml_supcon.corruptions import CORRUPTIONS, Corruption
from pml_supcon.metrics import fit_linear_probe
from pml_supcon.metrics.corruption import corruption_metrics, mean_corruption_error, probe_scores
from pml_supcon.testers import CorruptionTester

SPLITS = [("test", ["train"])]


def corruption_tester(**options):
    return CorruptionTester(to_float, dataloader_num_workers=0, data_device="cpu", **options)


def test_the_tester_agrees_with_the_steps_taken_by_hand():
    data = {"train": labelled_images(300, 1), "test": labelled_images(200, 2)}
    names, levels = ("impulse_noise", "contrast"), (5, 2)
    tester = corruption_tester(corruptions=names, severities=levels, seed=3)
    found = tester.test(data, 4, Summaries(), splits_to_eval=SPLITS)["test"]

    trunk = Summaries().eval()
    (train, learnt), (test, wanted) = (data[split].tensors for split in ("train", "test"))
    probe = fit_linear_probe(trunk(to_float(train)), learnt[:, 0])
    cells = {}
    for name in names:
        for level in levels:
            changed = Corruption(name, level, seed=3)(test, range(len(test)))
            cells[name, level] = probe_scores(probe, trunk(to_float(changed)), wanted[:, 0])
    expected = {**probe_scores(probe, trunk(to_float(test)), wanted[:, 0]), **corruption_metrics(cells)}
    assert found.pop("epoch") == 4
    assert found == pytest.approx({f"{name}_level0": value for name, value in expected.items()}, abs=1e-6)
    assert set(tester.accuracy_calculator.get_curr_metrics()) == set(expected)
    assert found["accuracy_level0"] > found["accuracy_severity_5_level0"]
    assert tester._embed is None
    with pytest.raises(ValueError, match="on a split it is not fitted on"):
        tester.test(data, 1, Summaries())
    with pytest.raises(TypeError, match="`transform` to be callable, but got 3"):
        CorruptionTester(3)


def test_all_corruptions_with_a_baseline():
    data = {"train": labelled_images(100, 1), "test": labelled_images(20, 2)}
    baseline = {name: np.random.default_rng(len(name)).uniform(0.3, 1, 5).tolist() for name in CORRUPTIONS}
    found = corruption_tester(baseline=baseline).test(data, 1, Summaries(), splits_to_eval=SPLITS)["test"]
    errors = {name: [1 - found[f"accuracy_{name}_{level}_level0"] for level in range(1, 6)] for name in CORRUPTIONS}
    assert found["mean_corruption_error_level0"] == pytest.approx(mean_corruption_error(errors, baseline))


def test_levels_of_labels_and_an_unknown_label(caplog):
    data = {"train": labelled_images(200, 1), "test": labelled_images(100, 2)}
    labels = data["test"].tensors[1]
    unknown = labels[:, 0] == 0
    labels[unknown, 1] = 7
    tester = corruption_tester(corruptions=["contrast"], severities=[1], label_hierarchy_level="all")
    found = tester.test(data, 1, Summaries(), splits_to_eval=SPLITS)["test"]
    assert f"{int(unknown.sum())} of 100 test rows" in caplog.text
    known = 1 - float(unknown.float().mean())
    assert 0.5 * known < found["accuracy_level1"] <= known < 0.9 < found["accuracy_level0"]
    average = (found["ece_contrast_1_level0"] + found["ece_contrast_1_level1"]) / 2
    assert found["AVERAGE_ece_contrast_1"] == pytest.approx(average)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"corruptions": []}, "`corruptions` to hold at least one"),
        ({"severities": [1, 1]}, r"none twice, but got \(1, 1\)"),
        ({"baseline": {}, "severities": [1]}, r"since `baseline` is given, .* at severities \(1,\)"),
        ({"baseline": {}}, "but got missing ones: gaussian_noise"),
        ({"corruptions": [["fog"]]}, "`corruptions` to be one of"),
        ({"severities": [[1]]}, "`severities` to be an integer"),
        ({"standardize": "no"}, "`standardize` to be True or False"),
    ],
)
def test_wrong_options(options, text):
    with pytest.raises((ValueError, TypeError), match=text):
        corruption_tester(**options)
