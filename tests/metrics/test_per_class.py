import math

import numpy as np
import pytest
import torch

from pml_supcon.metrics import per_class_means


def test_per_class_means_by_hand():
    scores = {"a": np.array([1.0, 0.0, 0.5, math.nan, 1.0]), "b": np.array([0.0, 0.2, 0.1, math.nan, 1.0])}
    found = per_class_means(scores, torch.tensor([2**40, 7, 7, -1, 7]))
    assert list(found) == [-1, 7, 2**40]
    assert found[7] == pytest.approx({"a": 0.5, "b": 1.3 / 3, "queries": 3})
    assert found[2**40] == {"a": 1.0, "b": 0.0, "queries": 1}
    assert math.isnan(found[-1]["a"])
    assert found[-1]["queries"] == 0


def test_per_class_means_count_queries_with_a_score_in_any_metric():
    scores = {"a": torch.tensor([1.0, 0.0, math.nan]), "b": np.array([0.5, math.nan, math.nan])}
    expected = {"a": 0.5, "b": 0.5, "queries": 2.0}
    assert per_class_means(scores, np.array([3, 3, 3])) == {3: expected}
    turned = {"b": scores["b"], "a": scores["a"].to(torch.float16).requires_grad_()}
    assert per_class_means(turned, np.array([3, 3, 3])) == {3: expected}


@pytest.mark.parametrize(
    ("scores", "labels", "error", "message"),
    [
        ({}, np.array([0]), ValueError, "`scores` to have a metric, but got none"),
        ({"a": np.ones(2)}, np.array([0]), ValueError, r"`labels` .* shape \(2,\), but got shape \(1,\)"),
        ({"a": np.ones(2), "b": np.ones(3)}, np.zeros(2, int), ValueError, r"one shape .*'a': \(2,\), 'b': \(3,\)"),
        (
            {"a": [1.0]},
            np.zeros(1, int),
            TypeError,
            r"`scores\['a'\]` to be a torch tensor or a numpy array, but got list",
        ),
    ],
)
def test_errors_say_what_was_expected_and_what_came(scores, labels, error, message):
    with pytest.raises(error, match=message):
        per_class_means(scores, labels)
