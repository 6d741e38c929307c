"""`CrossModalLoss` against plain loops, CLIP's cross-entropy, and several processes."""

import copy
import itertools
import pickle
import re
from math import exp, fsum, log

import pytest
import torch
from helpers.process_groups import run_processes
from helpers.supcon_batches import BACKENDS, SPEC_LABELS, SPEC_ROWS
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import reducers

from pml_supcon.losses import CrossModalLoss, GlobalBatchLoss, QueueLoss, RankNContrastLoss, SupConLossIn, SupConLossOut
from pml_supcon.targets import SoftLabels

IMAGES, TEXTS = torch.randn(2, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
LABELS = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4])
OTHER_LABELS = torch.tensor([2, 0, 0, 5, 4, 1])  # of six texts: none has the label 3

MISTAKES = ("one direction", "sum of directions", "partner left out", "own tower contrasted", "own tower alone")


def loops(a, b, labels, other_labels, temperature=0.1, mistake=None):
    """Return the loss from its definition, in plain loops, with a mistake."""
    a, b = (torch.nn.functional.normalize(rows, dim=1).tolist() for rows in (a, b))
    towers = [(a, labels.tolist()), (b, other_labels.tolist())]
    means = []
    for (anchors, own), (others, theirs) in (towers, towers[::-1]):
        if mistake == "own tower alone":
            others, theirs = anchors, own
        losses = []
        for i, (anchor, label) in enumerate(zip(anchors, own, strict=True)):
            s = [fsum(x * y for x, y in zip(anchor, row, strict=True)) / temperature for row in others]
            rows = [j for j in range(len(s)) if mistake != "partner left out" or j != i]
            more = 0.0
            if mistake == "own tower contrasted":
                more = fsum(
                    exp(fsum(x * y for x, y in zip(anchor, row, strict=True)) / temperature)
                    for j, row in enumerate(anchors)
                    if j != i
                )
            positives = [j for j in rows if theirs[j] == label]
            if positives:
                log_d = log(fsum(exp(s[j]) for j in rows) + more)
                losses.append(fsum(log_d - s[j] for j in positives) / len(positives))
        means.append(fsum(losses) / len(losses))
    return {"one direction": means[0], "sum of directions": sum(means)}.get(mistake, sum(means) / 2)


def step(loss, a, b, **more):
    """Return the loss, and the gradients of both towers."""
    leaves = [rows.detach().clone().requires_grad_() for rows in (a, b)]
    value = loss(leaves[0], ref_emb=leaves[1], **more)
    return value.detach(), *torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_values_of_the_specification(backend):
    loss = CrossModalLoss(SupConLossOut(temperature=0.5, backend=backend))
    a, b = SPEC_ROWS[:4], SPEC_ROWS[4:]
    assert loss(a, b, SPEC_LABELS).item() == pytest.approx(1.754914107, abs=1e-9)
    assert loss(a, b, torch.arange(4)).item() == pytest.approx(0.743498014, abs=1e-9)
    assert loss(a, b).item() == pytest.approx(0.743498014, abs=1e-9)


