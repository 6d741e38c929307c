"""Scores of frozen features: the choice of the probe's penalty."""

import pytest
import torch

from pml_supcon.metrics import choose_inverse_l2, linear_probe_metrics
from pml_supcon.training.scoring import Embedded, probe_metrics


def split(labels, seed, *, spread=0.5):
    """Return rows around a direction for each of eight labels, beside 40 columns of noise."""
    generator = torch.Generator().manual_seed(seed)
    signal = torch.eye(8)[labels % 8] + spread * torch.randn(len(labels), 8, generator=generator)
    features = torch.cat([signal, 3 * torch.randn(len(labels), 40, generator=generator)], 1)
    return Embedded(features, torch.nn.functional.normalize(features), labels)


def test_training_images_choose_the_penalty():
    train, test = split(torch.arange(400) % 8, 0), split(torch.arange(400) % 8, 1)
    wrong = torch.where(torch.arange(400) % 3 == 0, (train.labels + 1) % 8, train.labels)
    found = probe_metrics(train, test, wrong, seed=2)
    chosen = choose_inverse_l2(train.features, wrong, seed=2).inverse_l2
    assert found["inverse_l2"] == chosen < 1
    expected = linear_probe_metrics(train.features, wrong, test.features, test.labels, inverse_l2=chosen)
    assert found == expected | {"inverse_l2": chosen}
    assert found["top1"] > linear_probe_metrics(train.features, wrong, test.features, test.labels)["top1"]


@pytest.mark.parametrize(
    "labels",
    [
        torch.arange(96) % 8,  # too few
        torch.arange(120),  # one of each
        torch.cat([torch.arange(110), torch.arange(11)]),  # two of some: fewer than would be held out
    ],
)
def test_too_few_images_have_a_penalty_of_one(labels):
    train, test = split(labels, 0), split(labels, 1)
    found = probe_metrics(train, test, labels, seed=0)
    assert found == linear_probe_metrics(train.features, labels, test.features, labels) | {"inverse_l2": 1.0}
