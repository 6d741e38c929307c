"""`NearestNeighbourLoss` against plain loops, the specification's value, wrong versions, and several processes."""

import copy
import io
import itertools
import pickle
from math import exp, fsum, hypot, log

import pytest
import torch
from helpers.process_groups import run_processes
from helpers.supcon_batches import ANGLES, BACKENDS, SPEC_ROWS
from pytorch_metric_learning import distances, regularizers
from pytorch_metric_learning import losses as pml
from safetensors.torch import load_file, save_file

from pml_supcon import losses, targets
from pml_supcon.functional import nearest_rows as search
from pml_supcon.functional.nearest_rows import nearest_rows

B, D, QUEUE = 5, 3, 12
OUT = losses.SupConLossOut()
MODES = ("nearest", "same_class", "positives")
MISTAKES = (
    "neighbour of the prediction",
    "queue updated before the lookup",
    "own row beside the neighbour",
    "prediction of the same view",
    "neighbours as contrasted rows",
    "one direction",
    "sum of directions",
    "rows not normalised",
)


def new_loss(neighbours="nearest", size=QUEUE, width=D, dtype=torch.float64, **options):
    return losses.NearestNeighbourLoss(losses.SupConLossOut(**options), width, size, neighbours=neighbours, dtype=dtype)


def batch(step=0, *, number=B, dtype=torch.float64):
    """Return predictions and projections `(B, 2, D)` and labels `(B,)` of one step, the same at each call."""
    generator = torch.Generator().manual_seed(step)
    predictions, projections = (torch.randn(number, 2, D, dtype=dtype, generator=generator) for _ in range(2))
    return predictions, projections, torch.randint(0, 3, (number,), generator=generator)


# the definition in plain loops


def unit(row):
    length = hypot(*row)
    return [x / length for x in row]


def dot(a, b):
    return fsum(x * y for x, y in zip(a, b, strict=True))


def loops(predictions, projections, labels, queue, neighbours="nearest", temperature=0.1, mistake=None):
    """Return the loss, and the share of neighbours of the right class, of nested lists, with a mistake.

    `queue` holds pairs of a unit row and a label, the oldest first, and is changed.
    """
    p, z = ([[unit(row) for row in sample] for sample in rows] for rows in (predictions, projections))
    if mistake == "rows not normalised":
        p = predictions
    entering = [(sample[0], label) for sample, label in zip(z, labels, strict=True)]
    if mistake == "queue updated before the lookup":
        queue.extend(entering)
    directions, right = [], []
    for view in (0, 1):
        q = []
        for i, label in enumerate(labels):
            query = p[i][view] if mistake == "neighbour of the prediction" else z[i][view]
            rows = [each for each in queue if neighbours == "nearest" or each[1] == label]
            if not rows:
                q.append(query)
                right.append(False)
                continue
            nearest, its_label = max(rows, key=lambda each, query=query: dot(query, each[0]))
            q.append(nearest)
            right.append(its_label == label)
        others = [sample[view if mistake == "prediction of the same view" else 1 - view] for sample in p]
        terms = []
        for i, label in enumerate(labels):
            s = [dot(q[i], other) / temperature for other in others]
            if mistake == "neighbours as contrasted rows":
                s = [dot(other, others[i]) / temperature for other in q]
            more = [dot(q[i], z[i][view]) / temperature] if mistake == "own row beside the neighbour" else []
            log_d = log(fsum(map(exp, s + more)))
            same = [k for k in range(len(s)) if (labels[k] == label if neighbours == "positives" else k == i)]
            terms.append(fsum(log_d - s[k] for k in same) / len(same))
        directions.append(fsum(terms) / len(terms))
    if mistake != "queue updated before the lookup":
        queue.extend(entering)
    del queue[:-QUEUE]
    value = {"one direction": directions[0], "sum of directions": sum(directions)}
    return value.get(mistake, sum(directions) / 2), sum(right) / len(right)


CASES = list(itertools.product(MODES, (True, False)))


