"""`LearnableTemperature`: a parameter of the losses, in their wrappers, in training and on several processes."""

import copy
import io
import math
import re

import pytest
import torch
from helpers.process_groups import run_processes
from pytorch_metric_learning import distances, reducers
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pml_supcon.losses import (
    CrossBatchMemory,
    CrossModalLoss,
    GlobalBatchLoss,
    LearnableTemperature,
    QueueLoss,
    SelfSupervisedLoss,
    SupConLossIn,
    SupConLossOut,
)

LOSSES = {"out": SupConLossOut, "in": SupConLossIn}


def learnt(initial=0.1, *, loss=SupConLossOut, minimum=0.01, maximum=1.0, **options):
    return loss(temperature=LearnableTemperature(initial, minimum, maximum), **options).double()


def batch(samples=9):
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(samples, 2, 4, generator=generator, dtype=torch.float64)
    return views, torch.randint(0, 4, (samples,), generator=generator)


def gradient_of(value, loss):
    """Return the gradient of the logarithm."""
    (parameter,) = loss.parameters()
    return torch.autograd.grad(value, parameter)[0]


@pytest.mark.parametrize("loss", LOSSES.values())
def test_equals_a_fixed_temperature(loss):
    views, labels = batch()
    for options in ({}, {"scale_by_temperature": True}, {"distance": distances.LpDistance(power=2)}):
        ours = learnt(0.2, loss=loss, **options)
        assert ours.temperature == pytest.approx(0.2, rel=1e-7)
        fixed = loss(temperature=ours.temperature, **options)
        torch.testing.assert_close(ours(views, labels), fixed(views, labels), rtol=1e-12, atol=0)


def test_it_is_one_parameter_without_dimensions():
    loss = learnt()
    assert [(name, parameter.shape) for name, parameter in loss.named_parameters()] == [
        ("learnt_temperature.logarithm", ())
    ]
    assert list(SupConLossOut().parameters()) == []
    assert "temperature" in loss._record_these
    assert isinstance(loss.temperature, float)


def wrapped(loss, name):
    """Return a loss in a wrapper, and its value for a batch; the second one where there is a memory."""
    views, labels = batch()
    rows, row_labels = views.transpose(0, 1).flatten(0, 1), labels.repeat(2)
    if name == "queue":
        queue = QueueLoss(loss, 4, 64, dtype=torch.float64)
        queue(views.flip(0), labels)
        return queue(views, labels)
    if name == "memory":
        memory = CrossBatchMemory(loss, 4, 64)
        memory(rows.flip(0), row_labels)
        return memory(rows, row_labels)
    if name == "towers":
        return CrossModalLoss(loss)(rows[:9], rows[9:], labels)
    if name == "self-supervised":
        return SelfSupervisedLoss(loss)(views)
    if name == "global":
        return GlobalBatchLoss(loss)(views, labels)
    return loss(views, labels)


@pytest.mark.parametrize("options", [{}, {"reducer": reducers.ThresholdReducer(low=0.1)}])
@pytest.mark.parametrize("name", ["alone", "queue", "memory", "towers", "self-supervised", "global"])
def test_gradient_in_every_wrapper_by_finite_differences(name, options):
    loss = learnt(0.3, **options)
    found = gradient_of(wrapped(loss, name), loss)
    low, high = (wrapped(SupConLossOut(0.3 * math.exp(step), **options), name) for step in (-1e-5, 1e-5))
    assert found == pytest.approx(((high - low) / 2e-5).item(), rel=1e-5)
    assert abs(found) > 0.1


def test_a_step_moves_it_and_calls_move_it_back_into_its_range():
    loss = learnt(0.1, minimum=0.05, maximum=0.2)
    (logarithm,) = loss.parameters()
    optimizer = torch.optim.SGD([logarithm], lr=1.0)
    for direction, end in ((-1, 0.05), (1, 0.2), (-1, 0.05)):  # past an end, and back from it
        for _ in range(3):
            optimizer.zero_grad()
            (-direction * loss.learnt_temperature().log()).backward()
            optimizer.step()
        assert loss.temperature == pytest.approx(end)
        loss(*batch())
        assert logarithm.item() == pytest.approx(math.log(end))


def test_learns_the_best_of_fixed_temperatures():
    views, labels = batch(24)
    views = torch.randn(4, 1, 4, dtype=torch.float64)[labels] + 0.5 * views
    fixed = {tau / 100: SupConLossOut(tau / 100)(views, labels).item() for tau in range(5, 101)}
    best = min(fixed, key=fixed.get)
    assert 0.05 < best < 1
    loss = learnt(0.1)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss(views, labels).backward()
        optimizer.step()
    assert loss.temperature == pytest.approx(best, abs=0.01)


def test_copies_states_and_moves():
    loss, (views, labels) = learnt(0.3), batch()
    twin = copy.deepcopy(loss)
    with torch.no_grad():
        loss.learnt_temperature.logarithm.add_(0.5)
    assert twin.temperature == pytest.approx(0.3)
    twin.load_state_dict(loss.state_dict())
    assert torch.equal(twin(views, labels), loss(views, labels))
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(views, labels), loss(views, labels))
    with pytest.raises(RuntimeError, match=r"Missing key.*learnt_temperature\.logarithm"):
        learnt().load_state_dict(SupConLossOut().state_dict())
    with pytest.raises(
        ValueError, match=r"the device of the embeddings, cpu, but got meta; `loss\.to\(device\)` moves"
    ):
        loss.to("meta")(views, labels)