CASES = {
    "labels": (TEXTS, {"labels": LABELS}, (LABELS, LABELS)),
    "labels of each tower": (TEXTS[:6], {"labels": LABELS, "ref_labels": OTHER_LABELS}, (LABELS, OTHER_LABELS)),
    "no labels": (TEXTS, {}, (torch.arange(9), torch.arange(9))),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_loops_on_every_backend(name):
    texts, given, labels = CASES[name]
    expected = step(CrossModalLoss(SupConLossOut(backend="reference")), IMAGES, texts, **given)
    assert expected[0].item() == pytest.approx(loops(IMAGES, texts, *labels), rel=1e-10)
    assert CrossModalLoss(SupConLossOut())(IMAGES, texts, *given.values()) == pytest.approx(
        expected[0].item(), rel=1e-10
    )
    for backend in BACKENDS:
        ours = step(CrossModalLoss(SupConLossOut(backend=backend)), IMAGES, texts, **given)
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)
    swapped = step(CrossModalLoss(SupConLossOut()), texts, IMAGES, labels=labels[1], ref_labels=labels[0])
    torch.testing.assert_close((swapped[0], swapped[2], swapped[1]), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_version_differs(mistake):
    value = CrossModalLoss(SupConLossOut())(IMAGES, TEXTS, LABELS).item()
    assert abs(loops(IMAGES, TEXTS, LABELS, LABELS, mistake=mistake) - value) > 1e-2


def test_without_labels_it_is_the_loss_of_clip():
    a, b = (torch.nn.functional.normalize(rows, dim=1) for rows in (IMAGES, TEXTS))
    logits, own = a @ b.T / 0.07, torch.arange(9)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(CrossModalLoss(SupConLossOut(temperature=0.07))(IMAGES, TEXTS), expected)


def test_gradient():
    leaves = [rows[:5].clone().requires_grad_() for rows in (IMAGES, TEXTS)]
    for backend in ("tiled", "dense"):
        loss = CrossModalLoss(SupConLossIn(temperature=0.5, backend=backend))
        assert torch.autograd.gradcheck(lambda a, b, loss=loss: loss(a, b, LABELS[:5]), leaves)


def test_losses_of_pml_reducers_and_numbers():
    for loss in (pml.SupConLoss(), pml.NTXentLoss(), SupConLossOut(reducer=reducers.ThresholdReducer(low=2.0))):
        one = loss(IMAGES, LABELS, ref_emb=TEXTS, ref_labels=LABELS.clone())
        other = loss(TEXTS, LABELS, ref_emb=IMAGES, ref_labels=LABELS.clone())
        torch.testing.assert_close(CrossModalLoss(loss)(IMAGES, TEXTS, LABELS), (one + other) / 2)
    loss, ages = RankNContrastLoss(), LABELS / 2
    expected = loss(IMAGES, ages, ref_emb=TEXTS, ref_labels=ages) + loss(TEXTS, ages, ref_emb=IMAGES, ref_labels=ages)
    torch.testing.assert_close(CrossModalLoss(loss)(IMAGES, TEXTS, ages), expected / 2)


def test_towers_that_share_rows_or_labels_are_still_two():
    for loss in (SupConLossOut(), pml.SupConLoss()):
        expected = CrossModalLoss(loss)(IMAGES, IMAGES.clone(), LABELS, LABELS.clone())
        assert CrossModalLoss(loss)(IMAGES, IMAGES, LABELS) == expected
        assert CrossModalLoss(loss)(IMAGES, IMAGES, LABELS, LABELS) == expected


def test_copies_and_the_compiler():
    loss = CrossModalLoss(SupConLossOut())
    expected = step(loss, IMAGES, TEXTS, labels=LABELS)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), torch.compile(loss, backend="eager")):
        torch.testing.assert_close(step(other, IMAGES, TEXTS, labels=LABELS), expected)


def test_empty_towers():
    for loss in (CrossModalLoss(SupConLossOut()), GlobalBatchLoss(CrossModalLoss(SupConLossOut()))):
        assert [part.abs().sum() for part in step(loss, IMAGES[:0], TEXTS[:0])] == [0, 0, 0]
        given = {"labels": LABELS, "ref_labels": LABELS[:0]}
        assert [part.abs().sum() for part in step(loss, IMAGES, TEXTS[:0], **given)] == [0, 0, 0]


@pytest.mark.parametrize(("option", "value"), [("num_views", 2), ("positives_cap", 2), ("contrast_mode", "one")])
def test_options_of_the_views_of_one_batch_are_refused(option, value):
    with pytest.raises(ValueError, match=f"Expected a loss with {option}=.*, but got {option}={value!r}"):
        CrossModalLoss(SupConLossOut(**{option: value}))


