"""`RelationDistillation` as a PML loss: reducers, distances, statistics, copies, the compiler, processes, errors."""

import copy
import itertools
import pickle
import re

import pytest
import torch
import torch.distributed as dist
from helpers.process_groups import run_processes
from helpers.supcon_batches import value_and_gradient
from pytorch_metric_learning import distances, reducers, regularizers

from pml_supcon.functional import relation_distillation_loss
from pml_supcon.functional.relation_distillation import tiled
from pml_supcon.functional.supcon.tiled import layout
from pml_supcon.losses import GlobalBatchLoss, RelationDistillation

GENERATOR = torch.Generator().manual_seed(0)
VIEWS = torch.randn(13, 2, 3, dtype=torch.float64, generator=GENERATOR)
PAST = torch.randn(13, 2, 5, dtype=torch.float64, generator=GENERATOR)
ROWS, PAST_ROWS = (x.transpose(0, 1).flatten(0, 1) for x in (VIEWS, PAST))


def test_is_the_mean_over_rows():
    expected = relation_distillation_loss(ROWS, PAST_ROWS).losses
    for given in ((ROWS, PAST_ROWS), (VIEWS, PAST)):
        torch.testing.assert_close(RelationDistillation()(*given), expected.mean())
    options = {"temperature": 0.5, "past_temperature": 0.1}
    other = relation_distillation_loss(ROWS, PAST_ROWS, **options).mean()
    torch.testing.assert_close(RelationDistillation(**options)(VIEWS, PAST), other)
    torch.testing.assert_close(RelationDistillation(0.5, 0.1, backend="reference")(VIEWS, PAST), other)
    assert abs(other - expected.mean()) > 1e-2


def test_reducers_get_the_loss_of_each_row():
    expected = relation_distillation_loss(ROWS, PAST_ROWS).losses
    each = RelationDistillation(reducer=reducers.DoNothingReducer())(ROWS, PAST_ROWS)["loss"]
    torch.testing.assert_close(each["losses"], expected)
    assert each["indices"].tolist() == list(range(26))
    low = float(expected.median())
    above = RelationDistillation(reducer=reducers.ThresholdReducer(low=low))(ROWS, PAST_ROWS)
    torch.testing.assert_close(above, expected[expected > low].mean())


def test_distances():
    product = distances.DotProductSimilarity(normalize_embeddings=False)
    expected = relation_distillation_loss(ROWS, PAST_ROWS, normalize=False).mean()
    torch.testing.assert_close(RelationDistillation(distance=product)(ROWS, PAST_ROWS), expected)
    assert abs(expected - RelationDistillation()(ROWS, PAST_ROWS)) > 1e-2
    for distance in (distances.LpDistance(), distances.CosineSimilarity(power=2)):
        with pytest.raises(ValueError, match="`distance` to be a CosineSimilarity or a DotProductSimilarity, but got"):
            RelationDistillation(distance=distance)


def test_statistics_and_regularizers():
    loss = RelationDistillation(
        collect_stats=True,
        distance=distances.CosineSimilarity(collect_stats=True),
        embedding_regularizer=regularizers.LpRegularizer(),
        embedding_reg_weight=0.1,
    )
    expected = RelationDistillation()(ROWS, PAST_ROWS) + 0.1 * ROWS.norm(dim=1).mean()
    torch.testing.assert_close(loss(ROWS, PAST_ROWS), expected)
    assert loss.distance.initial_avg_query_norm == pytest.approx(ROWS.norm(dim=1).mean().item())
    assert {"temperature", "past_temperature"} <= set(loss._record_these)


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_copies_and_the_compiler(backend):
    torch.compiler.reset()
    loss = RelationDistillation(0.15, 0.05, backend=backend)
    expected = value_and_gradient(loss, VIEWS, PAST)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), compiled):
        torch.testing.assert_close(value_and_gradient(other, VIEWS, PAST), expected)


def test_global_batch_loss_on_one_process():
    expected = RelationDistillation()(VIEWS, PAST)
    loss = GlobalBatchLoss(RelationDistillation())
    torch.testing.assert_close(loss(VIEWS, past_embeddings=PAST), expected)
    torch.testing.assert_close(loss(ROWS, past_embeddings=PAST_ROWS), expected)
    of_views = GlobalBatchLoss(RelationDistillation(), num_views=2)
    torch.testing.assert_close(of_views(ROWS, past_embeddings=PAST_ROWS), expected)


def test_invalid_arguments():
    with pytest.raises(ValueError, match="`temperature` to be above 0, but got -1"):
        RelationDistillation(-1)
    with pytest.raises(ValueError, match="`past_temperature` to be above 0, but got 0"):
        RelationDistillation(0.2, 0)
    with pytest.raises(ValueError, match="`backend` to be one of"):
        RelationDistillation(backend="auto")
    with pytest.raises(ValueError, match="a `reducer` without weights of classes, but got"):
        RelationDistillation(reducer=reducers.ClassWeightedReducer(torch.ones(3)))(ROWS, PAST_ROWS)
    with pytest.raises(ValueError, match=r"`past_embeddings` to have shape \(13, 2, any width\), .* \(26, 5\)"):
        RelationDistillation()(VIEWS, PAST_ROWS)
    with pytest.raises(ValueError, match="Expected no `miner` with RelationDistillation, which takes no pairs"):
        GlobalBatchLoss(RelationDistillation(), miner=torch.nn.Identity())
    loss = GlobalBatchLoss(RelationDistillation())
    for given in ({}, {"labels": torch.arange(13), "past_embeddings": PAST}):
        with pytest.raises(ValueError, match="Expected `past_embeddings` by keyword, and no labels or `ref_emb`"):
            loss(VIEWS, **given)
    with pytest.raises(ValueError, match=r"`past_embeddings` to have shape .*, but got \(12, 2, 5\)"):
        loss(VIEWS, past_embeddings=PAST[:12])


