"""The queue of past embeddings: its loss beside oracles, what it keeps, restarts, two processes, bad input."""

import copy
import io
import itertools
import os
import pickle
import signal
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from helpers import supcon_oracle
from helpers.process_groups import run_processes
from helpers.supcon_batches import BACKENDS, random_rows
from pytorch_metric_learning import distances, reducers, regularizers
from pytorch_metric_learning import losses as pml
from safetensors.torch import load_file, save_file
from torch import nn

from pml_supcon import losses
from pml_supcon.functional import supcon_loss

LOSSES = {"out": losses.SupConLossOut, "in": losses.SupConLossIn}
DENOMINATORS = ("all", "one_positive", "negatives")
B, V, D = 5, 2, 4


def new_queue(summation="out", size=32, dtype=torch.float64, width=D, **options):
    return losses.QueueLoss(LOSSES[summation](**options), width, size, dtype=dtype)


def batch(step=0, *, dtype=torch.float64, number=B):
    """Embeddings `(B, V, D)`, labels `(B,)` and keys of one step, the same at each call."""
    generator = torch.Generator().manual_seed(step)
    embeddings, keys = (torch.randn(number, V, D, dtype=dtype, generator=generator) for _ in range(2))
    return embeddings, torch.randint(0, 3, (number,), generator=generator), keys


def rows_of(views):
    return views.transpose(0, 1).flatten(0, 1)


def value_and_gradient(loss, embeddings, *args, **more):
    embeddings = embeddings.detach().clone().requires_grad_()
    value = loss(embeddings, *args, **more)
    return value.detach(), torch.autograd.grad(value, embeddings)[0]


def dense_loss(rows, labels, contrasted, contrasted_labels, summation, denominator, num_anchors, temperature=0.1):
    """The mean loss of the first rows, none contrasted with the row of its own number: equations 2 and 3."""
    unit = [x / x.norm(dim=1, keepdim=True) for x in (rows, contrasted)]
    exps = (unit[0] @ unit[1].T / temperature).exp()
    terms = []
    for i in range(num_anchors):
        others = torch.arange(len(contrasted)) != i
        positive, negative = (others & (contrasted_labels == labels[i])), contrasted_labels != labels[i]
        if not positive.any():
            continue
        all_negatives = exps[i][negative].sum()
        below = {
            "all": exps[i][others].sum(),
            "one_positive": exps[i][positive] + all_negatives,
            "negatives": all_negatives,
        }[denominator]
        ratios = exps[i][positive] / below
        terms.append(-ratios.log().mean() if summation == "out" else -ratios.mean().log())
    return torch.stack(terms).mean()


CASES = list(itertools.product(("out", "in"), DENOMINATORS, ("all", "one"), (True, False), (True, False)))


@pytest.mark.parametrize(("summation", "denominator", "mode", "labelled", "with_keys"), CASES)
def test_equals_the_definition_over_batch_and_queue(summation, denominator, mode, labelled, with_keys):
    steps = [batch(step) for step in range(4)]
    queue = {
        backend: new_queue(summation, 25, denominator=denominator, contrast_mode=mode, backend=backend)
        for backend in BACKENDS
    }
    past, past_labels = torch.empty(0, D, dtype=torch.float64), torch.empty(0, dtype=torch.int64)
    for embeddings, sample_labels, keys in steps:  # an empty queue, a part, and then one that wraps round
        more = {"keys": keys} if with_keys else {}
        own = sample_labels if labelled else torch.arange(B)
        leaf = embeddings.clone().requires_grad_()
        rows, labels = rows_of(leaf), own.repeat(V)
        batch_rows = rows_of(keys) if with_keys else rows
        contrasted, contrasted_labels = torch.cat([batch_rows, past]), torch.cat([labels, past_labels])
        anchors = B if mode == "one" else V * B
        expected = dense_loss(rows, labels, contrasted, contrasted_labels, summation, denominator, num_anchors=anchors)
        same = labels[:, None] == contrasted_labels
        itself = torch.eye(len(rows), len(contrasted)).bool()
        oracle = supcon_oracle.anchor_losses(
            rows,
            ref_emb=contrasted,
            indices_tuple=(*torch.where(same & ~itself), *torch.where(~same)),
            num_views=V,
            summation=summation,
            denominator=denominator,
            contrast_mode=mode,
        )
        assert expected.item() == pytest.approx(supcon_oracle.mean(oracle), rel=1e-12)
        gradient = torch.autograd.grad(expected, leaf)[0]
        for backend, loss in queue.items():
            came = value_and_gradient(loss, embeddings, sample_labels if labelled else None, **more)
            torch.testing.assert_close(came, (expected.detach(), gradient), rtol=1e-10, atol=1e-12, msg=backend)
        past = torch.cat([past, batch_rows.detach()])[-25:]
        past_labels = torch.cat([past_labels, labels if labelled else torch.full((V * B,), -1)])[-25:]


