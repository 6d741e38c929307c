from functools import partial

import numpy as np
import pytest
from helpers.labelled_points import overlapping
from sklearn.linear_model import LogisticRegression

from pml_supcon._strata import hold_out
from pml_supcon.metrics.calibrated_probe import calibrated_probe_metrics, fit_calibrated_probe
from pml_supcon.metrics.calibration import calibration_metrics
from pml_supcon.metrics.linear_probe import probe_logits
from pml_supcon.metrics.temperature import fit_temperature

NAMES = ("ece", "classwise_ece", "nll", "brier")

#: Classes that overlap in many features, so that a probe is overconfident.
noisy = partial(overlapping, classes=4, width=40, apart=0.3, first_label=10)


def test_probe_and_temperature_are_fitted_to_different_rows():
    features, labels = noisy(200, seed=1)
    fitted, held = hold_out(labels, 0.3, 5)
    assert len(held) == 60
    found = fit_calibrated_probe(features, labels, held_out=0.3, inverse_l2=10.0, standardize=False, seed=5)
    classifier = LogisticRegression(C=10.0, max_iter=1000).fit(features[fitted], labels[fitted])
    np.testing.assert_allclose(probe_logits(found.probe, features), classifier.decision_function(features))
    assert found.temperature == fit_temperature(classifier.decision_function(features[held]), labels[held] - 10)
    assert found.temperature > 1.5
    assert found.temperature != fit_calibrated_probe(features, labels, held_out=0.3, inverse_l2=10.0).temperature


def test_metrics_score_the_test_rows_before_and_after_scaling():
    (train, learnt), (test, wanted) = noisy(300, seed=1), noisy(400, seed=5)
    found = calibrated_probe_metrics(train, learnt, test, wanted, held_out=0.4, bins=10, inverse_l2=10.0)
    probe, temperature = fit_calibrated_probe(train, learnt, held_out=0.4, inverse_l2=10.0)
    before = calibration_metrics(probe_logits(probe, test), wanted - 10, bins=10)
    after = calibration_metrics(probe_logits(probe, test), wanted - 10, temperature=temperature, bins=10)
    assert found == before | {"temperature": temperature} | {f"scaled_{name}": after[name] for name in NAMES}
    assert found["scaled_ece"] < found["ece"] / 2
    assert found["scaled_nll"] < found["nll"]


def test_rows_with_a_label_that_training_lacks_are_left_out_with_a_warning(caplog):
    (train, learnt), (test, wanted) = noisy(300, seed=1), noisy(50, seed=5)
    expected = calibrated_probe_metrics(train, learnt, test, wanted)
    more = np.concatenate([test, test[:2]]), np.concatenate([wanted, [3, 99]])
    assert calibrated_probe_metrics(train, learnt, *more) == expected
    assert "2 of 52 test rows have a label that no training row has (2 labels): they are left out" in caplog.text
    with pytest.raises(ValueError, match="`test_labels` to have a label of `train_labels`, but got none"):
        calibrated_probe_metrics(train, learnt, test, wanted + 50)


def test_penalty_can_be_chosen():
    (train, learnt), (test, wanted) = noisy(300, seed=1), noisy(200, seed=5)
    chosen = calibrated_probe_metrics(train, learnt, test, wanted, inverse_l2="auto")
    assert chosen["nll"] < calibrated_probe_metrics(train, learnt, test, wanted, inverse_l2=100.0)["nll"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out": 0.0}, r"`held_out` to be in \(0, 1\), but got 0.0"),
        ({"held_out": 0.001}, "`held_out` to leave rows to score.* 0.001 of 40 rows are 0"),
        ({"seed": -1}, "`seed` to be at least 0, but got -1"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(options, message):
    features, labels = noisy(40, seed=1)
    with pytest.raises(ValueError, match=message):
        fit_calibrated_probe(features, labels, **options)
    with pytest.raises(ValueError, match=message):
        calibrated_probe_metrics(features, labels, features, labels, **options)