@pytest.mark.parametrize(("neighbours", "labelled"), [case for case in CASES if case[0] == "nearest" or case[1]])
def test_equals_plain_loops_while_the_queue_fills_and_wraps_around(neighbours, labelled):
    ours, queue = [new_loss(neighbours, backend=backend) for backend in BACKENDS], []
    for step in range(5):
        predictions, projections, labels = batch(step, number=B - step % 2)
        was_empty = not queue
        expected, accuracy = loops(predictions.tolist(), projections.tolist(), labels.tolist(), queue, neighbours)
        for loss in ours:
            value = loss(predictions, labels if labelled else None, projections=projections)
            assert value.item() == pytest.approx(expected, rel=1e-10)
            if not labelled or was_empty:
                assert loss.nn_accuracy is None
            else:
                assert loss.nn_accuracy.item() == pytest.approx(accuracy)
            held = {tuple(row) for row in loss.queue_embeddings[: loss.num_filled].tolist()}
            assert len(held) == len(queue)
            for row, _ in queue:
                assert min(max(map(abs, map(float.__sub__, row, other))) for other in held) < 1e-12


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_version_differs(mistake):
    loss, queue, wrong = new_loss(), [], []
    for step in range(2):
        predictions, projections, labels = batch(step)
        given = predictions.tolist(), projections.tolist(), labels.tolist()
        value = loss(predictions, projections=projections).item()
        assert value == pytest.approx(loops(*given, queue)[0])
        differs = abs(loops(*given, wrong, mistake=mistake)[0] - value)
    assert differs > 1e-4


def test_the_value_of_the_specification():
    # the row at 1.2 is as near to 0.9 as to 1.5, and the value takes 0.9: 1.5 is moved away, by less than it shows
    angles = torch.tensor([0.05, 0.9, 1.5 + 1e-9, 2.4, 3.0], dtype=torch.float64)
    projections, predictions = (rows[:, None].repeat(1, 2, 1) for rows in (SPEC_ROWS[:4], SPEC_ROWS[4:]))
    loss = new_loss(size=5, width=2).eval()
    loss._enqueue(torch.stack([angles.cos(), angles.sin()], dim=1), None)
    assert ANGLES[2] == 1.2
    assert loss(predictions, projections=projections).item() == pytest.approx(0.516456030, abs=1e-8)


# gradients


def filled(neighbours="nearest", **options):
    loss = new_loss(neighbours, **options)
    for step in range(2):
        predictions, projections, labels = batch(step + 10)
        loss(predictions, labels, projections=projections)
    return loss.eval()


@pytest.mark.parametrize("neighbours", MODES)
def test_the_gradient_reaches_the_predictions_alone(neighbours):
    predictions, projections, labels = batch(1)
    for backend in ("dense", "tiled"):
        loss = filled(neighbours, temperature=0.5, backend=backend)
        leaf = predictions.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda p, loss=loss: loss(p, labels, projections=projections), leaf)
        through = projections.clone().requires_grad_()
        loss(leaf, labels, projections=through).backward()
        assert through.grad is None
        assert leaf.grad.abs().sum(dim=-1).min() > 0
        assert not loss.queue_embeddings.requires_grad