@pytest.mark.parametrize("summation", ["out", "in"])
def test_equals_the_loss_over_the_concatenated_rows(summation):
    """The engine's own anchors among all rows, contrasted with themselves, of which the batch's are picked."""
    queue = new_queue(summation)
    (first, first_labels, _), (second, second_labels, _) = batch(0), batch(1)
    queue(first, first_labels)
    leaf = second.clone().requires_grad_()
    rows = torch.cat([rows_of(leaf), rows_of(first)])
    labels = torch.cat([second_labels.repeat(V), first_labels.repeat(V)])
    terms = supcon_loss(rows, labels, summation=summation, backend="reference")
    expected = terms.losses[: V * B].sum() / terms.valid[: V * B].sum()
    torch.testing.assert_close(
        value_and_gradient(queue, second, second_labels), (expected.detach(), torch.autograd.grad(expected, leaf)[0])
    )


def test_rows_with_known_views_are_the_same_as_samples_with_views():
    views, rows = new_queue(contrast_mode="one"), new_queue(contrast_mode="one", num_views=V)
    for step in range(3):
        embeddings, labels, keys = batch(step)
        expected = views(embeddings, labels, keys)
        assert torch.equal(rows(rows_of(embeddings), labels.repeat(V), rows_of(keys)), expected)
        assert torch.equal(rows.queue_embeddings, views.queue_embeddings)
    label_free = new_queue(num_views=V), new_queue()
    for _ in range(2):
        assert torch.equal(label_free[0](rows_of(embeddings)), label_free[1](embeddings))


@pytest.mark.parametrize("options", [
    {"distance": distances.LpDistance(power=2), "temperature": 1.0},
    {"reducer": reducers.SumReducer()},
    {"embedding_regularizer": regularizers.LpRegularizer(), "embedding_reg_weight": 0.3},
    {"scale_by_temperature": True},
], ids=lambda options: next(iter(options)))  # fmt: skip
def test_options_of_pml_keep_working(options):
    """An empty queue is no queue; a filled one adds terms, of which the option makes what it makes of a batch's."""
    embeddings, labels, _ = batch(0)
    queue, alone = new_queue(**options), losses.SupConLossOut(**options)
    torch.testing.assert_close(
        value_and_gradient(queue, embeddings, labels), value_and_gradient(alone, embeddings, labels)
    )
    rows, past = rows_of(batch(1)[0]), rows_of(embeddings)
    refs, ref_labels = torch.cat([rows, past]), torch.cat([batch(1)[1].repeat(V), labels.repeat(V)])
    same = ref_labels[: len(rows), None] == ref_labels
    itself = torch.eye(len(rows), len(refs)).bool()
    pairs = (*torch.where(same & ~itself), *torch.where(~same))
    expected = alone(rows, indices_tuple=pairs, ref_emb=refs, ref_labels=ref_labels)
    torch.testing.assert_close(queue(batch(1)[0], batch(1)[1]), expected)


@pytest.mark.parametrize("size", [10, 13, 20, 25])
def test_wraps_round_and_loses_nothing(size):
    queue, put, put_labels = new_queue(size=size), [], []
    for step in range(5):
        embeddings, labels, keys = batch(step, number=B - step % 2)
        queue(embeddings, labels, keys)
        put.extend(rows_of(keys).tolist())
        put_labels.extend(labels.repeat(V).tolist())
        expected = {i % size: (put[i], put_labels[i]) for i in range(len(put))}
        assert queue.num_filled == len(expected)
        assert queue.next_row == len(put) % size
        for place, (row, label) in expected.items():
            assert queue.queue_embeddings[place].tolist() == row
            assert queue.queue_labels[place].item() == label
    assert queue.num_filled == size
    before = copy.deepcopy(queue.state_dict())
    queue(torch.zeros(0, V, D, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))  # a batch of nothing
    assert all(torch.equal(before[name], tensor) for name, tensor in queue.state_dict().items())


