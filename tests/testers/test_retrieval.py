import logging
import math
import subprocess
import sys
import tracemalloc
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses, trainers
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester
from pytorch_metric_learning.utils import logging_presets
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch.utils.data import TensorDataset

from pml_supcon._extras import require_faiss
from pml_supcon.testers import RetrievalTester, retrieval, retrieval_metrics
from pml_supcon.testers._ranking import build_index, search, split_rows

PML_METRICS = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def clustered(rows, *, seed, width=8, spread=1.0, classes=30):
    """Normalised points of uneven classes: class c is about twice as likely as class c + 5."""
    rng = np.random.default_rng(seed)
    share = 0.5 ** (np.arange(classes) / 5)
    labels = rng.choice(classes, size=rows, p=share / share.sum())
    centres = np.random.default_rng(99).normal(size=(classes, width))
    points = centres[labels] + spread * rng.normal(size=(rows, width))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points.astype(np.float32), labels


def with_lone_labels(labels, rows, *, start=1000):
    """The same labels, but with the given rows the only ones of their class."""
    labels = labels.copy()
    labels[rows] = start + np.arange(len(rows))
    return labels


def case(name, *, queries, references):
    """Arguments of `retrieval_metrics`, and how many queries are lone in them."""
    query, wanted = clustered(queries, seed=1)
    reference, labels = clustered(references, seed=2)
    lone = np.arange(0, queries, 17)
    wanted = with_lone_labels(wanted, lone)
    labels = with_lone_labels(labels, np.arange(3, references, 23), start=5000)
    if name == "separate":
        return (query, wanted, reference, labels), {"ref_includes_query": False}, len(lone)
    if name == "within":
        return (query, wanted, query, wanted), {"ref_includes_query": True}, len(lone)
    both = np.concatenate([query, reference]), np.concatenate([wanted, labels])
    return (query, wanted, *both), {"ref_includes_query": True}, len(lone)


def brute_force(query, wanted, reference, labels, *, ref_includes_query, recall_at, knn_k, knn_temperature):
    """Every definition as loops over float64 similarities of normalised embeddings."""
    scores = defaultdict(list)
    lone = 0
    for q, (point, label) in enumerate(zip(query.astype(np.float64), wanted, strict=True)):
        similarity = reference.astype(np.float64) @ point
        order = [r for r in np.argsort(-similarity, kind="stable") if not (ref_includes_query and r == q)]
        hits = [int(labels[r] == label) for r in order]
        total = sum(hits)
        if total == 0:
            lone += 1
            continue
        scores["precision_at_1"].append(hits[0])
        for k in recall_at:
            scores[f"recall_at_{k}"].append(int(1 in hits[:k]))
        scores["r_precision"].append(sum(hits[:total]) / total)
        precisions = [sum(hits[: i + 1]) / (i + 1) for i in range(total) if hits[i]]
        scores["mean_average_precision_at_r"].append(sum(precisions) / total)
        votes = defaultdict(float)
        for r in order[:knn_k]:
            votes[labels[r]] += 1.0 if math.isinf(knn_temperature) else math.exp(similarity[r] / knn_temperature)
        winner = next(labels[r] for r in order if votes[labels[r]] == max(votes.values()))
        scores["knn_accuracy"].append(int(winner == label))
    return {name: float(np.mean(values)) for name, values in scores.items()} | {"lone_queries": float(lone)}


@pytest.mark.parametrize("name", ["separate", "within", "within and more"])
def test_agrees_with_pml_on_2000_points(name):
    arguments, options, lone = case(name, queries=1000 if name != "within" else 2000, references=1000)
    pml = AccuracyCalculator(include=PML_METRICS, device=CPU).get_accuracy(*arguments, **options)
    ours = retrieval_metrics(*arguments, **options)
    assert {metric: ours[metric] for metric in PML_METRICS} == pytest.approx(pml, abs=1e-6)
    assert ours["lone_queries"] >= lone > 0
    assert 0.1 < ours["mean_average_precision_at_r"] < ours["precision_at_1"] < 0.95  # the case tells metrics apart


@pytest.mark.parametrize("name", ["separate", "within", "within and more"])
@pytest.mark.parametrize("knn_temperature", [0.07, math.inf])
@pytest.mark.parametrize("chunk_size", [None, 1, 64])
def test_agrees_with_brute_force(name, knn_temperature, chunk_size):
    arguments, options, _ = case(name, queries=150, references=120)
    options |= {"recall_at": (1, 3, 10), "knn_k": 7, "knn_temperature": knn_temperature}
    expected = brute_force(*arguments, **options)
    assert retrieval_metrics(*arguments, chunk_size=chunk_size, **options) == pytest.approx(expected, abs=1e-6)
    assert expected["precision_at_1"] < expected["recall_at_3"] < expected["recall_at_10"]
    assert expected["knn_accuracy"] != expected["precision_at_1"]


