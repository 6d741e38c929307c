import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import brier_score_loss, log_loss

from pml_supcon.metrics.calibration import (
    brier_score,
    calibration_metrics,
    classwise_calibration_error,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_diagram,
)
from pml_supcon.metrics.temperature import fit_temperature


def scored(rows, *, classes=6, seed=0, sharpness=2.0):
    """Return logits, their softmax, and labels drawn from a flatter softmax."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, classes)) * 2
    chances = softmax(logits)
    labels = np.array([rng.choice(classes, p=row) for row in chances])
    return logits * sharpness, softmax(logits * sharpness), labels


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def bin_of(value, bins):
    """Return the m of ((m - 1) / M, m / M], in exact fractions; 0 belongs to the first."""
    return max(1, math.ceil(Fraction(str(value)) * bins))


def error_by_loops(pairs, bins):
    """Compute equation 3 of Guo et al. over pairs (confidence, True if right)."""
    total = 0.0
    for m in range(1, bins + 1):
        inside = [(value, hit) for value, hit in pairs if bin_of(value, bins) == m]
        if inside:
            confidence = sum(value for value, _ in inside) / len(inside)
            accuracy = sum(hit for _, hit in inside) / len(inside)
            total += len(inside) / len(pairs) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_errors_are_the_equations(bins):
    _, probabilities, labels = scored(300)
    right = probabilities.argmax(axis=1) == labels
    top = list(zip(probabilities.max(axis=1).tolist(), right.tolist(), strict=True))
    assert expected_calibration_error(probabilities, labels, bins=bins) == pytest.approx(error_by_loops(top, bins))
    columns = [list(zip(probabilities[:, c].tolist(), (labels == c).tolist(), strict=True)) for c in range(6)]
    found = classwise_calibration_error(probabilities, labels, bins=bins)
    assert found == pytest.approx(np.mean([error_by_loops(column, bins) for column in columns]))
    assert 0.01 < found < error_by_loops(top, bins)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_confidence_on_an_edge_belongs_to_the_bin_below_it(dtype):
    # 0.6 and 0.8 are edges of five bins, in neither dtype exactly; 1 is inside the last bin.
    confidences = np.array([0.6, 0.61, 0.8, 0.81, 1.0, 0.99])
    probabilities = np.stack([confidences, 1 - confidences], axis=1).astype(dtype)
    right = [True, False, True, False, False, True]
    labels = np.where(right, 0, 1)
    diagram = reliability_diagram(probabilities, labels, bins=5)
    assert [part["count"] for part in diagram] == [0, 0, 1, 2, 3]
    wanted = error_by_loops(list(zip(confidences.tolist(), right, strict=True)), 5)
    assert expected_calibration_error(probabilities, labels, bins=5) == pytest.approx(wanted, abs=1e-6)


def test_many_rows_of_one_confidence_are_summed_exactly():
    rows = np.tile(np.array([[0.95, 0.05]], dtype=np.float32), (2_000_000, 1))
    labels = (np.arange(len(rows)) < len(rows) // 10).astype(np.int64)
    assert expected_calibration_error(rows, labels) == pytest.approx(0.05, abs=1e-7)


def test_one_hot_probabilities():
    rows = np.eye(3)
    assert expected_calibration_error(rows, np.array([1, 2, 0])) == 1.0
    assert expected_calibration_error(rows, np.arange(3)) == 0.0
    assert classwise_calibration_error(rows, np.arange(3)) == 0.0
    assert classwise_calibration_error(rows, np.array([1, 2, 0])) == pytest.approx(2 / 3)
    assert brier_score(rows, np.array([1, 2, 0])) == 2.0


def test_of_equal_probabilities_the_first_column_is_the_prediction():
    diagram = reliability_diagram(np.full((2, 2), 0.5), np.array([0, 1]), bins=2)
    assert diagram[0] == {"low": 0.0, "high": 0.5, "count": 2, "confidence": 0.5, "accuracy": 0.5}
    assert diagram[1] == {"low": 0.5, "high": 1.0, "count": 0, "confidence": None, "accuracy": None}


def test_likelihood_and_brier_score_agree_with_scikit_learn():
    logits, probabilities, labels = scored(300, seed=3)
    assert negative_log_likelihood(logits, labels) == pytest.approx(log_loss(labels, probabilities))
    assert negative_log_likelihood(np.log(probabilities), labels) == pytest.approx(log_loss(labels, probabilities))
    wanted = brier_score_loss(labels, probabilities, scale_by_half=False, labels=range(6))
    assert brier_score(probabilities, labels) == pytest.approx(wanted)
    # The likelihood of a probability that underflows is finite.
    assert negative_log_likelihood(np.array([[0.0, 2000.0]]), np.array([0])) == 2000.0


def test_metrics_score_the_softmax_at_a_temperature():
    logits, _, labels = scored(300)
    probabilities = softmax(logits / 3)
    found = calibration_metrics(logits, labels, temperature=3, bins=10)
    assert list(found) == ["ece", "classwise_ece", "nll", "brier"]
    assert found["ece"] == pytest.approx(expected_calibration_error(probabilities, labels, bins=10))
    assert found["classwise_ece"] == pytest.approx(classwise_calibration_error(probabilities, labels, bins=10))
    assert found["nll"] == pytest.approx(log_loss(labels, probabilities))
    assert found["brier"] == pytest.approx(brier_score(probabilities, labels))


def test_torch_and_numpy_agree_in_bfloat16():
    logits, probabilities, labels = scored(200)
    rows, scores = torch.from_numpy(probabilities).bfloat16(), torch.from_numpy(logits).bfloat16()
    wanted = torch.from_numpy(labels)
    for function in (expected_calibration_error, classwise_calibration_error, brier_score):
        assert function(rows, wanted) == function(rows.float().numpy(), labels)
    assert calibration_metrics(scores, wanted) == calibration_metrics(scores.float().numpy(), labels)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 5.0])
def test_temperature_has_the_least_likelihood(sharpness):
    logits, _, labels = scored(400, sharpness=sharpness)
    loss = lambda log_t: log_loss(labels, softmax(logits / math.exp(log_t)))  # noqa: E731
    wanted = minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-8}).x
    assert fit_temperature(logits, labels) == pytest.approx(math.exp(wanted), rel=1e-4)
    assert fit_temperature(logits, labels) == pytest.approx(sharpness, rel=0.25)
    assert fit_temperature(torch.from_numpy(logits), torch.from_numpy(labels)) == fit_temperature(logits, labels)


@pytest.mark.parametrize(
    ("logits", "labels", "why"),
    [
        ([[3.0, 0.0], [0.0, 1.0]], [0, 1], "the best is 0.01 or below; of 2 held-out rows 2 are right"),
        ([[3e-6, 0.0], [0.0, 1e-6], [0.0, 1e-6]], [0, 1, 0], "or below; of 3 held-out rows 2 are right"),
        ([[0.0, 0.0], [0.0, 0.0]], [1, 0], "same logit in all columns, so that any temperature is as good"),
        ([[3.0, 0.0], [0.0, 1.0]], [1, 0], "the best is 100 or above: wrong classes have larger logits"),
    ],
)
def test_temperature_is_1_with_a_warning_where_there_is_no_optimum(logits, labels, why, caplog):
    assert fit_temperature(np.array(logits), np.array(labels)) == 1.0
    assert len(caplog.records) == 1
    assert why in caplog.text


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ([[2.0, -1.0]], {}, "sum 1, but got 1 of 1 rows .* from -1 to 2"),
        ([[0.5, 0.4]], {}, "with sum 0.9.* softmax to logits first"),
        ([[1.0]], {}, "at least 2 classes, but got 1"),
        ([[0.2, 0.8]], {"labels": np.array([2])}, "to be columns of `probabilities`, from 0 to 1, but got 2 to 2"),
        ([[0.2, 0.8]], {"labels": np.array([-1])}, "from 0 to 1, but got -1 to -1"),
        ([[0.2, 0.8]], {"bins": 0}, "`bins` to be at least 1, but got 0"),
        ([[0.2, 0.8]], {"temperature": math.inf}, "`temperature` to be a finite number, but got inf"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(scores, options, message):
    functions = [expected_calibration_error, classwise_calibration_error, reliability_diagram]
    for function in [calibration_metrics] if "temperature" in options else functions:
        with pytest.raises(ValueError, match=message):
            function(np.array(scores), **{"labels": np.array([0])} | options)


def test_a_temperature_leaves_logits_finite():
    logits, labels = np.array([[1.0, 2.0], [3.0, 1.0]]), np.array([1, 0])
    assert calibration_metrics(logits, labels, temperature=1e-300)["ece"] == 0
    with pytest.raises(ValueError, match="`temperature` to leave the logits over it finite, but got 5e-324"):
        calibration_metrics(logits, labels, temperature=5e-324)
