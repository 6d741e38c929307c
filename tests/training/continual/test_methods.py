"""The losses of continual learning against loops from the paper, their invariants, and the frozen past model."""

import pytest
import torch
import torch.nn.functional as F
from helpers.process_groups import run_processes
from torch import nn

from pml_supcon.losses import GlobalBatchLoss, RelationDistillation, SupConLossOut
from pml_supcon.training.continual.methods import Co2L, PastModel, build_task_criterion
from pml_supcon.training.continual.settings import ContinualSettings
from pml_supcon.training.methods import Classification, Contrastive

LABELS = torch.tensor([0, 1, 2, 3, 2, 0, 3, 2])  # tasks (0, 1) and (2, 3)


@pytest.fixture
def batch():
    """Outputs and keys of eight samples in two views, (B, V, D), in float64."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(8, 2, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    return outputs, torch.randn(8, 2, 5, generator=generator, dtype=torch.float64)


def rows_of(views):
    return F.normalize(views.transpose(0, 1).flatten(0, 1), dim=1)


def asymmetric(outputs, labels, present, temperature):
    """Return equation 3 by loops: anchors are the rows of present classes, all others are contrasted."""
    z, ids = rows_of(outputs), labels.repeat(2).tolist()
    losses = []
    for i in range(len(z)):
        if ids[i] in present:
            others = [k for k in range(len(z)) if k != i]
            positives = [k for k in others if ids[k] == ids[i]]
            log_sum = torch.stack([z[i] @ z[k] / temperature for k in others]).logsumexp(0)
            losses.append(-sum(z[i] @ z[p] / temperature - log_sum for p in positives) / len(positives))
    return sum(losses) / len(losses)


def distilled(outputs, keys, temperature, past_temperature):
    """Return equation 7 by loops: the cross entropy of the similarities of each row to all others."""
    z, past = rows_of(outputs), rows_of(keys)
    losses = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        log_p = torch.stack([z[i] @ z[j] / temperature for j in others]).log_softmax(0)
        wanted = torch.stack([past[i] @ past[j] / past_temperature for j in others]).softmax(0)
        losses.append(-(wanted * log_p).sum())
    return sum(losses) / len(losses)


def criterion(number=2, present=(2, 3), **options):
    distillation = {"distill_temperature": 0.3, "past_temperature": 0.1}
    if options.get("distill_weight") == 0:
        distillation = {}
    settings = ContinualSettings(temperature=0.4, **distillation, **options)
    return build_task_criterion(settings, number, present)


@pytest.mark.parametrize(("contrastive", "distill"), [(1.0, 1.0), (0.5, 2.0), (0.0, 1.0), (1.0, 0.0)])
def test_co2l_is_the_sum_of_both_parts(contrastive, distill, batch):
    outputs, keys = batch
    loss = criterion(contrastive_weight=contrastive, distill_weight=distill)
    value = loss(outputs, LABELS, keys if distill else None)  # there is no past model without distillation
    parts = asymmetric(outputs, LABELS, (2, 3), 0.4), distilled(outputs, keys, 0.3, 0.1)
    wanted = contrastive * parts[0] + distill * parts[1]
    assert value.item() == pytest.approx(wanted.item(), rel=1e-8)
    for wrong in (
        contrastive * asymmetric(outputs, LABELS, (0, 1, 2, 3), 0.4) + distill * parts[1],  # past rows as anchors
        contrastive * parts[0] + distill * distilled(outputs, keys, 0.1, 0.3),  # temperatures exchanged
        contrastive * parts[0] + distill * distilled(keys, outputs, 0.3, 0.1),  # models exchanged
    ):
        same = (contrastive == 0 or distill == 0) and torch.isclose(wrong, wanted)
        assert same or abs(value.item() - wrong.item()) > 1e-3
    (gradient,) = torch.autograd.grad(value, outputs)
    (expected,) = torch.autograd.grad(wanted, outputs)
    assert torch.allclose(gradient, expected, rtol=1e-6, atol=1e-9)


def test_the_first_task_is_the_supcon_loss(batch):
    outputs, _ = batch
    labels = LABELS % 2
    value = criterion(1, (0, 1), contrastive_weight=0.3)(outputs, labels)
    assert value.item() == pytest.approx(SupConLossOut(0.4)(outputs, labels).item(), rel=1e-8)


def test_all_anchors_are_the_symmetric_loss(batch):
    outputs, _ = batch
    value = criterion(anchors="all", distill_weight=0.0)(outputs, LABELS)
    assert value.item() == pytest.approx(SupConLossOut(0.4)(outputs, LABELS).item(), rel=1e-8)


def test_a_batch_of_past_classes_has_the_loss_0_and_a_gradient(batch):
    outputs, _ = batch
    value = criterion(distill_weight=0.0)(outputs, LABELS % 2)
    assert value.item() == 0
    (gradient,) = torch.autograd.grad(value, outputs)
    assert not gradient.any()


def test_the_distillation_alone_has_no_gradient_where_the_models_agree(batch):
    outputs, _ = batch
    same = Co2L(SupConLossOut(), RelationDistillation(0.2, 0.2), None, (0.0, 1.0))
    (gradient,) = torch.autograd.grad(same(outputs, LABELS, outputs.detach()), outputs)
    assert gradient.abs().max() < 1e-12
    (gradient,) = torch.autograd.grad(same(outputs, LABELS, outputs.detach().flip(0)), outputs)
    assert gradient.abs().max() > 1e-3


def test_the_comparators_have_the_losses_of_the_engine():
    kinds = {"supcon_replay": Contrastive, "er": Classification, "finetune": Classification, "joint": Classification}
    for method, kind in kinds.items():
        assert type(build_task_criterion(ContinualSettings(method=method), 2, [2, 3])) is kind


def test_the_past_model_is_frozen_in_evaluation_mode():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    past = PastModel(model)
    before = {name: value.clone() for name, value in past.state_dict().items()}
    inputs = torch.randn(6, 3)
    first = past.train()(inputs)
    assert not first.requires_grad
    assert not past.training
    assert not past.encoder[2].training
    nn.init.zeros_(model[0].weight)
    past.update_parameters(model)
    assert torch.equal(past(inputs), first)
    assert all(torch.equal(value, before[name]) for name, value in past.state_dict().items())


SIZES = (4, 3)  # samples of each process; the second one has no present class
MIXED = torch.tensor([2, 3, 2, 0, 0, 1, 1])


def co2l(rank, sizes):
    """Return the loss of a process's rows, and their gradient."""
    generator = torch.Generator().manual_seed(0)
    outputs, keys = (torch.randn(7, 2, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    leaf = outputs[own].clone().requires_grad_()
    settings = ContinualSettings(contrastive_weight=0.5, distill_weight=2.0, temperature=0.4, past_temperature=0.1)
    criterion = build_task_criterion(settings, 2, (2, 3))
    assert all(isinstance(part, GlobalBatchLoss) for part in (criterion.contrastive, criterion.distillation))
    loss = criterion(leaf, MIXED[own], keys[own])
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.slow
def test_two_processes_have_the_loss_and_gradient_of_one(tmp_path):
    value, gradient = co2l(0, (7,))
    results = run_processes(co2l, len(SIZES), tmp_path, SIZES)
    for own, _ in results:
        torch.testing.assert_close(own, value)
    # the mean over the processes, which a data-parallel model takes
    torch.testing.assert_close(torch.cat([part for _, part in results]) / len(SIZES), gradient)
    alone = co2l(0, (4,))[0]
    assert (alone - value).abs() > 1e-3  # the rows of one process alone
