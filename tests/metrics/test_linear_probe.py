import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.labelled_points import of_any_scale
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from pml_supcon.metrics.linear_probe import fit_linear_probe, linear_probe_metrics, probe_logits, score_linear_probe
from pml_supcon.metrics.logistic import top_accuracies
from pml_supcon.metrics.probe_selection import choose_inverse_l2


def scores_by_definition(train, learnt, test, *, inverse_l2, standardize):
    """Return class scores of the test rows; PyTorch minimises the written-out objective in float64."""
    mean, scale = (train.mean(axis=0), train.std(axis=0)) if standardize else (0.0, 1.0)
    x, z = (torch.from_numpy((rows - mean) / scale) for rows in (train, test))
    y = torch.from_numpy(learnt)
    weight = torch.zeros(int(y.max()) + 1, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(weight), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=2000, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure():
        optimizer.zero_grad()
        cross_entropy = torch.nn.functional.cross_entropy(x @ weight.T + bias, y, reduction="sum")
        value = (cross_entropy + weight.square().sum() / (2 * inverse_l2)) / len(y)
        value.backward()
        return value

    optimizer.step(closure)
    return (z @ weight.T + bias).detach().softmax(dim=1).numpy()


@pytest.mark.parametrize("inverse_l2", [1.0, 0.01])
@pytest.mark.parametrize("standardize", [True, False])
def test_agrees_with_the_objective_minimised_elsewhere(inverse_l2, standardize):
    (train, learnt), (test, wanted) = of_any_scale(300, seed=1), of_any_scale(200, seed=2)
    if not standardize:  # keep the unscaled problem well conditioned
        train, test = ((x - np.arange(6) * 50) / 10.0 ** np.linspace(-2, 2, 6) for x in (train, test))
    options = {"inverse_l2": inverse_l2, "standardize": standardize}
    expected = scores_by_definition(train, learnt, test, **options)
    probe = fit_linear_probe(train, learnt, **options)
    np.testing.assert_allclose(probe.predict_proba(test), expected, atol=3e-3)

    order = np.argsort(-expected, axis=1)
    top = {f"top{k}": np.mean([label in row[:k] for label, row in zip(wanted, order, strict=True)]) for k in (1, 5)}
    found = linear_probe_metrics(train, learnt, test, wanted, **options)
    assert found == pytest.approx(top, abs=1.01 / len(test))  # one near-tie may fall otherwise
    assert found == score_linear_probe(probe, test, wanted)
    assert found["top1"] == probe.score(test, wanted)
    assert 0.2 < found["top1"] < found["top5"] < 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_torch_and_numpy_agree_and_large_labels_are_compared_exactly(dtype):
    train, learnt = (torch.from_numpy(x) for x in of_any_scale(100, seed=3, spread=0.3))
    train = train.to(dtype)
    found = linear_probe_metrics(train, learnt + 2**60, train, learnt + 2**60)
    plain = train.float().numpy() if dtype != torch.float64 else train.numpy()
    assert found == linear_probe_metrics(plain, learnt.numpy(), plain, learnt.numpy())
    assert found["top1"] > 0.9


def test_two_labels_and_equal_scores():
    train, learnt = np.array([[-2.0], [-1.0], [1.0], [2.0]]), np.array([5, 5, 9, 9])
    test, wanted = np.array([[-1.0], [1.0], [-1.0], [1.0]]), np.array([5, 9, 9, 5])
    assert linear_probe_metrics(train, learnt, test, wanted) == {"top1": 0.5, "top5": 1.0}
    # Of seven equal scores the smaller labels rank first.
    equal = SimpleNamespace(classes_=np.arange(7), decision_function=lambda rows: np.zeros((len(rows), 7)))
    assert top_accuracies(equal, np.ones((4, 2)), np.array([0, 1, 4, 5])) == (0.25, 0.75)


def test_labels_that_training_lacks_count_as_errors_with_a_warning(caplog):
    train, learnt = np.array([[-2.0], [-1.0], [1.0], [2.0]]), np.array([5, 5, 9, 9])
    test, wanted = np.array([[-3.0], [-3.0], [3.0], [3.0], [3.0]]), np.array([5, 4, 7, 9, 10])
    assert linear_probe_metrics(train, learnt, test, wanted) == pytest.approx({"top1": 0.4, "top5": 0.4})
    assert [record.getMessage() for record in caplog.records] == [
        "3 of 5 test rows have a label that no training row has (3 labels): they count as errors."
    ]


@pytest.mark.parametrize("classes", [2, 5])
def test_softmax_of_logits_is_the_predicted_probability(classes):
    features, labels = of_any_scale(200, seed=1, classes=classes)
    probe = fit_linear_probe(features, labels + 3)
    logits = probe_logits(probe, torch.from_numpy(features))
    assert logits.shape == (200, classes)
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(dim=1), probe.predict_proba(features), atol=1e-12)
    assert (probe.classes_[logits.argmax(axis=1)] == probe.predict(features)).all()
    with pytest.raises(ValueError, match=r"to have the 6 columns of the fitted rows, but got shape \(200, 5\)"):
        probe_logits(probe, features[:, :5])


