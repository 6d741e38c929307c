"""The projection head beside the same layers written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pml_supcon.models import PredictionHead, ProjectionHead


def test_two_layers_are_linear_relu_linear():
    head = ProjectionHead(6, 3, hidden_features=10)
    first, last = (layer for layer in head if isinstance(layer, nn.Linear))
    x = torch.randn(5, 6)
    expected = F.relu(x @ first.weight.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(head(x), expected)


def test_the_defaults_are_the_papers_except_for_the_hidden_width():
    head = ProjectionHead(32)
    assert [tuple(p.shape) for p in head.parameters()] == [(32, 32), (32,), (128, 32), (128,)]


def test_one_layer_is_linear():
    head = ProjectionHead(6, 3, num_layers=1, hidden_features=99, batch_norm=True)
    assert [(layer.in_features, layer.out_features, layer.bias is None) for layer in head] == [(6, 3, False)]


def test_batch_norm_precedes_each_relu():
    head = ProjectionHead(6, 3, hidden_features=4, num_layers=3, batch_norm=True)
    kinds = [type(layer) for layer in head]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear]
    assert [layer.bias is None for layer in head if isinstance(layer, nn.Linear)] == [True, True, False]


@pytest.mark.parametrize("name", ["in_features", "out_features", "hidden_features", "num_layers"])
def test_sizes_are_checked(name):
    with pytest.raises(ValueError, match=f"argument `{name}` to be at least 1, but got 0"):
        ProjectionHead(**{"in_features": 4, name: 0})


def test_a_prediction_head_is_the_papers():
    head = PredictionHead(6)
    assert [type(layer) for layer in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert [(layer.in_features, layer.out_features) for layer in head if isinstance(layer, nn.Linear)] == [
        (6, 4096),
        (4096, 6),
    ]
    plain = PredictionHead(6, hidden_features=10, batch_norm=False)
    assert [type(layer) for layer in plain] == [nn.Linear, nn.ReLU, nn.Linear]
    with pytest.raises(ValueError, match="argument `features` to be at least 1, but got 0"):
        PredictionHead(0)