def test_no_gradient_flows_through_a_neighbour():
    """A projection that is its own neighbour, with an empty queue, could leak it: the last version does."""
    rows, ids = batch()[1], torch.arange(B)

    def gradient(loss_of):
        weight = torch.eye(D, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(loss_of(rows @ weight), weight)[0]

    def leaking(z):
        directions = [OUT(z[:, v], ids, ref_emb=z[:, 1 - v], ref_labels=ids) for v in (0, 1)]
        return sum(directions) / 2

    found = gradient(lambda z: new_loss()(z, projections=z))
    torch.testing.assert_close(found, gradient(lambda z: new_loss()(z, projections=rows)))
    assert not torch.allclose(found, gradient(leaking), rtol=0.1)


def test_writing_to_the_queue_leaves_the_graph_valid():
    loss, (predictions, projections, _) = new_loss(size=B), batch(0)
    predictions.requires_grad_()
    loss(*batch(1)[:1], projections=batch(1)[1])
    value = loss(predictions, projections=projections)
    expected = torch.autograd.grad(value, predictions, retain_graph=True)[0]
    loss(*batch(2)[:1], projections=batch(2)[1])  # replaces every row
    assert torch.equal(torch.autograd.grad(value, predictions)[0], expected)


# neighbours


def test_an_empty_queue_gives_simclr_with_a_constant_side():
    predictions, projections, labels = batch()
    expected = losses.CrossModalLoss(losses.SupConLossOut())  # for its forward direction
    ids = torch.arange(B)
    for neighbours in ("nearest", "same_class"):
        value = new_loss(neighbours)(predictions, labels, projections=projections)
        parts = [expected.loss(projections[:, v], ids, ref_emb=predictions[:, 1 - v], ref_labels=ids) for v in (0, 1)]
        torch.testing.assert_close(value, sum(parts) / 2)


def test_a_class_that_the_queue_lacks_takes_its_own_projection():
    loss, (predictions, projections, _) = new_loss("same_class"), batch(1)
    first = batch(0)
    loss(first[0], torch.zeros(B, dtype=torch.int64), projections=first[1])
    labels = torch.tensor([0, 0, 7, 0, 7])
    value = loss.eval()(predictions, labels, projections=projections)
    queue = [(unit(row), 0) for row in first[1][:, 0].tolist()]
    expected, _ = loops(predictions.tolist(), projections.tolist(), labels.tolist(), queue, "same_class")
    assert value.item() == pytest.approx(expected)
    assert loss.nn_accuracy.item() == pytest.approx(3 / 5)


def test_neighbours_of_the_right_class_are_counted():
    """Two classes far apart, and a third whose rows are near the wrong class."""
    loss, way = new_loss(), torch.eye(3, dtype=torch.float64)
    rows = way[[0, 0, 1, 1]][:, None].repeat(1, 2, 1)
    loss(rows, torch.tensor([0, 0, 1, 1]), projections=rows)
    loss.eval()
    for labels, share in (([0, 0, 1, 1], 1.0), ([0, 1, 1, 1], 0.75), ([2, 2, 2, 2], 0.0)):
        loss(rows, torch.tensor(labels), projections=rows)
        assert loss.nn_accuracy.item() == share
    assert loss.nn_accuracy.ndim == 0


@pytest.mark.parametrize("pairs", [1, 7, 40, search.PAIRS])
def test_blocks_of_the_search_do_not_change_it(pairs, monkeypatch):
    queries, rows = torch.randn(2, 40, D, generator=torch.Generator().manual_seed(0)).unbind()
    labels, row_labels = torch.arange(40) % 5, torch.arange(40) % 4
    monkeypatch.setattr(search, "PAIRS", pairs)
    s = queries @ rows.T
    index, found = nearest_rows(queries, rows)
    assert torch.equal(index, s.argmax(dim=1))
    assert found.all()
    index, found = nearest_rows(queries, rows, labels, row_labels)
    assert torch.equal(found, labels < 4)
    of_class = s.masked_fill(labels[:, None] != row_labels, -torch.inf)
    assert torch.equal(index[found], of_class.argmax(dim=1)[found])
    assert nearest_rows(queries[:0], rows)[0].shape == (0,)


def test_evaluation_reads_the_queue_and_does_not_change_it():
    loss = filled()
    before = copy.deepcopy(loss.state_dict())
    predictions, projections, labels = batch(2, number=QUEUE + 1)  # larger than the queue
    value = loss(predictions, labels, projections=projections)
    assert all(torch.equal(before[name], tensor) for name, tensor in loss.state_dict().items())
    assert torch.equal(loss(predictions, labels, projections=projections), value)


# options, dtypes, state


def test_options_of_the_inner_loss_reach_it():
    predictions, projections, labels = batch(1)
    default, flat, one = (
        filled(**options)(predictions, labels, projections=projections).item()
        for options in ({}, {"temperature": 0.2}, {"denominator": "one_positive"})
    )
    assert one == pytest.approx(default)  # one positive: the denominators agree
    assert abs(flat - default) > 0.1
    learnt = losses.LearnableTemperature(0.2)
    loss = losses.NearestNeighbourLoss(losses.SupConLossOut(learnt), D, QUEUE, dtype=torch.float64)
    loss(predictions, projections=projections).backward()
    assert learnt.logarithm.grad.abs() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_exactly(dtype):
    half, full = new_loss(dtype=torch.float32), new_loss(dtype=torch.float32)
    for step in range(2):
        predictions, projections, _ = batch(step, dtype=dtype)
        expected = full(predictions.float(), projections=projections.float())
        assert torch.equal(half(predictions, projections=projections), expected)
    assert half.queue_embeddings.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_queue_of_half_precision_is_searched_in_float32(dtype):
    half, full = new_loss(size=128, dtype=dtype), new_loss(size=128, dtype=torch.float32)
    for step in range(2):
        predictions, projections, labels = batch(step, number=64)
        predictions, projections = predictions.to(dtype), (5000 * projections).to(dtype)  # squares exceed float16
        half.train(step == 0)
        full.eval()
        value = half(predictions, labels, projections=projections)
        assert torch.equal(value, full(predictions.float(), labels, projections=projections.float()))
        full._enqueue(half.queue_embeddings[:64].float(), labels)
    assert half.queue_embeddings.dtype == dtype
    norms = half.queue_embeddings[:64].float().norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(64), rtol=0, atol=0.01)


