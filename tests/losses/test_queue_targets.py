"""`QueueLoss` with targets: its value, gradient and contents, labels in their dtype, resume and errors."""

import copy
import io
import pickle

import pytest
import torch
from helpers.supcon_batches import BACKENDS, value_and_gradient
from torch.nn.functional import one_hot

from pml_supcon import losses
from pml_supcon.functional import supcon_loss
from pml_supcon.losses import GlobalBatchLoss, QueueLoss, SupConLossIn, SupConLossOut
from pml_supcon.targets import Hierarchy, Kernel, LabelSets, SoftLabels

B, V, D = 5, 2, 4
CLASSES = 4

#: Per kind: a target, and the labels of a batch of samples.
KINDS = {
    "sets": (LabelSets(), lambda classes: one_hot(classes, CLASSES) == torch.randint(0, 2, (1, CLASSES))),
    "sets of floats": (LabelSets("overlap", 0.5), lambda classes: (classes[:, None] % torch.arange(1, 4) == 1).half()),
    "shares": (SoftLabels(), lambda classes: torch.rand(len(classes), CLASSES, dtype=torch.float64) + 0.1),
    "numbers": (Kernel(0.7), lambda classes: classes + torch.rand(len(classes))),
    "integers": (Kernel(0.7, normalization="count"), lambda classes: classes.int()),
    "tree": (Hierarchy([0.5, 2.0]), lambda classes: torch.stack([classes // 2, classes], dim=1)),
}  # fmt: skip


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def new_queue(kind, size=25, loss=SupConLossOut, **options):
    return QueueLoss(loss(target=KINDS[kind][0], **options), D, size, dtype=torch.float64)


def batch(kind, step, number=B):
    """Return embeddings `(B, V, D)`, labels `(B, ...)` and keys of one step, the same at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step)
        embeddings, keys = torch.randn(2, number, V, D, dtype=torch.float64)
        return embeddings, KINDS[kind][1](torch.randint(0, CLASSES, (number,))), keys


def rows_of(views):
    return torch.cat(views.unbind(1))


def repeated(labels):
    return torch.cat([labels] * V)


@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize("loss", [SupConLossOut, SupConLossIn])
@pytest.mark.parametrize("name", [name for name in KINDS if name != "tree"])
def test_is_the_loss_of_the_first_rows_of_batch_and_queue_together(name, loss, mode):
    target = KINDS[name][0]
    queues = [new_queue(name, loss=loss, contrast_mode=mode, backend=backend) for backend in ("dense", "reference")]
    rows, labels = torch.empty(0, D, dtype=torch.float64), KINDS[name][1](torch.arange(0))
    for step in range(4):  # the queue is empty, partly filled, and then wraps around
        embeddings, sample_labels, _ = batch(name, step)
        leaf = embeddings.clone().requires_grad_()
        # batch and queue contrasted with themselves: the anchors of the batch leave out their own row
        everything = torch.cat([rows_of(leaf), rows]), torch.cat([repeated(sample_labels), labels])
        terms = supcon_loss(*everything, target=target, summation=loss.summation, backend="reference")
        anchors = B if mode == "one" else V * B
        mean = terms.losses[:anchors].sum() / terms.valid[:anchors].sum()
        assert mean > 0
        expected = mean.detach(), torch.autograd.grad(mean, leaf)[0]
        for queue in queues:
            ours = value_and_gradient(queue, embeddings, sample_labels)
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
            assert queue.queue_labels.dtype == sample_labels.dtype
        rows = torch.cat([rows, rows_of(embeddings)])[-25:]
        labels = torch.cat([labels, repeated(sample_labels)])[-25:]


def test_a_tree_is_the_sum_of_the_queues_of_its_levels():
    queue = new_queue("tree")
    levels = [QueueLoss(SupConLossOut(), D, 25, dtype=torch.float64) for _ in range(2)]
    for step in range(4):
        embeddings, tree, keys = batch("tree", step)
        coarse, fine = (level(embeddings, ids, keys) for level, ids in zip(levels, tree.T, strict=True))
        torch.testing.assert_close(queue(embeddings, tree, keys), 0.5 * coarse + 2 * fine, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name in ("dense", "reference")])
def test_one_hot_labels_are_classes_to_the_last_bit(backend):
    options = {"backend": backend, "denominator": "one_positive"}
    plain = QueueLoss(SupConLossOut(**options), D, 25, dtype=torch.float64)
    rich = QueueLoss(SupConLossOut(**options, target=SoftLabels()), D, 25, dtype=torch.float64)
    for step in range(4):
        embeddings, _, keys = batch("numbers", step)
        classes = torch.randint(0, CLASSES, (B,))
        for more in ((), (keys,)):
            assert torch.equal(
                rich(embeddings, one_hot(classes, CLASSES).double(), *more), plain(embeddings, classes, *more)
            )


@pytest.mark.parametrize("size", [10, 13, 25])
def test_labels_wrap_around_with_their_rows(kind, size):
    queue, put, put_labels = new_queue(kind, size), [], []
    for step in range(5):
        embeddings, labels, keys = batch(kind, step, B - step % 2)
        queue(embeddings, labels, keys)
        put.extend(rows_of(keys).tolist())
        put_labels.extend(repeated(labels).tolist())
        for place, i in {i % size: i for i in range(len(put))}.items():
            assert queue.queue_embeddings[place].tolist() == put[i]
            assert queue.queue_labels[place].tolist() == put_labels[i]


def test_evaluation_reads_the_queue_and_does_not_shape_it(kind):
    queue = new_queue(kind, 12).eval()
    embeddings, labels, _ = batch(kind, 0)
    alone = SupConLossOut(target=KINDS[kind][0])(embeddings, labels)
    torch.testing.assert_close(queue(embeddings, labels), alone)
    assert queue.num_filled == 0
    assert queue.queue_labels.shape == (12,)


def test_states_continue_to_the_last_bit(kind):
    queue = new_queue(kind)
    for step in range(3):
        queue(*batch(kind, step))
    file = io.BytesIO()
    torch.save(queue.state_dict(), file)
    file.seek(0)
    others = [copy.deepcopy(queue), pickle.loads(pickle.dumps(queue)), new_queue(kind), new_queue(kind)]
    others[2].load_state_dict(torch.load(file, weights_only=True))
    others[3](*batch(kind, 7))  # a queue in use takes a state too
    others[3].load_state_dict(queue.state_dict())
    for step in range(3, 6):
        expected = queue(*batch(kind, step))
        assert all(torch.equal(other(*batch(kind, step)), expected) for other in others)
    assert others[2].queue_labels.dtype == batch(kind, 0)[1].dtype


def test_the_state_of_an_unused_queue_loads(kind):
    fresh = new_queue(kind)
    fresh.load_state_dict(new_queue(kind).state_dict())
    assert torch.equal(fresh(*batch(kind, 0)), new_queue(kind)(*batch(kind, 0)))


def test_labels_get_no_gradient():
    queue, (embeddings, shares, keys) = new_queue("shares"), batch("shares", 0)
    shares.requires_grad_()
    for _ in range(2):
        queue(embeddings.requires_grad_(), shares, keys).backward()
    assert shares.grad is None
    assert not queue.queue_labels.requires_grad


def test_under_global_batch_loss_on_one_process(kind):
    alone, wrapped = new_queue(kind), GlobalBatchLoss(new_queue(kind))
    for step in range(3):
        assert torch.equal(wrapped(*batch(kind, step)[:2]), alone(*batch(kind, step)[:2]))


SETS = torch.ones(B, 3, dtype=torch.bool)


@pytest.mark.parametrize(("labels", "message"), [
    (None, r"Expected `labels` with target=LabelSets\(similarity='jaccard', .*\), but got None"),
    (torch.arange(B), r"`labels` to have shape \(5, C\), one column for each label, but got \(5,\)"),
    (SETS[:3], r"`labels` to have 5 entries"),
    (SETS[:, :2], r"`labels` like those in the queue, \(5, 3\) torch.bool, but got \(5, 2\) torch.bool"),
    (SETS.int(), r"`labels` like those in the queue, \(5, 3\) torch.bool, but got \(5, 3\) torch.int32"),
])  # fmt: skip
def test_labels_that_do_not_fit_do_not_enter(labels, message):
    queue = QueueLoss(SupConLossOut(target=LabelSets()), D, 20)
    rows = torch.randn(B, V, D)
    queue(rows, SETS)
    with pytest.raises(ValueError, match=message):
        queue(rows, labels)
    assert queue.num_filled == 10


def test_another_target_reads_other_labels():
    queue, rows = QueueLoss(SupConLossOut(), D, 20), torch.randn(B, V, D)
    queue(rows, torch.arange(B))
    queue.loss.target = LabelSets()
    with pytest.raises(ValueError, match=r"like those in the queue, \(5,\) torch.int64, but got \(5, 3\) torch.bool"):
        queue(rows, SETS)


def test_states_that_do_not_fit():
    queue, rows = QueueLoss(SupConLossOut(target=LabelSets()), D, 20), torch.randn(B, V, D)
    queue(rows, SETS)
    classes = QueueLoss(SupConLossOut(), D, 20)
    message = r"state with class labels, torch.int64, but got labels \(20, 3\) torch.bool; give the loss its `target`"
    with pytest.raises(RuntimeError, match=message):
        classes.load_state_dict(queue.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        QueueLoss(SupConLossOut(target=LabelSets()), D, 16).load_state_dict(queue.state_dict())
    classes(rows, torch.arange(B))
    queue.load_state_dict(classes.state_dict())
    with pytest.raises(ValueError, match=r"like those in the queue, \(5,\) torch.int64"):
        queue(rows, SETS)


def test_labels_without_a_target_stay_classes_of_any_dtype():
    queue = losses.QueueLoss(SupConLossOut(), D, 20)
    for dtype in (torch.uint8, torch.int64, torch.uint16):
        queue(torch.randn(B, V, D), torch.arange(B).to(dtype))
    assert queue.queue_labels.dtype == torch.int64