def test_the_temperature_can_be_replaced():
    loss, (views, labels) = SupConLossOut(0.5), batch()
    loss.temperature = LearnableTemperature(0.2)
    assert len(list(loss.parameters())) == 1
    torch.testing.assert_close(loss.double()(views, labels), SupConLossOut(loss.temperature)(views, labels))
    loss.temperature = 0.4
    assert list(loss.parameters()) == []
    assert torch.equal(loss(views, labels), SupConLossOut(0.4)(views, labels))


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_compiles_whole(backend):
    torch.compiler.reset()
    views, labels = batch()
    found = []
    for compiled in (False, True):
        model, loss = nn.Linear(4, 3).double(), learnt(0.2, backend=backend)
        model.load_state_dict({"weight": torch.arange(12.0).view(3, 4).sin(), "bias": torch.ones(3)})
        parameters = [*model.parameters(), *loss.parameters()]

        def step(rows, model=model, loss=loss):
            return loss(model(rows), labels)

        value = (torch.compile(step, fullgraph=True, backend="aot_eager") if compiled else step)(views)
        found.append((value.detach(), *torch.autograd.grad(value, parameters)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "`maximum` to be at least 0.5, but got 0.2", (0.3, 0.5, 0.2)),
        (ValueError, "`initial` to be between 0.01 and 1.0, but got 2", (2, 0.01, 1.0)),
        (ValueError, "`initial` to be between 0.01 and 1.0, but got 0.001", (0.001, 0.01, 1.0)),
        (ValueError, "`minimum` to be above 0, but got 0", (0.1, 0, 1.0)),
        (ValueError, "`initial` to be a finite number, but got nan", (math.nan,)),
        (ValueError, "`maximum` to be a finite number, but got inf", (0.1, 0.01, math.inf)),
        (TypeError, "`initial` to be a number, but got '0.1'", ("0.1",)),
    ],
)
def test_bad_ranges(error, message, arguments):
    with pytest.raises(error, match=message):
        LearnableTemperature(*arguments)


@pytest.mark.parametrize("temperature", [torch.tensor(0.1), nn.Parameter(torch.tensor(0.1)), nn.Linear(1, 1)])
def test_a_loss_takes_no_bare_tensor(temperature):
    for give in (SupConLossOut, lambda temperature: setattr(SupConLossOut(), "temperature", temperature)):
        with pytest.raises(TypeError, match="`temperature` to be a number or a `LearnableTemperature`, but got"):
            give(temperature)


def test_a_temperature_that_is_nan_is_an_error():
    loss = learnt()
    with torch.no_grad():
        loss.learnt_temperature.logarithm.fill_(torch.nan)
    with pytest.raises(ValueError, match="`temperature` to be a finite number, but got nan"):
        loss(*batch())


GLOBAL = {
    "ring": lambda: learnt(0.2, backend="tiled"),
    "ring, first view": lambda: learnt(0.2, backend="tiled", contrast_mode="one", loss=SupConLossIn),
    "gathered": lambda: learnt(0.2, backend="reference"),
    "scaled": lambda: learnt(0.2, scale_by_temperature=True),
    "reducer": lambda: learnt(0.2, reducer=reducers.ThresholdReducer(low=0.1)),
    "distance": lambda: learnt(0.5, distance=distances.LpDistance(power=2)),
    "queue": lambda: QueueLoss(learnt(0.2), 3, 64, dtype=torch.float64),
    "towers": lambda: CrossModalLoss(learnt(0.2)),
}
SHARDS = {2: [5, 4], 3: [4, 0, 5]}


class WithLoss(nn.Module):
    """A model and its loss as one module, so that DDP averages the gradients of both."""

    def __init__(self, name):
        super().__init__()
        torch.manual_seed(1)
        self.model, self.loss = nn.Linear(4, 3).double(), GlobalBatchLoss(GLOBAL[name]())

    def forward(self, views, labels):
        rows = self.model(views)
        towers = isinstance(self.loss.loss, CrossModalLoss)
        return self.loss(rows[:, 0], labels, ref_emb=rows[:, 1]) if towers else self.loss(rows, labels)


def two_steps(module, views, labels):
    """Return the losses and gradients of two steps, all in one tensor."""
    found, optimizer = [], torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        value = module(views, labels)
        value.backward()
        found += [value.detach().view(1), *(parameter.grad.flatten().clone() for parameter in module.parameters())]
        optimizer.step()
    return torch.cat(found)


def work(rank, sizes):
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    views, labels = (part[mine] for part in batch())
    results = {name: two_steps(DistributedDataParallel(WithLoss(name)), views, labels) for name in GLOBAL}
    for name in ("ring", "reducer"):
        module = WithLoss(name)
        if rank == 1:
            with torch.no_grad():
                module.loss.loss.learnt_temperature.logarithm.add_(0.1)
        with pytest.raises(ValueError, match=r"on rank 1") as raised:
            module(views, labels)
        results[f"{name}, differs"] = str(raised.value)
    return results


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_under_ddp_equal_one(tmp_path, processes):
    results = run_processes(work, processes, tmp_path, SHARDS[processes])
    for name in GLOBAL:
        expected = two_steps(WithLoss(name), *batch())
        for result in results:
            torch.testing.assert_close(result[name], expected, rtol=1e-10, atol=1e-12, msg=name)
    for result in results:
        assert re.search(r"temperature: 0\.\S+ on rank 0, 0\.22", result["ring, differs"])
        assert "log of learnt_temperature: -1.6" in result["reducer, differs"]
