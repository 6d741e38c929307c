"""`QueueLoss` against oracles: its value, gradient, contents, resume, two processes and errors."""

import copy
import io
import itertools
import pickle

import pytest
import torch
from helpers import supcon_oracle
from helpers.process_groups import run_processes
from helpers.supcon_batches import BACKENDS, listed_pairs, value_and_gradient
from pytorch_metric_learning import distances, reducers, regularizers
from pytorch_metric_learning import losses as pml
from safetensors.torch import load_file, save_file
from torch import nn

from pml_supcon import losses, targets
from pml_supcon.functional import supcon_loss

LOSSES = {"out": losses.SupConLossOut, "in": losses.SupConLossIn}
DENOMINATORS = ("all", "one_positive", "negatives")
B, V, D = 5, 2, 4


def new_queue(summation="out", size=32, dtype=torch.float64, **options):
    return losses.QueueLoss(LOSSES[summation](**options), D, size, dtype=dtype)


def new_memory(size=32, loss=losses.SupConLossOut, **options):
    return losses.CrossBatchMemory(loss(**options), embedding_size=D, memory_size=size)


def batch(step=0, *, dtype=torch.float64, number=B):
    """Return embeddings `(B, V, D)`, labels `(B,)` and keys of one step, the same at each call."""
    generator = torch.Generator().manual_seed(step)
    embeddings, keys = (torch.randn(number, V, D, dtype=dtype, generator=generator) for _ in range(2))
    return embeddings, torch.randint(0, 3, (number,), generator=generator), keys


def rows_of(views):
    return views.transpose(0, 1).flatten(0, 1)


CASES = list(itertools.product(("out", "in"), DENOMINATORS, ("all", "one"), (True, False), (True, False)))


@pytest.mark.parametrize(("summation", "denominator", "mode", "labelled", "with_keys"), CASES)
def test_equals_the_definition_over_batch_and_queue(summation, denominator, mode, labelled, with_keys):
    given = {"summation": summation, "denominator": denominator}
    queues = [new_queue(summation, 25, denominator=denominator, contrast_mode=mode, backend=name) for name in BACKENDS]
    past, past_labels = torch.empty(0, D, dtype=torch.float64), torch.empty(0, dtype=torch.int64)
    for step in range(4):  # the queue is empty, partly filled, and then wraps around
        embeddings, sample_labels, keys = batch(step)
        leaf = embeddings.clone().requires_grad_()
        rows, labels = rows_of(leaf), (sample_labels if labelled else torch.arange(B)).repeat(V)
        batch_rows = rows_of(keys) if with_keys else rows
        contrasted, contrasted_labels = torch.cat([batch_rows, past]), torch.cat([labels, past_labels])
        listed = {"ref_emb": contrasted, "indices_tuple": listed_pairs(labels, contrasted_labels)}
        terms = supcon_loss(rows, **listed, **given, backend="reference")
        anchors = B if mode == "one" else V * B
        expected = terms.losses[:anchors].sum() / terms.valid[:anchors].sum()
        oracle = supcon_oracle.anchor_losses(rows, **listed, **given, num_views=V, contrast_mode=mode)
        assert expected.item() == pytest.approx(supcon_oracle.mean(oracle), rel=1e-12)
        expected = expected.detach(), torch.autograd.grad(expected, leaf)[0]
        for queue in queues:
            more = {"keys": keys} if with_keys else {}
            ours = value_and_gradient(queue, embeddings, sample_labels if labelled else None, **more)
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
        past = torch.cat([past, batch_rows.detach()])[-25:]
        past_labels = torch.cat([past_labels, labels if labelled else torch.full((V * B,), -1)])[-25:]


def test_rows_with_known_views_are_the_same_as_samples_with_views():
    views, rows = new_queue(contrast_mode="one"), new_queue(contrast_mode="one", num_views=V)
    for step in range(3):
        embeddings, labels, keys = batch(step)
        expected = views(embeddings, labels, keys)
        assert torch.equal(rows(rows_of(embeddings), labels.repeat(V), rows_of(keys)), expected)
        assert torch.equal(rows.queue_embeddings, views.queue_embeddings)
    assert torch.equal(new_queue(num_views=V)(rows_of(embeddings)), new_queue()(embeddings))