def test_chunks_do_not_change_the_result():
    arguments, options, _ = case("within and more", queries=500, references=100)
    whole = retrieval_metrics(*arguments, chunk_size=10_000, **options)
    assert retrieval_metrics(*arguments, chunk_size=33, **options) == pytest.approx(whole, abs=1e-12)


def test_index_is_built_once(monkeypatch):
    built = []
    monkeypatch.setattr(retrieval, "build_index", lambda *a, **k: built.append(1) or build_index(*a, **k))
    arguments, options, _ = case("within", queries=100, references=10)
    retrieval_metrics(*arguments, chunk_size=10, **options)
    assert built == [1]


def test_a_query_does_not_find_itself_among_duplicates():
    points = clustered(40, seed=0)[0].repeat(2, axis=0)  # every twin has the other label
    labels = np.tile([0, 1], 40)
    found = retrieval_metrics(points, labels, points, labels, ref_includes_query=True)
    assert found["precision_at_1"] == 0.0


def test_self_is_left_out_where_more_duplicates_than_neighbours_are_asked_for():
    points = np.ones((50, 4), dtype=np.float32)
    own = np.arange(50)
    distances, neighbours = search(build_index(require_faiss(), points, k=4, gpu=False), points, 3, own=own)
    assert distances.shape == neighbours.shape == (50, 3)
    assert not (neighbours == own[:, None]).any()
    assert all(len(set(row)) == 3 for row in neighbours.tolist())

    labels = np.arange(50)
    labels[48:] = 7000  # two relevant rows, the last that FAISS would list
    options = {"ref_includes_query": True}
    pml = AccuracyCalculator(include=PML_METRICS, device=CPU).get_accuracy(points, labels, points, labels, **options)
    ours = retrieval_metrics(points, labels, points, labels, recall_at=(1, 49), knn_k=1, **options)
    assert {metric: ours[metric] for metric in PML_METRICS} == pytest.approx(pml, abs=1e-6)
    assert (ours["recall_at_49"], ours["lone_queries"]) == (1.0, 48.0)