BAD = [
    (ValueError, "both `labels` and `ref_labels`, but got 5 rows", (IMAGES, TEXTS[:5]), {}),
    (ValueError, "both `labels` and `ref_labels`, but got 5 rows", (IMAGES, TEXTS[:5], LABELS), {}),
    (ValueError, "`labels` together with `ref_labels`", (IMAGES, TEXTS), {"ref_labels": LABELS}),
    (ValueError, r"`ref_labels` to have shape \(9,\)", (IMAGES, TEXTS, LABELS, LABELS[:3]), {}),
    (TypeError, "`labels` to hold integers, but got torch.float32", (IMAGES, TEXTS, LABELS.float()), {}),
    (ValueError, "`ref_emb` to have the width", (IMAGES, TEXTS[:, :2]), {}),
    (ValueError, "`ref_emb` to have the dtype", (IMAGES, TEXTS.float()), {}),
    (ValueError, r"`embeddings` to have shape \(N, D\)", (IMAGES[None], TEXTS), {}),
    (TypeError, "`ref_emb` to be a torch.Tensor, but got list", (IMAGES, [1.0]), {}),
    (ValueError, "the rows of the second tower as `ref_emb`", (IMAGES, None), {}),
]


@pytest.mark.parametrize(("error", "match", "arguments", "more"), BAD)
def test_bad_input(error, match, arguments, more):
    with pytest.raises(error, match=match):
        CrossModalLoss(SupConLossOut())(*arguments, **more)


def test_invalid_losses_and_wrappers():
    with pytest.raises(
        TypeError, match="`loss` to be a SupConLossOut, SupConLossIn or a loss of PML, but got QueueLoss"
    ):
        CrossModalLoss(QueueLoss(SupConLossOut(), 4, 8))
    with pytest.raises(ValueError, match="Expected `labels` with a RankNContrastLoss or a target, but got None"):
        CrossModalLoss(RankNContrastLoss())(IMAGES, TEXTS)
    with pytest.raises(ValueError, match="Expected `labels` with a RankNContrastLoss or a target, but got None"):
        CrossModalLoss(SupConLossOut(target=SoftLabels()))(IMAGES, TEXTS)
    with pytest.raises(ValueError, match="Expected no `miner` with CrossModalLoss, which takes no pairs"):
        GlobalBatchLoss(CrossModalLoss(SupConLossOut()), miner=torch.nn.Identity())
    with pytest.raises(ValueError, match=r"`loss\(rows_a, ref_emb=rows_b, labels=labels\)`, but got one tower"):
        GlobalBatchLoss(CrossModalLoss(SupConLossOut()))(IMAGES, TEXTS, LABELS)


SHARES_OF_CLASSES = torch.rand(9, 3, generator=torch.Generator().manual_seed(1))
SHARED = {
    "labels": (SupConLossOut, IMAGES, TEXTS, LABELS, None),
    "no labels": (SupConLossOut, IMAGES, TEXTS, None, None),
    "tiled, labels of each tower": (lambda: SupConLossIn(backend="tiled"), IMAGES, TEXTS[:6], LABELS, OTHER_LABELS),
    "soft labels": (lambda: SupConLossOut(target=SoftLabels()), IMAGES, TEXTS, SHARES_OF_CLASSES, None),
    "reference": (lambda: SupConLossOut(backend="reference"), IMAGES, TEXTS, LABELS, None),
    "a reducer": (lambda: SupConLossOut(reducer=reducers.ThresholdReducer(low=2.0)), IMAGES, TEXTS, LABELS, None),
    "pml": (pml.SupConLoss, IMAGES, TEXTS, LABELS, None),
    "numbers of two towers": (RankNContrastLoss, IMAGES, TEXTS, LABELS / 2, None),
}
NUMBERS = {
    "floats": LABELS / 2,
    "integers": LABELS,
    "columns": torch.stack([LABELS / 2, LABELS.flip(0) / 4], dim=1),
}
VIEWS = torch.stack([IMAGES, TEXTS], dim=1)


