import pytest
import torch
from helpers.labelled_points import Untouchable, data_sets, of_any_scale
from sklearn.exceptions import ConvergenceWarning
from torch.utils.data import TensorDataset

from pml_supcon.metrics.linear_probe import linear_probe_metrics
from pml_supcon.testers import LinearProbeTester

SPLITS = [("test", ["train"])]


def make_tester(**options):
    return LinearProbeTester(dataloader_num_workers=0, data_device="cpu", **options)


def test_tester_fits_on_the_references_and_scores_the_query_from_the_trunk():
    points = {name: of_any_scale(100, seed=s, spread=0.5) for s, name in enumerate(("train", "more", "test"))}
    data = data_sets(**points)
    trunk, embedder = torch.nn.Linear(6, 6), torch.nn.Linear(6, 1)
    found = make_tester().test(data, 3, trunk, embedder, [("test", ["train", "more"])])
    with torch.no_grad():
        rows = {name: trunk(dataset.tensors[0]) for name, dataset in data.items()}
    train, learnt = torch.cat([rows["train"], rows["more"]]), torch.cat([data[n].tensors[1] for n in ("train", "more")])
    expected = linear_probe_metrics(train, learnt, rows["test"], data["test"].tensors[1])
    assert found == {"test": {"epoch": 3} | {f"{name}_level0": value for name, value in expected.items()}}
    assert expected["top1"] > 0.5


def test_tester_does_not_normalise_unless_asked():
    lengths = torch.tensor([[1.0], [2.0], [8.0], [16.0]])  # only the length shows the label; it divides exactly
    data = TensorDataset(lengths, torch.tensor([0, 0, 1, 1]))
    arguments = ({"train": data, "test": data}, 1, torch.nn.Identity(), None, SPLITS)
    assert make_tester().test(*arguments)["test"]["top1_level0"] == 1.0
    assert make_tester(normalize_embeddings=True).test(*arguments)["test"]["top1_level0"] == 0.5


def test_tester_passes_its_options_on():
    data = data_sets(train=of_any_scale(150, seed=1, spread=4), test=of_any_scale(200, seed=2, spread=4))
    with pytest.warns(ConvergenceWarning, match="max_iter=2.* set standardize=True or lower inverse_l2=7.0"):
        make_tester(inverse_l2=7.0, max_iter=2, standardize=False).test(data, 1, torch.nn.Identity(), None, SPLITS)
    expected = linear_probe_metrics(*data["train"].tensors, *data["test"].tensors, inverse_l2="auto", seed=3)
    found = make_tester(inverse_l2="auto", seed=3).test(data, 1, torch.nn.Identity(), None, SPLITS)
    assert found["test"]["top1_level0"] == expected["top1"]
    with pytest.raises(ValueError, match="`inverse_l2` to be above 0"):
        make_tester(inverse_l2=-1.0)
    with pytest.raises(TypeError, match="accuracy_calculator"):
        make_tester(accuracy_calculator=None)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (None, r"got query 'train' with references \['train'\] \(the default\). Pass splits_to_eval="),
        ([("test", ["train"]), ("train", ["test", "train"])], r"got query 'train' .* \['test', 'train'\]. Pass"),
    ],
)
def test_tester_rejects_scores_of_its_training_rows_before_it_computes_embeddings(splits, message):
    data = data_sets(train=of_any_scale(10, seed=1), test=of_any_scale(10, seed=3))
    with pytest.raises(ValueError, match=message):
        make_tester().test(data, 1, Untouchable(), splits_to_eval=splits)