def test_evaluation_leaves_the_queue_alone():
    queue = new_queue(size=12)
    queue(*batch(0))
    before = copy.deepcopy(queue.state_dict())
    queue.eval()
    value = queue(*batch(1))
    assert all(torch.equal(before[name], tensor) for name, tensor in queue.state_dict().items())
    queue(*batch(2, number=50))  # nor need the batch fit
    assert torch.equal(queue.train()(*batch(1)), value)
    assert queue.next_row == 8


def test_gradient_is_for_the_batch_alone():
    queue = new_queue()
    embeddings, labels, keys = batch(0)
    keys.requires_grad_()
    embeddings.requires_grad_()
    queue(embeddings, labels, keys).backward()
    assert keys.grad is None
    assert embeddings.grad.abs().max() > 0
    embeddings.grad = None
    first = queue(embeddings, labels, keys)
    queue(embeddings, labels, keys)  # what enters the queue in between does not spoil the first graph
    first.backward()
    assert not queue.queue_embeddings.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_exactly(dtype):
    half, full = new_queue(dtype=torch.float32), new_queue(dtype=torch.float32)
    for step in range(3):
        embeddings, labels, keys = batch(step, dtype=dtype)
        assert torch.equal(half(embeddings, labels, keys), full(embeddings.float(), labels, keys.float()))
    assert half.queue_embeddings.dtype == torch.float32
    small = new_queue(dtype=dtype)  # a queue of half precision for embeddings of it
    assert torch.isfinite(small(*batch(0, dtype=dtype)))
    assert small.queue_embeddings.dtype == dtype


def test_autocast():
    linear = nn.Linear(D, D)
    queue, embeddings, labels = new_queue(dtype=torch.float32), batch(0)[0].float(), batch(0)[1]
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            encoded = linear(embeddings)
            value = queue(encoded, labels, linear(embeddings))
    assert encoded.dtype == torch.bfloat16
    assert value.dtype == torch.float32
    value.backward()
    twin = new_queue(dtype=torch.float32)
    for _ in range(2):
        expected = twin(encoded.detach(), labels, encoded.detach())
    assert torch.equal(value, expected)


def test_copies_and_state():
    queue = new_queue(size=25)
    for step in range(3):
        queue(*batch(step))
    others = [copy.deepcopy(queue), pickle.loads(pickle.dumps(queue)), new_queue(size=25)]
    file = io.BytesIO()
    torch.save(queue.state_dict(), file)
    file.seek(0)
    others[-1].load_state_dict(torch.load(file, weights_only=True))
    for step in range(3, 6):
        expected = queue(*batch(step))
        assert all(torch.equal(other(*batch(step)), expected) for other in others)
    assert set(queue.state_dict()) == {"queue_embeddings", "queue_labels", "_extra_state"}
    with pytest.raises(ValueError, match="Expected labels as in"):
        others[-1](batch(6)[0])


@pytest.mark.parametrize("kind", ["queue", "memory"])
def test_compiles_once_wherever_the_queue_stands(kind):
    torch.compiler.reset()
    model = nn.Linear(6, D)
    loss = {
        "queue": new_queue(size=50, dtype=torch.float32),
        "memory": losses.CrossBatchMemory(losses.SupConLossOut(), embedding_size=D, memory_size=50),
    }[kind]
    twin, graphs = copy.deepcopy(loss), []

    def compiler(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda x, labels: loss(model(x), labels), backend=compiler)
    for _ in range(12):
        x, labels = torch.randn(12, 6), torch.randint(0, 3, (12,))
        torch.testing.assert_close(compiled(x, labels), twin(model(x), labels))
    assert len(graphs) == 1
    torch.compiler.reset()


def test_state_in_formats_that_hold_tensors_alone(tmp_path):
    queue, other = new_queue(), new_queue()
    queue(*batch(0))
    save_file(queue.state_dict(), tmp_path / "queue.safetensors")
    other.load_state_dict(load_file(tmp_path / "queue.safetensors"))
    assert torch.equal(other(*batch(1)), queue(*batch(1)))


# A run that is killed