def shares(x, rank):
    """Return the share of a process: 7 of 9 rows, or 4 of 6, on the first."""
    return None if x is None else x[: len(x) - 2] if rank == 0 else x[len(x) - 2 :]


def work(rank):
    results = {}
    for name, (loss, *given) in SHARED.items():
        a, b, labels, ref_labels = (shares(x, rank) for x in given)
        own = step(GlobalBatchLoss(CrossModalLoss(loss())), a, b, labels=labels, ref_labels=ref_labels)
        results[name] = own
    for name, labels in NUMBERS.items():
        leaf = shares(VIEWS, rank).clone().requires_grad_()
        value = GlobalBatchLoss(RankNContrastLoss())(leaf, shares(labels, rank))
        results["numbers", name] = value.detach(), torch.autograd.grad(value, leaf)[0]
    one = IMAGES[: 1 - rank].clone().requires_grad_()  # fewer anchors than processes
    results["one row"] = GlobalBatchLoss(RankNContrastLoss())(one, LABELS[: 1 - rank]).detach()

    wrong = {
        "pairs": lambda: GlobalBatchLoss(CrossModalLoss(SupConLossOut()))(
            IMAGES[: 4 + rank], ref_emb=TEXTS[: 5 - rank]
        ),
        "labels of another dtype": lambda: GlobalBatchLoss(RankNContrastLoss())(IMAGES, LABELS if rank else LABELS / 2),
        "not finite": lambda: GlobalBatchLoss(RankNContrastLoss())(IMAGES, LABELS / (1 - rank)),
        "no tower": lambda: GlobalBatchLoss(CrossModalLoss(SupConLossOut()))(
            IMAGES, ref_emb=None if rank else TEXTS, labels=LABELS
        ),
    }
    for name, call in wrong.items():
        try:
            call()
        except ValueError as error:
            results["error", name] = str(error)
    results["after the errors"] = step(
        GlobalBatchLoss(CrossModalLoss(SupConLossOut())), shares(IMAGES, rank), shares(TEXTS, rank)
    )
    return results


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Return the results of two processes, by rank."""
    return run_processes(work, 2, tmp_path_factory.mktemp("gloo"))


def assert_one_process(results, expected):
    """Compare values, and gradients, which are `W` times larger before the average of DDP."""
    for value, *_ in results:
        torch.testing.assert_close(value, expected[0], rtol=1e-10, atol=0)
    for ours, right in zip(zip(*(gradients for _, *gradients in results), strict=True), expected[1:], strict=True):
        torch.testing.assert_close(torch.cat(ours) / 2, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_equal_one(processes, name):
    loss, a, b, labels, ref_labels = SHARED[name]
    expected = step(CrossModalLoss(loss()), a, b, labels=labels, ref_labels=ref_labels)
    assert_one_process([result[name] for result in processes], expected)
    if name == "no labels":
        assert_one_process([result["after the errors"] for result in processes], expected)


@pytest.mark.parametrize("name", NUMBERS)
def test_two_processes_rank_numbers_like_one(processes, name):
    leaf = VIEWS.clone().requires_grad_()
    value = RankNContrastLoss()(leaf, NUMBERS[name])
    expected = value.detach(), torch.autograd.grad(value, leaf)[0]
    assert_one_process([result["numbers", name] for result in processes], expected)


def test_errors_are_raised_on_both_processes(processes):
    expected = {
        "pairs": "rank 0: Expected as many rows in `ref_emb` as in `embeddings`, 4, .*; rank 1: .*, 5, ",
        "labels of another dtype": r"labels: rows \(1,\) torch.float64 on rank 0, rows \(1,\) torch.int64 on rank 1",
        "not finite": r"rank 1: Expected argument `labels` to hold finite numbers .* in row 0",
        "no tower": "rank 1: Expected the rows of the second tower",
    }
    for result, (name, text) in itertools.product(processes, expected.items()):
        assert re.search(text, result["error", name]), name
        assert result["one row"] == 0