@pytest.mark.parametrize("label", [2**24, 2**53, -(2**63), 2**63 - 2])
def test_labels_of_any_size_are_told_apart(label):
    query, reference = np.array([[0.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    found = retrieval_metrics(query, np.array([label]), reference, np.array([label + 1, label]), recall_at=(1, 2))
    assert (found["precision_at_1"], found["recall_at_2"]) == (0.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("label_dtype", [torch.uint8, torch.int32, torch.int64])
def test_torch_and_numpy_agree_in_every_dtype(dtype, label_dtype):
    query, wanted = (torch.from_numpy(x) for x in clustered(60, seed=3))
    query, wanted = query.to(dtype), wanted.to(label_dtype)
    found = retrieval_metrics(query.requires_grad_(), wanted, query, wanted, ref_includes_query=True)
    points, labels = query.detach().float().numpy(), wanted.numpy()
    assert found == retrieval_metrics(points, labels, points, labels, ref_includes_query=True)


def test_vote_weighs_neighbours_by_distance_and_breaks_ties_by_the_nearest():
    query, wanted = np.array([[0.0]]), np.array([1])
    reference = np.array([[0.10], [0.11], [0.12], [0.13], [3.0]])

    def vote(labels, k, temperature):
        found = retrieval_metrics(
            query, wanted, reference, np.array([*labels, 1]), knn_k=k, knn_temperature=temperature
        )
        return found["knn_accuracy"]

    assert vote([1, 2, 2, 1], 4, math.inf) == 1.0  # two against two: 1 is nearer
    assert vote([2, 1, 1, 2], 4, math.inf) == 0.0
    assert vote([1, 2, 2, 2], 4, math.inf) == 0.0
    assert vote([1, 2, 2, 2], 4, 1e-4) == 1.0  # so cold that the nearest alone decides
    assert vote([1, 2, 2, 2], 4, 1.0) == 0.0
    assert vote([1, 2, 2, 2], 2, math.inf) == 1.0


def test_fewer_references_than_asked_for_all_count_and_are_told(caplog):
    reference, labels = np.eye(3), np.array([0, 1, 1])
    with caplog.at_level(logging.WARNING):
        found = retrieval_metrics(reference[:1], labels[1:2], reference, labels, recall_at=(1, 100), knn_k=3)
    assert (found["recall_at_1"], found["recall_at_100"], found["knn_accuracy"]) == (0.0, 1.0, 0.0)
    assert [record.getMessage() for record in caplog.records] == [
        "`recall_at` asks for 100 neighbours, but there are 3 references: all count."
    ]


def test_memory_is_bounded_by_the_chunk():
    points, _ = clustered(20_000, seed=4, width=16)
    labels = np.arange(20_000) % 100  # 200 a class: all neighbours at once would take 200 MB and more
    tracemalloc.start()
    retrieval_metrics(points, labels, points, labels, ref_includes_query=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 * 2**20


@pytest.mark.parametrize(
    ("k", "gpus", "wanted", "moved"),
    [(2048, 1, True, True), (2049, 1, True, False), (5, 0, True, False), (5, 1, False, False)],
)
def test_index_goes_to_the_gpus_if_wanted_and_possible(k, gpus, wanted, moved):
    faiss = require_faiss()
    calls = []
    fake = SimpleNamespace(
        IndexFlatL2=faiss.IndexFlatL2,
        get_num_gpus=lambda: gpus,
        index_cpu_to_all_gpus=lambda index: calls.append(index.ntotal) or index,
    )
    index = build_index(fake, np.eye(3, dtype=np.float32), k=k, gpu=wanted)
    assert (len(calls) == 1, index.ntotal) == (moved, 3)


def valid():
    return {
        "query": np.eye(3),
        "query_labels": np.array([0, 0, 1]),
        "reference": np.eye(3),
        "reference_labels": np.array([0, 0, 1]),
    }


NAN_ROWS = np.eye(3)
NAN_ROWS[1:, 0] = math.nan


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query_labels": np.array([0, 1])}, ValueError, r"`query_labels` .* shape \(3,\), but got shape \(2,\)"),
        ({"reference_labels": np.zeros((3, 1), int)}, ValueError, r"`reference_labels` .* got shape \(3, 1\)"),
        ({"query_labels": np.zeros(3)}, TypeError, "`query_labels` to be integers, but got float64"),
        ({"query_labels": torch.zeros(3, dtype=torch.bool)}, TypeError, "`query_labels` to be integers"),
        ({"query_labels": [0, 0, 1]}, TypeError, "`query_labels` .* but got list"),
        ({"query_labels": np.array([0, 1, 2**63], np.uint64)}, ValueError, "int64, but got 9223372036854775808"),
        ({"query": np.ones(3)}, ValueError, r"`query` to be a non-empty \(N, D\) matrix, but got shape \(3,\)"),
        ({"query": np.eye(3, dtype=int)}, TypeError, "`query` to be floating point, but got int64"),
        ({"query": [[1.0]]}, TypeError, "`query` to be a torch tensor or a numpy array, but got list"),
        ({"query": np.ones((0, 3)), "query_labels": np.zeros(0, int)}, ValueError, r"`query` .* got shape \(0, 3\)"),
        ({"reference": np.ones((0, 3))}, ValueError, r"`reference` to be a non-empty"),
        ({"query": np.eye(3)[:, :2]}, ValueError, r"the same width, but got shapes \(3, 2\) and \(3, 3\)"),
        ({"query": NAN_ROWS}, ValueError, r"`query` to be finite, .* 2 of 3 rows \(the first is row 1\)"),
        ({"reference": np.eye(3) * 1e300}, ValueError, r"`reference` to be finite, .* infinity in 3 of 3 rows"),
        ({"reference": np.eye(3) * 1e30}, ValueError, "squared distances fit into float32"),
        ({"query_labels": np.array([7, 8, 9])}, ValueError, "none of the 3 has one"),
        ({"ref_includes_query": True, "query": np.eye(3)[::-1]}, ValueError, "`reference` to start with the queries"),
        ({"ref_includes_query": True, "query_labels": np.array([1, 0, 1])}, ValueError, "to start with the queries"),
        ({"ref_includes_query": True, "reference": np.eye(3)[:2], "reference_labels": np.array([0, 0])}, ValueError,
         r"3 queries, 2 references"),
        ({"recall_at": (1, 0)}, ValueError, "`recall_at` to be at least 1, but got 0"),
        ({"recall_at": 5}, TypeError, "`recall_at` to be a sequence of integers, but got 5"),
        ({"recall_at": (1.0,)}, TypeError, "`recall_at` to be an integer, but got 1.0"),
        ({"knn_k": 0}, ValueError, "`knn_k` to be at least 1, but got 0"),
        ({"knn_k": True}, TypeError, "`knn_k` to be an integer, but got True"),
        ({"knn_temperature": 0.0}, ValueError, "`knn_temperature` to be above 0, but got 0.0"),
        ({"knn_temperature": math.nan}, ValueError, "`knn_temperature` to be above 0, but got nan"),
        ({"knn_temperature": "hot"}, TypeError, "`knn_temperature` to be a number, but got 'hot'"),
        ({"chunk_size": 0}, ValueError, "`chunk_size` to be at least 1, but got 0"),
    ],
)  # fmt: skip
def test_errors_say_what_was_expected_and_what_came(change, error, message):
    with pytest.raises(error, match=message):
        retrieval_metrics(**(valid() | change))


def test_all_queries_alone_within_the_reference_is_an_error():
    with pytest.raises(ValueError, match="none of the 3 has one"):
        retrieval_metrics(np.eye(3), np.arange(3), np.eye(3), np.arange(3), ref_includes_query=True)


# The tester inside PML


def split(rows, seed, columns=1):
    points, labels = clustered(rows, seed=seed)
    levels = [labels // 4**level for level in range(columns)]
    return TensorDataset(torch.from_numpy(points) * 3, torch.from_numpy(np.stack(levels, axis=1).squeeze()))


def test_tester_agrees_with_pmls_own():
    torch.manual_seed(0)
    trunk, embedder = torch.nn.Linear(8, 6), torch.nn.Linear(6, 4)
    data = {"train": split(200, 1), "val": split(150, 2), "test": split(100, 3)}
    options = {"dataloader_num_workers": 0, "data_device": CPU, "batch_size": 64}
    calculator = AccuracyCalculator(include=PML_METRICS, device=CPU)
    for splits in [None, [("test", ["train", "val"]), ("val", ["train", "val"])]]:
        pml = GlobalEmbeddingSpaceTester(accuracy_calculator=calculator, **options)
        expected = pml.test(data, 1, trunk, embedder, splits and [(q, list(r)) for q, r in splits])
        ours = RetrievalTester(**options).test(data, 1, trunk, embedder, splits)
        assert ours.keys() == expected.keys()
        for name, values in expected.items():
            assert {key: ours[name][key] for key in values} == pytest.approx(values, abs=1e-6)


def test_tester_passes_its_options_on_and_names_its_metrics(monkeypatch):
    chunks = []
    monkeypatch.setattr(retrieval, "split_rows", lambda *a, **k: chunks.append(k["chunk_size"]) or split_rows(*a, **k))
    tester = RetrievalTester(recall_at=(2,), knn_k=3, knn_temperature=math.inf, chunk_size=11,
                             normalize_embeddings=False, dataloader_num_workers=0, data_device=CPU,
                             label_hierarchy_level="all")  # fmt: skip
    data = split(80, 5, columns=2)
    found = tester.test({"val": data}, 4, torch.nn.Identity())["val"]
    names = tester.accuracy_calculator.get_curr_metrics()
    levels = ("{}_level0", "{}_level1", "AVERAGE_{}")
    assert found.keys() == {"epoch"} | {pattern.format(name) for pattern in levels for name in names}
    assert chunks == [11, 11]
    points, labels = data.tensors
    for level in (0, 1):
        expected = retrieval_metrics(points, labels[:, level], points, labels[:, level], ref_includes_query=True,
                                     recall_at=(2,), knn_k=3, knn_temperature=math.inf)  # fmt: skip
        assert list(expected) == names
        assert {name: found[f"{name}_level{level}"] for name in names} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"knn_k": 0}, ValueError, "`knn_k` to be at least 1"),
        ({"recall_at": (0,)}, ValueError, "`recall_at` to be at least 1"),
        ({"accuracy_calculator": None}, TypeError, "accuracy_calculator"),
    ],
)
def test_tester_checks_its_options_when_made(option, error, message):
    with pytest.raises(error, match=message):
        RetrievalTester(**option)


def test_tester_works_in_a_trainer_with_hooks(tmp_path):
    torch.manual_seed(0)
    keeper, _, _ = logging_presets.get_record_keeper(str(tmp_path / "logs"))
    hooks = logging_presets.HookContainer(keeper, primary_metric="precision_at_1")
    tester = RetrievalTester(dataloader_num_workers=0, data_device=CPU, end_of_testing_hook=hooks.end_of_testing_hook)
    models = {"trunk": torch.nn.Linear(8, 6), "embedder": torch.nn.Linear(6, 4)}
    data = {"train": split(100, 1), "val": split(60, 2)}
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


# FAISS missing


@pytest.mark.parametrize("construct", [require_faiss, RetrievalTester, lambda: retrieval_metrics(**valid())])
def test_missing_faiss_is_told_with_the_command_that_installs_it(monkeypatch, construct):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r'pip install "pml-supcon\[cpu\]" .* pip install "pml-supcon\[cuda\]"'):
        construct()


def test_testers_can_be_imported_without_faiss():
    code = (
        "import sys; sys.modules['faiss'] = None\n"
        "from pml_supcon import testers\n"
        "testers.LinearProbeTester()\n"
        "try: testers.RetrievalTester()\n"
        "except ImportError: print('told')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "told\n"