class Run:
    """A small training run: online and momentum encoder, queue, optimiser with momentum; or PML's kind of memory."""

    def __init__(self, kind):
        from pml_supcon.models import MomentumEncoder  # here, since it takes seconds in each of the processes below

        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, D))
        self.slow = MomentumEncoder(self.model, momentum=0.9)
        self.kind = kind
        if kind == "queue":
            self.loss = new_queue(size=37, dtype=torch.float32, num_views=V)
        else:
            self.loss = losses.CrossBatchMemory(losses.SupConLossIn(), embedding_size=D, memory_size=37)
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


def train_and_die(folder):
    torch.set_num_threads(1)
    for kind in ("queue", "memory"):
        run = Run(kind)
        for number in range(7):
            run.step(number)
        torch.save({name: part.state_dict() for name, part in run.parts.items()}, f"{folder}/{kind}.pt")
    Path(folder, "saved").touch()
    for number in itertools.count(7):  # the run goes on, and is killed in the middle
        run.step(number)
        if number == 9:
            os.kill(os.getpid(), signal.SIGKILL)


def test_save_kill_load_continue(tmp_path):
    process = mp.get_context("spawn").Process(target=train_and_die, args=(str(tmp_path),))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "saved").exists()
    for kind in ("queue", "memory"):
        whole, resumed = Run(kind), Run(kind)
        expected = [whole.step(number) for number in range(17)]
        saved = torch.load(tmp_path / f"{kind}.pt", weights_only=True)
        for name, part in resumed.parts.items():
            part.load_state_dict(saved[name])
        assert [resumed.step(number) for number in range(7, 17)] == expected[7:], kind
        del saved["loss"]["_extra_state"]  # as PML's memory does: where it stands is forgotten, and so its content
        forgetful = Run(kind)
        for name, part in forgetful.parts.items():
            part.load_state_dict(saved[name], **({"strict": False} if name == "loss" else {}))
        assert forgetful.step(7) != expected[7]


# Two processes