@pytest.mark.parametrize("bad", ["projection", "row of the queue"])
def test_a_projection_that_is_not_finite_reaches_the_loss(bad):
    loss, (predictions, projections, _) = filled().train(), batch(1)
    wild = projections.clone()
    wild[0, 0, 0] = torch.inf
    value = loss(predictions, batch(1)[2], projections=wild)
    if bad == "row of the queue":
        value = loss(predictions, batch(1)[2], projections=projections)
    assert value.isnan()


def test_copies_and_states_continue_to_the_last_bit(tmp_path):
    def step(loss, number):
        predictions, projections, labels = batch(number)
        return loss(predictions, labels, projections=projections)

    loss = new_loss()
    for number in range(3):
        step(loss, number)
    assert set(loss.state_dict()) == {"queue_embeddings", "queue_labels", "_extra_state"}
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    save_file(loss.state_dict(), tmp_path / "queue.safetensors")
    others = [copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), new_loss(), new_loss()]
    others[2].load_state_dict(torch.load(file, weights_only=True))
    others[3].load_state_dict(load_file(tmp_path / "queue.safetensors"))
    for number in range(3, 6):
        expected = step(loss, number)
        assert all(torch.equal(step(other, number), expected) for other in others)
        assert all(torch.equal(other.nn_accuracy, loss.nn_accuracy) for other in others)
    with pytest.raises(ValueError, match=r"Expected labels as in the calls .*; use one `NearestNeighbourLoss` with"):
        others[2](batch(6)[0], projections=batch(6)[1])


def test_an_empty_batch_has_the_loss_0():
    loss, nothing = filled().train(), torch.zeros(0, 2, D, dtype=torch.float64, requires_grad=True)
    before = loss.num_filled
    value = loss(nothing, torch.zeros(0, dtype=torch.int64), projections=nothing)
    value.backward()
    assert value == 0
    assert loss.nn_accuracy is None
    assert loss.num_filled == before


# several processes


def share(x, rank):
    """Return the share of a process: 4 of 7 samples on the first."""
    return x[:4] if rank == 0 else x[4:]


def train(loss, part=lambda x: x):
    """Return values and gradients of three steps over a part of the batch, the accuracies, and the state."""
    results = []
    for number in range(3):
        predictions, projections, labels = map(part, batch(number, number=7))
        leaf = predictions.clone().requires_grad_()
        value = loss(leaf, labels, projections=projections)
        results.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    return results, loss.loss.nn_accuracy, loss.loss.state_dict()


OF_GROUP = {
    **{name: lambda name=name: new_loss(name, size=16) for name in MODES},
    "tiled": lambda: new_loss(size=16, backend="tiled"),
}