def test_auto_fits_all_rows_with_the_chosen_penalty():
    (train, learnt), (test, wanted) = of_any_scale(150, seed=1, spread=4), of_any_scale(200, seed=2, spread=4)
    chosen = choose_inverse_l2(train, learnt, seed=3).inverse_l2
    assert chosen != 1.0
    auto = fit_linear_probe(train, learnt, inverse_l2="auto", seed=3)
    np.testing.assert_array_equal(
        auto.decision_function(test), fit_linear_probe(train, learnt, inverse_l2=chosen).decision_function(test)
    )
    found = linear_probe_metrics(train, learnt, test, wanted, inverse_l2="auto", seed=3)
    assert found == linear_probe_metrics(train, learnt, test, wanted, inverse_l2=chosen)


def test_no_convergence_is_a_warning_with_the_options_to_change_and_others_pass_through(monkeypatch):
    train, learnt = of_any_scale(300, seed=1)
    message = r"within max_iter=2.* Raise max_iter or lower inverse_l2=1.0"
    with pytest.warns(ConvergenceWarning, match=message) as caught:
        fit_linear_probe(train, learnt, max_iter=2)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(ConvergenceWarning, match="Raise max_iter, set standardize=True or lower inverse_l2=1.0"):
        linear_probe_metrics(train, learnt, train, learnt, max_iter=2, standardize=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_linear_probe(train, learnt)
    fit = LogisticRegression.fit

    def warn_and_fit(self, *args):
        warnings.warn("another", FutureWarning, stacklevel=1)
        return fit(self, *args)

    monkeypatch.setattr(LogisticRegression, "fit", warn_and_fit)
    with pytest.warns(FutureWarning, match="another"):
        fit_linear_probe(train, learnt)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train_labels": np.array([0, 1])}, ValueError, r"`train_labels` .* \(4,\), but got shape \(2,\)"),
        ({"test_labels": np.zeros(4)}, TypeError, "`test_labels` to be integers, but got float64"),
        ({"train_labels": np.full(4, 3)}, ValueError, "at least two labels, but got only 3"),
        ({"test_features": np.eye(4)[:, :3]}, ValueError, r"same width, but got shapes \(4, 4\) and \(4, 3\)"),
        ({"train_features": np.full((4, 4), math.inf)}, ValueError, "`train_features` to be finite, .* 4 of 4 rows"),
        ({"train_features": np.eye(4) * 1e200}, ValueError, r"`features` whose squares have a finite sum, .* 1e\+200$"),
        ({"inverse_l2": 0.0}, ValueError, "`inverse_l2` to be above 0, but got 0.0"),
        ({"inverse_l2": "best"}, ValueError, "`inverse_l2` to be a number or \"auto\", but got 'best'"),
        ({"seed": -1}, ValueError, "`seed` to be at least 0, but got -1"),
        ({"max_iter": 0}, ValueError, "`max_iter` to be at least 1, but got 0"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(change, error, message):
    valid = {"train_features": np.eye(4), "train_labels": np.array([0, 0, 1, 1])}
    valid |= {"test_features": np.eye(4), "test_labels": np.array([0, 0, 1, 1])}
    with pytest.raises(error, match=message):
        linear_probe_metrics(**valid | change)