@pytest.mark.parametrize("options", [
    {"distance": distances.LpDistance(power=2), "temperature": 1.0},
    {"reducer": reducers.SumReducer()},
    {"embedding_regularizer": regularizers.LpRegularizer(), "embedding_reg_weight": 0.3},
], ids=lambda options: next(iter(options)))  # fmt: skip
def test_options_of_pml_keep_working(options):
    (first, first_labels, _), (second, second_labels, _) = batch(0), batch(1)
    queue, alone = new_queue(**options), losses.SupConLossOut(**options)
    torch.testing.assert_close(queue(first, first_labels), alone(first, first_labels))
    rows, refs = rows_of(second), torch.cat([rows_of(second), rows_of(first)])
    ref_labels = torch.cat([second_labels.repeat(V), first_labels.repeat(V)])
    pairs = listed_pairs(second_labels.repeat(V), ref_labels)
    expected = alone(rows, indices_tuple=pairs, ref_emb=refs, ref_labels=ref_labels)
    torch.testing.assert_close(queue(second, second_labels), expected)


@pytest.mark.parametrize("size", [10, 13, 25])
def test_wraps_around_and_loses_nothing(size):
    queue, put, put_labels = new_queue(size=size), [], []
    for step in range(5):
        embeddings, labels, keys = batch(step, number=B - step % 2)
        queue(embeddings, labels, keys)
        put.extend(rows_of(keys).tolist())
        put_labels.extend(labels.repeat(V).tolist())
        expected = {i % size: (put[i], put_labels[i]) for i in range(len(put))}
        assert (queue.num_filled, queue.next_row) == (len(expected), len(put) % size)
        for place, (row, label) in expected.items():
            assert queue.queue_embeddings[place].tolist() == row
            assert queue.queue_labels[place].item() == label
    before = copy.deepcopy(queue.state_dict())
    queue(torch.zeros(0, V, D, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))  # an empty batch
    assert all(torch.equal(before[name], tensor) for name, tensor in queue.state_dict().items())


def test_evaluation_does_not_change_the_queue():
    queue = new_queue(size=12)
    queue(*batch(0))
    before = copy.deepcopy(queue.state_dict())
    queue.eval()
    value = queue(*batch(1))
    queue(*batch(2, number=50))  # larger than the queue
    assert all(torch.equal(before[name], tensor) for name, tensor in queue.state_dict().items())
    assert torch.equal(queue.train()(*batch(1)), value)
    assert queue.next_row == 8


def test_only_the_batch_gets_a_gradient():
    queue = new_queue()
    embeddings, labels, keys = batch(0)
    keys.requires_grad_()
    embeddings.requires_grad_()
    first = queue(embeddings, labels, keys)
    queue(embeddings, labels, keys)  # writing to the queue leaves the first graph valid
    first.backward()
    assert keys.grad is None
    assert embeddings.grad.abs().max() > 0
    assert not queue.queue_embeddings.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_exactly(dtype):
    half, full = new_queue(dtype=torch.float32), new_queue(dtype=torch.float32)
    for step in range(3):
        embeddings, labels, keys = batch(step, dtype=dtype)
        assert torch.equal(half(embeddings, labels, keys), full(embeddings.float(), labels, keys.float()))
    assert half.queue_embeddings.dtype == torch.float32
    small = new_queue(dtype=dtype)
    assert torch.isfinite(small(*batch(0, dtype=dtype)))
    assert small.queue_embeddings.dtype == dtype


def test_copies_and_states_continue_to_the_last_bit(tmp_path):
    queue = new_queue(size=25)
    for step in range(3):
        queue(*batch(step))
    assert set(queue.state_dict()) == {"queue_embeddings", "queue_labels", "_extra_state"}
    file = io.BytesIO()
    torch.save(queue.state_dict(), file)
    file.seek(0)
    save_file(queue.state_dict(), tmp_path / "queue.safetensors")  # a format that holds only tensors
    others = [copy.deepcopy(queue), pickle.loads(pickle.dumps(queue)), new_queue(size=25), new_queue(size=25)]
    others[2].load_state_dict(torch.load(file, weights_only=True))
    others[3].load_state_dict(load_file(tmp_path / "queue.safetensors"))
    for step in range(3, 6):
        expected = queue(*batch(step))
        assert all(torch.equal(other(*batch(step)), expected) for other in others)
    with pytest.raises(ValueError, match="Expected labels as in the calls that filled the queue, but got no labels"):
        others[2](batch(6)[0])