def work(rank):
    results = {name: train(losses.GlobalBatchLoss(make()), lambda x: share(x, rank)) for name, make in OF_GROUP.items()}
    predictions, projections, labels = (share(x, rank) for x in batch(number=7))
    with pytest.raises(ValueError, match="neighbours=") as caught:
        losses.GlobalBatchLoss(new_loss(MODES[rank]))(predictions, labels, projections=projections)
    results["error"] = str(caught.value)
    return results


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Return the results of two processes, by rank."""
    return run_processes(work, 2, tmp_path_factory.mktemp("gloo"))


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_GROUP)
def test_two_processes_equal_one(processes, name):
    expected, accuracy, state = train(losses.GlobalBatchLoss(OF_GROUP[name]()))
    for steps, found, queue in (result[name] for result in processes):
        torch.testing.assert_close(found, accuracy)
        for key, tensor in state.items():
            torch.testing.assert_close(queue[key], tensor, rtol=1e-12, atol=1e-12)
        for (value, _), (right, _) in zip(steps, expected, strict=True):
            torch.testing.assert_close(value, right, rtol=1e-9, atol=0)
    for number, (_, right) in enumerate(expected):
        parts = [result[name][0][number][1] for result in processes]
        torch.testing.assert_close(torch.cat(parts) / 2, right, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_other_options_on_a_process_are_an_error_on_both(processes):
    for result in processes:
        assert "neighbours=nearest" in result["error"]
        assert "neighbours=same_class" in result["error"]


# bad input


@pytest.mark.parametrize(("loss", "options", "error", "message"), [
    (pml.NTXentLoss(), {}, TypeError, "`loss` to be a SupConLossOut or SupConLossIn, but got NTXentLoss$"),
    (OUT, {"neighbours": "same"}, ValueError, "`neighbours` to be one of .*, but got 'same'"),
    (OUT, {"queue_size": 0}, ValueError, "`queue_size` to be at least 1, but got 0"),
    (OUT, {"dtype": torch.int64}, TypeError, "`dtype` to be a floating-point torch.dtype, but got torch.int64"),
])  # fmt: skip
def test_invalid_options(loss, options, error, message):
    with pytest.raises(error, match=message):
        losses.NearestNeighbourLoss(loss, **{"embedding_size": D, "queue_size": QUEUE} | options)


@pytest.mark.parametrize(("options", "message"), [
    ({"num_views": 2}, "a loss with num_views=None for neighbours, but got num_views=2"),
    ({"contrast_mode": "one"}, "contrast_mode='all' for neighbours, but got contrast_mode='one'"),
    ({"positives_cap": 2}, "positives_cap=None for neighbours, but got positives_cap=2"),
    ({"ignore_label": 0}, "ignore_label=None for neighbours, but got ignore_label=0"),
    ({"target": targets.SoftLabels()}, "a loss with target=None for neighbours, but got target=SoftLabels"),
    ({"embedding_regularizer": regularizers.LpRegularizer()}, "a loss with embedding_regularizer=None for neighbours"),
    ({"distance": distances.LpDistance()}, "the cosine similarity, by which .*, but got LpDistance"),
])  # fmt: skip
def test_options_that_do_not_apply_to_neighbours(options, message):
    with pytest.raises(ValueError, match=message):
        losses.NearestNeighbourLoss(losses.SupConLossOut(**options), D, QUEUE)


ROWS, LABELS = torch.randn(B, 2, D, dtype=torch.float64), torch.arange(B)


@pytest.mark.parametrize(("rows", "projections", "labels", "message"), [
    (ROWS[:, :1], ROWS[:, :1], LABELS, r"`predictions` to hold two views, \(B, 2, 3\), but got \(5, 1, 3\)"),
    (ROWS.repeat(1, 2, 1), ROWS, LABELS, r"`predictions` to hold two views, \(B, 2, 3\), but got \(5, 4, 3\)"),
    (ROWS[:, 0], ROWS, LABELS, r"`predictions` to hold two views, \(B, 2, 3\), but got \(5, 3\)"),
    (ROWS, ROWS[:, 0], LABELS, r"`projections` to hold two views, \(B, 2, 3\), but got \(5, 3\)"),
    (ROWS, ROWS[:4], LABELS, r"shape of the predictions, \(5, 2, 3\), but got \(4, 2, 3\)"),
    (ROWS[..., :2], ROWS, LABELS, r"`predictions` to have the width embedding_size=3, but got \(5, 2, 2\)"),
    (ROWS, ROWS.repeat(1, 1, 2), LABELS, r"`projections` to have the width embedding_size=3, but got \(5, 2, 6\)"),
    (ROWS.repeat(3, 1, 1), ROWS.repeat(3, 1, 1), LABELS.repeat(3), "`queue_size` to be at least the 15 rows .* got 12"),
    (ROWS, ROWS, LABELS[:4], r"`labels` to have shape \(5,\)"),
    (ROWS, ROWS, None, "Expected `labels` with neighbours='positives', but got None"),
    (ROWS.to("meta"), ROWS, LABELS, "`predictions` to be on the device of the queue, cpu, but got meta; `NearestN"),
])  # fmt: skip
def test_a_batch_that_does_not_fit_does_not_enter(rows, projections, labels, message):
    loss = new_loss("positives")
    with pytest.raises(ValueError, match=message):
        loss(rows, labels, projections=projections)
    assert loss.num_filled == 0


def test_labels_in_some_calls_only_and_a_narrow_queue():
    loss = new_loss()
    loss(ROWS, projections=ROWS)
    with pytest.raises(ValueError, match="Expected no labels as in the calls that filled the queue, but got labels"):
        loss(ROWS, LABELS, projections=ROWS)
    with pytest.raises(ValueError, match=r"use NearestNeighbourLoss\(\.\.\., dtype=torch\.float64\)"):
        new_loss(dtype=torch.float32)(ROWS, projections=ROWS.float())
    with pytest.raises(ValueError, match="Expected no `miner` with NearestNeighbourLoss, which takes no pairs"):
        losses.GlobalBatchLoss(loss, miner=torch.nn.Identity())
