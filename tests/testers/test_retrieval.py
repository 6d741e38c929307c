import math
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers.labelled_points import clustered
from pytorch_metric_learning import losses, trainers
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester
from pytorch_metric_learning.utils import logging_presets
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch.utils.data import TensorDataset

from pml_supcon.metrics import retrieval as retrieval_module
from pml_supcon.metrics import retrieval_metrics
from pml_supcon.search.exact import split_rows
from pml_supcon.testers import RetrievalTester

METRICS = ("precision_at_1", "mean_reciprocal_rank", "r_precision", "mean_average_precision_at_r")
CPU = torch.device("cpu")


def labelled_set(rows, seed, columns=1):
    points, labels = clustered(rows, seed=seed)
    levels = [labels // 4**level for level in range(columns)]
    return TensorDataset(torch.from_numpy(points) * 3, torch.from_numpy(np.stack(levels, axis=1).squeeze()))


def test_tester_agrees_with_the_tester_of_pml():
    torch.manual_seed(0)
    trunk, embedder = torch.nn.Linear(8, 6), torch.nn.Linear(6, 4)
    data = {"train": labelled_set(200, 1), "val": labelled_set(150, 2), "test": labelled_set(100, 3)}
    options = {"dataloader_num_workers": 0, "data_device": CPU, "batch_size": 64}
    calculator = AccuracyCalculator(include=(*METRICS, "NMI", "AMI"), device=CPU)
    for splits in [None, [("test", ["train", "val"]), ("val", ["train", "val"])]]:
        pml = GlobalEmbeddingSpaceTester(accuracy_calculator=calculator, **options)
        expected = pml.test(data, 1, trunk, embedder, splits and [(q, list(r)) for q, r in splits])
        ours = RetrievalTester(clustering=True, **options).test(data, 1, trunk, embedder, splits)
        assert ours.keys() == expected.keys()
        for name, values in expected.items():
            renamed = {key.replace("NMI", "nmi").replace("AMI", "ami"): value for key, value in values.items()}
            assert {key: ours[name][key] for key in renamed} == pytest.approx(renamed, abs=1e-6)


def test_tester_passes_its_options_on_and_names_its_metrics(monkeypatch, searchers_used):
    split = Mock(side_effect=split_rows)
    monkeypatch.setattr(retrieval_module, "split_rows", split)
    options = {"recall_at": (2,), "knn_k": 3, "knn_temperature": math.inf, "at_r": False, "index": "Flat"}
    pml = {"normalize_embeddings": False, "dataloader_num_workers": 0, "data_device": CPU}
    tester = RetrievalTester(**options, chunk_size=11, **pml, label_hierarchy_level="all")
    data = labelled_set(80, 5, columns=2)
    found = tester.test({"val": data}, 4, torch.nn.Identity())["val"]
    names = tester.accuracy_calculator.get_curr_metrics()
    levels = ("{}_level0", "{}_level1", "AVERAGE_{}")
    assert found.keys() == {"epoch"} | {pattern.format(name) for pattern in levels for name in names}
    assert [call.kwargs["chunk_size"] for call in split.call_args_list] == [11, 11]
    assert [searcher.name for searcher in searchers_used] == ["Flat", "Flat"]
    assert "r_precision" not in names
    points, labels = data.tensors
    for level in (0, 1):
        splits = points, labels[:, level], points, labels[:, level]
        expected = retrieval_metrics(*splits, ref_includes_query=True, **options)
        assert list(expected) == names
        assert {name: found[f"{name}_level{level}"] for name in names} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("index", ["gpu_flat", "OPQ8,IVF4096,PQ8", "IVF16,PQ12"])
def test_tester_takes_an_index_that_may_fit_the_width_of_the_embeddings(index):
    RetrievalTester(index=index)


def test_tester_checks_its_options_before_it_is_used():
    with pytest.raises(ValueError, match="`knn_k` to be at least 1"):
        RetrievalTester(knn_k=0)
    with pytest.raises(ValueError, match=r"`index` .* got 'IVF16,Foo'"):
        RetrievalTester(index="IVF16,Foo")


def test_tester_works_in_a_trainer_with_hooks(tmp_path):
    torch.manual_seed(0)
    keeper, _, _ = logging_presets.get_record_keeper(str(tmp_path / "logs"))
    hooks = logging_presets.HookContainer(keeper, primary_metric="precision_at_1")
    tester = RetrievalTester(dataloader_num_workers=0, data_device=CPU, end_of_testing_hook=hooks.end_of_testing_hook)
    models = {"trunk": torch.nn.Linear(8, 6), "embedder": torch.nn.Linear(6, 4)}
    data = {"train": labelled_set(100, 1), "val": labelled_set(60, 2)}
    hook = hooks.end_of_epoch_hook(tester, data, str(tmp_path / "models"), splits_to_eval=[("val", ["train"])])
    trainers.MetricLossOnly(
        models,
        {f"{k}_optimizer": torch.optim.SGD(m.parameters(), lr=0.1) for k, m in models.items()},
        batch_size=32,
        loss_funcs={"metric_loss": losses.ContrastiveLoss()},
        dataset=data["train"],
        data_device=CPU,
        dataloader_num_workers=0,
        iterations_per_epoch=2,
        end_of_iteration_hook=hooks.end_of_iteration_hook,
        end_of_epoch_hook=hook,
    ).train(num_epochs=2)
    history = hooks.get_accuracy_history(tester, "val", metrics=["precision_at_1", "lone_queries"])
    assert history["epoch"] == [1, 2]
    assert history["precision_at_1_level0"][1] == tester.all_accuracies["val"]["precision_at_1_level0"]
    assert list((tmp_path / "models").glob("trunk_best*.pth"))
    with pytest.raises(ValueError, match="`primary_metric` must be one of"):
        logging_presets.HookContainer(keeper, primary_metric="AMI").end_of_epoch_hook(tester, data, str(tmp_path))


def test_missing_faiss_is_an_error_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    same = np.eye(3), np.zeros(3, int)
    for construct in (RetrievalTester, lambda: retrieval_metrics(*same, *same)):
        with pytest.raises(ImportError, match=r'pip install "pml-supcon\[cpu\]" .* "pml-supcon\[cuda\]"'):
            construct()


def test_testers_can_be_imported_without_faiss():
    code = "import sys; sys.modules['faiss'] = None\nfrom pml_supcon.testers import *\nLinearProbeTester()"
    subprocess.run([sys.executable, "-c", code], check=True)