@pytest.mark.parametrize("new_loss", [lambda: new_queue(size=50, dtype=torch.float32), lambda: new_memory(50)])
def test_compiles_once_for_all_positions_of_the_queue(new_loss):
    torch.compiler.reset()
    model, loss, graphs = nn.Linear(6, D), new_loss(), []
    twin = copy.deepcopy(loss)

    def compiler(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda x, labels: loss(model(x), labels), backend=compiler)
    for _ in range(12):
        x, labels = torch.randn(12, 6), torch.randint(0, 3, (12,))
        torch.testing.assert_close(compiled(x, labels), twin(model(x), labels))
    assert len(graphs) == 1
    torch.compiler.reset()


class Run:
    """A small training run: encoder, momentum encoder, optimiser with momentum, and a queue or a memory."""

    def __init__(self, kind):
        from pml_supcon.models import MomentumEncoder  # here: the import takes seconds in the processes below

        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, D))
        self.slow = MomentumEncoder(self.model, momentum=0.9)
        self.kind = kind
        is_queue = kind == "queue"
        self.loss = new_queue(size=37, dtype=torch.float32, num_views=V) if is_queue else new_memory(37)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.parts = {name: getattr(self, name) for name in ("model", "slow", "loss", "optimizer")}

    def step(self, number):
        generator = torch.Generator().manual_seed(number)
        x, labels = torch.randn(12, 6, generator=generator), torch.randint(0, 3, (6,), generator=generator).repeat(V)
        more = {"keys": self.slow(x)} if self.kind == "queue" else {}
        value = self.loss(self.model(x), labels, **more)
        self.optimizer.zero_grad()
        value.backward()
        self.optimizer.step()
        self.slow.update_parameters(self.model)
        return value.item()


@pytest.mark.parametrize("kind", ["queue", "memory"])
def test_a_resumed_run_is_bit_identical(kind, tmp_path):
    whole, saved_run, resumed, forgetful = (Run(kind) for _ in range(4))
    expected = [whole.step(number) for number in range(17)]
    for number in range(7):
        saved_run.step(number)
    torch.save({name: part.state_dict() for name, part in saved_run.parts.items()}, tmp_path / "run.pt")
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    for name, part in resumed.parts.items():
        part.load_state_dict(saved[name])
    assert [resumed.step(number) for number in range(7, 17)] == expected[7:]
    del saved["loss"]["_extra_state"]  # without its position the content is lost, as in PML's memory
    for name, part in forgetful.parts.items():
        part.load_state_dict(saved[name], **({"strict": False} if name == "loss" else {}))
    assert forgetful.step(7) != expected[7]