# Several processes.

#: By the number of processes: how many of the 13 samples each holds.
SHARDS = {2: [4, 9], 3: [6, 0, 7]}
LOSSES = {
    "mean": RelationDistillation,
    "sharp": lambda: RelationDistillation(0.01, 0.001),
    "reference": lambda: RelationDistillation(backend="reference"),
    "another reducer": lambda: RelationDistillation(reducer=reducers.ThresholdReducer(low=2)),
}
FORMS = {"views": (VIEWS, PAST), "rows": (ROWS[:13], PAST_ROWS[:13])}


def work(rank):
    layout.TILE = 5  # several tiles for each process
    shares, tiles_of = [], tiled.tiles_of

    def recorded(rows, group):
        shares.append(tiles_of(rows, group))
        return shares[-1]

    tiled.tiles_of = recorded
    pair = dist.new_group([0, 1])
    results = {}
    for number, sizes in SHARDS.items():
        if rank >= number:
            continue
        mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        group = pair if number == 2 else None
        for (name, loss), (form, given) in itertools.product(LOSSES.items(), FORMS.items()):
            embeddings, past = (x[mine] for x in given)
            results[number, name, form] = value_and_gradient(
                GlobalBatchLoss(loss(), group=group), embeddings, past_embeddings=past
            )
    few = slice(0, 1 if rank == 0 else 0)
    results["one row"] = value_and_gradient(
        GlobalBatchLoss(RelationDistillation()), ROWS[few], past_embeddings=PAST_ROWS[few]
    )
    alone = RelationDistillation()
    GlobalBatchLoss(alone)(VIEWS[rank:], past_embeddings=PAST[rank:])
    results["alone afterwards"] = alone(VIEWS, PAST) if rank == 0 else None  # waits for no other process
    shares.clear()
    GlobalBatchLoss(RelationDistillation())(VIEWS[rank:], past_embeddings=PAST[rank:])
    (results["share of the tiles"],) = shares

    wrong = {
        "shape": (VIEWS, PAST[rank:]),
        "width": (VIEWS, PAST[..., : 5 - (rank == 2)]),
        "nothing": (VIEWS, None if rank == 1 else PAST),
    }
    for name, (embeddings, past) in wrong.items():
        try:
            GlobalBatchLoss(RelationDistillation())(embeddings, past_embeddings=past)
        except ValueError as error:
            results["error", name] = str(error)
    try:
        GlobalBatchLoss(RelationDistillation(0.2 + rank))(VIEWS[rank:], past_embeddings=PAST[rank:])
    except ValueError as error:
        results["error", "option"] = str(error)
    return results


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Return the results of three processes, by rank."""
    return run_processes(work, 3, tmp_path_factory.mktemp("gloo"))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("number", SHARDS)
def test_several_processes_equal_one(processes, number, name, form):
    """Gradients are as many times larger as there are processes, before the average of DDP."""
    value, gradient = value_and_gradient(LOSSES[name](), *FORMS[form])
    found = [result[number, name, form] for result in processes[:number]]
    for ours, _ in found:
        torch.testing.assert_close(ours, value, rtol=1e-10, atol=0)
    together = torch.cat([each for _, each in found]) / number
    torch.testing.assert_close(together, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_one_row_on_one_of_the_processes(processes):
    for result in processes:
        value, gradient = result["one row"]
        assert value == 0
        assert not gradient.any()
    torch.testing.assert_close(processes[0]["alone afterwards"], RelationDistillation()(VIEWS, PAST))


@pytest.mark.slow
def test_the_processes_divide_the_tiles(processes):
    shares = [result["share of the tiles"] for result in processes]
    rows = slice(0, 2 * (13 + 12 + 11))
    assert [tile for share in zip(*shares, strict=True) for tile in share] == list(
        layout.tiles_over(rows, rows, 5, upper=True)
    )


@pytest.mark.slow
def test_errors_are_raised_on_all_processes(processes):
    expected = {
        "shape": r"rank 1: Expected `past_embeddings` to have shape \(13, 2, any width\), .*; rank 2: .* \(11, 2, 5\)",
        "width": r"past_embeddings: rows \(2, 5\) torch.float64 on rank 0, .*, rows \(2, 4\) torch.float64 on rank 2",
        "nothing": "rank 1: Expected `past_embeddings` by keyword",
        "option": r"RelationDistillation\(temperature=0.2, .* on rank 0, RelationDistillation\(temperature=1.2, ",
    }
    for result, (name, text) in itertools.product(processes, expected.items()):
        assert re.search(text, result["error", name]), (name, result["error", name])