WEIGHTS = torch.randn(6, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
GLOBAL = {
    "queue": lambda: new_queue(),
    "rows": lambda: new_queue("in", num_views=V, denominator="one_positive"),
    "first view": lambda: new_queue(contrast_mode="one"),
    "label-free": lambda: new_queue(),
    "memory": lambda: losses.CrossBatchMemory(losses.SupConLossOut(), embedding_size=D, memory_size=32),
    "memory, first view": lambda: losses.CrossBatchMemory(
        losses.SupConLossOut(num_views=V, contrast_mode="one"), embedding_size=D, memory_size=32
    ),
    "self-supervised": lambda: losses.SelfSupervisedLoss(losses.SupConLossOut()),
    "one-sided": lambda: losses.SelfSupervisedLoss(losses.SupConLossOut(), symmetric=False),
}


def train_global(name, loss, samples):
    """Values and gradients of three steps, of these samples of the batch."""
    results = []
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(7, V, 6, dtype=torch.float64, generator=generator)[samples]
        labels = torch.randint(0, 3, (7,), generator=generator)[samples]
        weights = WEIGHTS.clone().requires_grad_()
        embeddings, keys = x @ weights, x @ (WEIGHTS + 0.3)
        if name == "rows":
            value = loss(rows_of(embeddings), labels.repeat(V), keys=rows_of(keys))
        elif name == "label-free":
            value = loss(embeddings, keys=keys)
        elif name == "memory":
            value = loss(embeddings, labels)
        elif name == "memory, first view":
            value = loss(rows_of(embeddings), labels.repeat(V))
        elif name == "self-supervised":
            value = loss(embeddings)
        elif name == "one-sided":
            value = loss(embeddings[:, 0], ref_emb=embeddings[:, 1])
        elif step == 1:
            value = loss(embeddings, labels)
        else:
            value = loss(embeddings, labels, keys=keys)
        results.append((value.detach(), torch.autograd.grad(value, weights)[0]))
    return results


def work(rank):
    samples = slice(0, 3) if rank == 0 else slice(3, 7)
    results = {}
    for name, make in GLOBAL.items():
        loss = losses.GlobalBatchLoss(make())
        results[name] = train_global(name, loss, samples), loss.loss.state_dict()
    return results


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    return run_processes(work, 2, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize("name", GLOBAL)
def test_two_processes_are_one_with_the_whole_batch(of_two_processes, name):
    loss = losses.GlobalBatchLoss(GLOBAL[name]())
    expected = train_global(name, loss, slice(0, 7))
    (zero, state_zero), (one, state_one) = (result[name] for result in of_two_processes)
    for (value, gradient), (value_0, gradient_0), (value_1, gradient_1) in zip(expected, zero, one, strict=True):
        assert torch.equal(value_0, value_1)
        torch.testing.assert_close(value_0, value, rtol=1e-12, atol=0)
        torch.testing.assert_close((gradient_0 + gradient_1) / 2, gradient, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(gradient_0, gradient_1)
    for key, tensor in loss.loss.state_dict().items():
        assert torch.equal(state_zero[key], state_one[key]), key
        torch.testing.assert_close(state_zero[key], tensor, rtol=1e-12, atol=1e-12)


# Bad input


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ((pml.SupConLoss(), 4, 8), TypeError, "to be a SupConLossOut or SupConLossIn, but got SupConLoss"),
    ((losses.SupConLossOut(positives_cap=2, num_views=2), 4, 8), ValueError, "without `positives_cap`, which counts"),
    ((losses.SupConLossOut(), 0, 8), ValueError, "`embedding_size` to be at least 1, but got 0"),
    ((losses.SupConLossOut(), 4, True), TypeError, "`queue_size` to be an integer, but got True"),
])  # fmt: skip
def test_arguments_that_no_batch_fits(arguments, error, message):
    with pytest.raises(error, match=message):
        losses.QueueLoss(*arguments)


@pytest.mark.parametrize("dtype", [torch.int64, "float32"])
def test_the_queue_holds_floating_point(dtype):
    with pytest.raises(TypeError, match=f"`dtype` to be a floating-point torch.dtype, but got .*{dtype}"):
        losses.QueueLoss(losses.SupConLossOut(), 4, 8, dtype=dtype)


ROWS, SAMPLES = torch.randn(6, 2, 4), torch.arange(6)


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ((ROWS.double(), SAMPLES), ValueError, r"float32 holds exactly, but got .*; .*dtype=torch\.float64"),
    ((ROWS, SAMPLES, ROWS.double()), ValueError, r"`keys` in a dtype that .* but got torch.float64"),
    ((ROWS[..., :3], SAMPLES), ValueError, r"the width embedding_size=4, but got \(6, 2, 3\)"),
    ((ROWS, SAMPLES, ROWS[:5]), ValueError, r"shape of the embeddings, \(6, 2, 4\), but got \(5, 2, 4\)"),
    ((ROWS, SAMPLES, None), None, None),
    ((torch.cat([ROWS, ROWS]), SAMPLES.repeat(2)), ValueError, "`queue_size` to be at least the 24 rows .* but got 16"),
    ((ROWS, SAMPLES[:5]), ValueError, r"`labels` to have shape \(6,\)"),
    ((ROWS, SAMPLES.float()), TypeError, "`labels` to hold integers"),
    ((ROWS[:, 0], None), ValueError, "Expected `labels`, or known views"),
    ((ROWS.to("meta"), SAMPLES), ValueError, "on the device of the queue, cpu, but got meta"),
    (([1.0], SAMPLES), TypeError, "`embeddings` to be a torch.Tensor, but got list"),
])  # fmt: skip
def test_a_batch_that_does_not_fit(arguments, error, message):
    queue = new_queue(size=16, dtype=torch.float32)
    if error is None:
        assert torch.isfinite(queue(*arguments))
        return
    with pytest.raises(error, match=message):
        queue(*arguments)
    assert queue.num_filled == 0  # nothing of it has entered


def test_labels_in_some_calls_only():
    queue = new_queue(dtype=torch.float32)
    queue(ROWS)
    with pytest.raises(ValueError, match="Expected no labels as in the calls that filled the queue, but got labels"):
        queue(ROWS, SAMPLES)
    queue = new_queue(dtype=torch.float32)
    queue(ROWS, SAMPLES)
    with pytest.raises(ValueError, match="Expected labels as in the calls that filled the queue, but got no labels"):
        queue(ROWS)


def test_rows_that_are_no_whole_samples():
    with pytest.raises(ValueError, match="5 is not a multiple of 2"):
        new_queue(num_views=2, dtype=torch.float32)(ROWS[:5, 0])


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


def test_random_rows_of_uneven_length():
    """Rows are normalised on both sides, whatever their length."""
    queue, scaled = new_queue(), new_queue()
    for step in range(2):
        rows, labels = random_rows(6, D), torch.arange(6) % 3
        factor = 1 + step + torch.rand(6, 1, dtype=torch.float64)
        torch.testing.assert_close(scaled(rows * factor, labels), queue(rows, labels))