WEIGHTS = torch.randn(6, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

#: Per case: a loss, and its arguments for embeddings, labels and keys.
GLOBAL = {
    "queue": (new_queue, lambda x, y, keys: ((x, y), {"keys": keys})),
    "queue without keys": (lambda: new_queue(contrast_mode="one"), lambda x, y, _: ((x, y), {})),
    "rows": (
        lambda: new_queue("in", num_views=V, denominator="one_positive"),
        lambda x, y, keys: ((rows_of(x), y.repeat(V)), {"keys": rows_of(keys)}),
    ),
    "shares": (
        lambda: new_queue("in", target=targets.SoftLabels()),
        lambda x, y, keys: ((x, nn.functional.one_hot(y, 3) + 0.3 * x.detach()[:, 0, :3].sigmoid()), {"keys": keys}),
    ),
    "numbers": (lambda: new_memory(target=targets.Kernel(0.7)), lambda x, y, _: ((x, y.double() / 2), {})),
    "label-free": (new_queue, lambda x, _, keys: ((x,), {"keys": keys})),
    "memory": (new_memory, lambda x, y, _: ((x, y), {})),
    "memory, first view": (
        lambda: new_memory(num_views=V, contrast_mode="one"),
        lambda x, y, _: ((rows_of(x), y.repeat(V)), {}),
    ),
    "self-supervised": (lambda: losses.SelfSupervisedLoss(losses.SupConLossOut()), lambda x, *_: ((x,), {})),
    "one-sided": (
        lambda: losses.SelfSupervisedLoss(losses.SupConLossOut(), symmetric=False),
        lambda x, *_: ((x[:, 0],), {"ref_emb": x[:, 1]}),
    ),
}


def train_global(name, samples):
    """Return values and gradients of three steps over some samples of the batch, and the state of the loss."""
    new_loss, arguments_of = GLOBAL[name]
    loss, results = losses.GlobalBatchLoss(new_loss()), []
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(7, V, 6, dtype=torch.float64, generator=generator)[samples]
        labels = torch.randint(0, 3, (7,), generator=generator)[samples]
        weights = WEIGHTS.clone().requires_grad_()
        arguments, more = arguments_of(x @ weights, labels, x @ (WEIGHTS + 0.3))
        value = loss(*arguments, **more)
        results.append((value.detach(), torch.autograd.grad(value, weights)[0]))
    return results, loss.loss.state_dict()


def work(rank):
    return {name: train_global(name, slice(0, 3) if rank == 0 else slice(3, 7)) for name in GLOBAL}


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    return run_processes(work, 2, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize("name", GLOBAL)
def test_two_processes_are_one_with_the_whole_batch(of_two_processes, name):
    expected, state = train_global(name, slice(0, 7))
    (zero, state_zero), (one, state_one) = (result[name] for result in of_two_processes)
    for (value, gradient), (value_0, gradient_0), (value_1, gradient_1) in zip(expected, zero, one, strict=True):
        assert torch.equal(value_0, value_1)
        torch.testing.assert_close(value_0, value, rtol=1e-12, atol=0)
        torch.testing.assert_close((gradient_0 + gradient_1) / 2, gradient, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(gradient_0, gradient_1)
    for key, tensor in state.items():
        assert torch.equal(state_zero[key], state_one[key]), key
        torch.testing.assert_close(state_zero[key], tensor, rtol=1e-12, atol=1e-12)


OUT, CAPPED = losses.SupConLossOut(), losses.SupConLossOut(positives_cap=2, num_views=2)


@pytest.mark.parametrize(("arguments", "options", "error", "message"), [
    ((pml.SupConLoss(), 4, 8), {}, TypeError, "to be a SupConLossOut or SupConLossIn, but got SupConLoss"),
    ((CAPPED, 4, 8), {}, ValueError, "without `positives_cap`, which counts"),
    ((OUT, 0, 8), {}, ValueError, "`embedding_size` to be at least 1, but got 0"),
    ((OUT, 4, True), {}, TypeError, "`queue_size` to be an integer, but got True"),
    ((OUT, 4, 8), {"dtype": torch.int64}, TypeError, "`dtype` to be a floating-point torch.dtype, but got torch.int64"),
    ((OUT, 4, 8), {"dtype": "float32"}, TypeError, "`dtype` to be a floating-point torch.dtype, but got 'float32'"),
])  # fmt: skip
def test_invalid_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        losses.QueueLoss(*arguments, **options)


ROWS, SAMPLES = torch.randn(6, 2, 4), torch.arange(6)


@pytest.mark.parametrize(("arguments", "message"), [
    ((ROWS.double(), SAMPLES), r"float32 holds exactly, but got .*; .*dtype=torch\.float64"),
    ((ROWS, SAMPLES, ROWS.double()), r"`keys` in a dtype that .* but got torch.float64"),
    ((ROWS[..., :3], SAMPLES), r"the width embedding_size=4, but got \(6, 2, 3\)"),
    ((ROWS, SAMPLES, ROWS[:5]), r"shape of the embeddings, \(6, 2, 4\), but got \(5, 2, 4\)"),
    ((torch.cat([ROWS, ROWS]), SAMPLES.repeat(2)), "`queue_size` to be at least the 24 rows .* but got 16"),
    ((ROWS, SAMPLES[:5]), r"`labels` to have shape \(6,\)"),
    ((ROWS[:, 0], None), "Expected `labels`, or known views"),
    ((ROWS.to("meta"), SAMPLES), "on the device of the queue, cpu, but got meta"),
])  # fmt: skip
def test_a_batch_that_does_not_fit_does_not_enter(arguments, message):
    queue = new_queue(size=16, dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        queue(*arguments)
    assert queue.num_filled == 0


def test_labels_after_calls_without_labels():
    queue = new_queue(dtype=torch.float32)
    queue(ROWS)
    with pytest.raises(ValueError, match="Expected no labels as in the calls that filled the queue, but got labels"):
        queue(ROWS, SAMPLES)


def test_states_that_do_not_fit():
    state = new_queue(size=16).state_dict()
    with pytest.raises(RuntimeError, match=r"torch\.float32 holds exactly, but got torch\.float64"):
        new_queue(size=16, dtype=torch.float32).load_state_dict(state)
    with pytest.raises(RuntimeError, match="_extra_state"):
        new_queue(size=16).load_state_dict({name: x for name, x in state.items() if name != "_extra_state"})
    with pytest.raises(RuntimeError, match="size mismatch"):
        new_queue(size=8).load_state_dict(state)
    with pytest.raises(ValueError, match="queue of 16 rows, but got 20 filled rows and next row 3"):
        new_queue(size=16).load_state_dict(state | {"_extra_state": torch.tensor([3, 20, 1])})
